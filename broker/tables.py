"""The control plane's own tables: projects and keys, placements and assignments, plans, workers, quotes."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Column, LargeBinary
from sqlmodel import Field, SQLModel


def micros(*, nullable: bool = False, index: bool = False) -> Any:
    """A column of integer microseconds UTC (or of nano-USD): 64 bits."""
    return Field(default=None, sa_column=Column(BigInteger, nullable=nullable, index=index))


class Project(SQLModel, table=True):
    """A project owns files, batches and a budget. `policy` is a residency policy's JSON, None is class internal.

    `limits` replace the settings' (`max_lines`, `max_file_bytes` …, contract C12). A batch whose quote is above
    `approve_above_nano` waits until a second person has approved it.
    """

    __tablename__ = "broker_project"
    id: str = Field(primary_key=True)
    name: str = Field(unique=True)
    created_us: int = micros()
    policy: dict[str, Any] | None = Field(default=None, sa_column=Column(JSON, nullable=True))
    limits: dict[str, int] | None = Field(default=None, sa_column=Column(JSON, nullable=True))
    approve_above_nano: int | None = micros(nullable=True)


class Key(SQLModel, table=True):
    """An API key: only the hash of its secret is stored. `roles` scope it; `project` None sees all (admin)."""

    __tablename__ = "broker_key"
    id: str = Field(primary_key=True)
    secret_sha256: str
    principal: str
    project: str | None = Field(default=None, index=True)
    roles: list[str] = Field(sa_column=Column(JSON, nullable=False))
    created_us: int = micros()
    expires_us: int | None = micros(nullable=True)
    revoked_us: int | None = micros(nullable=True)


class Policy(SQLModel, table=True):
    """A compiled residency policy by its hash, as pinned by a batch when it was created."""

    __tablename__ = "broker_policy"
    hash: str = Field(primary_key=True)
    body: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    created_us: int = micros()


class Term(SQLModel, table=True):
    """Who leads the brokers of this database: one row (id 1). Each election raises `term`; what a leader of an earlier
    one decides is refused (broker/leadership.py). `holder` and `url` are for people."""

    __tablename__ = "broker_term"
    id: int = Field(primary_key=True)
    term: int = micros()
    holder: str | None = None
    url: str | None = None
    since_us: int | None = micros(nullable=True)


class ClaimRow(SQLModel, table=True):
    """A piece of work that one broker of this database does now (broker/claims.py). `takes` counts who had it since it was free;
    `holder` is for people."""

    __tablename__ = "broker_claim"
    work: str = Field(primary_key=True)
    subject: str = Field(primary_key=True)
    token: str = Field(index=True, unique=True)
    holder: str
    until_us: int = micros()
    takes: int


class UsedProof(SQLModel, table=True):
    """A proof of a worker behind a TLS proxy that was used (its digest), kept until it is too old to be shown again."""

    __tablename__ = "broker_used_proof"
    proof: str = Field(primary_key=True)
    until_us: int = micros(index=True)


class Replica(SQLModel, table=True):
    """A broker of this database, as it said of itself last: `settings` are digests by section, to see which differ."""

    __tablename__ = "broker_replica"
    holder: str = Field(primary_key=True)
    url: str
    settings: dict[str, str] = Field(sa_column=Column(JSON, nullable=False))
    started_us: int = micros()
    seen_us: int = micros()


class Agreed(SQLModel, table=True):
    """What all brokers of this database have in common and the first of them made: `owner`, `kek` (its name),
    and `secret.sealed`; of SQLite, too, `store`: the name of the object store (broker/store_identity.py)."""

    __tablename__ = "broker_agreed"
    name: str = Field(primary_key=True)
    value: bytes = Field(sa_column=Column(LargeBinary, nullable=False))


class HouseAccount(SQLModel, table=True):
    """Which of the provider's accounts the house's machines at a market run in (broker/house_accounts.py). `other` is the
    account of a login that was refused since, with `other_us`; None: the login is of `account`. `before` was given up by
    `given_up_by`, or left when no machine ran there any more (None)."""

    __tablename__ = "broker_house_account"
    market: str = Field(primary_key=True)
    account: str
    since_us: int = micros()
    other: str | None = None
    other_us: int | None = micros(nullable=True)
    before: str | None = None
    given_up_by: str | None = None


class PlanRow(SQLModel, table=True):
    """A plan that was acted on, with the snapshot that led to it, so that `explain` shows what was really decided."""

    __tablename__ = "broker_plan"
    id: str = Field(primary_key=True)
    created_us: int = micros(index=True)
    snapshot_sha256: str
    snapshot: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    plan: bytes = Field(sa_column=Column(LargeBinary, nullable=False))


class Assignment(SQLModel, table=True):
    """The newest plan's word on a batch and an offer: rentals of that offer serve the batch, in `rank` order.

    Of a batch with a p95 to keep: each of them has at most `concurrency` of its requests at once, p95 should then be `p95_ms` (by
    the model alone, without what was observed), and the machine takes `slowed_ppm` millionths of the time without that limit.
    """

    __tablename__ = "broker_assignment"
    batch: str = Field(primary_key=True)
    offer_key: str = Field(primary_key=True)
    plan: str = Field(index=True)
    rank: int
    cost_nano: int = micros()
    end_us: int = micros()
    concurrency: int | None = None
    p95_ms: int | None = None
    slowed_ppm: int | None = micros(nullable=True)


# In `Waiting.plan`: not a plan keeps this batch waiting, but its own limit, for good.
STOPPED = ""


class Waiting(SQLModel, table=True):
    """Why a batch is not (fully) placed by the newest plan: the one word and the reasons.

    `plan` STOPPED: it was stopped at its `max_usd`; no plan looks at it any more.
    """

    __tablename__ = "broker_waiting"
    batch: str = Field(primary_key=True)
    plan: str
    waiting_on: str
    reasons: list[str] = Field(sa_column=Column(JSON, nullable=False))
    relaxations: list[dict[str, Any]] = Field(sa_column=Column(JSON, nullable=False))
    since_us: int = micros()


class WaitingTold(SQLModel, table=True):
    """What was told last of why a batch that has not ended does not move: `cause` None is that it moves, `since_us` when
    that began. It is told once for each change."""

    __tablename__ = "broker_waiting_told"
    batch: str = Field(primary_key=True)
    cause: str | None = None
    since_us: int = micros()


class Worker(SQLModel, table=True):
    """The agent on a rental: its session, what it last said, and whether it shall drain.

    `token_sha256` is of the bootstrap token until hello, then of nothing: session tokens are signed, not stored, and
    carry `session` (a counter): raising it cuts every token off.
    """

    __tablename__ = "broker_worker"
    rental: str = Field(primary_key=True)
    bootstrap_sha256: str
    bootstrap_expires_us: int = micros()
    pubkey: str | None = None
    session: int = 0
    state: str = "awaited"
    created_us: int = micros()
    hello_us: int | None = micros(nullable=True)
    ready_us: int | None = micros(nullable=True)
    seen_us: int | None = micros(nullable=True)
    work_us: int | None = micros(nullable=True)
    gone_us: int | None = micros(nullable=True)
    drain_reason: str | None = None
    notice_us: int | None = micros(nullable=True)
    error: str | None = None
    hello: dict[str, Any] | None = Field(default=None, sa_column=Column(JSON, nullable=True))
    metrics: dict[str, Any] | None = Field(default=None, sa_column=Column(JSON, nullable=True))


class Measured(SQLModel, table=True):
    """What a model really did on an accelerator: sums over all commits; the planner's throughput comes from here."""

    __tablename__ = "broker_measured"
    model: str = Field(primary_key=True)
    precision: str = Field(primary_key=True)
    accelerator: str = Field(primary_key=True)
    prompt_tokens: int = micros()
    completion_tokens: int = micros()
    busy_ms: int = micros()
    loads: int = 0
    load_ms: int = micros()


class RequestTimes(SQLModel, table=True):
    """How long the requests of a batch with a p95 to keep took on one kind of machine: `took` counts them by bucket
    (workers/agent/took.py), `modelled_ms` sums what p95 was expected to be for each."""

    __tablename__ = "broker_request_times"
    batch: str = Field(primary_key=True)
    model: str = Field(primary_key=True)
    precision: str = Field(primary_key=True)
    accelerator: str = Field(primary_key=True)
    requests: int = micros()
    modelled_ms: int = micros()
    took: dict[str, int] = Field(sa_column=Column(JSON, nullable=False))
    observed_us: int = micros(index=True)


class StartUp(SQLModel, table=True):
    """How long a rental took to be of use, by phase: one observation for the next plan.

    `boot_ms` is from asking the market until hello, the image's pull (`pull_ms`) included; `ready_ms` from hello until the
    engine is healthy, of which it names download, load and warm-up itself; `first_line_ms` from then to the first answer.
    `place` is the region, or the machine where a market has none.
    """

    __tablename__ = "broker_start_up"
    rental: str = Field(primary_key=True)
    market: str
    place: str
    image: str
    model: str
    accelerator: str
    observed_us: int = Field(sa_column=Column(BigInteger, nullable=False, index=True))
    boot_ms: int = micros()
    ready_ms: int = micros()
    pull_ms: int | None = micros(nullable=True)
    download_ms: int | None = micros(nullable=True)
    load_ms: int | None = micros(nullable=True)
    warm_up_ms: int | None = micros(nullable=True)
    first_line_ms: int | None = micros(nullable=True)


class Quote(SQLModel, table=True):
    """What a user was told before or when submitting: cost and finish, to compare with what became of it."""

    __tablename__ = "broker_quote"
    id: str = Field(primary_key=True)
    project: str = Field(index=True)
    batch: str | None = Field(default=None, index=True)
    created_us: int = micros()
    cost_nano: int | None = micros(nullable=True)
    end_us: int | None = micros(nullable=True)
    body: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))


class Approval(SQLModel, table=True):
    """Something that waits for a second person (contract C14): `subject` is the id of a batch (`kind` batch).

    `outcome` is None until `decided_by`, who is another principal than `proposer`, has approved or rejected it.
    """

    __tablename__ = "broker_approval"
    id: str = Field(primary_key=True)
    kind: str
    subject: str = Field(index=True)
    project: str = Field(index=True)
    reason: str
    proposer: str
    created_us: int = micros()
    outcome: str | None = None
    decided_by: str | None = None
    decided_us: int | None = micros(nullable=True)


class Webhook(SQLModel, table=True):
    """Whom a project tells of its batches. `events` are types such as `batch.completed`.

    `secret` is sealed with the vault's `data_key`; `secret_hint` are its last characters. The one before it is signed with, too,
    until `earlier_until_us`. `failing_since_us` is the first failure since the last success. `disabled_us` is set when
    somebody switched it off, when it answered 410, or when it did nothing but fail for too long.
    """

    __tablename__ = "broker_webhook"
    id: str = Field(primary_key=True)
    project: str = Field(index=True)
    name: str
    url: str
    secret: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    secret_hint: str
    data_key: str | None = None
    earlier_secret: bytes | None = Field(default=None, sa_column=Column(LargeBinary, nullable=True))
    earlier_until_us: int | None = micros(nullable=True)
    events: list[str] = Field(sa_column=Column(JSON, nullable=False))
    created_us: int = micros()
    updated_us: int = micros()
    failing_since_us: int | None = micros(nullable=True)
    disabled_us: int | None = micros(nullable=True)
    disabled_reason: str | None = None


class Delivery(SQLModel, table=True):
    """One event on its way to one webhook: at least once, with the event's id as `webhook-id`, so that repeats are known.

    `next_us` is when it is tried (again); None once it was delivered or given up (`gave_up_us`). While an attempt is
    under way it is when that counts as lost. `last_us` is when the newest attempt began.
    """

    __tablename__ = "broker_delivery"
    webhook: str = Field(primary_key=True)
    event: str = Field(primary_key=True)
    batch: str = Field(index=True)
    type: str
    created_us: int = micros()
    attempts: int = 0
    next_us: int | None = micros(nullable=True, index=True)
    last_us: int | None = micros(nullable=True)
    delivered_us: int | None = micros(nullable=True)
    gave_up_us: int | None = micros(nullable=True)
    last_status: int | None = None
    last_error: str | None = None
