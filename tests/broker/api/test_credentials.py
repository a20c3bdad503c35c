"""Provider credentials over the API: values go in, and nothing of them comes out of any route."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import event, update
from sqlmodel import col

from broker.envelope import new_key
from broker.keyring import Keyring, LocalKek
from broker.vault_tables import DataKeyRow
from jobs.clock import db_now
from markets import price_book, rentals
from markets.errors import MarketsError, NotAuthorized
from markets.offer import Accelerator, Offer, OfferKey
from tests.support.command_line import quick

VALUES = {"access_key_id": "AKIA-canary-8c1f", "secret_access_key": "canary-wJalr-77aa"}


async def test_what_was_kept_is_the_adapters_and_nobody_elses(server: Any) -> None:
    operator = await server.key("operator", project="mine", principal="ada")
    kept = await server.call("POST", "/v1/credentials/aws", key=operator, json={"values": VALUES})
    assert (kept.status, kept.json["names"], kept.json["version"]) == (200, sorted(VALUES), 1)
    again = await server.call("POST", "/v1/credentials/aws", key=operator, json={"values": VALUES})
    assert (again.json["version"], again.json["updated_by"]) == (2, "ada")
    shown = await server.call("GET", "/v1/credentials", key=operator)
    assert [each["market"] for each in shown.json["data"]] == ["aws"]
    for answer in (kept, again, shown):
        assert b"canary" not in answer.raw
    given = await server.services.credentials.for_project("mine", "aws")
    assert {name: value.get_secret_value() for name, value in given.items()} == VALUES
    theirs = await server.key("operator", project="theirs")
    assert (await server.call("GET", "/v1/credentials", key=theirs)).json["data"] == []
    foreign = await server.call("DELETE", "/v1/credentials/aws", key=theirs)
    missing = await server.call("DELETE", "/v1/credentials/gcp", key=theirs)
    assert (foreign.status, missing.status) == (404, 404)
    assert foreign.raw.replace(b"aws", b"gcp") == missing.raw
    assert (await server.call("DELETE", "/v1/credentials/aws", key=operator)).status == 200
    assert await server.services.credentials.for_project("mine", "aws") is None


@pytest.mark.parametrize(
    "body",
    [
        {"values": {"access_key_id": 5550123}},  # a number where text belongs
        {"values": {"canary-AKIA": "x"}},  # the value where the name belongs
        {"values": {"canary-AKIA": ["x"]}},
        {"values": {"key": ""}},
        {"values": {"key": "canary" * 4000}},
        {"values": "canary"},
        {"values": {}},
        {"canary": 1, "values": VALUES},
        {"values": {f"n{n}": "canary" for n in range(33)}},
    ],
)
async def test_what_is_wrong_with_credentials_is_told_without_them(server: Any, body: dict[str, Any]) -> None:
    answer = await server.call("POST", "/v1/credentials/aws", json=body)
    assert answer.status == 400
    assert b"canary" not in answer.raw
    assert b"5550123" not in answer.raw


async def test_the_vault_is_for_administrators_of_all_projects(server: Any) -> None:
    await server.call("POST", "/v1/credentials/aws", json={"values": VALUES})
    standing = (await server.call("POST", "/v1/admin/vault/rewrap")).json
    assert standing["rewrapped"] == 0
    assert [(kek["data_keys"], kek["current"], kek["here"]) for kek in standing["keks"]] == [(1, True, True)]
    assert (await server.call("GET", "/v1/admin/vault")).json["keks"] == standing["keks"]
    admin = await server.key("admin", project="mine")
    assert (await server.call("POST", "/v1/admin/vault/rewrap", key=admin)).status == 404


async def test_rotation_goes_on_over_what_does_not_open_says_which_and_ends_with_1(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stopped at the first, and nothing behind that could leave a key that was stolen."""
    vault = server.services.vault
    await vault.data_key("whole")
    await vault.data_key("damaged")
    async with server.services.database.transaction() as session:
        await session.execute(update(DataKeyRow).where(col(DataKeyRow.owner) == "damaged").values(wrapped=b"\x01"))
    keys = {**vault.keyring.keys, "next": LocalKek(new_key())}
    monkeypatch.setattr(vault, "keyring", Keyring("next", keys))
    env = {"BROKER_URL": server.url, "BROKER_API_KEY": server.admin_key}
    done = await asyncio.to_thread(quick, "credentials", "rotate", env=env)
    assert done.returncode == 1
    assert "1 data keys do not open" in done.stderr and " of damaged: " in done.stderr, done.stderr
    assert {each.kek: each.data_keys for each in await vault.wrappings()}["next"] >= 1
    again = await server.call("POST", "/v1/admin/vault/rewrap")
    assert (again.status, again.json["rewrapped"], [e["owner"] for e in again.json["closed"]]) == (200, 0, ["damaged"])


async def _rented_with_own_keys(server: Any) -> None:
    offer = Offer(
        key=OfferKey("aws~default", "eu-central-1", None, "g5.xlarge", "a10g", 1, "spot"),
        launch="vm",
        accelerator=Accelerator(),
        currency="USD",
        price=Decimal("0.5"),
        observed_at=datetime.now(UTC),
        source="test",
        raw_sha256="",
    )
    async with server.services.database.transaction() as session:
        await rentals.record_intent(
            session, rental_id="rental_1", offer=offer, project="default", model="m", precision="auto", purpose={}, now_us=1
        )  # fmt: skip


async def test_keys_that_machines_run_on_cannot_be_removed(server: Any) -> None:
    await server.call("POST", "/v1/credentials/aws", json={"values": VALUES})
    await _rented_with_own_keys(server)
    refused = await server.call("DELETE", "/v1/credentials/aws")
    assert (refused.status, refused.json["error"]["code"]) == (422, "credentials_in_use")
    assert "1 machines of aws~default run on them" in refused.json["error"]["message"]
    async with server.services.database.transaction() as session:
        await rentals.failed(session, "rental_1", error="never made", now_us=2)
    assert (await server.call("DELETE", "/v1/credentials/aws")).status == 200


async def test_keys_are_removed_behind_the_lock_that_intents_take(server: Any) -> None:
    """Machines were counted in an earlier transaction: one that was rented between the two ran on with nobody to end it."""
    await server.call("POST", "/v1/credentials/aws", json={"values": VALUES})
    asked: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        wants = {"FROM ledger_head": "lock", "FROM markets_rental": "count", "DELETE FROM broker_credential": "delete"}
        asked.extend(step for part, step in wants.items() if part in statement)

    engine = server.services.database.engine.sync_engine
    event.listen(engine, "before_cursor_execute", note)
    event.listen(engine, "commit", lambda _connection: asked.append("commit"))
    assert (await server.call("DELETE", "/v1/credentials/aws")).status == 200
    event.remove(engine, "before_cursor_execute", note)
    steps = " ".join(asked)
    assert "lock count delete" in steps, steps


async def test_keys_that_machines_run_on_are_replaced_only_by_the_same_accounts(server: Any) -> None:
    """A project's key of another AWS account made its running machines look lost: they were written off, and cost on."""

    async def teller(values: Mapping[str, str]) -> str:
        if values["access_key_id"] == "refused":
            raise NotAuthorized("InvalidClientTokenId")
        return values["access_key_id"].partition("-")[0]

    async def keep(key: str) -> tuple[int, Any]:
        values = {"access_key_id": key, "secret_access_key": "canary-77aa"}
        answer = await server.call("POST", "/v1/credentials/aws", json={"values": values})
        assert b"canary" not in answer.raw
        return answer.status, answer.json

    assert (await keep("111-old"))[1]["account"] is None  # where nobody can be asked
    server.services.accounts.credentials = server.services.credentials
    server.services.accounts.tellers = {"aws": teller}
    await _rented_with_own_keys(server)
    status, refused = await keep("222-new")
    assert (status, refused["error"]["code"]) == (422, "credentials_in_use")
    assert "1 machines of aws~default run in the account 111, and the new credentials are of 222" in str(refused)
    status, refused = await keep("refused")
    assert (status, "InvalidClientTokenId" in str(refused)) == (422, True)
    status, kept = await keep("111-new")
    assert (status, kept["account"], kept["version"]) == (200, "111", 2)
    async with server.services.database.transaction() as session:
        await rentals.failed(session, "rental_1", error="never made", now_us=2)
    assert (await keep("222-new"))[1]["account"] == "222", "no machine runs there any more"
    assert (await keep("refused"))[0] == 200, "and then any may be kept; the doctor says what is wrong with them"


@pytest.mark.parametrize("outage", [MarketsError("503 of the region"), TimeoutError()], ids=["error", "timeout"])
async def test_an_account_is_asked_for_again_after_an_outage_and_not_after_a_refusal(
    server: Any, outage: Exception
) -> None:
    """One timeout at the start left the account unknown until a restart: any account's key could replace it."""
    await server.call("POST", "/v1/credentials/aws", json={"values": VALUES})
    answers: list[Exception | str] = [outage, "111"]

    async def teller(_: Mapping[str, str]) -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    accounts = server.services.accounts
    accounts.credentials, accounts.tellers = server.services.credentials, {"aws": teller}
    for known in (None, "111"):
        await accounts.learn()
        (kept,) = await server.services.credentials.at_market("aws")
        assert kept.account == known
    accounts.tellers = {}
    await server.call("POST", "/v1/credentials/aws", json={"values": VALUES})
    accounts.tellers = {"aws": teller}
    answers[:] = [NotAuthorized("InvalidClientTokenId"), "111"]
    for _ in range(2):
        await accounts.learn()
    assert answers == ["111"], "a refused key is not asked about at every poll"


async def test_offers_of_a_projects_own_account_are_shown_to_nobody_else(server: Any) -> None:
    offer = Offer(
        key=OfferKey("aws~mine", "eu-central-1", None, "g5.xlarge", "a10g", 1, "spot"),
        launch="vm",
        accelerator=Accelerator("nvidia", "a10g", None, 24_000, 1),
        currency="USD",
        price=Decimal("0.5"),
        observed_at=datetime.now(UTC),
        source="test",
        raw_sha256="",
    )
    async with server.services.database.transaction() as session:
        await price_book.store_offers(session, "aws~mine", [offer], now_us=await db_now(session))
    for project, is_shown in (("mine", True), ("theirs", False)):
        key = await server.key("viewer", project=project)
        listed = (await server.call("GET", "/v1/market/offers", key=key, params={"limit": "1000"})).json["data"]
        assert (str(offer.key) in [each["key"] for each in listed]) is is_shown
        markets = (await server.call("GET", "/v1/markets", key=key)).json["data"]
        assert is_shown or "aws~mine" not in [each["name"] for each in markets]
        for route in ("explain", "history"):
            answer = await server.call("GET", f"/v1/market/offers/{route}", key=key, params={"key": str(offer.key)})
            assert answer.status == (200 if is_shown else 404), route
