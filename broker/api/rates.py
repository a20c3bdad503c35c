"""Rates of exchange over HTTP: what is known, and new ones, one by one or as a file of the ECB's."""

from __future__ import annotations

import asyncio
import re
from datetime import date
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from broker.api import shapes
from broker.api.problems import bad_request, not_found
from broker.api.registry import Call, Route, route
from jobs.clock import db_now
from ledger import rates
from ledger.rate_file import day_us, read_rates
from ledger.rates import DatedRate
from markets.instants import moment

_UNIT = r"^[A-Z][A-Z0-9]{1,9}$"
_UNIT_WORDS = "the code of a currency or coin in capitals, such as EUR"
# What the ECB publishes since 1999 is 800 kB and 270,000 rates; nobody counts by those of before this product.
_MOST_CHARS = 2_000_000
_MOST_AT_ONCE = 20_000


_RATE = r"^[0-9]{1,12}(\.[0-9]{1,18})?$"


def _as_rate(given: str) -> str:
    if re.fullmatch(_RATE, given) and Decimal(given) > 0:
        return given
    raise PydanticCustomError(
        "rate", "Input should be what one unit is worth in US dollars, a decimal above 0 such as 1.08"
    )


Rated = Annotated[
    str,
    AfterValidator(_as_rate),
    Field(
        max_length=31,
        description="what one unit is worth in US dollars, above 0, such as 1.08",
        json_schema_extra={"pattern": _RATE},
    ),
]


class NewRate(shapes.Own):
    """One `unit` was worth `rate` US dollars on `dated`, by whose word."""

    model_config = ConfigDict(extra="forbid")

    unit: str = Field(pattern=_UNIT, description=_UNIT_WORDS)
    rate: Rated
    dated: shapes.SaidDay
    source: str = Field(min_length=1, max_length=120)


class RatesIn(shapes.Own):
    """Rates, or the text of a file of them (the ECB's CSV, or `unit,rate,dated,source`), of which those since `since` count."""

    model_config = ConfigDict(extra="forbid")

    rates: list[NewRate] = Field(default=[], max_length=1000)
    text: str | None = Field(default=None, max_length=_MOST_CHARS)
    source: str | None = Field(default=None, min_length=1, max_length=120)
    since: shapes.SaidDay | None = None


class RateQuery(shapes.Own):
    model_config = ConfigDict(extra="forbid")

    unit: str | None = Field(default=None, pattern=_UNIT, description=_UNIT_WORDS)
    limit: int = Field(default=100, ge=1, le=1000)


class RateShape(shapes.Own):
    unit: str
    quote: str
    rate: str
    dated: date
    source: str


class Rates(shapes.Own):
    object: Literal["list"] = "list"
    data: list[RateShape]


class RatesTaken(shapes.Own):
    """How many there were, and how many of them the books did not have."""

    read: int
    new: int


async def list_rates(call: Call, query: RateQuery) -> Rates:
    """The rates that the books know, newest first."""
    async with call.services.database.transaction() as session:
        found = await rates.known(session, unit=query.unit, limit=query.limit)
    return Rates(
        data=[
            RateShape(
                unit=each.unit,
                quote=each.quote,
                rate=f"{each.rate:f}",
                dated=moment(each.at_us).date(),
                source=each.source,
            )
            for each in found
        ]
    )


async def add_rates(call: Call, body: RatesIn) -> RatesTaken:
    """Record rates of exchange: all of them, or none when one is wrong.

    The same again changes nothing. Prices are counted by them from the next poll on.
    """
    if call.caller.project is not None:
        raise not_found("books_not_found", "The whole books are for keys of all projects.")
    # a file of 2 MB takes a second
    given = [*_given(body), *await asyncio.to_thread(_of_file, body)]
    if not given:
        raise bad_request("no_rates", "Neither `rates` nor `text` holds a rate; give one of them.", "rates")
    async with call.services.database.transaction() as session:
        now_us = await db_now(session)
        if late := [each for each in given if each.at_us > now_us]:
            day = moment(late[0].at_us).date().isoformat()
            raise bad_request("rate_of_tomorrow", f"the rate of {late[0].unit} is of {day}, which is to come.", "rates")
        new = await rates.record(session, given)
    return RatesTaken(read=len(given), new=new)


def _given(body: RatesIn) -> list[DatedRate]:
    return [DatedRate(each.unit, rates.USD, day_us(each.dated), each.source, Decimal(each.rate)) for each in body.rates]


def _of_file(body: RatesIn) -> list[DatedRate]:
    if body.text is None:
        return []
    found, bad = read_rates(body.text, source=body.source)
    if bad:
        shown = "; ".join(f"line {each.line}: {each.message}" for each in bad[:5])
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise bad_request("bad_rates", f"Nothing was recorded: {shown}{more}", "text")
    first_us = day_us(body.since) if body.since else 0
    kept = [each for each in found if each.at_us >= first_us]
    if len(kept) > _MOST_AT_ONCE:
        raise bad_request(
            "too_many_rates", f"{len(kept)} rates; {_MOST_AT_ONCE} are taken at once: say since when (`since`).", "text"
        )
    return kept


ROUTES: tuple[Route, ...] = (
    route("GET", "/v1/ledger/rates", list_rates, tag="ledger", roles=("finance", "viewer", "compliance", "operator"),
          errors=(422,)),
    route("POST", "/v1/ledger/rates", add_rates, tag="ledger", roles=("finance",), errors=(400, 422)),
)  # fmt: skip
