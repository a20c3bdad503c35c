"""Settings of where machines and tokens come from: own ones, rented ones, and prices that are only read."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator

from broker.section import Section
from markets.offer import AcceleratorKind
from markets.own_cost import OwnCost


class LocalMarketSettings(Section):
    """This machine as an offer. `usd_per_hour` is what an hour of it is worth to you; it must be positive."""

    usd_per_hour: Decimal = Field(default=Decimal("0.05"), gt=0)
    country: str | None = None
    slots: int = 1


class SandboxSettings(Section):
    """The sandbox provider. Without `url` the broker starts one in `DATA/sandbox` and finds it there again."""

    url: str | None = None
    token: SecretStr | None = None
    catalogue: Path | None = None


class OwnCostSettings(Section):
    """What an own machine costs (`markets.own_cost` counts with it): bought for `capex_usd`, written off over `life_years` at
    `used_percent` of the hours; `power_w` at work, times `pue`, at `usd_per_kwh`; `opex_usd_month` for all else."""

    capex_usd: Decimal = Field(ge=0)
    life_years: Decimal = Field(gt=0)
    power_w: Decimal = Field(ge=0)
    usd_per_kwh: Decimal = Field(ge=0)
    pue: Decimal = Field(default=Decimal("1.4"), ge=1)
    opex_usd_month: Decimal = Field(default=Decimal(0), ge=0)
    used_percent: Decimal = Field(default=Decimal(100), gt=0, le=100)


class OwnHost(Section):
    """One own machine, reached by SSH, on which `docker run` starts workers. `host_key` is pinned: `ssh-ed25519 AAAA…`.

    `gpus` gives a worker the host's accelerators, `devices` only these of NVIDIA's (indices or UUIDs). Their kind is
    `accelerator_kind`, NVIDIA's where it is not said.

    What an hour of one slot costs is said by `usd_per_hour`, or counted from what the machine `cost`s in all.
    """

    name: str
    address: str
    port: int = 22
    user: str = "root"
    host_key: str
    usd_per_hour: Decimal | None = Field(default=None, gt=0)
    cost: OwnCostSettings | None = None
    country: str
    slots: int = Field(default=1, ge=1)
    accelerator: str = "cpu"
    accelerator_kind: AcceleratorKind | None = None
    accelerator_count: int = 0
    accelerator_memory_mib: int = 0
    volumes: tuple[str, ...] = ()
    network: str = "host"
    docker: str = "docker"
    gpus: bool = False
    devices: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _has_one_price(self) -> Self:
        if (self.usd_per_hour is None) == (self.cost is None):
            raise ValueError(f"own host {self.name}: give either usd_per_hour or cost")
        if self.cost is not None and not self.components:
            raise ValueError(f"own host {self.name}: its cost is 0, which would be free; give what it costs")
        return self

    @property
    def components(self) -> Mapping[str, Decimal]:
        """What an hour of a slot consists of; empty with a price of its own."""
        return {} if self.cost is None else OwnCost(**self.cost.model_dump()).components(slots=self.slots)

    @property
    def price(self) -> Decimal:
        """USD an hour and slot."""
        return self.usd_per_hour if self.usd_per_hour is not None else sum(self.components.values(), Decimal(0))


class HostsSettings(Section):
    """Own hosts over SSH. Each login uses an ephemeral key certified for minutes by the broker's SSH CA in DATA.

    `broker hosts` prints the line that a host needs in authorized_keys. What ran on a host that does not answer is settled
    when it answers again, by its own record; take a host that will never come back out of this list, and its rentals
    are settled up to when they were last seen.
    """

    hosts: tuple[OwnHost, ...] = ()


class AwsSettings(Section):
    """AWS EC2 as the market `aws`, in `regions`. Without keys: boto3's own chain (on AWS, the machine's role).

    `instance_types` may have wildcards. `image` is an AMI or an SSM parameter that names one; it needs docker or apt, and
    for GPUs NVIDIA's driver and container toolkit. `subnets` and `security_groups` are by region: by default the default
    VPC's subnets, and a group of our own that lets nothing in. `boot_s`: from renting to the start of the container, without
    its image's pull. `endpoint_url`, `price_list_url` and `advisor_url` (how often spot is taken away) replace AWS's own;
    `sts_endpoint_url` (by default `endpoint_url`) says whose a login is.

    Projects with credentials of their own at `aws` (`broker credentials set aws`) rent with those, in these regions and by
    these terms; with `house = false` nobody else rents there.
    """

    regions: tuple[str, ...] = ()
    instance_types: tuple[str, ...] = ("g5.*", "g6.*", "g6e.*", "p4d.*", "p4de.*", "p5.*", "p5en.*")
    pricings: tuple[Literal["spot", "on_demand"], ...] = ("spot", "on_demand")
    house: bool = True
    access_key_id: str | None = None
    secret_access_key: SecretStr | None = None
    session_token: SecretStr | None = None
    image: str = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id"
    disk_gib: int = Field(default=200, ge=30)
    boot_s: int = 150
    subnets: dict[str, tuple[str, ...]] = {}
    security_groups: dict[str, str] = {}
    endpoint_url: str | None = None
    sts_endpoint_url: str | None = None
    price_list_url: str | None = None
    advisor_url: str | None = None


class ClusterSettings(Section):
    """What a Kubernetes cluster does not say itself: `[providers.kubernetes.cluster]`.

    `rates` are US dollars per GPU and hour, by our name of the device (`h100-sxm`) or by the nodes' instance type. `counts` are
    the sizes of pods to offer, by default whole nodes. `places` (region → country) or `country` is your own statement; without
    it the place is unknown. `ca` (PEM) signed the API server's certificate. `tolerations` are taints that pods may have.
    """

    rates: dict[str, Decimal] = {}
    counts: tuple[int, ...] = ()
    country: str | None = Field(default=None, pattern="^[A-Z]{2}$")
    places: dict[str, str] = {}
    operator: str | None = None
    home: str | None = Field(default=None, pattern="^[A-Z]{2}$")
    ca: Path | None = None
    tolerations: tuple[str, ...] = ("nvidia.com/gpu", "amd.com/gpu")


class TokenBuying(Section):
    """What is bought of a token endpoint: `[providers.together.buy]`, beside its price card and `credentials.api_key`.

    `models` maps our models (profiles) to the endpoint's own names; that both are one model is your word. The limits are those
    that the endpoint grants for each model. `concurrency` is how many requests are under way at once, `executors` how many
    projects buy one model at the same time, each with an equal part of the limits. `endpoints` are what it serves.
    `limit_unstated`: a line that says no limit of its answer is sent with the one that is held for it
    (`jobs.default_output_tokens`); without, its answer may cost more than was held. After `patience_s` without any answer the
    endpoint is left for a while, and what it did not answer goes elsewhere.
    """

    models: dict[str, str] = Field(min_length=1)
    tokens_per_minute: int = Field(ge=60)
    requests_per_minute: int | None = Field(default=None, ge=1)
    concurrency: int = Field(default=16, ge=1)
    executors: int = Field(default=1, ge=1)
    endpoints: tuple[str, ...] = ("/v1/chat/completions", "/v1/completions")
    request_timeout_s: int = Field(default=600, ge=1)
    limit_unstated: bool = True
    patience_s: float = Field(default=300, ge=1)


class ProviderSettings(Section):
    """One provider whose prices are read, by its market's name: `[providers.lambda]`.

    `credentials` are the house's, by name (`{api_key = "…"}`); a project's own, kept by `broker credentials set`, are used
    where there are none. `url` replaces the provider's own address. `regions`, `countries`, `organization` and `project` narrow
    or complete what is asked, where the provider needs it (docs/markets.md). `poll_s` and `max_age_s` replace the market's own
    interval and limit of age. `card` is a price card of a token endpoint, in place of the shipped one; of an endpoint that has
    none, the section's name is the market's. With `buy` its tokens are bought, too (docs/token-markets.md).
    """

    credentials: dict[str, SecretStr] = {}
    url: str | None = None
    regions: tuple[str, ...] = ()
    countries: tuple[str, ...] = ()
    organization: str | None = None
    project: str | None = None
    card: Path | None = None
    cluster: ClusterSettings = ClusterSettings()
    buy: TokenBuying | None = None
    poll_s: float | None = Field(default=None, gt=0)
    max_age_s: int | None = Field(default=None, gt=0)


class FxSettings(Section):
    """What one unit of a currency is worth in USD, since when, and by whom: `[fx_rates.EUR]`. The ledger's count where newer."""

    usd: Decimal = Field(gt=0)
    dated: date
    source: str


class PriceSettings(Section):
    """The price book's memory: each change for `keep_days`, then a line a day for `keep_rolled_days`. `snapshot`: real prices
    of a dated snapshot stand in for markets that nobody has asked yet. `fx_max_age_days`: by an older rate of exchange nothing is
    counted; the offers in that currency are listed with this reason."""

    keep_days: int = Field(default=90, ge=2)
    keep_rolled_days: int = Field(default=1825, ge=2)
    roll_up_s: float = 3600
    card_days: int = Field(default=30, ge=1)
    fx_max_age_days: int = Field(default=7, ge=1)
    snapshot: bool = True
