"""Spend, reports, anomalies and decisions over HTTP: every sum is the books'."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from broker.finance.spend import Cell, Facts, by_tag, grouped
from broker.keys import create_key
from jobs import tag_rows
from jobs.tables import Batch, File, LineTag, Part, Shard
from markets.tables import OfferRow, RentalRow
from tests.support.month_of_books import HOUR, MACHINES, PERIOD, START, Machine, book_month, rental_row

DAY = 24 * HOUR
WHOLE = Decimal("34.293552503") + Decimal("0.999722223") + Decimal("0.370370370") + Decimal("0.000000015") + Decimal(0)


@pytest.fixture
async def booked(server: Any) -> Any:
    await book_month(server.services.database)
    return server


async def books(server: Any) -> Decimal:
    return Decimal((await server.call("GET", "/v1/ledger/entries?limit=1")).json["accrued_usd"])


@pytest.mark.parametrize(
    "by",
    ["project", "provider", "model", "pricing", "region", "category", "rental", "batch", "day", "month", "tag:team",
     "project,provider,model", "batch,day"],
)  # fmt: skip
async def test_spend_by_anything_sums_to_the_books(booked: Any, by: str) -> None:
    found = (await booked.call("GET", f"/v1/spend?by={by}")).json
    assert sum(Decimal(row["usd"]) for row in found["data"]) == Decimal(found["usd"]) == await books(booked)
    assert all(len(row["values"]) == len(by.split(",")) for row in found["data"])


async def test_spend_of_a_month_and_of_a_project(booked: Any) -> None:
    assert (await booked.call("GET", "/v1/spend?period=2026-10")).json["usd"] == "0"
    found = (await booked.call("GET", f"/v1/spend?period={PERIOD}&by=provider")).json
    assert [row["values"] for row in found["data"]] == [["aws"], ["sandbox"], ["vast.ai"], ["local"]]
    key = await booked.key("finance", project="ads")
    own = (await booked.call("GET", "/v1/spend?by=project", key=key)).json
    assert [row["values"] for row in own["data"]] == [["ads"]]
    assert (await booked.call("GET", "/v1/spend?by=prompt")).status == 400


async def test_a_tags_spend_is_divided_by_the_batches_that_carry_it(booked: Any) -> None:
    async with booked.services.database.transaction() as session:
        file = File(
            id="file-1",
            project="search",
            purpose="batch",
            filename="f",
            bytes=1,
            sha256="0",
            object_key="k",
            created_us=1,
        )
        session.add(file)
        await session.flush()
        for name, team, tokens in (("batch_1", "ml", 300), ("batch_2", "web", 100)):
            session.add(
                Batch(
                    id=name, project="search", principal="p", endpoint="e", input_file_id="file-1", input_key="k",
                    completion_window="24h", status="completed", created_us=1, expires_us=2, policy_hash="h",
                    wishes={"tags": {"team": team}},
                )
            )  # fmt: skip
            await session.flush()
            session.add(
                Shard(
                    id=f"shard_{name}", batch_id=name, number=0, first_idx=0, lines=1, start=0, stop=1, sha256="0",
                    input_tokens=1, output_tokens=1, done=[], in_flight=[], suspects={}, reserved=[], follows={},
                )
            )  # fmt: skip
            await session.flush()
            session.add(
                Part(
                    shard_id=f"shard_{name}", epoch=1, seq=0, batch_id=name, placement_id="rental_a", key="k", size=1,
                    sha256="0", lines=[[0, 1]], usage=b"[]", counters={}, outcome="committed", counted=True,
                    committed_us=START, completed=1, prompt_tokens=tokens,
                )
            )  # fmt: skip
    found = (await booked.call("GET", "/v1/spend?by=tag:team")).json
    by = {row["values"][0]: Decimal(row["usd"]) for row in found["data"]}
    assert by["ml"] + by["web"] == Decimal("34.293552503")
    assert abs(by["ml"] - 3 * by["web"]) < Decimal("0.00000001")
    assert sum(by.values()) == await books(booked)


async def test_the_weekly_review_compares_two_weeks_and_its_movers_sum(server: Any) -> None:
    later = tuple(
        Machine(f"{each.rental}_2", each.market, each.pricing, each.project, each.price_nano * 2, each.seconds,
                started_us=START + 7 * DAY)
        for each in MACHINES
    )  # fmt: skip
    await book_month(server.services.database, MACHINES + later)
    found = (await server.call("GET", "/v1/reports/weekly?until=2026-11-15")).json
    facts = found["facts"]
    assert Decimal(facts["spent USD"]) - Decimal(facts["the week before USD"]) == Decimal(facts["change USD"]) > 0
    section = {each["title"]: each for each in found["sections"]}
    moved = [dict(zip(section["Movers"]["columns"], row, strict=True)) for row in section["Movers"]["rows"]]
    assert sum(Decimal(row["change USD"]) for row in moved) == Decimal(facts["change USD"])
    for row in moved:
        parts = sum(Decimal(row[f"{name} USD"]) for name in ("price", "volume", "mix", "efficiency"))
        assert parts == Decimal(row["change USD"])
    assert abs(Decimal(moved[0]["price USD"]) - Decimal(moved[0]["change USD"])) < Decimal("1e-8"), "the price doubled"
    assert sum(Decimal(row[1]) for row in section["Spend by project"]["rows"]) == Decimal(facts["spent USD"])
    assert {row[0]: row[4] for row in section["Budget against forecast"]["rows"]} == {
        "search": "within",
        "ads": "no budget",
    }


async def test_the_chargeback_statement_sums_to_the_books_and_to_the_cent(booked: Any) -> None:
    found = (await booked.call("GET", f"/v1/reports/chargeback?period={PERIOD}")).json
    rows = found["sections"][0]["rows"]
    assert sum(Decimal(row[4]) for row in rows) == await books(booked) == Decimal(found["facts"]["statement USD"])
    assert sum(Decimal(row[5]) for row in rows) == round(await books(booked), 2)
    key = await booked.key("finance", project="ads")
    own = (await booked.call("GET", f"/v1/reports/chargeback?period={PERIOD}", key=key)).json
    assert [row[0] for row in own["sections"][0]["rows"]] == ["ads"] and "books USD" not in own["facts"]


async def test_what_policies_cost_is_a_part_of_the_books_spend_and_is_told_to_compliance_too(booked: Any) -> None:
    """rental_a ran under two policies, one to four of its cost; of the second nobody knows what it cost."""
    policies = [
        {"policy": "eu", "hash": "h1", "of_ppm": 200_000, "premium_ppm": 500_000, "instead": "x"},
        {"policy": "swiss", "hash": "h2", "of_ppm": 800_000, "premium_ppm": None, "instead": None},
    ]
    async with booked.services.database.transaction() as session:
        row = await session.get_one(RentalRow, "rental_a")
        row.purpose = {**row.purpose, "policies": policies}
    key = await booked.key("compliance", project=None)
    found = (await booked.call("GET", f"/v1/reports/policies?period={PERIOD}", key=key)).json
    rows = {(row[0], row[1]): row[2:] for row in found["sections"][0]["rows"]}
    assert sum(Decimal(row[0]) for row in rows.values()) == await books(booked)
    spent, premium, part, unknown, estimated = rows["eu", "search"]
    assert abs(Decimal(spent) - Decimal("34.293552503") / 5) < Decimal("1e-8")
    assert Decimal(spent) + Decimal(rows["swiss", "search"][0]) == Decimal("34.293552503")
    assert abs(Decimal(premium) - Decimal(spent) / 2) < Decimal("1e-8") and (part, unknown) == (
        "49.9 %",
        "0",
    )  # rounded down
    assert premium == found["facts"]["of it by policies USD"] == estimated, "of before it was told how: an estimate"
    assert rows["swiss", "search"][3] == rows["swiss", "search"][0]
    assert rows["-", "ads"][1] == "-", "machines of before say nothing, and say so"
    ads = await booked.key("finance", project="ads")
    own = (await booked.call("GET", f"/v1/reports/policies?period={PERIOD}", key=ads)).json
    assert {row[1] for row in own["sections"][0]["rows"]} == {"ads"}
    weekly = (await booked.call("GET", "/v1/reports/weekly?until=2026-11-08")).json
    (section,) = [each for each in weekly["sections"] if each["title"] == "Residency policies"]
    assert section["rows"] == found["sections"][0]["rows"]


async def test_reports_come_as_csv_and_as_a_page_that_runs_nothing(booked: Any) -> None:
    text = (await booked.call("GET", f"/v1/reports/chargeback?period={PERIOD}&form=csv")).raw.decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert sum(Decimal(row["value"]) for row in rows if row["column"] == "total USD") == await books(booked)
    page = await booked.call("GET", "/v1/reports/weekly?form=html&until=2026-11-09")
    assert page.headers["Content-Type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["Content-Security-Policy"] and b"<script" not in page.raw


@pytest.mark.parametrize("path", ["/v1/reports/weekly?until=2026-02-31", "/v1/reports/chargeback?period=2026-00",
                                  "/v1/ledger/anomalies?day=yesterday", "/v1/spend?by=,"])  # fmt: skip
async def test_a_time_that_is_none_is_refused(booked: Any, path: str) -> None:
    assert (await booked.call("GET", path)).status == 400


async def test_a_runaway_machine_is_an_anomaly_that_a_person_labels(server: Any) -> None:
    calm = [
        Machine(f"rental_{day}", "aws", "spot", "search", 100 * 10**9, (3_600,), started_us=START + day * DAY)
        for day in range(35)
    ]
    wild = Machine("rental_wild", "vast.ai", "bid", "search", 100 * 10**9, (20 * 3_600,), started_us=START + 35 * DAY)
    await book_month(server.services.database, (*calm, wild))
    found = (await server.call("GET", "/v1/ledger/anomalies?day=2026-12-06")).json["data"]
    whole = next(each for each in found if each["scope"] == "all")
    assert (whole["rule"], whole["label"]) == ("weekday", None)
    assert (await server.call("GET", "/v1/ledger/anomalies?day=2026-12-05")).json["data"] == []
    of_project = next(each for each in found if each["scope"] == "project:search")
    assert of_project["contributors"][0]["name"] == "vast.ai"
    path = f"/v1/ledger/anomalies/{whole['id']}/label"
    assert (await server.call("PUT", path, json={"label": "planned", "note": "a benchmark"})).json["label"] == "planned"
    again = (await server.call("GET", "/v1/ledger/anomalies?day=2026-12-06")).json["data"]
    assert next(each for each in again if each["id"] == whole["id"])["label"] == "planned"
    assert (await server.call("PUT", "/v1/ledger/anomalies/other/label", json={"label": "true"})).status == 404
    theirs = await server.key("finance", project="theirs")
    refused = await server.call("PUT", path, key=theirs, json={"label": "false"})
    assert (refused.status, refused.code) == (422, "all_projects_only")


async def tagged_batch(server: Any, project: str, tags: dict[str, str], line_tag: str | None = None) -> None:
    """The batch that `book_month` rents a project's machines for."""
    async with server.services.database.transaction() as session:
        session.add(
            File(id=f"file-{project}", project=project, purpose="batch", filename="f", bytes=1, sha256="0",
                 object_key=f"k-{project}", created_us=1)
        )  # fmt: skip
        await session.flush()
        session.add(
            Batch(
                id=f"batch_{project}", project=project, principal="p", endpoint="e", input_file_id=f"file-{project}",
                input_key="k", completion_window="24h", status="completed", created_us=1, expires_us=2, policy_hash="h",
                wishes={"tags": tags},
            )
        )  # fmt: skip
        await session.flush()
        if line_tag:
            session.add(LineTag(batch_id=f"batch_{project}", key="agent", value=line_tag, lines=[[0, 1]]))


async def test_what_runs_away_under_a_tag_is_told_by_that_tag_and_is_what_spend_says_of_it(server: Any) -> None:
    calm = [
        Machine(f"{project}_{day}", "aws", "spot", project, 100 * 10**9, (3_600,), started_us=START + day * DAY)
        for project, first in (("search", 7), ("ads", 26))
        for day in range(first, 36)
    ]
    wild = Machine("rental_wild", "vast.ai", "bid", "search", 100 * 10**9, (20 * 3_600,), started_us=START + 35 * DAY)
    await book_month(server.services.database, (*calm, wild))
    await tagged_batch(server, "search", {"team": "ml", "run": "<script>"}, line_tag="a customer's name")
    await tagged_batch(server, "ads", {"team": "web"})
    answer = await server.call("GET", "/v1/ledger/anomalies?day=2026-12-06")
    found = {each["scope"]: each for each in answer.json["data"]}
    assert {scope for scope in found if scope.startswith("tag:")} == {"tag:run=<script>", "tag:team=ml"}
    told = found["tag:team=ml"]
    assert (told["rule"], [part["name"] for part in told["contributors"]]) == ("weekday", ["search"])
    spent = (await server.call("GET", "/v1/spend?by=tag:team,day")).json["data"]
    assert Decimal(told["actual_usd"]) == Decimal(
        next(row["usd"] for row in spent if row["values"] == ["ml", "2026-12-06"])
    )
    assert b"customer" not in answer.raw, "lines' own tags stand beside prompts and are not finance's"
    page = (await server.call("GET", "/v1/reports/weekly?form=html&until=2026-12-07")).raw
    assert b"tag:run=&lt;script&gt;" in page and b"<script" not in page
    ads = await server.key("finance", project="ads")
    assert (await server.call("GET", "/v1/ledger/anomalies?day=2026-12-06", key=ads)).json["data"] == []
    search = await server.key("finance", project="search")
    own = (await server.call("GET", "/v1/ledger/anomalies?day=2026-12-06", key=search)).json["data"]
    assert next(each for each in own if each["scope"] == "tag:team=ml")["contributors"][0]["name"] == "vast.ai"
    async with server.services.database.transaction() as session:
        await tag_rows.erase(session, "batch_search")
    after = (await server.call("GET", "/v1/ledger/anomalies?day=2026-12-06")).json["data"]
    assert not [each for each in after if each["scope"].startswith("tag:")], "what was erased is not told again"


def test_a_machine_of_several_batches_is_in_each_ones_tag_by_its_share() -> None:
    """And in a tag that both carry as a whole: the cells of a tag sum to what `spend` says of it, for every tag."""
    cell = Cell(step=1, project="search", rental="r", account="Expenses:Compute:Spot:Aws", nano=10)
    row = rental_row(replace(MACHINES[0], rental="r"))
    row.purpose = {"batches": ["one", "two", "three"]}
    tags = {"one": {"team": "ml", "site": "x"}, "two": {"team": "web", "site": "x"}}
    facts = Facts({"r": row}, {}, tags)
    refund = replace(cell, account="Income:Refunds:Aws", nano=-4)
    split = by_tag([cell, refund], facts)
    for name in ("team", "site"):
        asked = grouped([cell, refund], facts, [f"tag:{name}"])
        assert {(value,): sum(each.nano for each in own) for (key, value), own in split.items() if key == name} == {
            key: nano for key, nano in asked.items() if key != ("-",)
        }
    assert [each.nano for each in split["site", "x"]] == [4, 3, -2, -1]


async def test_a_decision_shows_its_inputs_and_moves_with_the_price(server: Any) -> None:
    asked = {"offer": "aws/eu/-/p5/H100/8/spot", "tokens_per_s": "2500", "utilisation": "0.6", "api_per_million": "0.5",
             "millions_per_month": "1000"}  # fmt: skip
    assert (await server.call("POST", "/v1/decisions/hosting", json=asked)).status == 404
    for price, choice in ((2_000_000_000, "host"), (4_000_000_000, "buy")):
        async with server.services.database.transaction() as session:
            await session.merge(
                OfferRow(key=asked["offer"], market="aws", accelerator="H100", pricing="spot", price_nano_hour=price,
                         observed_us=price, seen_us=1, record={})
            )  # fmt: skip
        found = (await server.call("POST", "/v1/decisions/hosting", json=asked)).json
        assert found["answer"]["choice"] == choice
        assert Decimal(found["answer"]["inputs"]["price_per_hour"]) == Decimal(price) / 10**9
        assert found["observed"]["observed_us"] == str(price)
    broken = await server.call("POST", "/v1/decisions/hosting", json={**asked, "utilisation": "0"})
    assert broken.status == 400 and "utilisation" in broken.json["error"]["message"]
    demand = {"demand": [2, 2, 4], "committed_per_hour": "1", "market_per_hour": ["2", "2", "2"]}
    assert (await server.call("POST", "/v1/decisions/commitment", json=demand)).json["answer"]["machines"] == 2
    size = {"name": "a", "price_per_hour": "2", "tokens_per_s": "100", "memory_gib": "80"}
    sizing = {"current": size, "others": [{**size, "name": "b", "price_per_hour": "1"}], "needed_gib": "40",
              "millions_per_month": "1"}  # fmt: skip
    assert (await server.call("POST", "/v1/decisions/sizing", json=sizing)).json["answer"]["choice"] == "b"
    own = {"gpus": 8, "capex": "345600", "life_years": "4", "kilowatts": "10.2", "per_kwh": "0.12", "opex_per_hour": "4",
           "utilisation": "0.9", "rented_per_gpu_hour": "2.5"}  # fmt: skip
    assert (await server.call("POST", "/v1/decisions/hardware", json=own)).json["answer"]["choice"] == "own"


@pytest.mark.parametrize(
    ("kind", "name", "answer"),
    [
        ("hosting", "choice", "host"),
        ("hardware", "choice", "own"),
        ("commitment", "machines", 4),
        ("sizing", "choice", "4xH100"),
    ],
)
async def test_the_example_of_a_decision_is_answered(server: Any, kind: str, name: str, answer: object) -> None:
    """docs/examples/KIND.json, which `broker decide KIND FILE` takes."""
    asked = json.loads((Path(__file__).parents[3] / "docs" / "examples" / f"{kind}.json").read_text())
    found = await server.call("POST", f"/v1/decisions/{kind}", json=asked)
    assert found.status == 200, found.raw
    assert found.json["answer"][name] == answer


async def test_finance_never_sees_a_prompt(server: Any) -> None:
    """No route that finance may call gives a line's input or output; those that do refuse the role."""
    async with server.services.database.transaction() as session:
        _, key = await create_key(session, principal="finn", project=None, roles=("finance",), now_us=1)
    for path in ("/v1/files/file-x/content", "/v1/batches/batch_x/lines", "/v1/batches/batch_x/results"):
        declared = [
            each
            for each in server.routes
            if each.path == path.replace("file-x", "{file_id}").replace("batch_x", "{batch_id}")
        ]
        for each in declared:
            assert "finance" not in each.roles, each.path
        assert (await server.call("GET", path, key=key)).status in (403, 404), path
    assert "finance" not in next(each for each in server.routes if each.path == "/v1/files/{file_id}/content").roles
