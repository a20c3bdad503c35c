"""The snapshot that goes in and the plan that comes out (contract C4), as JSON `version: 1`.

All amounts are integer nano-USD, all times integer microseconds UTC, all ids and hashes strings. The structs are frozen
and encode in field order, so `encode(snapshot)` is canonical: its sha256 names the snapshot, and the same snapshot gives
the same plan bit for bit. Floats appear only in `Throughput`, hazards and inside the solver.
"""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import msgspec

from solver.residency.types import Facts, ModelFacts, Policy

VERSION = 1
HOUR_US = 3_600_000_000
# Up to so many pairs of a work and an offer that may serve it, the program has a column for each; above, works are planned by
# classes (`size.is_small`).
SMALL = 3_000


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """What of a work is already done. Token and line counts in `Work` are of the *remaining* lines."""

    lines_done: int = 0
    spent_nano: int = 0


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """Another model, or another precision of it, that may serve a work instead of its own: with speeds, start-up, memory fit and
    downloads of its own. `facts` are what policies may ask of this model (`Snapshot.models` has those of the works' own); None is
    unknown."""

    model: str
    precision: str
    facts: ModelFacts | None = None


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """One queued batch: `lines`, `input_tokens` and `output_tokens_*` are what remains to be done.

    `max_nano` limits the whole cost of the batch, `progress.spent_nano` included; None is no limit. Higher `priority`
    is served first when not all can be. `policy_hash` is a key of `Snapshot.policies`. `input_bytes` and `output_bytes` are what
    moves into and out of the place where it runs. `input_tokens_most`: as many as the prompts can be, whatever language and tools
    are in them; 0 is as estimated. `max_rtt_ms`: it runs only where a message to its data and back is known to
    take no longer. `max_p95_ms`: 95 of 100 of its requests shall take no longer in the engine, which computes fewer at once then.
    """

    id: str
    project: str
    model: str
    precision: str
    endpoint: str
    lines: int
    input_tokens: int
    output_tokens_p50: int
    output_tokens_p90: int
    deadline_us: int
    max_nano: int | None
    priority: int
    policy_hash: str
    data_zone: str | None = None
    progress: Progress = Progress()
    input_bytes: int = 0
    output_bytes: int = 0
    max_rtt_ms: int | None = None
    max_p95_ms: int | None = None
    input_tokens_most: int = 0
    alternatives: tuple[Variant, ...] = ()


class Timings(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds from renting to the first token, in parts; `boot_s + load_s` is the start-up time the program charges."""

    boot_s: int
    load_s: int

    @property
    def total_s(self) -> int:
        return self.boot_s + self.load_s


class OfferView(msgspec.Struct, frozen=True, kw_only=True):
    """An offer as the planner sees it. `key` is `str(OfferKey)`. `capacity` None is unknown and counts as 1.

    `excluded` is the reason why the market room quarantined it or a circuit breaker holds it back; such an offer is
    counted in the funnel and never chosen. `hazard` is interruptions per hour, None unknown.

    `start_up` has the timings of those models for which they are not the general `timings`; `unfit` says of a model why
    it cannot be served on this machine, whatever it costs. `held_back` says of a project why nothing is begun there for it now.

    `sunk`: capacity that is paid for whether it is used or not; `price_nano_hour` is then what using it costs *more*, and 0 is a
    price. Elsewhere 0 is unknown. `domain` is what fails together with it, a market's region; None is unknown. `lost_nano` is
    what of a deposit is not returned, a start. What goes in and out is paid by the gigabyte (10^9 bytes). `rtt_ms` is how long a
    message to the store of the works' data and back takes; None is unknown, and satisfies no limit.

    Of tokens that are sold by the million (`per_million_nano`: input, output) `price_nano_hour` is what an hour at the endpoint's
    limits costs, and the rates of its `accelerator` are those at which that hour's price buys input alone, or output alone: then
    the cost by time is the cost by tokens, whatever the mix. `most_nano_hour` is what an hour at the limits costs where all of it
    is of the dearest class.
    """

    key: str
    market: str
    accelerator: str
    pricing: str
    price_nano_hour: int | None
    capacity: int | None
    facts_hash: str
    timings: Timings
    granularity_s: int = 1
    minimum_s: int = 0
    hazard: float | None = None
    per_million_nano: tuple[int, int] | None = None
    excluded: str | None = None
    start_up: dict[str, Timings] = {}
    unfit: dict[str, str] = {}
    domain: str | None = None
    sunk: bool = False
    lost_nano: int = 0
    ingress_nano_gb: int = 0
    egress_nano_gb: int = 0
    quota: str = ""
    quota_units: int = 1
    rtt_ms: int | None = None

    @property
    def is_priced(self) -> bool:
        """Whether the price of an hour is known."""
        price = self.price_nano_hour
        return price is not None and (price > 0 or (self.sunk and price == 0))

    @property
    def is_bought(self) -> bool:
        """Whether its tokens may be bought: what they cost is known by the million and by the hour."""
        return self.per_million_nano is not None and self.is_priced

    @property
    def quota_group(self) -> str:
        """The name of the quota that may limit it."""
        return self.quota or self.market

    most_nano_hour: int = 0
    only_for: str | None = None
    not_for: tuple[str, ...] = ()
    held_back: dict[str, str] = {}

    def is_open_to(self, project: str) -> bool:
        """Whether it is rented for this project at all."""
        return self.only_for in (None, project) and project not in self.not_for

    def timings_of(self, model: str) -> Timings:
        """How long this model takes here from renting to the first token."""
        return self.start_up.get(model, self.timings)


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """A rental that exists. It serves one pool (project, model, precision); its start-up is `ready_in_s` (0 when warm).

    `capacity` of its offer counts what can be rented *besides* it. `covered`: where tokens are bought, the works whose worst case
    its hold has set aside; others count against their project's budget as if they started anew. None: the hold is of its time.
    """

    rental_id: str
    offer_key: str
    project: str
    model: str
    precision: str
    ready_in_s: int
    price_nano_hour: int
    covered: tuple[str, ...] | None = None


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """What a project may still commit, holds already subtracted. A project without an entry has no limit."""

    project: str
    remaining_nano: int


class Quota(msgspec.Struct, frozen=True, kw_only=True):
    """At most `remaining` more units for all offers that count against it together: `market` is its name, a market's, whose units
    are then instances, or what offers say in `quota` (`aws/us-east-1/L-DB2E81BA`)."""

    market: str
    remaining: int


class Throughput(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens per second of one whole instance at saturation for (model, precision) on an accelerator name.

    A pair without an entry means: the model does not run there, or nobody knows how fast; the offer is not eligible.
    `cautious` is the 20 % quantile as a part of both rates: what deadlines count on; 1 where the rates were measured.

    `sequences` is how many requests at once these rates are for, 0 unknown: then nobody knows how long a request takes.
    `fixed` is the part of a step's time that does not shrink with fewer, `slower` how much longer requests took than they should
    (`latency`).
    """

    model: str
    precision: str
    accelerator: str
    input_per_s: float
    output_per_s: float
    source: str
    cautious: float = 1.0
    sequences: float = 0.0
    fixed: float = 0.5
    slower: float = 1.0


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """What the plan before gave a work: `share_ppm` millionths on this offer, in this turn of its pool there. Of a work that has
    alternatives, `model` and `precision` say by which of them."""

    work_id: str
    offer_key: str
    share_ppm: int
    turn: int = 0
    model: str = ""
    precision: str = ""


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """The budgets refused a moment ago what would have been held for this work on this offer: it is not tried there again at
    once, so that the next best is. What covers it already goes on. `found` says what was refused, and until when that counts.

    `from_nano_hour`: what was refused is a price by the hour; nothing is tried at any offer that costs so much or more."""

    work_id: str
    offer_key: str
    found: str
    from_nano_hour: int | None = None


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What an offer did in the last days: (from_us, to_us, nano-USD an hour), oldest first; None while there was none to rent."""

    offer_key: str
    spans: tuple[tuple[int, int, int | None], ...]


class Later(msgspec.Struct, frozen=True, kw_only=True):
    """Starts of one offer and pool that begin at `begin_us` and not now, though they could.

    `hour`: the offer was cheaper at that hour on past days. `free`: machines of `awaits`, which are at work for others, are
    surely free at `free_us`, and cost less then. `spot`: `awaits`, which is sold out, is expected to come back and to
    cost less; if it does not, the starts begin here at the latest moment that is safe. `saving_ppm` is expected, of the starts'
    cost; `sure_ppm` holds with 95 % confidence. `days` is how many were looked at, `decided_us` when this was decided.
    """

    offer_key: str
    project: str
    model: str
    precision: str
    kind: Literal["hour", "spot", "free"]
    begin_us: int
    decided_us: int
    saving_ppm: int
    sure_ppm: int | None = None
    days: float = 0.0
    awaits: str | None = None
    free_us: int | None = None
    sentence: str = ""


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Everything one plan may depend on. `works`, `offers` and `running` are sorted by id; ids are unique.

    `models` are what policies may ask of the works' models, by work; a model that is not there is unknown. What is held of a
    place (certifications, agreements) must be good until a work's deadline.

    `stop_margin_s`: how long an instance costs money before it can be stopped; a work with a `max_nano` begins only
    where this, too, is left for one instance. `held`: the assignments of the plan before. A large queue that they nearly cover is
    planned from them, and moved only where that saves five percent; without them it is planned anew. `apart`: offers that are
    known of and not among `offers`, counted by reason for people; nothing is planned by it.

    `records`: of the offers for which waiting may be worth it; without them nothing waits. `waits`: what was decided to wait a
    moment ago, and is not decided anew with every plan.

    `fetched_bytes`: by model, what each start of it loads from elsewhere: image and weights.

    `words`: whether the plan of a large queue says of each work why it is where it is. Without, its `funnels` and `choices` are
    empty and are made of the snapshot and the plan when somebody asks (`told.told`): at 20,000 works they are seven eighths of a
    plan's bytes, and were a third of the time of one that is held. False in the broker's own snapshots.

    `hold_buffer_ppm`: by how much estimated prompts are held for, in millionths, where tokens are bought. `refusals`: of holds.

    `later_starts`: whether a start may begin when another pool's instance of the same offer ends. False in the broker's own
    snapshots: theirs say of an offer that is in use only that it is sold out, not from when it is free again.
    """

    now_us: int
    works: tuple[Work, ...]
    offers: tuple[OfferView, ...]
    running: tuple[Running, ...] = ()
    quotas: tuple[Quota, ...] = ()
    budgets: tuple[Budget, ...] = ()
    policies: dict[str, Policy] = {}
    facts: dict[str, Facts] = {}
    models: dict[str, ModelFacts] = {}
    throughput: tuple[Throughput, ...] = ()
    stop_margin_s: int = 0
    held: tuple[Held, ...] = ()
    apart: tuple[Rule, ...] = ()
    later_starts: bool = True
    fetched_bytes: dict[str, int] = {}
    records: tuple[Record, ...] = ()
    waits: tuple[Later, ...] = ()
    hold_buffer_ppm: int = 1_000_000
    refusals: tuple[Refusal, ...] = ()
    words: bool = True
    version: int = VERSION


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """Rent `count` instances of an offer for one pool, needed from `from_us` until `until_us` (expected end of work).

    With `Snapshot.later_starts` a start may begin later than now: the offer's capacity serves another pool until then.
    It is rented when a plan still says so at its time. Starts of one offer, pool and turn that begin at different times end
    together. A pool that leaves an offer to others and comes back later has another `turn` there, with a queue of its own: turns
    are only told apart by their number, and running rentals belong to turn 0.
    """

    offer_key: str
    project: str
    model: str
    precision: str
    count: int
    from_us: int
    until_us: int
    cost_nano: int
    turn: int = 0


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """`share_ppm` millionths of a work run on this offer's instances (new and running), in `order` among its peers of the same
    turn. At one offer a work has one turn.

    `cost_nano` is this share's part of the plan's cost, start-up included; `end_us` the expected finish. Of a work with
    `max_p95_ms`, `concurrency` is how many requests each instance has at once at most, `p95_ms` what p95 is then expected to be.
    """

    work_id: str
    offer_key: str
    share_ppm: int
    order: int
    cost_nano: int
    end_us: int
    concurrency: int | None = None
    p95_ms: int | None = None
    turn: int = 0


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """One step of the funnel: how many offers `rule` removed, and an example with what was found.

    The last step of a funnel has rule "eligible": the offers left. The counts of a funnel sum to the number of offers.
    """

    rule: str
    count: int
    example: str | None = None


class Relaxation(msgspec.Struct, frozen=True, kw_only=True):
    """A smallest change that makes the work feasible, verified by solving again. Never applied by the solver."""

    field: str
    current: str
    needed: str
    offer_key: str
    cost_nano: int
    message: str


class Unplaced(msgspec.Struct, frozen=True, kw_only=True):
    """A work that this plan does not (fully) serve. `waiting_on` is the one word shown to people."""

    work_id: str
    waiting_on: Literal["capacity", "budget", "residency", "price_ceiling", "quota", "deadline", "model", "latency"]
    reasons: tuple[str, ...]
    relaxations: tuple[Relaxation, ...] = ()


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """Why the chosen offer: its cost per million tokens, the next best, and the cheaper ones that a rule excluded."""

    work_id: str
    offer_key: str
    usd_nano_per_million: int
    next_best_key: str | None
    next_best_nano_per_million: int | None
    cheaper_excluded: tuple[tuple[str, str], ...]
    sentence: str


class VariantCost(msgspec.Struct, frozen=True, kw_only=True):
    """What a work would cost alone with one of its variants: at the offer where it has its place so, else at the cheapest that
    may serve it. `offer_key` and `nano` are None where none may, and `found` says what stands against it."""

    model: str
    precision: str
    offer_key: str | None = None
    nano: int | None = None
    found: str | None = None


class Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """Which of its variants serves a work that has alternatives: its own, or one of those. There is one for each such work;
    where it has no place, the reasons are of this one. `costs`: its own first; `sentence` is for people."""

    work_id: str
    model: str
    precision: str
    costs: tuple[VariantCost, ...] = ()
    sentence: str = ""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to start, keep and drain, who works where, who waits and why.

    `stage`: which step of the fallback chain produced it. `stopped_by`: optimal | gap | clock. `bound_nano`: no plan for
    this snapshot under the same model can cost less. `class_bound_nano`: the same for plans that treat works alike as one, which
    is what a large queue is planned by; 0 when it was not. `funnels` has one funnel per work id, `choices` one for each
    work that has a place; both may be empty where the snapshot asks for no `words`. `variants`: which one serves each work
    that has alternatives; whatever else the plan says of such a work is of that one.
    """

    snapshot_sha256: str
    stage: Literal["program", "greedy", "previous", "empty"]
    stopped_by: Literal["optimal", "gap", "clock", "none"]
    starts: tuple[Start, ...] = ()
    keeps: tuple[str, ...] = ()
    drains: tuple[str, ...] = ()
    assignments: tuple[Assignment, ...] = ()
    unplaced: tuple[Unplaced, ...] = ()
    cost_nano: int = 0
    bound_nano: int = 0
    class_bound_nano: int = 0
    funnels: dict[str, tuple[Rule, ...]] = {}
    choices: tuple[Choice, ...] = ()
    later: tuple[Later, ...] = ()
    variants: tuple[Chosen, ...] = ()
    version: int = VERSION


def encode(value: Snapshot | Plan) -> bytes:
    """Canonical JSON: struct fields in declared order, mapping keys sorted."""
    return msgspec.json.encode(value, order="deterministic")


def sha256(snapshot: Snapshot) -> str:
    """The name of a snapshot: hex sha256 of its canonical JSON."""
    return hashlib.sha256(encode(snapshot)).hexdigest()


def json_schemas() -> dict[str, Any]:
    """The published JSON Schemas of Snapshot and Plan, with shared definitions."""
    (snapshot, plan), definitions = msgspec.json.schema_components((Snapshot, Plan))
    return {"snapshot": snapshot, "plan": plan, "$defs": definitions}
