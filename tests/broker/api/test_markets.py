"""Markets, the history of offers, rate cards and exports over HTTP: the fields are those that issue 5 pins."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import quote

import pytest
from sqlalchemy import update

from broker.cli.explained_offer import explanation
from broker.cli.offers import steps
from broker.control.poll import polls
from jobs.clock import db_now
from markets import price_book, rentals
from markets.cadence import OPEN_AFTER, circuit
from markets.cards.snapshot import snapshot
from markets.directory import DIRECTORY
from markets.errors import Unavailable
from markets.market import Rental
from markets.offer import Accelerator, Evidence, Offer, OfferKey
from markets.tables import PollRow
from markets.tokens.card import card_offers
from markets.tokens.source import shipped_card
from tests.support.wire_agent import Rent

OFFER_FIELDS = [
    "key", "market", "region", "zone", "country", "subdivision", "location_evidence", "location_tier", "confidentiality",
    "operator", "operator_jurisdictions", "gpu", "gpu_memory_gib", "gpu_count", "pricing", "usd_per_hour", "usd_per_gpu_hour",
    "observed_at", "source", "capacity", "interruption_per_hour", "notice_s", "granularity_s", "minimum_s",
    "egress_usd_per_gb", "launch", "quarantined", "reason",
]  # fmt: skip
NOT_BUILT = [
    "nebius", "crusoe", "hyperstack", "digitalocean", "nosana", "hyperbolic", "lium", "clore", "phala", "render", "aethir",
    "spheron", "golem", "modal", "replicate", "beam", "blaxel", "tensordock",
]  # fmt: skip
CLASSES = {"hyperscaler", "neocloud", "aggregator", "decentralized", "token", "own", "local", "sandbox"}
CARD = """sku,gpu,gpu_count,price,currency,pricing,sunk_per_hour,country
node-a,H100 SXM5 80GB,8,0,USD,reserved,18.5,DE
node-b,L40S,4,2.10,USD,on_demand,,DE
"""


def offer(price: str, at: datetime) -> Offer:
    return Offer(
        key=OfferKey("sandbox", "r", None, "a", "l4", 1, "spot"),
        launch="vm",
        accelerator=Accelerator("nvidia", "l4", "pcie", 24_576, 1),
        currency="USD",
        price=Decimal(price),
        observed_at=at,
        source="test",
        raw_sha256="00",
        components={"machine": Decimal(price)},
        country="DE",
        evidence=(Evidence("provider_api", "x", at, timedelta(days=1)),),
        location_tier="named_datacenter",
        raw={"machine": f"{price} per hour and instance"},
    )


async def store(server: Any, *offers: Offer) -> None:
    async with server.services.database.transaction() as session:
        await price_book.store_offers(session, "sandbox", offers, now_us=await db_now(session))


async def test_markets_are_told_by_the_pinned_fields(server: Any) -> None:
    found = (await server.call("GET", "/v1/markets")).json["data"]
    for each in found:
        assert list(each) == ["name", "class", "prices", "renting", "credentials", "age_s", "offers", "reason"]
        assert each["class"] in CLASSES and each["prices"] in ("live", "card", "snapshot", "unsupported")
        assert each["prices"] == "live" or each["reason"] or each["prices"] == "snapshot"
    assert {each["name"] for each in found} >= set(DIRECTORY)


class Down:
    """A market that answers 503 until it is mended."""

    def __init__(self) -> None:
        self.asked, self.is_mended = 0, False

    async def offers(self) -> list[Offer]:
        self.asked += 1
        if self.is_mended:
            return [offer("1.5", datetime.now(UTC))]
        raise Unavailable("503")

    async def close(self) -> None:
        """Nothing is open."""


async def test_the_circuit_opens_after_five_failures_lets_one_trial_through_and_closes(server: Any) -> None:
    market = Down()
    poll = polls(replace(server.services, markets={"sandbox": market}))["poll:sandbox"]

    async def reason() -> str | None:
        found = (await server.call("GET", "/v1/markets")).json["data"]
        return next(each["reason"] for each in found if each["name"] == "sandbox")

    async def row() -> Any:
        async with server.services.database.transaction() as session:
            return await session.get_one(PollRow, "sandbox")

    async def when_it_is_time() -> None:
        async with server.services.database.transaction() as session:
            await session.execute(update(PollRow).values(again_us=1))
        await poll.step()

    for failures in range(1, OPEN_AFTER + 1):
        assert "asked less often" not in (await reason() or "")
        await when_it_is_time()
        assert (market.asked, circuit((await row()).failures)) == (failures, circuit(failures))
    assert await reason() == "unavailable: 503; 5 failures in a row, asked less often"
    opened = await row()
    await poll.step()
    assert market.asked == OPEN_AFTER  # open: left alone

    await when_it_is_time()
    tried = await row()
    await poll.step()
    assert market.asked == OPEN_AFTER + 1  # half open: one trial, which failed, and a longer wait
    assert tried.again_us - tried.failed_us > opened.again_us - opened.failed_us

    market.is_mended = True
    await when_it_is_time()
    closed = await row()
    assert (closed.failures, closed.again_us, circuit(closed.failures)) == (0, None, "closed")
    assert "503" not in (await reason() or "")
    await poll.step()
    await poll.step()
    assert market.asked == OPEN_AFTER + 4  # as often as ever


async def test_every_market_that_is_not_built_is_named_with_its_reason(server: Any) -> None:
    found = {each["name"]: each for each in (await server.call("GET", "/v1/markets")).json["data"]}
    for name in [
        "nebius",
        "crusoe",
        "hyperstack",
        "digitalocean",
        "nosana",
        "hyperbolic",
        "lium",
        "clore",
        "phala",
        "render",
        "aethir",
        "spheron",
        "golem",
        "modal",
        "replicate",
        "beam",
        "blaxel",
        "tensordock",
    ]:
        assert found[name]["prices"] in ("unsupported", "snapshot") and not found[name]["renting"], name
        assert found[name]["reason"], name


async def test_offers_have_the_pinned_fields_in_order_and_serve_before_any_credential_exists(server: Any) -> None:
    found = (await server.call("GET", "/v1/market/offers?gpu=h100")).json["data"]
    assert len(found) > 100
    assert all(list(each) == OFFER_FIELDS for each in found)
    assert all("snapshot" in each["source"] and "snapshot of 20" in each["reason"] for each in found)
    assert all(Decimal(each["usd_per_hour"]) > 0 for each in found)


async def test_the_snapshot_of_a_market_gives_way_to_its_own_answer(server: Any) -> None:
    live = Offer(
        key=OfferKey("gcp", "r", None, "a", "l4", 1, "spot"),
        launch="vm",
        accelerator=Accelerator("nvidia", "l4", "pcie", 24_576, 1),
        currency="USD",
        price=Decimal(1),
        observed_at=datetime.now(UTC),
        source="live",
        raw_sha256="00",
    )
    async with server.services.database.transaction() as session:
        await price_book.store_offers(session, "gcp", [live], now_us=await db_now(session))
    found = (await server.call("GET", "/v1/market/offers?market=gcp")).json["data"]
    assert [each["source"] for each in found] == ["live"]


async def test_an_offers_history_and_its_explanation(server: Any) -> None:
    now = datetime.now(UTC)
    for hours, price in ((3, "0.80"), (2, "0.80"), (1, "0.60")):
        await store(server, offer(price, now - timedelta(hours=hours)))
    key = quote(str(offer("1", now).key), safe="")
    history = (await server.call("GET", f"/v1/market/offers/history?key={key}")).json
    assert [(each["usd_per_hour"], each["state"]) for each in history["changes"]] == [
        ("0.8", "listed"),
        ("0.6", "listed"),
    ]
    told = (await server.call("GET", f"/v1/market/offers/explain?key={key}")).json
    assert told["components"] == {"machine": "0.6"} and told["raw"] == {"machine": "0.60 per hour and instance"}
    assert told["evidence"][0]["valid"] and told["gpu_facts"]["memory_gib"] == "24"
    assert told["trust"] == sum(point["points"] for point in told["trust_points"]) <= 100
    pool = (await server.call("GET", "/v1/market/pool?market=sandbox&gpu=l4&pricing=spot")).json
    assert pool["offers"] == 1 and len(pool["hours"]) == 24


async def test_a_key_of_one_project_is_told_rates_and_neither_counts_of_all_projects_nor_names(server: Any) -> None:
    now = datetime.now(UTC)
    one = offer("0.80", now)
    await store(server, one)
    carded = replace(one, key=replace(one.key, market="my-card"))
    async with server.services.database.transaction() as session:
        now_us = await db_now(session)
        await price_book.store_card(
            session, "my-card", [carded], by="ada-of-the-house", until_us=now_us + 10**12, now_us=now_us
        )
        for tag in ("rental_1", "rental_2"):
            await rentals.record_intent(
                session, rental_id=tag, offer=one, project="theirs", model="m", precision="auto", purpose={}, now_us=now_us
            )  # fmt: skip
            await rentals.mark_creating(session, tag, now_us=now_us)
        await rentals.failed(session, "rental_1", error="no_capacity: sold out", now_us=now_us)
        started = Rental("rental_2", one.key, "running", Decimal("0.8"), "USD", now, None, now)
        await rentals.observe(session, started, now_us=now_us)
    key = await server.key("submitter", project="mine")

    async def explained(of: Offer, as_whom: str) -> tuple[dict[str, Any], str]:
        path = f"/v1/market/offers/explain?key={quote(str(of.key), safe='')}"
        answer = await server.call("GET", path, key=as_whom)
        return answer.json, "\n".join(explanation(answer.json))

    house, told = await explained(one, "admin")
    assert (house["learned"]["asked"], house["learned"]["started"], house["learned"]["failed"]) == (2, 1, 1)
    assert "2 asked for, 1 started" in told and "1 of 2 starts became machines" in told
    mine, told = await explained(one, key)
    counts = ("asked", "started", "failed", "interrupted", "ran_s")
    assert [mine["learned"][name] for name in counts] == [None] * 5
    assert mine["learned"]["failed_share"] == "0.5" and "0.5 of them failed" in told and "50.0% of the starts" in told
    assert " of 2 " not in told and "asked for" not in told and mine["trust"] == house["trust"]
    for as_whom, is_named in (("admin", True), (key, False)):
        _, told = await explained(carded, as_whom)
        assert "a card of 'my-card'" in told and ("ada-of-the-house" in told) is is_named
        listed = await server.call("GET", "/v1/markets", key=as_whom)
        assert (b"ada-of-the-house" in listed.raw) is is_named


async def test_a_key_that_nobody_knows_is_404(server: Any) -> None:
    for path in ("history", "explain"):
        answer = await server.call("GET", f"/v1/market/offers/{path}?key=a/-/-/b/c/0/spot")
        assert (answer.status, answer.code) == (404, "offer_not_found")


async def test_an_offer_of_the_snapshot_is_explained_too(server: Any) -> None:
    key = quote(str(snapshot()[0].key), safe="")
    told = (await server.call("GET", f"/v1/market/offers/explain?key={key}")).json
    assert "snapshot" in told["reason"] and told["max_age_s"] is None


async def test_an_offer_of_the_snapshot_has_the_one_day_that_is_known_of_it(server: Any) -> None:
    """Its history was empty: neither a price nor the word that there is none."""
    old = snapshot()[0]
    found = (await server.call("GET", f"/v1/market/offers/history?key={quote(str(old.key), safe='')}")).json
    (change,) = found["changes"]
    assert (change["state"], Decimal(change["usd_per_hour"])) == ("snapshot", old.price)
    assert change["at"] == int(old.observed_at.timestamp()) and "snapshot of" in change["reason"]
    assert steps(found)[0].value is None, "a chart that shows the price of one day as today's"


async def test_an_endpoints_explanation_says_what_is_promised_and_what_nobody_said(server: Any) -> None:
    at = datetime.now(UTC)
    card = replace(shipped_card("cerebras"), observed_on=at.date())
    async with server.services.database.transaction() as session:
        await price_book.store_offers(session, "cerebras", card_offers(card), now_us=await db_now(session))
    listed = (await server.call("GET", "/v1/market/offers?pricing=token")).json
    dearer = [Decimal(listed["usd_per_million"][each["key"]]) for each in listed["data"]]
    assert len(dearer) == 8 and dearer == sorted(dearer), "prices of tokens were neither shown nor sorted by"
    key = quote("cerebras/-/-/gpt-oss-120b/tokens/0/token", safe="")
    told = (await server.call("GET", f"/v1/market/offers/explain?key={key}")).json
    assert told["usd_per_million"] == {"input": "0.35", "output": "0.75"}
    assert told["data_policy"]["retention_days"] == 0 and told["data_policy"]["training"] is None
    assert told["data_policy"]["source"].startswith("https://support.cerebras.net/")
    endpoint = told["endpoint"]
    assert (endpoint["context_tokens"], endpoint["max_output_tokens"], endpoint["precision"]) == (131072, 32768, None)
    lines = explanation(told)
    assert lines[-1].startswith("may not be chosen: prices of 'cerebras' are read, or of a card"), (
        "nothing is bought there"
    )
    assert "  context at most 131,072 tokens, answer at most 32,768 tokens, precision unknown" in lines
    assert any(
        line.startswith("  prompts are kept: 0 days at most; trained on: unknown, says https://") for line in lines
    )


@pytest.mark.parametrize(
    ("changed", "chosen", "told"),
    [
        ({}, True, "may be chosen"),
        ({"capacity": 0}, False, "may not be chosen: sold out: capacity 0"),
        ({"country": None, "evidence": ()}, True, "may be chosen where no place is asked for: "),
        ({"quarantined": "offer x: doubted"}, False, "may not be chosen: offer x: doubted"),
    ],
)
async def test_explain_says_whether_an_offer_may_be_chosen(
    server: Any, changed: dict[str, Any], chosen: bool, told: str
) -> None:
    """What had sold out was said to be free to choose, and a machine whose country is unknown not to be."""
    one = replace(offer("1", datetime.now(UTC)), **changed)
    await store(server, one)
    found = (await server.call("GET", f"/v1/market/offers/explain?key={quote(str(one.key), safe='')}")).json
    assert found["may_be_chosen"] is chosen
    assert explanation(found)[-1].startswith(told)


async def test_explain_says_what_is_paid_beside_the_hours_and_what_our_rentals_taught(server: Any, rent: Rent) -> None:
    half = {"deposit": Decimal(3), "refundable_fraction": Decimal("0.5"), "egress_per_gb": Decimal("0.09")}
    one = replace(offer("1.5", datetime.now(UTC)), **half)
    await store(server, one)
    path = f"/v1/market/offers/explain?key={quote(str(one.key), safe='')}"
    lines = explanation((await server.call("GET", path)).json)
    assert {
        "deposit $3.00, of which 50 % come back",
        "traffic: $0.09 a GB out, $0.00 in",
        "our rentals: none yet",
    } <= set(lines)
    await rent(of=one)
    (taught,) = [each for each in explanation((await server.call("GET", path)).json) if each.startswith("our rentals")]
    assert "1 asked for, 1 started (boot " in taught and taught.endswith("quoted $1.50 and billed $0.05 an hour")


async def test_a_rate_card_is_taken_over_and_reserved_capacity_costs_nothing_more(server: Any) -> None:
    body = {"market": "our-cluster", "text": CARD}
    answer = await server.call("POST", "/v1/market/cards", json=body)
    assert (answer.json["offers"], answer.json["stored"], answer.json["findings"]) == (2, True, [])
    found = (await server.call("GET", "/v1/market/offers?market=our-cluster")).json["data"]
    assert [(each["pricing"], each["usd_per_hour"], each["quarantined"]) for each in found] == [
        ("reserved", "0", False),
        ("on_demand", "2.1", False),
    ]
    told = (await server.call("GET", f"/v1/market/offers/explain?key={quote(found[0]['key'], safe='')}")).json
    assert told["sunk_usd_per_hour"] == "18.5"
    (market,) = [m for m in (await server.call("GET", "/v1/markets")).json["data"] if m["name"] == "our-cluster"]
    assert (market["prices"], market["class"], market["offers"]) == ("card", "own", 2)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"market": "sandbox", "text": CARD}, 422, "is asked itself"),
        ({"market": "Not A Name", "text": CARD}, 400, "market"),
    ],
)
async def test_a_card_that_cannot_be_is_refused(server: Any, body: dict[str, str], status: int, words: str) -> None:
    answer = await server.call("POST", "/v1/market/cards", json=body)
    assert answer.status == status and words in json.dumps(answer.json)


async def test_a_card_with_a_wrong_line_is_not_taken_over_at_all(server: Any) -> None:
    body = {"market": "mine", "text": CARD + "node-c,L4,one,1,USD,on_demand,,DE\n"}
    answer = (await server.call("POST", "/v1/market/cards", json=body)).json
    assert (
        not answer["stored"]
        and answer["findings"][0]["line"] == 4
        and "gpu_count 'one'" in answer["findings"][0]["message"]
    )
    assert (await server.call("GET", "/v1/market/offers?market=mine")).json["data"] == []


@pytest.mark.parametrize("dry_run", [True, False])
async def test_a_card_says_which_of_its_prices_are_not_believed_and_why(server: Any, dry_run: bool) -> None:
    """It said "1 quarantined" and no more; a price in EUR stayed unknown after its rate was given, until the card came again."""
    body = {"market": "mine", "text": CARD + "node-c,H100 SXM5 80GB,8,12.5,EUR,on_demand,,DE\n", "dry_run": dry_run}
    told = (await server.call("POST", "/v1/market/cards", json=body)).json
    (doubt,) = told["doubted"]
    assert doubt["key"] == "mine/-/-/node-c/h100-sxm/8/on_demand" and "no rate of EUR" in doubt["reason"]
    rate = {"unit": "EUR", "rate": "1.08", "dated": datetime.now(UTC).date().isoformat(), "source": "ECB"}
    await server.call("POST", "/v1/ledger/rates", json={"rates": [rate]})
    again = (await server.call("POST", "/v1/market/cards", json=body)).json
    assert (again["doubted"], again["quarantined"]) == ([], 0)


async def test_a_card_counts_as_long_as_it_says_and_explain_says_so_too(server: Any) -> None:
    """`explain` said that three minutes were the most allowed, of a card that counted for 30 days."""
    await server.call("POST", "/v1/market/cards", json={"market": "mine", "text": CARD, "valid_days": 3})
    key = quote("mine/-/-/node-b/l40s/4/on_demand", safe="")
    told = (await server.call("GET", f"/v1/market/offers/explain?key={key}")).json
    assert (told["max_age_s"], told["may_be_chosen"]) == (3 * 86_400, False)
    assert "nothing is rented there before it answers itself" in told["reason"]


async def test_a_card_of_tomorrow_stood_against_every_newer_one_until_its_day(server: Any) -> None:
    """It was taken over, and the mended card after it was said to be, too, and changed nothing."""
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).date().isoformat()
    whole = await server.call(
        "POST", "/v1/market/cards", json={"market": "mine", "text": CARD, "observed_on": tomorrow}
    )
    assert (whole.status, whole.code) == (400, "day_to_come")
    head, *rows = CARD.splitlines()
    dated = "\n".join([f"{head},observed_on", *(f"{row},{tomorrow}" for row in rows)])
    told = (await server.call("POST", "/v1/market/cards", json={"market": "mine", "text": dated})).json
    assert not told["stored"] and "is to come" in told["findings"][0]["message"]
    today = datetime.now(UTC).date().isoformat()
    for price in ("2.10", "2.20"):  # and what is of today is of now: the second is newer
        body = {"market": "mine", "text": CARD.replace("2.10", price), "observed_on": today}
        assert (await server.call("POST", "/v1/market/cards", json=body)).json["stored"]
    found = (await server.call("GET", "/v1/market/offers?market=mine&gpu=l40s")).json["data"]
    assert [each["usd_per_hour"] for each in found] == ["2.2"]


async def test_a_card_that_is_older_than_what_is_known_is_refused_and_not_said_to_be_taken_over(server: Any) -> None:
    assert (await server.call("POST", "/v1/market/cards", json={"market": "mine", "text": CARD})).json["stored"]
    body = {"market": "mine", "text": CARD.replace("2.10", "1.10"), "observed_on": "2026-01-01"}
    refused = await server.call("POST", "/v1/market/cards", json=body)
    assert (refused.status, refused.code) == (422, "card_is_older")
    old = {"market": "old", "text": CARD, "observed_on": (datetime.now(UTC) - timedelta(days=9)).date().isoformat()}
    assert (await server.call("POST", "/v1/market/cards", json=old)).json["stored"]
    ages = {each["name"]: each["age_s"] for each in (await server.call("GET", "/v1/markets")).json["data"]}
    assert ages["mine"] < 3_600 < 9 * 86_400 <= ages["old"] < 10 * 86_400
    assert "another name" in refused.json["error"]["message"]
    worse = await server.call(
        "POST", "/v1/market/cards", json=body | {"text": CARD + "node-c,L4,one,1,USD,on_demand,,DE\n"}
    )
    assert worse.json["findings"][0]["line"] == 4, "a wrong line is told first"


async def test_what_is_paid_anyway_is_kept_in_dollars(server: Any) -> None:
    """18.5 euros an hour were kept as 18.5 dollars."""
    body = {"market": "mine", "text": CARD.replace(",USD,reserved", ",EUR,reserved")}
    told = (await server.call("POST", "/v1/market/cards", json=body)).json
    assert told["quarantined"] == 1 and "no rate of EUR" in told["doubted"][0]["reason"]
    rate = {"unit": "EUR", "rate": "1.2", "dated": datetime.now(UTC).date().isoformat(), "source": "ECB"}
    await server.call("POST", "/v1/ledger/rates", json={"rates": [rate]})
    assert (await server.call("POST", "/v1/market/cards", json=body)).json["quarantined"] == 0
    key = quote("mine/-/-/node-a/h100-sxm/8/reserved", safe="")
    told = (await server.call("GET", f"/v1/market/offers/explain?key={key}")).json
    assert (told["usd_per_hour"], told["sunk_usd_per_hour"]) == ("0", "22.2")
    assert told["raw"]["fx"].startswith("1 EUR = 1.2 USD on ")


async def test_a_card_is_out_of_date_when_it_says_so(server: Any) -> None:
    body = {"market": "mine", "text": CARD, "observed_on": "2025-01-01", "valid_days": 30}
    await server.call("POST", "/v1/market/cards", json=body)
    found = (await server.call("GET", "/v1/market/offers?market=mine")).json["data"]
    assert found, "a dated card was refused, or taken for none"
    assert all("was valid until 2025-01-31" in each["reason"] for each in found)


async def test_an_export_has_the_same_offers_in_the_same_order(server: Any) -> None:
    query = "market=aws&gpu=h100"
    listed = (await server.call("GET", f"/v1/market/offers?{query}")).json["data"]
    text = (await server.call("GET", f"/v1/market/offers/export?{query}&format=csv")).raw.decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert list(rows[0]) == OFFER_FIELDS
    assert [(row["key"], row["usd_per_hour"]) for row in rows] == [(o["key"], o["usd_per_hour"]) for o in listed]
    assert (await server.call("GET", f"/v1/market/offers/export?{query}&format=json")).json["data"] == listed


async def test_an_export_as_parquet_is_read_by_arrow(server: Any) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    body = (await server.call("GET", "/v1/market/offers/export?market=azure&format=parquet")).raw
    table = parquet.read_table(io.BytesIO(body))
    assert table.column_names == OFFER_FIELDS and table.num_rows > 300
