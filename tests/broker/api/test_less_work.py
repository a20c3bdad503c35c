"""Lines that need no engine: invalid ones are skipped on request, exact repeats are answered by what was computed before."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from broker.control.answer import Answerer
from broker.control.collect import Collector
from broker.control.finalise import Finaliser
from broker.control.remember import Rememberer
from broker.control.validate import Validator
from jobs import answers, batches, leases
from jobs.clock import db_now
from jobs.tables import AnswerRow, Batch
from markets import price_book
from markets.offer_record import record_from_offer
from markets.tables import RentalRow
from tests.support.house import House, request
from tests.support.line_worker import LineWorker
from tests.support.object_stores import keys_of
from tests.support.wire_agent import offer


@pytest.fixture
async def house(server: Any) -> AsyncIterator[House]:
    tiny = replace(server.services.models["tiny"], revision="r1")
    services = replace(server.services, models={"tiny": tiny})
    async with services.database.transaction() as session:
        await price_book.store_offers(session, "sandbox", [offer()], now_us=await db_now(session))
    yield House(server, services, LineWorker(services))


def bodies(results: dict[str, Any]) -> dict[str, str]:
    return {name: line["response"]["body"]["id"] for name, line in results.items()}


# --- invalid lines ---------------------------------------------------------------------------------------------------


async def test_good_lines_run_and_bad_ones_fail_with_what_is_wrong_with_them(house: House) -> None:
    batch_id = await house.submit("one", None, "two", skip_invalid=True)
    assert await house.run(batch_id) == [0, 2], "no worker sees the bad line"
    batch = await house.batch(batch_id)
    assert (batch["status"], batch["request_counts"]) == ("completed", {"total": 3, "completed": 2, "failed": 1})
    assert batch["x_broker"]["invalid"] == 1
    [error] = (await house.results(batch_id, "error")).values()
    assert (error["custom_id"], error["error"]["code"], error["error"]["line"]) == (None, "invalid_json_line", 2)


async def test_without_asking_for_it_one_bad_line_fails_the_batch(house: House) -> None:
    batch = await house.batch(await house.submit("one", None, "two"))
    assert (batch["status"], [error["line"] for error in batch["errors"]["data"]]) == ("failed", [2])


async def test_a_crash_between_the_own_parts_and_their_rows_is_made_good(house: House) -> None:
    with house.crash_at("begin.before_txn"):
        await house.submit("one", None, skip_invalid=True)
    await Validator(house.services).step()
    [batch] = (await house.server.call("GET", "/v1/batches")).json["data"]
    assert (batch["status"], batch["request_counts"]["failed"]) == ("in_progress", 1)


async def test_the_quote_is_of_what_runs(house: House) -> None:
    whole = await house.batch(await house.submit("one", "two", "three", "four"))
    half = await house.batch(await house.submit("one", None, "three", None, skip_invalid=True))
    assert Decimal(half["x_broker"]["quote_usd"]) < Decimal(whole["x_broker"]["quote_usd"])


# --- repeats inside a batch ------------------------------------------------------------------------------------------


async def test_repeats_are_computed_once_and_answered_under_their_own_ids(house: House) -> None:
    batch_id = await house.submit("same", "other", "same", "same", reuse=True)
    assert await house.run(batch_id) == [0, 1]
    answers = bodies(await house.results(batch_id))
    assert answers["line-0"] == answers["line-2"] == answers["line-3"] != answers["line-1"]
    batch = await house.batch(batch_id)
    assert (batch["status"], batch["request_counts"]["completed"]) == ("completed", 4)
    assert (batch["x_broker"]["reused"]["lines"], batch["x_broker"]["reused"]["output_tokens"]) == (2, 10)
    assert batch["usage"]["output_tokens"] == 10, "only what an engine wrote"


@pytest.mark.parametrize("point", ["answer.before_txn", "answer.after_txn"])
async def test_a_crash_around_a_repeats_row_answers_it_once(house: House, point: str) -> None:
    batch_id = await house.submit("same", "same", reuse=True)
    await house.worker.work(batch_id)
    with house.crash_at(point):
        await Answerer(house.services).step()
    await house.step()
    batch = await house.batch(batch_id)
    assert (batch["status"], batch["request_counts"]["completed"], batch["x_broker"]["reused"]["lines"]) == (
        "completed",
        2,
        1,
    )


async def test_repeats_of_a_line_that_failed_are_run_themselves(house: House) -> None:
    batch_id = await house.submit("same", "same", reuse=True)
    assert await house.run(batch_id, failed=[0]) == [0, 1]
    batch = await house.batch(batch_id)
    assert (batch["status"], batch["request_counts"]["completed"], batch["request_counts"]["failed"]) == (
        "completed",
        1,
        1,
    )


async def test_nothing_is_reused_unasked_and_nothing_that_is_drawn_by_chance(house: House) -> None:
    assert await house.run(await house.submit("same", "same")) == [0, 1]
    warm = [request(n, "same", temperature=0.7) for n in range(2)]
    assert await house.run(await house.submit(*warm, reuse=True)) == [0, 1]


async def test_a_cancelled_batch_answers_the_repeats_whose_leader_is_done(house: House) -> None:
    batch_id = await house.submit("same", "other", "same", "other", reuse=True)
    lease = await house.worker.lease(batch_id)
    assert lease is not None
    await house.worker.answer(lease, only=[0])
    await house.server.call("POST", f"/v1/batches/{batch_id}/cancel")
    await Answerer(house.services).step()
    assert (await house.batch(batch_id))["request_counts"]["completed"] == 2


async def cancelled_with_one_leader_done(house: House) -> str:
    """Four lines, two of them repeats; one of the first two is answered, and nobody has a lease any more."""
    batch_id = await house.submit("same", "other", "same", "other", reuse=True)
    lease = await house.worker.lease(batch_id)
    assert lease is not None
    await house.worker.answer(lease, only=[0])
    async with house.services.database.transaction() as session:
        await leases.abandon(session, placement_id=house.worker.placement, blame=False)
    await house.server.call("POST", f"/v1/batches/{batch_id}/cancel")
    return batch_id


async def test_a_cancelled_batch_that_nobody_works_for_publishes_the_repeats_that_are_ready(house: House) -> None:
    batch_id = await cancelled_with_one_leader_done(house)
    await Finaliser(house.services).step()
    batch = await house.batch(batch_id)
    assert (batch["status"], batch["request_counts"]) == ("cancelled", {"total": 4, "completed": 2, "failed": 2})
    answers = bodies(await house.results(batch_id))
    assert answers.keys() == {"line-0", "line-2"} and answers["line-0"] == answers["line-2"]
    assert set(await house.results(batch_id, "error")) == {"line-1", "line-3"}
    assert (batch["x_broker"]["reused"]["lines"], house.worker.ran) == (1, [0])


async def test_a_batch_that_is_cancelled_while_batches_are_being_closed_has_its_repeats_answered_first(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The finaliser has looked for cancelled batches already, and has not closed any yet."""
    drained, batch_ids = batches.drained_batches, list[str]()

    async def then_it_is_cancelled(session: AsyncSession) -> list[Batch]:
        found = await drained(session)
        await session.commit()
        batch_ids.append(await cancelled_with_one_leader_done(house))
        return found

    monkeypatch.setattr(batches, "drained_batches", then_it_is_cancelled)
    await Finaliser(house.services).step()
    assert (await house.batch(batch_ids[0]))["status"] == "cancelling"
    monkeypatch.undo()
    await Finaliser(house.services).step()
    batch = await house.batch(batch_ids[0])
    assert (batch["status"], batch["request_counts"]["completed"]) == ("cancelled", 2)


async def test_a_cancelled_batch_waits_while_its_repeats_cannot_be_answered(house: House) -> None:
    batch_id = await cancelled_with_one_leader_done(house)
    [key] = [key for key in await keys_of(house.services.store) if "/files/" in key]
    content = await house.services.store.get(key)
    await house.services.store.delete(key)
    await Finaliser(house.services).step()
    assert (await house.batch(batch_id))["status"] == "cancelling"
    await house.services.store.put(key, content)
    await Finaliser(house.services).step()
    assert (await house.batch(batch_id))["request_counts"]["completed"] == 2


# --- answers of earlier batches --------------------------------------------------------------------------------------


async def test_what_the_project_had_answered_before_is_not_computed_again(house: House) -> None:
    first = await house.submit("one", "two", reuse=True)
    await house.run(first)
    second = await house.submit("two", "three", "one", "two", reuse=True)
    assert await house.run(second) == [1]
    before, after = bodies(await house.results(first)), bodies(await house.results(second))
    assert after["line-0"] == after["line-3"] == before["line-1"]
    assert after["line-2"] == before["line-0"]
    assert (await house.batch(second))["x_broker"]["reused"]["lines"] == 3


async def test_a_batch_whose_answers_are_all_known_ends_without_a_worker(house: House) -> None:
    await house.run(await house.submit("one", "two", reuse=True))
    batch_id = await house.submit("two", "one", reuse=True)
    await Finaliser(house.services).step()
    batch = await house.batch(batch_id)
    assert (batch["status"], batch["x_broker"]["quote_usd"]) == ("completed", "0")
    assert house.worker.ran == [0, 1]


@pytest.mark.parametrize(
    "other",
    [
        {"revision": "r2"},  # other weights behind the same name
        {"revision": None},  # nobody says which weights these are
        {"args": ("--quantization", "fp8")},  # arguments change answers
        {"precision": "fp8"},
    ],
)
async def test_an_answer_of_another_model_revision_is_not_reused(house: House, other: dict[str, Any]) -> None:
    await house.run(await house.submit("one", reuse=True))
    house.services = replace(house.services, models={"tiny": replace(house.services.models["tiny"], **other)})
    assert await house.run(await house.submit("one", reuse=True)) == [0]


async def test_an_answer_that_a_token_endpoint_gave_is_not_reused(house: House) -> None:
    """Whose weights answered is only said there, and a line without a limit is sent with one: a cut answer is not repeated."""
    bought = RentalRow(
        id=house.worker.placement, market="tokens", offer_key="tokens:tiny", project="default", model="tiny",
        precision="bf16", state="ended", settled=True, price_nano_hour=1, pricing="token", granularity_s=1, minimum_s=0,
        facts=record_from_offer(offer()), purpose={}, market_facts={}, created_us=1,
    )  # fmt: skip
    async with house.services.database.transaction() as session:
        session.add(bought)
    await house.run(await house.submit("one", reuse=True))
    assert await house.run(await house.submit("one", reuse=True)) == [0]


async def test_an_answer_of_another_project_is_not_reused(house: House) -> None:
    await house.run(await house.submit("one", reuse=True))
    house.server.admin_key = await house.server.key("submitter", "viewer", project="rival")
    assert await house.run(await house.submit("one", reuse=True)) == [0]


async def test_an_answer_from_where_this_batch_may_not_go_is_not_reused(house: House) -> None:
    await house.run(await house.submit("one", reuse=True, residency=["de", "us"]))
    assert await house.run(await house.submit("one", reuse=True, residency=["de"])) == [0]


async def lose(house: House, is_meant: Callable[[str], bool], content: bytes | None) -> None:
    """Other bytes, or none, in objects that were committed."""
    store = house.services.store
    meant = [key for key in await keys_of(store) if is_meant(key)]
    assert meant
    for key in meant:
        await store.delete(key)
        if content is not None:
            await store.put(key, content)


@pytest.mark.parametrize("content", [b"rot", None])
async def test_a_remembered_answer_that_is_lost_or_damaged_is_computed_again(
    house: House, content: bytes | None
) -> None:
    await house.run(await house.submit("one", "one", reuse=True))
    await lose(house, lambda key: key.endswith(".jsonl.gz"), content)
    batch_id = await house.submit("one", "one", reuse=True)
    assert await house.run(batch_id) == [0]
    assert (await house.batch(batch_id))["status"] == "completed"


async def test_answers_of_a_deleted_file_are_forgotten(house: House) -> None:
    first = await house.submit("one", reuse=True)
    await house.run(first)
    await house.server.call("DELETE", f"/v1/files/{(await house.batch(first))['output_file_id']}")
    assert await house.run(await house.submit("one", reuse=True)) == [0]


async def test_answers_that_were_deleted_before_they_were_remembered_are_not_remembered(house: House) -> None:
    first = await house.submit("one", reuse=True)
    await house.worker.work(first)
    await Finaliser(house.services).step()
    await house.server.call("DELETE", f"/v1/files/{(await house.batch(first))['output_file_id']}")
    await Rememberer(house.services).step()
    assert await house.run(await house.submit("one", reuse=True)) == [0]


async def test_answers_whose_results_have_expired_are_forgotten(house: House) -> None:
    house.also = {"output_expires_after": {"anchor": "created_at", "seconds": 3600}}
    await house.run(await house.submit("one", reuse=True))
    house.services.database.clock_offset_us += 2 * 3600 * 1_000_000
    await Collector(house.services).step()
    assert await house.run(await house.submit("one", reuse=True)) == [0]


async def test_answers_are_forgotten_after_their_time(house: House) -> None:
    await house.run(await house.submit("one", reuse=True))
    house.services.database.clock_offset_us += 31 * 86_400 * 1_000_000
    await Rememberer(house.services).step()
    house.services.database.clock_offset_us = 0
    assert await house.run(await house.submit("one", reuse=True)) == [0]


# --- what it saved ---------------------------------------------------------------------------------------------------


async def test_the_saving_is_booked_at_the_quoted_price_and_costs_stay_what_they_were(house: House) -> None:
    batch_id = await house.submit("same", "same", "same", reuse=True)
    await house.run(batch_id)
    batch = (await house.batch(batch_id))["x_broker"]
    books = (await house.server.call("GET", f"/v1/ledger/entries?batch={batch_id}")).json
    [entry] = books["entries"]
    assert (entry["kind"], entry["postings"][0]["account"]) == ("saving.reuse", "Memo:Saved:Default")
    assert Decimal(entry["postings"][0]["amount"]) == Decimal(batch["reused"]["saved_usd"]) > 0
    assert (batch["cost_usd"], books["balanced"]) == ("0", True)


async def test_a_damaged_own_part_is_made_anew_and_its_saving_counts_once(house: House) -> None:
    batch_id = await house.submit("same", "same", None, reuse=True, skip_invalid=True)
    await house.worker.work(batch_id)
    await Answerer(house.services).step()
    await lose(house, lambda key: "/0-" in key and key.endswith(".jsonl.gz"), b"rot")
    await Finaliser(house.services).step()
    assert (await house.batch(batch_id))["status"] == "in_progress"
    assert await house.run(batch_id) == []
    batch = await house.batch(batch_id)
    assert (batch["status"], batch["x_broker"]["invalid"], batch["x_broker"]["reused"]["lines"]) == ("completed", 1, 1)
    books = (await house.server.call("GET", f"/v1/ledger/entries?batch={batch_id}")).json
    assert Decimal(books["balances"]["Memo:Saved:Default"]) == Decimal(batch["x_broker"]["reused"]["saved_usd"])


async def test_what_two_replicas_remember_at_the_same_time_is_remembered_once(house: House) -> None:
    class Unseen(dict[str, answers.Known]):
        """Requests that were not known when one looked, because the other replica had not committed yet."""

        def __iter__(self) -> Iterator[str]:
            return iter(())

    await house.run(await house.submit("one", "two", reuse=True))
    async with house.services.database.transaction() as session:
        rows = list(await session.scalars(select(AnswerRow)))
        batch = await session.get_one(Batch, rows[0].batch_id)
        known = await answers.known(session, batch.project, [row.request_sha256 for row in rows])
        assert len(known) == 2
        new = next(iter(known.values()))
        assert await answers.remember(session, batch, Unseen(known | {"f" * 64: new}), now_us=1) == 1, "the new one"
        assert len(list(await session.scalars(select(AnswerRow)))) == 3
