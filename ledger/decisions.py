"""Decisions about money: self-host or buy tokens, own or rent, commit or not, another size. Pure; inputs are shown with answers.

Every answer carries its inputs, so that a reader can do the sum again, and so that it can be asked again when a price moved.
Decimals throughout; rates are fractions of one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from functools import wraps
from typing import TypeVar

MILLION = Decimal(1_000_000)
HOURS_PER_MONTH = Decimal(730)
HOURS_PER_YEAR = Decimal(8760)
_PLACES = Decimal("1e-9")


class BadInput(ValueError):
    """An input that no decision can be made with: which one, its value, what is meant."""

    code = "bad_decision_input"


_Asked = TypeVar("_Asked")
_Answer = TypeVar("_Answer")


def _widely(decide: Callable[[_Asked], _Answer]) -> Callable[[_Asked], _Answer]:
    """Counts with 90 digits: twelve by twelve of a millionth each give up to 40, and Decimal raises beyond its usual 28."""

    @wraps(decide)
    def decided(asked: _Asked) -> _Answer:
        with localcontext() as context:
            context.prec = 90
            return decide(asked)

    return decided


@dataclass(frozen=True, slots=True)
class Hosting:
    """Self-hosting a model: an hour's price, tokens per second at saturation, and which fraction of the time is of use."""

    price_per_hour: Decimal
    tokens_per_s: Decimal
    utilisation: Decimal
    api_per_million: Decimal
    millions_per_month: Decimal
    fixed_per_month: Decimal = Decimal(0)


@dataclass(frozen=True, slots=True)
class HostingAnswer:
    """Per million tokens and per month; `break_even_millions` None: hosting is never cheaper, however much is used.

    `machines` are as many whole machines as the volume takes; whole machines are what is paid for.
    """

    inputs: Hosting
    hosted_per_million: Decimal
    hosted_per_month: Decimal
    api_per_month: Decimal
    machines: int
    break_even_millions: Decimal | None
    break_even_utilisation: Decimal
    choice: str


@_widely
def host_or_buy(asked: Hosting) -> HostingAnswer:
    """$/M hosted = price × 10⁶ / (tokens/s × 3600 × utilisation); break-even volume = fixed / (API price − marginal).

    >>> host_or_buy(Hosting(Decimal(2), Decimal(2500), Decimal("0.6"), Decimal("0.5"), Decimal(1000))).hosted_per_million
    Decimal('0.370370370')
    """
    _positive(asked, "price_per_hour", "tokens_per_s", "api_per_million")
    _fraction(asked, "utilisation")
    _not_negative(asked, "millions_per_month", "fixed_per_month")
    per_hour = asked.tokens_per_s * 3600 * asked.utilisation / MILLION
    marginal = asked.price_per_hour / per_hour
    capacity = per_hour * HOURS_PER_MONTH
    machines = max(1, -int(-asked.millions_per_month // capacity)) if asked.millions_per_month else 0
    hosted = asked.fixed_per_month + marginal * asked.millions_per_month
    api = asked.api_per_million * asked.millions_per_month
    margin = asked.api_per_million - marginal
    least = asked.price_per_hour * MILLION / (asked.tokens_per_s * 3600 * asked.api_per_million)
    return HostingAnswer(
        inputs=asked, hosted_per_million=_round(marginal), hosted_per_month=_round(hosted), api_per_month=_round(api),
        machines=machines, break_even_millions=None if margin <= 0 else _round(asked.fixed_per_month / margin),
        break_even_utilisation=_round(least), choice="host" if hosted < api else "buy",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Hardware:
    """Machines of our own: what they cost to buy and to run, how long they live, and what renting the same GPU-hour costs."""

    gpus: int
    capex: Decimal
    life_years: Decimal
    kilowatts: Decimal
    pue: Decimal
    per_kwh: Decimal
    opex_per_hour: Decimal
    utilisation: Decimal
    rented_per_gpu_hour: Decimal


@dataclass(frozen=True, slots=True)
class HardwareAnswer:
    """Per used GPU-hour. `payback_years` None: what renting saves never pays for buying."""

    inputs: Hardware
    own_per_gpu_hour: Decimal
    running_per_hour: Decimal
    payback_years: Decimal | None
    break_even_utilisation: Decimal | None
    choice: str


@_widely
def own_or_rent(asked: Hardware) -> HardwareAnswer:
    """$/GPU-h = (capex/life + kW × PUE × $/kWh + opex) / (GPUs × utilisation); payback = capex / (rent avoided − running)."""
    _positive(asked, "gpus", "capex", "life_years", "rented_per_gpu_hour", "pue")
    _not_negative(asked, "kilowatts", "per_kwh", "opex_per_hour")
    _fraction(asked, "utilisation")
    running = asked.kilowatts * asked.pue * asked.per_kwh + asked.opex_per_hour
    per_hour = asked.capex / (asked.life_years * HOURS_PER_YEAR) + running
    own = per_hour / (asked.gpus * asked.utilisation)
    avoided = asked.rented_per_gpu_hour * asked.gpus * asked.utilisation - running
    least = per_hour / (asked.gpus * asked.rented_per_gpu_hour)
    return HardwareAnswer(
        inputs=asked, own_per_gpu_hour=_round(own), running_per_hour=_round(running),
        payback_years=None if avoided <= 0 else _round(asked.capex / (avoided * HOURS_PER_YEAR)),
        break_even_utilisation=_round(least) if least <= 1 else None,
        choice="own" if own < asked.rented_per_gpu_hour else "rent",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Commitment:
    """Machines needed in each of past (or forecast) hours, the committed price of an hour, and the market's price in that hour
    (spot included: the alternative is what would really be rented, not the on-demand list)."""

    demand: Sequence[int]
    committed_per_hour: Decimal
    market_per_hour: Sequence[Decimal]


@dataclass(frozen=True, slots=True)
class CommitmentAnswer:
    """`machines` to commit to (0: none); costs over the hours that were given; `used` is the fraction of what is committed
    that is needed."""

    inputs: Commitment
    machines: int
    cost: Decimal
    cost_without: Decimal
    saving: Decimal
    used: Decimal
    quantile: Decimal


@_widely
def commit_to(asked: Commitment) -> CommitmentAnswer:
    """Of all numbers of machines the cheapest over the hours, found by trying them: exact where the newsvendor's quantile
    1 − committed/market, which is shown, takes the market for constant. Of equally cheap ones the smaller."""
    if not asked.demand or len(asked.demand) != len(asked.market_per_hour):
        raise BadInput(f"{len(asked.demand)} hours of demand, {len(asked.market_per_hour)} of prices: as many of both")
    _positive(asked, "committed_per_hour")
    if min(asked.demand) < 0 or min(asked.market_per_hour) < 0:
        raise BadInput("demand and prices are not negative")
    hours = len(asked.demand)
    costs = [_committed_cost(asked, machines) for machines in range(max(asked.demand) + 1)]
    best = min(range(len(costs)), key=lambda machines: (costs[machines], machines))
    needed = sum(min(best, each) for each in asked.demand)
    average = sum(asked.market_per_hour, Decimal(0)) / hours
    return CommitmentAnswer(
        inputs=asked, machines=best, cost=_round(costs[best]), cost_without=_round(costs[0]),
        saving=_round(costs[0] - costs[best]),
        used=_round(Decimal(needed) / (best * hours)) if best else Decimal(0),
        quantile=_round(max(Decimal(0), 1 - asked.committed_per_hour / average)) if average else Decimal(0),
    )  # fmt: skip


def _committed_cost(asked: Commitment, machines: int) -> Decimal:
    beyond = sum(
        (max(0, need - machines) * price for need, price in zip(asked.demand, asked.market_per_hour, strict=True)),
        Decimal(0),
    )
    return machines * asked.committed_per_hour * len(asked.demand) + beyond


@dataclass(frozen=True, slots=True)
class Size:
    """A machine that could serve the model: what its hour costs, what it does, and how much memory it has."""

    name: str
    price_per_hour: Decimal
    tokens_per_s: Decimal
    memory_gib: Decimal


@dataclass(frozen=True, slots=True)
class Sizing:
    """The machine in use with what was measured on it, and the others. `needed_gib`: weights, cache and head room."""

    current: Size
    others: Sequence[Size]
    needed_gib: Decimal
    millions_per_month: Decimal
    least_saving: Decimal = Decimal("0.05")


@dataclass(frozen=True, slots=True)
class SizingAnswer:
    """`per_million` of each that fits, cheapest first; `refused` says of the others why. `choice` is the current one unless
    another saves at least the fraction asked for."""

    inputs: Sizing
    choice: str
    per_million: tuple[tuple[str, Decimal], ...]
    refused: tuple[tuple[str, str], ...]
    saving_per_month: Decimal
    headroom: Decimal


@_widely
def right_size(asked: Sizing) -> SizingAnswer:
    """The cheapest machine per token among those that the model fits into."""
    sizes = [asked.current, *asked.others]
    for size in sizes:
        _positive(size, "price_per_hour", "tokens_per_s", "memory_gib")
    _not_negative(asked, "needed_gib", "millions_per_month")
    fitting = [size for size in sizes if size.memory_gib >= asked.needed_gib]
    refused = [
        (size.name, f"{size.memory_gib} GiB, {asked.needed_gib} are needed") for size in sizes if size not in fitting
    ]
    prices = sorted(((size.name, _round(_per_million(size))) for size in fitting), key=lambda each: (each[1], each[0]))
    now = _per_million(asked.current)
    saves = bool(prices) and prices[0][1] <= now * (1 - asked.least_saving)
    saving = (now - prices[0][1]) * asked.millions_per_month if saves else Decimal(0)
    return SizingAnswer(
        inputs=asked, choice=prices[0][0] if saves else asked.current.name, per_million=tuple(prices), refused=tuple(refused),
        saving_per_month=_round(saving), headroom=_round(1 - asked.needed_gib / asked.current.memory_gib),
    )  # fmt: skip


def _per_million(size: Size) -> Decimal:
    return size.price_per_hour * MILLION / (size.tokens_per_s * 3600)


def shown(answer: HostingAnswer | HardwareAnswer | CommitmentAnswer | SizingAnswer) -> dict[str, object]:
    """The answer with its inputs as JSON: Decimals as strings."""
    return {name: _shown(value) for name, value in asdict(answer).items()}


def _shown(value: object) -> object:
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, dict):
        return {name: _shown(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(each) for each in value]
    return value


def _round(value: Decimal) -> Decimal:
    return value.quantize(_PLACES, rounding=ROUND_HALF_EVEN)


def _positive(asked: object, *names: str) -> None:
    for name in names:
        if getattr(asked, name) <= 0:
            raise BadInput(f"{name} is {getattr(asked, name)}; it must be more than 0")


def _not_negative(asked: object, *names: str) -> None:
    for name in names:
        if getattr(asked, name) < 0:
            raise BadInput(f"{name} is {getattr(asked, name)}; it must not be negative")


def _fraction(asked: object, name: str) -> None:
    if not 0 < getattr(asked, name) <= 1:
        raise BadInput(f"{name} is {getattr(asked, name)}; a fraction above 0, at most 1")
