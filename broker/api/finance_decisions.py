"""Decisions about money over HTTP: the inputs come with the question or out of today's offers, and are shown with the answer."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StringConstraints
from sqlalchemy import select
from sqlmodel import col

from broker.api import shapes
from broker.api.problems import bad_request, not_found
from broker.api.registry import Call, Route, route
from broker.keys import Role
from ledger import decisions
from ledger.decisions import BadInput
from ledger.money import from_nano
from markets.tables import OfferRow

Amount = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,12}(\.[0-9]{1,12})?$")]


class HostingBody(shapes.Own):
    """`offer` takes `price_per_hour` from that offer as it stands now, so that asking again answers with today's price."""

    price_per_hour: Amount | None = None
    offer: str | None = Field(default=None, max_length=512)
    tokens_per_s: Amount
    utilisation: Amount
    api_per_million: Amount
    millions_per_month: Amount
    fixed_per_month: Amount = "0"


class HardwareBody(shapes.Own):
    """`offer` takes `rented_per_gpu_hour` from that offer as it stands now."""

    gpus: int = Field(ge=1, le=100_000)
    capex: Amount
    life_years: Amount
    kilowatts: Amount
    pue: Amount = "1.3"
    per_kwh: Amount
    opex_per_hour: Amount = "0"
    utilisation: Amount
    rented_per_gpu_hour: Amount | None = None
    offer: str | None = Field(default=None, max_length=512)


class CommitmentBody(shapes.Own):
    """One number of machines and one market price for each hour."""

    demand: list[int] = Field(min_length=1, max_length=10_000)
    committed_per_hour: Amount
    market_per_hour: list[Amount] = Field(min_length=1, max_length=10_000)


class SizeBody(shapes.Own):
    name: str = Field(min_length=1, max_length=200)
    price_per_hour: Amount
    tokens_per_s: Amount
    memory_gib: Amount


class SizingBody(shapes.Own):
    current: SizeBody
    others: list[SizeBody] = Field(max_length=100)
    needed_gib: Amount
    millions_per_month: Amount
    least_saving: Amount = "0.05"


class DecisionShape(BaseModel):
    """The answer, with all inputs that it was made from under `answer.inputs`, and which of them are an offer's of now."""

    object: Literal["decision"] = "decision"
    kind: str
    observed: dict[str, str]
    answer: dict[str, Any]


async def hosting(call: Call, body: HostingBody) -> DecisionShape:
    """Self-host a model, or buy its tokens: cost of a million, break-even volume and utilisation."""
    price, observed = await _price(call, body.price_per_hour, body.offer, "price_per_hour", per_device=False)
    asked = decisions.Hosting(
        price,
        *_decimals(body, "tokens_per_s", "utilisation", "api_per_million", "millions_per_month", "fixed_per_month"),
    )
    return _shape("hosting", observed, lambda: decisions.host_or_buy(asked))


async def hardware(call: Call, body: HardwareBody) -> DecisionShape:
    """Own machines, or rent them: cost of a used GPU-hour, payback, break-even utilisation."""
    price, observed = await _price(call, body.rented_per_gpu_hour, body.offer, "rented_per_gpu_hour", per_device=True)
    names = ("capex", "life_years", "kilowatts", "pue", "per_kwh", "opex_per_hour", "utilisation")
    asked = decisions.Hardware(
        gpus=body.gpus, rented_per_gpu_hour=price, **dict(zip(names, _decimals(body, *names), strict=True))
    )
    return _shape("hardware", observed, lambda: decisions.own_or_rent(asked))


async def commitment(call: Call, body: CommitmentBody) -> DecisionShape:
    """How many machines to commit to, against the market's price of each hour."""
    if max(body.demand) > 10_000:
        raise bad_request("invalid_value", f"demand of {max(body.demand)} machines: at most 10,000", "demand")
    asked = decisions.Commitment(
        tuple(body.demand), Decimal(body.committed_per_hour), tuple(Decimal(each) for each in body.market_per_hour)
    )
    return _shape("commitment", {}, lambda: decisions.commit_to(asked))


async def sizing(call: Call, body: SizingBody) -> DecisionShape:
    """The cheapest machine per token that the model fits into, and whether moving pays."""
    asked = decisions.Sizing(
        _size(body.current),
        tuple(_size(each) for each in body.others),
        *_decimals(body, "needed_gib", "millions_per_month", "least_saving"),
    )
    return _shape("sizing", {}, lambda: decisions.right_size(asked))


def _size(body: SizeBody) -> decisions.Size:
    return decisions.Size(body.name, *_decimals(body, "price_per_hour", "tokens_per_s", "memory_gib"))


def _decimals(body: BaseModel, *names: str) -> list[Decimal]:
    return [Decimal(getattr(body, name)) for name in names]


def _shape(kind: str, observed: dict[str, str], make: Any) -> DecisionShape:
    try:
        return DecisionShape(kind=kind, observed=observed, answer=decisions.shown(make()))
    except BadInput as wrong:
        raise bad_request(wrong.code, str(wrong)) from wrong


async def _price(
    call: Call, told: str | None, offer: str | None, name: str, *, per_device: bool
) -> tuple[Decimal, dict[str, str]]:
    """The price that was told, or that of the offer now."""
    if (told is None) == (offer is None):
        raise bad_request("missing_required_parameter", f"Give either {name} or offer.", name)
    if told is not None:
        return Decimal(told), {}
    async with call.services.database.transaction() as session:
        row = await session.scalar(select(OfferRow).where(col(OfferRow.key) == offer))
    if row is None or row.price_nano_hour is None:
        raise not_found("offer_not_found", f"No offer {offer!r} with a price; `broker offers` lists them.")
    count = int(row.key.split("/")[5] or 1) if per_device else 1
    price = from_nano(row.price_nano_hour) / max(1, count)
    return price, {"offer": row.key, name: f"{price:f}", "observed_us": str(row.observed_us)}


_ROLES: tuple[Role, ...] = ("finance", "operator")
ROUTES: tuple[Route, ...] = (
    route("POST", "/v1/decisions/hosting", hosting, tag="finance", roles=_ROLES),
    route("POST", "/v1/decisions/hardware", hardware, tag="finance", roles=_ROLES),
    route("POST", "/v1/decisions/commitment", commitment, tag="finance", roles=_ROLES),
    route("POST", "/v1/decisions/sizing", sizing, tag="finance", roles=_ROLES),
)
