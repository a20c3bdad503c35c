"""The sandbox as a provider: it survives, it bills exactly, and it fails in all the ways that it is told to."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from markets.errors import (
    Ambiguous,
    NoCapacity,
    NotAuthorized,
    PartialList,
    PriceMoved,
    RateLimited,
    RentalNotFound,
    StillReleasing,
    Unavailable,
)
from markets.instants import micros
from markets.machine import processes_of
from markets.market import Intent, MachineStart, Rental
from markets.sandbox.client import SandboxMarket
from markets.sandbox.process import SandboxHandle, ensure_running, running
from tests.markets.rigs import OWNER, Api, Sandbox, new_tag, until, until_true

SLEEP = MachineStart(argv=("sleep", "1000"))
FAR = (datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC))


@pytest.fixture
async def market(shared_sandbox: Sandbox) -> AsyncIterator[SandboxMarket]:
    market = shared_sandbox.market()
    yield market
    for rental in await market.rentals():
        await market.release(rental.tag)
    await market.close()


@pytest.fixture
async def own_market(own_sandbox: Sandbox) -> AsyncIterator[SandboxMarket]:
    market = own_sandbox.market()
    yield market
    await market.close()


@pytest.fixture
async def api(shared_sandbox: Sandbox) -> AsyncIterator[Api]:
    async with Api.of(shared_sandbox) as api:
        yield api
        await api("DELETE", "/v1/admin/faults")


async def rent(market: SandboxMarket, tag: str, sku: str = "plenty", start: MachineStart = SLEEP) -> Rental:
    offer = next(each for each in await market.offers() if each.key.sku == sku)
    return await market.rent(offer, Intent(tag, OWNER, start, Decimal(1)))


async def arm(api: Api, name: str, **options: float) -> None:
    await api("POST", "/v1/admin/faults", {"name": name, **options})


# Faults


@pytest.mark.parametrize(
    ("fault", "created"),
    [
        ("create_error_after", True),
        ("create_error_before", False),
        ("create_hang_after", True),
        ("create_hang_before", False),
    ],
)
async def test_a_create_without_an_answer_is_ambiguous_and_the_tag_tells(
    shared_sandbox: Sandbox, api: Api, fault: str, created: bool
) -> None:
    market, tag = shared_sandbox.market(create_timeout_s=1), new_tag()
    await market.offers()
    await arm(api, fault, seconds=5)
    with pytest.raises(Ambiguous):
        await rent(market, tag)
    if created:
        assert (await market.rental(tag)).state == "running"
        assert (await rent(market, tag)).state == "running"
        assert len([each for each in processes_of(tag) if each.name() == "sleep"]) == 1
        await market.release(tag)
    else:
        with pytest.raises(RentalNotFound):
            await market.rental(tag)
    await market.close()


async def test_an_offer_that_sells_out_meanwhile_is_no_capacity(market: SandboxMarket, api: Api) -> None:
    await arm(api, "sold_out")
    with pytest.raises(NoCapacity):
        await rent(market, new_tag())
    assert [each.capacity for each in await market.offers() if each.key.sku == "plenty"] == [0]
    await api("PATCH", "/v1/admin/offers/plenty", {"capacity": 100})


async def test_an_offer_whose_price_moves_meanwhile_is_price_moved(market: SandboxMarket, api: Api) -> None:
    offer = next(each for each in await market.offers() if each.key.sku == "plenty")
    assert offer.price is not None
    await arm(api, "price_moved")
    with pytest.raises(PriceMoved):
        await market.rent(offer, Intent(new_tag(), OWNER, SLEEP, offer.price))
    moved = next(each for each in await market.offers() if each.key == offer.key)
    assert moved.price == offer.price * Decimal("1.25")
    await api("PATCH", "/v1/admin/offers/plenty", {"price": str(offer.price)})


async def test_rate_limits_are_said_with_the_time_to_wait(market: SandboxMarket, api: Api) -> None:
    await arm(api, "rate_limited")
    with pytest.raises(RateLimited) as limited:
        await market.offers()
    assert limited.value.retry_after_s == 1


async def test_a_short_list_is_never_returned_as_if_it_were_whole(market: SandboxMarket, api: Api) -> None:
    shown = await rent(market, new_tag(), start=MachineStart(argv=("true",)))
    await rent(market, new_tag())
    await arm(api, "partial_list")
    with pytest.raises(PartialList) as partial:
        await market.rentals()
    assert shown.tag in {each.tag for each in partial.value.found}, "what was found is a fact"
    await arm(api, "list_error", times=3)
    with pytest.raises(PartialList):
        await market.rentals()
    await arm(api, "list_error", times=2)  # the third try succeeds
    assert len(await market.rentals()) >= 1


async def test_a_rental_that_is_counted_but_not_shown_is_not_reported_missing(market: SandboxMarket, api: Api) -> None:
    tag = new_tag()
    await rent(market, tag)
    await arm(api, "partial_list")
    with pytest.raises(Unavailable):
        await market.rental(tag)


async def test_a_slow_release_is_not_confirmed_and_goes_on_being_billed(market: SandboxMarket, api: Api) -> None:
    tag = new_tag()
    await rent(market, tag)
    await arm(api, "slow_release", seconds=0.5)
    with pytest.raises(StillReleasing):
        await market.release(tag)
    rental = await market.rental(tag)
    assert (rental.state, rental.ended_at) == ("releasing", None)

    async def is_released() -> bool:
        try:
            await market.release(tag)
        except StillReleasing:
            return False
        return True

    await until_true(is_released, "the release takes effect")
    ended = (await market.rental(tag)).ended_at
    assert ended is not None and ended >= rental.seen_at


async def test_a_wrong_key_is_not_authorized(shared_sandbox: Sandbox) -> None:
    handle = await shared_sandbox.find()

    async def wrong() -> SandboxHandle:
        return SandboxHandle(handle.url, "wrong", handle.pid)

    market = SandboxMarket(wrong, owner=OWNER)
    with pytest.raises(NotAuthorized):
        await market.offers()
    await market.close()


async def test_a_sandbox_that_cannot_be_reached_is_unavailable_also_for_renting(shared_sandbox: Sandbox) -> None:
    live = shared_sandbox.market()
    offer = (await live.offers())[0]
    await live.close()

    async def nowhere() -> SandboxHandle:
        return SandboxHandle("http://127.0.0.1:1", "token", 1)

    market = SandboxMarket(nowhere, owner=OWNER)
    with pytest.raises(Unavailable):
        await market.rent(offer, Intent(new_tag(), OWNER, SLEEP, Decimal(1)))
    await market.close()


async def test_every_list_is_read_to_its_last_page(
    market: SandboxMarket, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("markets.sandbox.client.PAGE", 2)
    tags = {new_tag() for _ in range(5)}
    for tag in tags:
        await rent(market, tag, start=MachineStart(argv=("true",)))
    assert tags <= {each.tag for each in await market.rentals()}


# Prices


async def test_price_0_is_unknown_never_free(market: SandboxMarket) -> None:
    offer = next(each for each in await market.offers() if each.key.sku == "unpriced")
    assert offer.quarantined is not None and "unknown, not free" in offer.quarantined
    with pytest.raises(PriceMoved):
        await rent(market, new_tag(), "unpriced")


async def test_places_are_as_well_known_as_the_provider_says_and_no_better(market: SandboxMarket) -> None:
    by_sku = {each.key.sku: each for each in await market.offers()}
    assert (by_sku["one"].location_tier, by_sku["one"].country, by_sku["one"].evidence) == ("anonymous", None, ())
    assert [each.kind for each in by_sku["none"].evidence] == ["provider_claim"]
    assert [each.kind for each in by_sku["plenty"].evidence] == ["datacenter_name"]


# Preemption


async def test_a_preemption_with_notice_tells_the_machine_and_keeps_its_word(market: SandboxMarket, api: Api) -> None:
    tag = new_tag()
    rental = await rent(market, tag)
    before = time.time()
    await api("POST", f"/v1/admin/instances/{rental.facts['id']}/preempt", {"notice_s": 1})
    notice = Path(rental.facts["folder"]) / "disk" / "notice.json"
    await until(notice.exists, "the machine is told")
    at = json.loads(notice.read_text())["at"]
    assert before + 1 <= at <= time.time() + 1
    assert processes_of(tag)
    assert (await market.rental(tag)).facts["preemption_at"]
    await until(lambda: not processes_of(tag), "the machine is taken away")
    assert time.time() >= at
    ended = await market.rental(tag)
    assert (ended.end_reason, ended.exit_status) == ("preempted", -9)


async def test_a_preemption_without_notice_is_at_once(market: SandboxMarket, api: Api) -> None:
    tag = new_tag()
    rental = await rent(market, tag)
    await api("POST", f"/v1/admin/instances/{rental.facts['id']}/preempt", {"notice_s": 0})
    assert not processes_of(tag)
    assert not (Path(rental.facts["folder"]) / "disk" / "notice.json").exists()
    assert (await market.rental(tag)).end_reason == "preempted"


async def test_a_machine_that_leaves_before_its_preemption_has_exited(market: SandboxMarket, api: Api) -> None:
    tag = new_tag()
    leaver = MachineStart(argv=("sh", "-c", 'while [ ! -e "$HOME/notice.json" ]; do sleep 0.02; done'))
    rental = await rent(market, tag, start=leaver)
    await api("POST", f"/v1/admin/instances/{rental.facts['id']}/preempt", {"notice_s": 60})

    async def has_ended() -> bool:
        return (await market.rental(tag)).state == "ended"

    await until_true(has_ended, "it leaves when told")
    assert (await market.rental(tag)).end_reason == "exited"


async def test_hazard_preempts_by_itself_only_where_the_catalogue_says_so(tmp_path: Path) -> None:
    catalogue = tmp_path / "catalogue.toml"
    row = 'tier = "anonymous"\npricing = "spot"\nprice = "1"\ncapacity = 9\nhazard = "10000000"\n'
    catalogue.write_text(f'[[offers]]\nid = "safe"\n{row}[[offers]]\nid = "doomed"\npreempt = true\n{row}')
    sandbox = Sandbox(tmp_path / "sandbox", catalogue)
    market, doomed, safe = sandbox.market(), new_tag(), new_tag()
    await rent(market, safe, "safe")
    await rent(market, doomed, "doomed")
    await until(lambda: not processes_of(doomed), "10 million interruptions an hour strike")
    assert (await market.rental(doomed)).end_reason == "preempted"
    assert (await market.rental(safe)).state == "running"
    await market.close()
    await sandbox.end()
    assert not processes_of(safe)


# Surviving


async def test_the_sandboxs_kill_9_and_restart_keeps_machines_and_meters(
    own_sandbox: Sandbox, own_market: SandboxMarket
) -> None:
    running_tag, ended_tag, booting = new_tag(), new_tag(), new_tag()
    before = await rent(own_market, running_tag)
    await rent(own_market, ended_tag)
    end = await own_market.release(ended_tag)
    assert (await rent(own_market, booting, "slow-boot")).state == "pending"
    await own_sandbox.kill()
    assert processes_of(running_tag), "machines do not die with their provider"
    after = await own_market.rental(running_tag)  # found and started again
    assert (after.state, after.started_at, after.facts["pid"]) == ("running", before.started_at, before.facts["pid"])
    assert await own_market.release(ended_tag) == end
    assert (await own_market.rental(booting)).state == "pending"
    assert (await own_market.release(booting)).tag == booting
    assert (await own_market.rental(booting)).started_at is None
    await own_market.release(running_tag)
    assert processes_of(running_tag) == []


async def test_a_machine_that_ends_while_its_provider_is_dead_is_billed_to_its_end(
    own_sandbox: Sandbox, own_market: SandboxMarket
) -> None:
    tag = new_tag()
    rental = await rent(own_market, tag)
    await own_sandbox.kill()
    os.kill(int(rental.facts["pid"]), signal.SIGKILL)
    await until(lambda: not processes_of(tag), "the machine is gone")
    gone = datetime.now(UTC)
    after = await own_market.rental(tag)
    assert after.ended_at is not None and after.started_at is not None
    assert after.started_at < after.ended_at <= gone
    assert (after.exit_status, after.end_reason) == (-9, "failed")


async def test_a_notice_outlives_the_provider_that_gave_it(own_sandbox: Sandbox, own_market: SandboxMarket) -> None:
    tag = new_tag()
    rental = await rent(own_market, tag)
    async with Api.of(own_sandbox) as api:
        await api("POST", f"/v1/admin/instances/{rental.facts['id']}/preempt", {"notice_s": 0.5})
    await own_sandbox.kill()
    await own_market.rental(tag)
    await until(lambda: not processes_of(tag), "the restarted sandbox does what it announced")
    assert (await own_market.rental(tag)).end_reason == "preempted"


async def test_a_torn_last_line_of_the_journal_did_not_happen(own_sandbox: Sandbox, own_market: SandboxMarket) -> None:
    tag = new_tag()
    await rent(own_market, tag)
    await own_sandbox.kill()
    with own_sandbox.journal.open("ab") as journal:
        journal.write(b'{"event":"ended","id":"i-0000')
    assert (await own_market.rental(tag)).state == "running"
    await own_market.release(tag)
    assert all(json.loads(line) for line in own_sandbox.journal.read_text().splitlines())


async def test_a_folder_has_one_sandbox_however_many_brokers_ask(tmp_path: Path) -> None:
    folder = tmp_path / "sandbox"
    handles = await asyncio.gather(*(ensure_running(folder) for _ in range(3)))
    assert len({(each.url, each.pid) for each in handles}) == 1
    os.kill(handles[0].pid, signal.SIGTERM)
    await until(lambda: running(folder) is None, "SIGTERM ends it")


async def test_sigterm_ends_it_cleanly_with_its_machines_metered(
    own_sandbox: Sandbox, own_market: SandboxMarket
) -> None:
    tag = new_tag()
    await rent(own_market, tag)
    await own_sandbox.end()
    assert processes_of(tag) == []
    last = json.loads(own_sandbox.journal.read_text().splitlines()[-1])
    assert (last["event"], last["reason"], last["exit_status"]) == ("ended", "preempted", -9)


async def test_it_ends_by_itself_when_nobody_needs_it(tmp_path: Path) -> None:
    handle = await ensure_running(tmp_path / "sandbox", idle_s=0.1)
    assert handle.process is not None
    assert await asyncio.to_thread(handle.process.wait, 30) == 0


async def test_shutdown_is_refused_while_machines_live_unless_forced(
    own_sandbox: Sandbox, own_market: SandboxMarket
) -> None:
    tag = new_tag()
    await rent(own_market, tag)
    async with Api.of(own_sandbox) as api:
        status, answer = await api("POST", "/v1/admin/shutdown", {})
        assert (status, answer["error"]["code"]) == (409, "machines_live")
        assert (await api("POST", "/v1/admin/shutdown", {"force": True}))[0] == 200
    await until(lambda: running(own_sandbox.folder) is None, "it ends")
    assert processes_of(tag) == []


async def test_what_is_rented_survives_the_broker(tmp_path: Path, own_sandbox: Sandbox) -> None:
    """A broker in its own process rents and is killed with SIGKILL; sandbox and machine live on."""
    tag = new_tag()
    program = f"""
import asyncio, sys
from decimal import Decimal
from pathlib import Path
from markets.market import Intent, MachineStart
from markets.sandbox.client import SandboxMarket
from markets.sandbox.process import ensure_running
async def main():
    market = SandboxMarket(lambda: ensure_running(Path({str(own_sandbox.folder)!r})), owner={OWNER!r})
    offer = (await market.offers())[0]
    await market.rent(offer, Intent({tag!r}, {OWNER!r}, MachineStart(argv=("sleep", "1000")), Decimal(1)))
    print("rented", flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""
    broker = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE, start_new_session=True
    )
    assert broker.stdout is not None
    assert await broker.stdout.readline() == b"rented\n"
    os.killpg(broker.pid, signal.SIGKILL)
    await broker.wait()
    market = own_sandbox.market()
    assert (await market.rental(tag)).state == "running"
    await market.release(tag)
    await market.close()


# Money


def recomputed(journal: Path) -> dict[str, Decimal]:
    """Another way to the invoice, from the journal alone: fractions, whole increments at the end, one rounding."""
    created: dict[str, Any] = {}
    started: dict[str, int] = {}
    amounts: dict[str, Decimal] = {}
    for line in journal.read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "created":
            created[event["id"]] = event
        elif event["event"] == "started":
            started[event["id"]] = event["at_us"]
        elif event["event"] == "ended" and event["id"] in started:
            terms = created[event["id"]]
            step = terms["granularity_s"]
            micros_run = event["at_us"] - started[event["id"]]
            seconds = -(-micros_run // (step * 1_000_000)) * step
            seconds = max(seconds, terms["minimum_s"]) if seconds else 0
            nano = Fraction(terms["price"]) * seconds / 3600 * 10**9
            amounts[terms["tag"]] = Decimal(round(nano)).scaleb(-9)  # round() of a Fraction is half to even
    return amounts


async def test_the_invoice_equals_an_independent_recomputation_from_the_log(
    own_sandbox: Sandbox, own_market: SandboxMarket
) -> None:
    for sku in ("plenty", "by-the-minute", "one"):
        tag = new_tag()
        await rent(own_market, tag, sku)
        await own_market.release(tag)
    await rent(own_market, new_tag(), "plenty", MachineStart(argv=("true",)))

    async def all_ended() -> bool:
        return all(each.state == "ended" for each in await own_market.rentals())

    await until_true(all_ended, "the last one exits")
    charges = await own_market.charges(*FAR)
    assert {each.tag: each.amount for each in charges} == recomputed(own_sandbox.journal)
    assert len(charges) == 4 and all(each.final and each.amount > 0 for each in charges)
    by_sku = {each.offer_key.sku: each for each in charges}
    assert by_sku["by-the-minute"].seconds == 120  # its minimum
    assert by_sku["by-the-minute"].amount == Decimal("0.002333333")


async def test_the_meter_shows_closed_increments_and_never_more_than_the_invoice(
    market: SandboxMarket, api: Api
) -> None:
    tag = new_tag()
    rental = await rent(market, tag, "by-the-minute")
    status, answer = await api("GET", "/v1/meter")
    line = next(each for each in answer["lines"] if each["tag"] == tag)
    assert (status, line["seconds"], line["amount"], line["final"]) == (200, 0, "0.000000000", False)
    assert rental.started_at is not None
    assert micros(datetime.fromisoformat(line["from"])) == micros(rental.started_at)
    await market.release(tag)
    assert tag not in {each["tag"] for each in (await api("GET", "/v1/meter"))[1]["lines"]}


async def test_an_invoice_covers_what_overlaps_its_period(market: SandboxMarket) -> None:
    tag = new_tag()
    rental = await rent(market, tag)
    end = (await market.release(tag)).at
    assert rental.started_at is not None

    async def billed(from_at: datetime, to_at: datetime) -> bool:
        return tag in {each.tag for each in await market.charges(from_at, to_at)}

    hour, tick = timedelta(hours=1), timedelta(microseconds=1)
    assert await billed(end - tick, end + hour)
    assert not await billed(end, end + hour)
    assert await billed(rental.started_at - hour, rental.started_at + tick)
    assert not await billed(rental.started_at - hour, rental.started_at)


def test_amounts_are_rounded_once_half_to_even() -> None:
    from markets.meter import Terms, amount  # noqa: PLC0415

    assert amount(Terms(Decimal("0.0000000018"), 1, 0), 1000) == Decimal("0.0000000005").quantize(
        Decimal("1e-9"), ROUND_HALF_EVEN
    )
    assert amount(Terms(Decimal("0.0000000018"), 1, 0), 3000) == Decimal("2E-9")
