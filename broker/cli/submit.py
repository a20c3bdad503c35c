"""`submit` and `quote`: a file of requests, with what OpenAI's request cannot say."""

from __future__ import annotations

import re
import sys
import uuid
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from broker.cli import exits, live, options, report
from broker.cli.client import ApiFailure, Client
from broker.cli.connection import connect
from broker.cli.exits import USAGE, Failure
from broker.cli.output import document, line
from broker.cli.request_lines import Input, batch_input
from broker.settings import Settings

Document = dict[str, Any]

File = Annotated[Path, typer.Argument(help="Batch requests (OpenAI's JSONL), or prompts, one a line, with --model.")]
Model = Annotated[str | None, typer.Option(help="Send every line to this model.")]
Endpoint = Annotated[str | None, typer.Option(help="Default: what the first line names, else /v1/chat/completions.")]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Longest answer, for lines that are prompts.")]
Within = Annotated[str, typer.Option(help="How long it may take: 90m, 6h, 2d.")]
Deadline = Annotated[str | None, typer.Option(help="When it must be done: ISO 8601 with an offset, or unix seconds.")]
MaxUsd = Annotated[str | None, typer.Option(help="The most that it may cost, in USD.")]
Residency = Annotated[
    str | None, typer.Option(help="Where it may run: ISO country codes and group names, such as `eu,CH`.")
]
Priority = Annotated[int, typer.Option(min=-100, max=100, help="Higher goes first when not all can.")]
Tags = Annotated[list[str] | None, typer.Option("--tag", help="KEY=VALUE, as often as needed.")]


@dataclass(frozen=True)
class Wishes:
    """What the options said, checked, as the API wants it."""

    window: str
    broker: Document


def wishes(
    *,
    within: str,
    deadline: str | None,
    max_usd: str | None,
    residency: str | None,
    priority: int,
    tags: Sequence[str] | None,
    queue: bool = False,
) -> Wishes:
    """Raises Failure (usage) naming the option and its value."""
    if not re.fullmatch(r"[1-9]\d{0,5}[mhd]", within):
        raise Failure(f"--within {within!r}: want a number and m, h or d, such as 6h", USAGE)
    if max_usd is not None and not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", max_usd):
        raise Failure(f"--max-usd {max_usd!r}: want a decimal amount such as 40 or 0.25", USAGE)
    broker: Document = {"priority": priority, "tags": pairs("--tag", tags)}
    if deadline is not None:
        broker["deadline"] = unix_seconds(deadline)
    if max_usd is not None:
        broker["max_usd"] = max_usd
    if residency is not None:
        broker["residency"] = [part.strip() for part in residency.split(",") if part.strip()]
    if queue:
        broker["on_infeasible"] = "queue"
    return Wishes(within, broker)


def unix_seconds(text: str) -> int:
    """
    >>> unix_seconds("2026-11-22T12:00:00+01:00"), unix_seconds("1795345200")
    (1795345200, 1795345200)
    """
    if text.isdecimal():
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as wrong:
        raise Failure(f"--deadline {text!r}: {wrong}", USAGE) from wrong
    if moment.tzinfo is None:
        raise Failure(f"--deadline {text!r}: say which zone, such as {text}Z or {text}+01:00", USAGE)
    return int(moment.timestamp())


def pairs(option: str, given: Sequence[str] | None) -> dict[str, str]:
    """`k=v` texts as a mapping. Raises Failure (usage) for a text without `=`, and for a key given twice."""
    found: dict[str, str] = {}
    for text in given or ():
        key, separator, value = text.partition("=")
        if not key or not separator:
            raise Failure(f"{option} {text!r}: want KEY=VALUE", USAGE)
        if key in found:
            raise Failure(f"{option} {text!r}: {key} was already given as {found[key]!r}", USAGE)
        found[key] = value
    return found


def quote(
    file: File,
    *,
    model: Model = None,
    endpoint: Endpoint = None,
    max_tokens: MaxTokens = None,
    within: Within = "24h",
    deadline: Deadline = None,
    max_usd: MaxUsd = None,
    residency: Residency = None,
    priority: Priority = 0,
    json: options.Json = False,
    data: options.Data = None,
    url: options.Url = None,
    key: options.Key = None,
) -> None:
    """What a batch would cost, where it would run and why. Nothing is created. Exit 6: over budget, 7: not feasible."""
    asked = wishes(within=within, deadline=deadline, max_usd=max_usd, residency=residency, priority=priority, tags=None)

    async def work() -> int:
        settings = options.target(data, url, key)
        with batch_input(file, model=model, endpoint=endpoint, max_tokens=max_tokens) as given:
            async with connect(settings) as client:
                uploaded = await client.upload(given.file, name=file.name)
                answer = await ask_quote(client, uploaded["id"], given.endpoint, asked)
        if json:
            document(answer)
        else:
            report.print_explanation(answer, sys.stdout)
        return exits.OK if answer["feasible"] else exits.of_waiting(answer["waiting_on"])

    options.run(work())


async def ask_quote(client: Client, file_id: str, endpoint: str | None, asked: Wishes) -> Document:
    body = {
        "input_file_id": file_id,
        "endpoint": endpoint,
        "completion_window": asked.window,
        "x_broker": asked.broker,
    }
    return await client.post("/v1/quotes", body)


@dataclass(frozen=True)
class Submission:
    """A `submit` with all that was asked for."""

    file: Path
    model: str | None
    endpoint: str | None
    max_tokens: int | None
    asked: Wishes
    metadata: dict[str, str]
    wait: bool

    def input(self) -> AbstractContextManager[Input]:
        return batch_input(self.file, model=self.model, endpoint=self.endpoint, max_tokens=self.max_tokens)


def submit(
    file: File,
    *,
    model: Model = None,
    endpoint: Endpoint = None,
    max_tokens: MaxTokens = None,
    within: Within = "24h",
    deadline: Deadline = None,
    max_usd: MaxUsd = None,
    residency: Residency = None,
    priority: Priority = 0,
    name: Annotated[str | None, typer.Option(help="A name for people; kept as metadata `name`.")] = None,
    metadata: Annotated[list[str] | None, typer.Option(help="KEY=VALUE, as often as needed.")] = None,
    tag: Tags = None,
    queue: Annotated[bool, typer.Option("--queue", help="Wait for a feasible offer instead of failing.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--detach", help="Watch it to the end, or return at once.")] = True,
    json: options.Json = False,
    data: options.Data = None,
    url: options.Url = None,
    key: options.Key = None,
) -> None:
    """Submit a batch, show the plan and watch it to its end. The exit code tells how it ended."""
    described = pairs("--metadata", metadata)
    submission = Submission(
        file=file,
        model=model,
        endpoint=endpoint,
        max_tokens=max_tokens,
        asked=wishes(
            within=within,
            deadline=deadline,
            max_usd=max_usd,
            residency=residency,
            priority=priority,
            tags=tag,
            queue=queue,
        ),
        metadata=described | ({"name": name} if name else {}),
        wait=wait,
    )
    options.run(_submit(options.target(data, url, key), submission, json))


async def _submit(settings: Settings, submission: Submission, json: bool) -> int:
    stream = sys.stderr if json else sys.stdout
    with submission.input() as given:  # before a broker is started: the file may be no batch at all
        async with connect(settings) as client:
            batch, quoted = await create(client, given, submission, stream)
            if submission.wait:
                batch = await _watch(client, batch["id"], stream)
            elif not json:
                line(f"watch it with: broker status {batch['id']} -w", stream)
    if json:
        document({"batch": batch, "quote": quoted})
    return exits.of_batch(batch)


async def create(
    client: Client, given: Input, submission: Submission, stream: IO[str]
) -> tuple[Document, Document | None]:
    """Upload, quote, show the plan, create the batch. The batch is created whatever the quote says: the broker judges
    again at validation, keeps the reasons, and reports every bad line, not only that there is one.
    """
    uploaded = await client.upload(given.file, name=submission.file.name)
    quoted = await _quoted(client, uploaded["id"], given.endpoint, submission.asked, stream)
    body = {
        "input_file_id": uploaded["id"],
        "endpoint": given.endpoint or "/v1/chat/completions",
        "completion_window": submission.asked.window,
        "metadata": submission.metadata or None,
        "x_broker": submission.asked.broker,
    }
    batch = await client.post("/v1/batches", body, idempotency_key=str(uuid.uuid4()))
    line(f"batch {batch['id']} created from {submission.file.name}", stream)
    return batch, quoted


async def _quoted(
    client: Client, file_id: str, endpoint: str | None, asked: Wishes, stream: IO[str]
) -> Document | None:
    try:
        quoted = await ask_quote(client, file_id, endpoint, asked)
    except ApiFailure as refused:
        if refused.status not in (400, 422):
            raise
        line(f"no quote: {refused}", stream)
        return None
    report.print_explanation(quoted, stream)
    return quoted


async def _watch(client: Client, batch_id: str, stream: IO[str]) -> Document:
    batch = await live.follow(client, batch_id, stream)
    for text in report.errors(batch):
        line(text, stream)
    if batch["output_file_id"]:
        line(f"answers: broker results {batch_id} -o answers.jsonl", stream)
    return batch
