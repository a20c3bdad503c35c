"""All settings, one frozen section a room: defaults < TOML file < `BROKER_*` environment (contract C10).

The environment is read here and nowhere else. `load` is called once, by the composition root; rooms are given their
section. In the environment a nested name is written with two underscores: `BROKER_JOBS__LEASE_TTL_S=30`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, Self

import platformdirs
from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from markets.hourly import FxRate
from markets.offer import AcceleratorKind
from markets.own_cost import OwnCost
from workers.engine_profile import DEFAULT, EngineProfile
from workers.profile import EngineKind


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class HttpSettings(Section):
    """Where the broker listens. `public_url` is what workers dial; needed when it differs from the listening address.

    With `tls_certificate` (PEM, with its chain) and `tls_key` the broker speaks TLS itself, and knows its workers by client
    certificates of its own authority; behind a proxy that ends TLS leave both away and set `public_url`. `tls_ca` (PEM) is
    what workers trust in addition to what their system does.

    A key may have `streams_per_key` event streams open at a process; a silent one gets a comment every
    `stream_heartbeat_s`, so that proxies keep it open.
    """

    host: str = "127.0.0.1"
    port: int = 0
    public_url: str | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = None
    shutdown_timeout_s: float = 10
    streams_per_key: int = 16
    stream_heartbeat_s: float = 15

    @model_validator(mode="after")
    def _tls_is_whole(self) -> HttpSettings:
        """A misspelt name must not leave the broker speaking plain HTTP."""
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together: set both, or neither to speak plain HTTP")
        return self


class DatabaseSettings(Section):
    """PostgreSQL, which several brokers may share; SQLite needs none of it.

    A broker holds up to `pool_size` connections open, `pool_overflow` more for a moment, and one that it is elected by.
    One that says nothing for `leader_patience_s` leads no more, and what it had begun is rolled back.
    """

    pool_size: int = Field(default=10, ge=1)
    pool_overflow: int = Field(default=20, ge=0)
    leader_patience_s: float = Field(default=10, ge=1)


class JobsSettings(Section):
    """Limits of a file and a batch, and the timing of leases and parts. Answers are remembered for reuse for `reuse_days`.

    `max_file_bytes` is of a file sent in one request, `max_upload_bytes` of one sent in parts (`/v1/uploads`).
    `file_lifetime_s`: after how many seconds a batch's input file expires when its owner does not say (as at OpenAI, 30
    days); 0 keeps it until it is deleted. `results_lifetime_s` is the same for output and error files, from when they are
    made; what only serves results goes with them. A project may have both of its own. `media_hosts`: from where engines may
    fetch what prompts refer to (https, by name); by default nowhere, because they would fetch it from inside the rented
    machine.
    """

    max_lines: int = 50_000
    max_file_bytes: int = 200 * 1024 * 1024
    max_upload_bytes: int = 8 * 1024 * 1024 * 1024
    file_lifetime_s: int = Field(default=2_592_000, ge=0)
    results_lifetime_s: int = Field(default=0, ge=0)
    max_line_bytes: int = 1024 * 1024
    media_hosts: tuple[str, ...] = ()
    shard_lines: int = 1_000
    shard_bytes: int = 8 * 1024 * 1024
    part_lines: int = 200
    part_seconds: float = 30
    part_bytes: int = 4 * 1024 * 1024
    lease_ttl_s: float = 60
    reuse_days: int = 30
    max_attempts: int = 3
    default_output_tokens: int = 256
    default_window: str = "24h"


class ControlSettings(Section):
    """How often each loop runs, in seconds, and how patient it is.

    `cancel_grace_s`: how long lines in flight of a cancelled batch may still finish; `drain_s`: the same for a machine
    that is asked to finish. Both bound what a line that hangs can cost. `approve_above_usd`: a batch that may cost more waits
    until a second person has approved it; a project may have a threshold of its own. Objects that no row needs are removed
    `orphan_grace_s` after they were written, at most `max_objects_per_cycle` each `garbage_s`; 0 removes none.
    `keep_plans`: so many of the newest plans are kept, each with all that it was made of, beside those that open batches and
    machines go by.
    """

    poll_s: float = 60
    plan_s: float = 5
    reconcile_s: float = 5
    accrue_s: float = 5
    finalise_s: float = 1
    collect_s: float = 60
    garbage_s: float = 600
    orphan_grace_s: int = Field(default=86_400, ge=3_600)
    max_objects_per_cycle: int = Field(default=1_000, ge=0)
    keep_plans: int = Field(default=500, ge=1)
    hold_buffer: Decimal = Decimal("1.25")
    idle_release_s: float = 20
    worker_silence_s: float = 60
    dead_man_s: int = 900
    solve_timeout_s: float = 30
    cancel_grace_s: float = 60
    drain_s: float = 60
    heartbeat_s: float = 15
    token_ttl_s: int = 600
    create_grace_s: float = 120
    max_kills_per_cycle: int = 5
    approve_above_usd: Decimal | None = Field(default=None, ge=0)

    @property
    def unseen_s(self) -> int:
        """Seconds that a machine may cost money unseen: a few ticks of the meter, and the way to a confirmed release."""
        return round(3 * max(self.accrue_s, self.reconcile_s)) + 10

    @property
    def drain_margin_s(self) -> int:
        """The same when its worker is asked to finish first: it hears of it with its next heartbeat."""
        return self.unseen_s + round(2 * self.heartbeat_s)


class LedgerSettings(Section):
    """How the books are sealed: every `checkpoint_s` a checkpoint of each stream is signed and written to `checkpoints`, a folder
    outside the database (default DATA/checkpoints; best on another machine's disk).

    `name` is who signs; `key_file` is the Ed25519 key (PEM), by default DATA/ledger.key, made at the first start.
    """

    checkpoint_s: float = Field(default=3600, gt=0)
    checkpoints: Path | None = None
    name: str = Field(default="broker", pattern=r"^[A-Za-z0-9._-]{1,64}$")
    key_file: Path | None = None


class MailSettings(Section):
    """The mail server that budgets' alerts go out by. `starttls` is for servers that want it (port 587); without it the password
    and the letters go in clear."""

    host: str
    port: int = 587
    sender: str = Field(pattern=r"^[^@\s]+@[^@\s]+$")
    user: str | None = None
    password: SecretStr | None = None
    starttls: bool = True
    timeout_s: float = 20


class WebhookSettings(Section):
    """How batches' events are sent to users' URLs.

    Those are https on the public internet; `allow_http` and `allow_private` lift that, for a network of your own.
    `concurrency` is how many receivers are sent to at once. Deliveries, and events of batches that have ended, are kept for
    `keep_days`.
    """

    allow_http: bool = False
    allow_private: bool = False
    timeout_s: float = 15
    concurrency: int = 32
    deliver_s: float = 2
    per_project: int = 20
    keep_days: int = 30


class ObjectSettings(Section):
    """Where files, parts and results lie: `local` (a folder, default DATA/objects), `s3`, `gcs` or `azure`.

    `bucket` is the container at Azure; `prefix` keeps everything below one folder of it. `endpoint` is for stores that
    speak S3 elsewhere than at Amazon; `public_endpoint` is how workers reach the same store, where that differs.
    `path_style`: the bucket in the path instead of the host; default with an `endpoint`. Plain http is for loopback only,
    unless `allow_http`. `direct`: workers read and write the store itself, by signed requests for one key each; without it,
    and where a store cannot sign so, through the broker.

    Credentials: `access_key_id` with `secret_access_key` (S3), `account` with `secret_access_key` (Azure), or the secret in
    a file of its own, `secret_file` (at Google the service account's JSON). Without any, the instance's identity is used.

    `country` and the rest are the store's residency facts, `evidence` where they are known from: batches whose policy does
    not allow them are refused. A local folder is where the local market says that this machine is.
    """

    kind: Literal["local", "s3", "gcs", "azure"] = "local"
    folder: Path | None = None
    bucket: str | None = None
    prefix: str = Field(default="", pattern=r"^([\w.-]+(/[\w.-]+)*)?$")
    endpoint: str | None = None
    public_endpoint: str | None = None
    region: str = "us-east-1"
    path_style: bool | None = None
    allow_http: bool = False
    direct: bool = True
    access_key_id: str | None = None
    secret_access_key: SecretStr | None = None
    session_token: SecretStr | None = None
    secret_file: Path | None = None
    account: str | None = None
    country: str | None = Field(default=None, pattern="^[A-Z]{2}$")
    subdivision: str | None = None
    operator: str | None = None
    jurisdictions: tuple[str, ...] | None = None
    evidence: str = "configured by the operator"


class PathSettings(Section):
    """Where a data path leads and whose it is: the operator's own statement, as `objects` has it of the store."""

    country: str | None = Field(default=None, pattern="^[A-Z]{2}$")
    subdivision: str | None = None
    operator: str | None = None
    jurisdictions: tuple[str, ...] | None = None
    evidence: str = "configured by the operator"


class ResidencySettings(Section):
    """Where data goes besides machines and the object store: policies are held against these, too.

    Not stated, `control_plane` (this broker and its database) and `log` are where `local.country` says that this machine is;
    `registry`, which images come from, is unknown, and does not matter where machines take no image. `default_class` is the
    class of a project's data without a class of its own. `ip_countries` is a table of networks (CSV `network,country`): a machine
    that calls from another country than its offer's is ended at hello.
    """

    control_plane: PathSettings | None = None
    log: PathSettings | None = None
    registry: PathSettings | None = None
    ip_countries: Path | None = None
    default_class: Literal["public", "internal", "confidential", "personal", "health", "secret"] = "internal"


class KekSettings(Section):
    """One key-encryption key: `file` (32 bytes in base64, mode 0600), `value` (the same, best from the environment:
    BROKER_VAULT__KEYS='{"2026-11": {"value": "…"}}'), or `aws_kms` (a key id, alias or ARN; needs the extra `aws`)."""

    file: Path | None = None
    value: SecretStr | None = None
    aws_kms: str | None = None
    aws_region: str | None = None


class VaultSettings(Section):
    """What secrets of others are encrypted under: by default DATA/kek, made at the first start. Lose it, and they are lost.

    `keys` by name; `current` wraps what is new. To rotate: add a key, make it current, `broker credentials rotate`, and take
    the earlier one out when nothing is wrapped by it. Brokers that share a database share their keys.
    """

    current: str | None = None
    aws_region: str | None = None
    keys: dict[str, KekSettings] = {}


class OidcGrant(Section):
    """Whoever is in `group` has `roles` in `project`; without a project in all."""

    group: str
    project: str | None = Field(default=None, pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")
    roles: tuple[Literal["submitter", "viewer", "compliance", "finance", "operator", "admin"], ...] = Field(
        min_length=1
    )


class OidcSettings(Section):
    """Whose tokens are taken beside API keys, and what they grant. `issuer` exactly as it is written in the tokens.

    `audience` is whom tokens must be for; `client_id` what `broker login` says it is (a public client with the device grant).
    `name_claim` is the person's name in approvals and logs, `groups_claim` the list that grants are held against.
    """

    issuer: str
    audience: str
    client_id: str | None = None
    scopes: tuple[str, ...] = ("openid", "email", "offline_access")
    name_claim: str = "email"
    groups_claim: str = "groups"
    grants: tuple[OidcGrant, ...] = ()


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


class ProfileSettings(Section):
    """One way to run a model's engine: the options of `workers.engine_profile.EngineProfile`, and what it changes of the
    model's own section (an AWQ profile has other weights and another speed).

    `precision` is what a batch's wish of that name is held against, by default the quantisation or the dtype.
    """

    options: EngineProfile = DEFAULT
    weights: str | None = None
    weights_sha256: str | None = None
    revision: str | None = None
    precision: str | None = None
    context: int | None = None
    image: str | None = None
    shm_mib: int | None = None
    args: tuple[str, ...] | None = None
    env: dict[str, str] | None = None
    launches: tuple[str, ...] | None = None
    tokens_per_s: dict[str, tuple[float, float]] | None = None
    load_s: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _options_stand_beside(cls, given: Any) -> Any:
        """In TOML the options stand beside the rest: `[models."m".profiles.fp8] quantization = "fp8"`."""
        if not isinstance(given, dict):
            return given
        names = {each.name for each in fields(EngineProfile)} & given.keys()
        beside = {name: given[name] for name in names}
        rest = {name: value for name, value in given.items() if name not in names}
        return {**rest, "options": {**rest.get("options", {}), **beside}} if beside else given


class AwsSettings(Section):
    """AWS EC2 as the market `aws`, in `regions`. Without keys: boto3's own chain (on AWS, the machine's role).

    `instance_types` may have wildcards. `image` is an AMI or an SSM parameter that names one; it needs docker or apt, and
    for GPUs NVIDIA's driver and container toolkit. `subnets` and `security_groups` are by region: by default the default
    VPC's subnets, and a group of our own that lets nothing in. `boot_s`: from renting to the start of the container, without
    its image's pull. `endpoint_url`, `price_list_url` and `advisor_url` (how often spot is taken away) replace AWS's own.
    """

    regions: tuple[str, ...] = ()
    instance_types: tuple[str, ...] = ("g5.*", "g6.*", "g6e.*", "p4d.*", "p4de.*", "p5.*", "p5en.*")
    pricings: tuple[Literal["spot", "on_demand"], ...] = ("spot", "on_demand")
    access_key_id: str | None = None
    secret_access_key: SecretStr | None = None
    session_token: SecretStr | None = None
    image: str = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id"
    disk_gib: int = Field(default=200, ge=30)
    boot_s: int = 150
    subnets: dict[str, tuple[str, ...]] = {}
    security_groups: dict[str, str] = {}
    endpoint_url: str | None = None
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


class ProviderSettings(Section):
    """One provider whose prices are read, by its market's name: `[providers.lambda]`.

    `credentials` are the house's, by name (`{api_key = "…"}`); a project's own, kept by `broker credentials set`, are used
    where there are none. `url` replaces the provider's own address. `regions`, `countries`, `organization` and `project` narrow
    or complete what is asked, where the provider needs it (docs/markets.md). `poll_s` and `max_age_s` replace the market's own
    interval and limit of age. `card` is a price card of a token endpoint, in place of the shipped one; of an endpoint that has
    none, the section's name is the market's.
    """

    credentials: dict[str, SecretStr] = {}
    url: str | None = None
    regions: tuple[str, ...] = ()
    countries: tuple[str, ...] = ()
    organization: str | None = None
    project: str | None = None
    card: Path | None = None
    cluster: ClusterSettings = ClusterSettings()
    poll_s: float | None = Field(default=None, gt=0)
    max_age_s: int | None = Field(default=None, gt=0)


class ModelSettings(Section):
    """One model that may be asked for, and how it is served.

    `publisher`, `licence` (SPDX) and `costly` are what residency policies may ask of it.

    `serves` is the name that lines use, default the section's own: several sections may serve one model, and the cheapest
    that a batch accepts does. `precision` is what a batch's wish of that name is held against. `profiles` are ways to run
    the engine, by name: each is a profile of its own, `MODEL@NAME`.

    `engine`: `llamacpp`, `vllm` (`vllm-tpu`, `vllm-neuron`), `sglang` and `trtllm` start a server from `weights`; `url` uses a
    server that already runs at `base_url`; `command` starts `argv`, any program that serves the OpenAI API on
    {host}:{port}. `tokens_per_s` is the starting estimate (input, output) by accelerator name; measurements replace it.
    Of GPUs that it does not name, speed is estimated where the model is known (its name, or the `config.json` in its folder of
    weights).
    `endpoints`: what batches may use, by default what the engine serves of a model that writes text; an embedding model
    says `["/v1/embeddings"]`. `image` is named by digest, or `image_tag_may_move` says that you accept what a tag is.
    """

    engine: EngineKind
    serves: str | None = None
    publisher: str | None = None
    licence: str | None = None
    costly: bool | None = None
    weights: str | None = None
    weights_sha256: str | None = None
    revision: str | None = None
    precision: str = "auto"
    context: int = 2048
    parallel: int = 8
    image: str | None = None
    image_tag_may_move: bool = False
    entrypoint: tuple[str, ...] | None = None
    shm_mib: int | None = None
    cache: bool = True
    user: str | None = None
    profiles: dict[str, ProfileSettings] = {}
    args: tuple[str, ...] = ()
    env: dict[str, str] = {}
    argv: tuple[str, ...] = ()
    base_url: str | None = None
    api_key: SecretStr | None = None
    launches: tuple[str, ...] = ("process",)
    endpoints: tuple[str, ...] | None = None
    tokens_per_s: dict[str, tuple[float, float]] = {"cpu": (200.0, 40.0)}
    load_s: int = 10
    request_timeout_s: int = 600
    health_path: str | None = None
    metrics_path: str | None = None
    metrics: dict[str, str] = {}


class FxSettings(Section):
    """What one unit of a currency is worth in USD, since when, and by whom: `[fx_rates.EUR]`."""

    usd: Decimal = Field(gt=0)
    dated: date
    source: str

    def as_rate(self, currency: str) -> FxRate:
        return FxRate(currency, self.usd, self.dated, self.source)


class PriceSettings(Section):
    """The price book's memory: each change for `keep_days`, then a line a day for `keep_rolled_days`. `snapshot`: real prices
    of a dated snapshot stand in for markets that nobody has asked yet."""

    keep_days: int = Field(default=90, ge=2)
    keep_rolled_days: int = Field(default=1825, ge=2)
    roll_up_s: float = 3600
    card_days: int = Field(default=30, ge=1)
    snapshot: bool = True


class Settings(BaseSettings):
    """The whole. `data` is the one folder that a broker owns (contract C16).

    `cache` holds what can be fetched again (model weights); it may be shared by brokers. `url` and `api_key` point the
    commands at a broker elsewhere instead of the data folder's own; `project` says whose batches they mean, for a key
    that sees all projects. `tls_ca` (PEM) is what they trust beside their system. `completion_s` is how long Tab waits for a
    broker's word. `log_format` auto is console on a terminal and json, one event a line, everywhere else.
    """

    model_config = SettingsConfigDict(env_prefix="BROKER_", env_nested_delimiter="__", frozen=True, extra="forbid")

    data: Path = Path(platformdirs.user_data_dir("compute-broker"))
    cache: Path = Path(platformdirs.user_cache_dir("compute-broker"))
    database_url: str | None = None
    url: str | None = None
    api_key: SecretStr | None = None
    project: str | None = None
    tls_ca: Path | None = None
    completion_s: float = 1.0
    markets: tuple[str, ...] = ("local", "sandbox")
    sources: tuple[str, ...] = ()
    failpoint: str | None = None
    agent_failpoint: str | None = None
    log_level: str = "info"
    log_format: Literal["auto", "json", "console"] = "auto"
    http: HttpSettings = HttpSettings()
    database: DatabaseSettings = DatabaseSettings()
    jobs: JobsSettings = JobsSettings()
    control: ControlSettings = ControlSettings()
    webhooks: WebhookSettings = WebhookSettings()
    ledger: LedgerSettings = LedgerSettings()
    mail: MailSettings | None = None
    objects: ObjectSettings = ObjectSettings()
    residency: ResidencySettings = ResidencySettings()
    vault: VaultSettings = VaultSettings()
    oidc: OidcSettings | None = None
    local: LocalMarketSettings = LocalMarketSettings()
    sandbox: SandboxSettings = SandboxSettings()
    own: HostsSettings = HostsSettings()
    aws: AwsSettings = AwsSettings()
    providers: dict[str, ProviderSettings] = {}
    fx_rates: dict[str, FxSettings] = {}
    prices: PriceSettings = PriceSettings()
    models: dict[str, ModelSettings] = {}

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


# Names of settings whose values are never shown, not even when they are wrong. A test finds those that are missing here.
SECRET_SETTINGS = frozenset(
    {
        "api_key",
        "token",
        "value",
        "env",
        "database_url",
        "secret_access_key",
        "session_token",
        "password",
        "credentials",
    }
)


def load(toml: Path | None = None, **overrides: object) -> Settings:
    """Settings from `toml` (default: `broker.toml` in the data folder, if there), the environment, and `overrides`.

    Raises pydantic.ValidationError naming the field, its value and what it must be.
    """
    default = Settings.model_fields["data"].default
    data = Path(str(overrides.get("data") or os.environ.get("BROKER_DATA") or default))
    file = toml or data / "broker.toml"

    class FromFile(Settings):
        model_config = SettingsConfigDict(toml_file=file)

    return FromFile(**overrides)  # type: ignore[arg-type]
