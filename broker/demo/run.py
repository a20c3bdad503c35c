"""The demonstration from end to end: serve, submit, watch, kill a worker, collect, judge."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import IO, Any

from broker.cli import live, report
from broker.cli.client import Client
from broker.cli.download import save
from broker.cli.exits import Failure
from broker.cli.ledger import print_totals, read, save_csv
from broker.cli.output import line, rate, table
from broker.cli.submit import RequestOptions, Submission, create, offer
from broker.cli.wishes import WishOptions
from broker.demo.folder import DemoFolder
from broker.demo.kill import Assassin, end_leftovers
from broker.demo.verdict import Answers, Verdict, read_answers

Document = dict[str, Any]

# The cheapest offers of the sandbox's catalogue lie outside of the EU or nowhere that can be proved.
RESIDENCY = "eu"
MAX_USD = "0.50"
START_WITHIN_S = 60.0
READY_WITHIN_S = 60.0
SETTLE_WITHIN_S = 60.0
STOP_WITHIN_S = 30.0
OVER = frozenset({"ended", "lost", "failed"})


async def run(folder: DemoFolder, stream: IO[str]) -> Verdict:
    """Run it in `folder`, telling the story on `stream`. No process that it started is left. Raises Failure."""
    # SIGTERM ends it as Ctrl-C does: by way of every `finally`, and not at once with its processes left behind.
    task = asyncio.current_task()
    assert task
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        async with _broker(folder) as client:
            return await _story(folder, client, stream)
    finally:
        end_leftovers(folder.data)


async def _story(folder: DemoFolder, client: Client, stream: IO[str]) -> Verdict:
    line(f"broker at {client.url}, its data in {folder.data}, its log in {folder.log}", stream)
    asked = WishOptions(within="1h", max_usd=MAX_USD, residency=RESIDENCY, tag=["run=demo"]).asked()
    submission = Submission(folder.prompts, RequestOptions(), asked, {"name": "demo"})
    with submission.input() as given:
        offered = await offer(client, given, submission, stream)
    batch = await create(client, submission, offered, stream)
    assassin = Assassin(folder.data)
    batch = await live.follow(client, batch["id"], stream, assassin.look)
    for text in report.errors(batch):
        line(text, stream)
    batch = await _settled(client, batch["id"])
    answers = await _collect(folder, client, batch)
    return await _judge(folder, client, batch, answers, stream)


async def _settled(client: Client, batch_id: str) -> Document:
    """Wait until every machine is confirmed gone and its hold resolved: until then the cost still grows."""
    give_up = time.monotonic() + SETTLE_WITHIN_S
    while True:
        placements = (await client.get(f"/v1/batches/{batch_id}/placements"))["data"]
        held = (await client.get("/v1/ledger/entries", {"limit": 1}))["held_usd"]
        if all(placement["state"] in OVER for placement in placements) and not Decimal(held):
            return await client.get(f"/v1/batches/{batch_id}")
        if time.monotonic() > give_up:
            states = ", ".join(report.where(placement) for placement in placements)
            raise Failure(f"after {SETTLE_WITHIN_S:.0f} s the books are not closed: {held} USD held; {states}")
        await asyncio.sleep(0.2)


async def _collect(folder: DemoFolder, client: Client, batch: Document) -> Answers:
    results = f"/v1/batches/{batch['id']}/results"
    await save(client, results, {"kind": "output"}, folder.output)
    await save(client, results, {"kind": "errors"}, folder.errors)
    await save_csv(client, folder.ledger)
    return read_answers(folder.prompts, folder.output)


async def _judge(folder: DemoFolder, client: Client, batch: Document, answers: Answers, stream: IO[str]) -> Verdict:
    books = await read(client, {})
    placements = (await client.get(f"/v1/batches/{batch['id']}/placements"))["data"]
    ours = batch["x_broker"]
    line("where it ran:", stream)
    table(report.PLACEMENT_COLUMNS, report.placement_rows(placements), stream)
    line("the ledger:", stream)
    table(("rental", "kind", "entries", "amount"), list(_in_short(books["entries"])), stream)
    print_totals(books, stream)
    line(f"{answers.answered} of {answers.asked} prompts answered, {answers.duplicates} twice", stream)
    line(f"the answers: {folder.output}", stream)
    line(f"{report.money(batch)}, {rate(ours['usd_per_million_tokens'])} per million tokens", stream)
    return Verdict(
        batch=batch["id"],
        answers=answers,
        failed=ours["counts"]["total"] - ours["counts"]["completed"],
        preemptions=ours["preemptions"],
        cost_usd=ours["cost_usd"],
        usd_per_million_tokens=ours["usd_per_million_tokens"],
        output=str(folder.output),
        ledger_balanced=books["balanced"],
    )


def _in_short(entries: Sequence[Document]) -> Iterator[tuple[str, ...]]:
    """Entries of one kind and rental in a row: their debits, summed. A rental has an accrual for every few seconds."""
    grouped: dict[tuple[str, str, str], list[Decimal]] = {}
    for entry in entries:
        debit = next(posting for posting in entry["postings"] if Decimal(posting["amount"]) > 0)
        key = (entry["rental"] or entry["project"] or "-", entry["kind"], f"{debit['unit']} to {debit['account']}")
        grouped.setdefault(key, []).append(Decimal(debit["amount"]))
    for (about, kind, target), amounts in grouped.items():
        yield about, kind, str(len(amounts)), f"{sum(amounts):f} {target}"


@asynccontextmanager
async def _broker(folder: DemoFolder) -> AsyncIterator[Client]:
    """An embedded broker as a process of its own, ended by SIGTERM."""
    argv = [sys.executable, "-m", "broker", "serve", "--data", str(folder.data), "--markets", "local,sandbox"]
    with folder.log.open("wb") as log:
        process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE, stderr=log)
    try:
        first_line = await _first_line(process, folder)
        async with Client(first_line["url"], first_line["admin_key"]) as client:
            await _ready(client, process, folder)
            yield client
    finally:
        await _stop(process)


async def _first_line(process: asyncio.subprocess.Process, folder: DemoFolder) -> Document:
    assert process.stdout
    try:
        text = await asyncio.wait_for(process.stdout.readline(), START_WITHIN_S)
    except TimeoutError:
        text = b""
    if not text:
        raise Failure(f"the broker did not start; see {folder.log}")
    document: Document = json.loads(text)
    return document


async def _ready(client: Client, process: asyncio.subprocess.Process, folder: DemoFolder) -> None:
    give_up = time.monotonic() + READY_WITHIN_S
    while not await client.is_ready():
        if process.returncode is not None or time.monotonic() > give_up:
            raise Failure(f"the broker did not become ready within {READY_WITHIN_S:.0f} s; see {folder.log}")
        await asyncio.sleep(0.1)


async def _stop(process: asyncio.subprocess.Process) -> None:
    """SIGTERM and wait; a broker that does not end is killed, which its database and the sweeper are made for."""
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
    try:
        await asyncio.wait_for(process.wait(), STOP_WITHIN_S)
    except TimeoutError:
        process.kill()
        await process.wait()
