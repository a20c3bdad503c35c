"""Provider credentials of a project: values go in, only what they are called and when they changed comes out."""

from __future__ import annotations

import re

import structlog
from pydantic import BaseModel, Field, SecretStr, field_validator

from broker.api.problems import conflict, not_found
from broker.api.registry import Call, Route, route
from broker.api.shapes import Confidential
from broker.control.poll import ACCOUNTS
from broker.credentials import Kept, MachinesRun
from broker.envelope import Unopenable
from broker.keys import Role
from broker.vault import Rewrapped
from jobs.clock import MICROSECONDS

log = structlog.get_logger()

MOST_VALUES = 32
MOST_CHARS = 16_384


class CredentialValues(Confidential):
    """The values by name, all of them: what was kept before is replaced."""

    values: dict[str, SecretStr] = Field(min_length=1, max_length=MOST_VALUES)

    @field_validator("values")
    @classmethod
    def _named_and_sized(cls, values: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for name, value in values.items():
            if not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", name):
                raise ValueError("names are lower case letters, digits and _, such as access_key_id")
            if not 0 < len(value.get_secret_value()) <= MOST_CHARS:
                raise ValueError(f"{name} must have 1 to {MOST_CHARS} characters")
        return values


class Credential(BaseModel):
    """What is known of a project's credentials at a market; never a value."""

    object: str = "credential"
    market: str
    project: str
    names: list[str]
    version: int
    created_at: int
    updated_at: int
    updated_by: str
    account: str | None = Field(default=None, description="what the provider calls the account, where it was asked")


class CredentialList(BaseModel):
    object: str = "list"
    data: list[Credential]


class CredentialDeleted(BaseModel):
    market: str
    object: str = "credential.deleted"
    deleted: bool = True


class KekStanding(BaseModel):
    """A key-encryption key: how many data keys it has wrapped, whether it wraps new ones, whether it is here."""

    kek: str
    data_keys: int
    current: bool
    here: bool


class ClosedDataKey(BaseModel):
    """A data key that does not open: its KEK is not here, or another of that name, or the row is damaged."""

    data_key: str
    owner: str
    kek: str
    why: str


class VaultStanding(BaseModel):
    object: str = "vault"
    rewrapped: int = Field(default=0, description="data keys that this request wrapped again")
    closed: list[ClosedDataKey] = Field(default=[], description="data keys that this request could not open")
    keks: list[KekStanding]


async def set_credential(call: Call, body: CredentialValues) -> Credential:
    """Keep what the project logs in with at a market; it replaces what was kept before, and is not shown again.

    While machines run on what was kept before, only another login of the same account will do."""
    market, services = call.path("market"), call.services
    await services.accounts.learn(only=call.project)  # of an older broker's, while they can still be asked
    account, doubt = await services.accounts.told(market, body.values)
    try:
        kept = await services.credentials.keep(
            call.project, market, body.values, by=call.caller.name, account=account, doubt=doubt
        )
    except MachinesRun as refused:
        raise conflict(
            "credentials_in_use", f"{refused}; cancel or pause what they do, and change the credentials then"
        ) from refused
    call.services.nudge(ACCOUNTS)
    log.info("credential.kept", project=call.project, market=market, version=kept.version, by=call.caller.key_id)
    return _shape(kept)


async def list_credentials(call: Call) -> CredentialList:
    """At which markets the project has credentials of its own."""
    return CredentialList(data=[_shape(each) for each in await call.services.credentials.of_project(call.project)])


async def remove_credential(call: Call) -> CredentialDeleted:
    """Forget the project's credentials at a market."""
    market = call.path("market")
    try:
        was_there = await call.services.credentials.forget(call.project, market)
    except MachinesRun as refused:
        message = f"{refused}; cancel or pause what they do, and remove them then"
        raise conflict("credentials_in_use", message) from refused
    if not was_there:
        raise not_found("credential_not_found", f"The project has no credentials at {market!r}.")
    log.info("credential.removed", project=call.project, market=market, by=call.caller.key_id)
    return CredentialDeleted(market=market)


async def vault_standing(call: Call) -> VaultStanding:
    """Which key-encryption keys have wrapped what."""
    _house(call)
    return await _standing(call, Rewrapped(0))


async def rewrap(call: Call) -> VaultStanding:
    """Wrap every data key with the current key-encryption key; those that do not open are named and left. May be repeated."""
    _house(call)
    try:
        done = await call.services.vault.rewrap()
    except Unopenable as failure:
        raise conflict("kek_missing", str(failure)) from failure
    log.info("vault.rotated", rewrapped=done.count, closed=len(done.closed), by=call.caller.key_id)
    return await _standing(call, done)


def _house(call: Call) -> None:
    """The vault is the house's. A key of one project is told that there is none, as with another's project."""
    if call.caller.project is not None:
        raise not_found("vault_not_found", "The vault is for administrators of all projects.")


async def _standing(call: Call, done: Rewrapped) -> VaultStanding:
    found = await call.services.vault.wrappings()
    keks = [KekStanding(kek=e.kek, data_keys=e.data_keys, current=e.is_current, here=e.is_here) for e in found]
    closed = [ClosedDataKey(data_key=e.data_key, owner=e.owner, kek=e.kek, why=e.why) for e in done.closed]
    return VaultStanding(rewrapped=done.count, closed=closed, keks=keks)


def _shape(kept: Kept) -> Credential:
    return Credential(
        market=kept.market,
        project=kept.project,
        names=list(kept.names),
        version=kept.version,
        created_at=kept.created_us // MICROSECONDS,
        updated_at=kept.updated_us // MICROSECONDS,
        updated_by=kept.updated_by,
        account=kept.account,
    )


KEEPERS: tuple[Role, ...] = ("operator",)

ROUTES: tuple[Route, ...] = (
    route("GET", "/v1/credentials", list_credentials, tag="credentials", roles=KEEPERS),
    route("POST", "/v1/credentials/{market}", set_credential, tag="credentials", roles=KEEPERS),
    route("DELETE", "/v1/credentials/{market}", remove_credential, tag="credentials", roles=KEEPERS),
    route("GET", "/v1/admin/vault", vault_standing, tag="admin", roles=("admin",)),
    route("POST", "/v1/admin/vault/rewrap", rewrap, tag="admin", roles=("admin",), errors=(422,)),
)
