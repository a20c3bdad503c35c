"""The provider's accounts that the house's machines run in, and the door by which one is given up."""

from __future__ import annotations

from pydantic import BaseModel, Field

from broker.api.credentials import KEEPERS
from broker.api.problems import conflict, not_found
from broker.api.registry import Call, Route, route
from broker.api.shapes import Own
from broker.house_accounts import HouseAccounts, NotGivenUp, held, refusal
from broker.tables import HouseAccount
from jobs.clock import MICROSECONDS


class HeldAccount(BaseModel):
    """An account that a market's login is held to. While `other` is there, the login is of that one, and nothing is rented,
    listed or released at the market."""

    object: str = "house_account"
    market: str
    account: str
    since: int
    other: str | None
    before: str | None = Field(description="the account that was held before")
    given_up_by: str | None = Field(description="who gave `before` up; null: no machine ran there any more")
    reason: str | None


class HeldAccountList(BaseModel):
    object: str = "list"
    data: list[HeldAccount]


class GiveUp(Own):
    """`account` is the number of the account that is left, machines and all: said, so that it is meant."""

    account: str = Field(min_length=1, max_length=256)


async def list_house_accounts(call: Call) -> HeldAccountList:
    """Which of its providers' accounts the house's machines run in."""
    _house(call)
    async with call.services.database.transaction() as session:
        return HeldAccountList(data=[_shape(row) for row in await held(session)])


async def give_up_house_account(call: Call, body: GiveUp) -> HeldAccount:
    """Go over to the account of the login in use, and leave the one before.

    Machines there are written off, and whoever can log in there must end them."""
    _house(call)
    market = call.path("market")
    try:
        row = await HouseAccounts(call.services.database).give_up(market, body.account, by=call.caller.name)
    except NotGivenUp as refused:
        raise conflict("not_given_up", f"{refused}; see `broker credentials house`", "account") from refused
    if row is None:
        raise not_found("house_account_not_found", f"No account of the house's is held at {market!r}.")
    call.services.nudge(f"poll:{market}")
    return _shape(row)


def _house(call: Call) -> None:
    """Of one project's key nobody says what the house has."""
    if call.caller.project is not None:
        raise not_found("house_account_not_found", "The house's accounts are for administrators of all projects.")


def _shape(row: HouseAccount) -> HeldAccount:
    return HeldAccount(
        market=row.market,
        account=row.account,
        since=row.since_us // MICROSECONDS,
        other=row.other,
        before=row.before,
        given_up_by=row.given_up_by,
        reason=refusal(row),
    )


ROUTES: tuple[Route, ...] = (
    route("GET", "/v1/admin/house-accounts", list_house_accounts, tag="credentials", roles=KEEPERS),
    route("POST", "/v1/admin/house-accounts/{market}/give-up", give_up_house_account, tag="credentials", roles=("admin",)),
)  # fmt: skip
