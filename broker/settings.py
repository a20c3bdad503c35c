"""All settings, one frozen section a room: defaults < TOML file < `BROKER_*` environment (contract C10).

The environment is read here and nowhere else. `load` is called once, by the composition root; rooms are given their
section. In the environment a nested name is written with two underscores: `BROKER_JOBS__LEASE_TTL_S=30`.
"""

from __future__ import annotations

import os
from decimal import Decimal
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import platformdirs
from pydantic import Field, IPvAnyNetwork, NonNegativeInt, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from broker.market_settings import (
    AwsSettings,
    FxSettings,
    HostsSettings,
    LocalMarketSettings,
    PriceSettings,
    ProviderSettings,
    SandboxSettings,
)
from broker.model_settings import ModelSettings
from broker.section import Section


class HttpSettings(Section):
    """Where the broker listens. `public_url` is what workers dial; needed when it differs from the listening address.
    A path in it is a proxy's, which takes it off.

    With `tls_certificate` (PEM, with its chain) and `tls_key` the broker speaks TLS itself, and knows its workers by client
    certificates of its own authority; behind a proxy that ends TLS leave both away and set `public_url`. `tls_ca` (PEM) is
    what workers trust in addition to what their system does.

    `trusted_proxies` are networks (`10.0.0.0/8`) from which proxies speak for others: their word in X-Forwarded-For is believed
    when it is asked from which country a machine calls.

    A key may have `streams_per_key` event streams open at a process; a silent one gets a comment every
    `stream_heartbeat_s`, so that proxies keep it open.
    """

    host: str = "127.0.0.1"
    port: int = 0
    public_url: str | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = None
    trusted_proxies: tuple[IPvAnyNetwork, ...] = ()
    shutdown_timeout_s: float = 10
    streams_per_key: int = 16
    stream_heartbeat_s: float = 15

    @model_validator(mode="after")
    def _tls_is_whole(self) -> HttpSettings:
        """A misspelt name must not leave the broker speaking plain HTTP."""
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together: set both, or neither to speak plain HTTP")
        if self.tls_certificate is not None and (self.public_url or "https:").startswith("http:"):
            raise ValueError(
                f"public_url = {self.public_url!r} is plain HTTP, and with tls_certificate the port speaks TLS: write https"
            )
        return self

    @field_validator("host")
    @classmethod
    def _host_is_said(cls, host: str) -> str:
        """An empty one binds to all addresses, and no URL can be made of it."""
        if not host.strip():
            raise ValueError(
                "it is empty: write an address of this machine, such as 127.0.0.1, or 0.0.0.0 or :: for all of them"
            )
        return host

    @field_validator("public_url")
    @classmethod
    def _public_url_can_be_dialled(cls, url: str | None) -> str | None:
        """Machines are rented and started before they dial: what they cannot must be known before."""
        if url is None:
            return None
        try:
            parts = urlsplit(url)
            is_whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # a port that is none, or half an IPv6 address
            is_whole = False
        if not is_whole or parts.username or parts.query or parts.fragment or not url.isascii() or " " in url:
            raise ValueError(f"{url!r} is no URL that workers can dial: write https://HOST or https://HOST:PORT")
        return url.rstrip("/")


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
    `anomaly_s`: how often the books are looked through for anomalies. `hold_expiry_s`: how long money stays set aside for what
    is no longer known or was settled without giving it back (never while a machine runs).
    `keep_plans`: so many of the newest plans are kept, each with all that it was made of, beside those that open batches and
    machines go by. `begin_later`: batches with time to spare wait for a cheaper hour, or for spot that is sold out; else all
    begin as soon as they can.
    """

    poll_s: float = 60
    plan_s: float = 5
    reconcile_s: float = 5
    accrue_s: float = 5
    anomaly_s: float = Field(default=900, gt=0)
    finalise_s: float = 1
    collect_s: float = 60
    garbage_s: float = 600
    orphan_grace_s: int = Field(default=86_400, ge=3_600)
    max_objects_per_cycle: int = Field(default=1_000, ge=0)
    keep_plans: int = Field(default=500, ge=1)
    hold_buffer: Decimal = Decimal("1.25")
    hold_expiry_s: float = Field(default=86_400, ge=60)
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
    begin_later: bool = True

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

    `encryption`: what is stored from now on is sealed (AES-256-GCM) with a key for each file and batch, under the vault's
    key-encryption key; what is stored already stays as it is, and readable (docs/encryption.md). `workers_must_seal`: machines
    whose image has no `cryptography` are sent away at their hello, instead of being given what the broker opened.

    `rtt_ms`: how long a message from a market's machines to the store and back takes, as you measured it, by market and region
    ("aws/eu-central-1" = 4) or for a whole market ("local" = 0). What is not stated is unknown, and no place for a batch with
    `x_broker.max_rtt_ms`.

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
    encryption: bool = True
    workers_must_seal: bool = False
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
    rtt_ms: dict[str, NonNegativeInt] = Field(default_factory=dict)


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

    @field_validator("database_url")
    @classmethod
    def _names_a_database_that_we_speak(cls, url: str | None) -> str | None:
        if url is not None and url.partition(":")[0].partition("+")[0] not in ("postgresql", "postgres", "sqlite"):
            raise ValueError("must be postgresql://USER@HOST/NAME; leave it out for SQLite in the data folder")
        return url

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
