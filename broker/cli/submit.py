"""`submit` and `quote`: a file of requests, with what OpenAI's request cannot say."""

from __future__ import annotations

import sys
import uuid
from contextlib import AbstractContextManager, AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from broker.cli import exits, live, report
from broker.cli.client import ApiFailure, Client
from broker.cli.completion import model_names
from broker.cli.exits import Failure
from broker.cli.input_upload import upload
from broker.cli.options import Target
from broker.cli.output import document, is_terminal, line
from broker.cli.request_lines import CHAT, Input, batch_input
from broker.cli.wishes import Wishes, WishOptions, pairs

Document = dict[str, Any]
WINDOW = "24h"  # OpenAI's only one

File = Annotated[
    Path,
    typer.Argument(
        metavar="FILE",
        help="Batch requests (OpenAI's JSONL), or prompts, one a line, with --model.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class RequestOptions:
    """What the lines of the file are made into: a group of options."""

    model: Annotated[str | None, typer.Option(help="Send every line to this model.", autocompletion=model_names)] = None
    endpoint: Annotated[
        str | None, typer.Option(help="Default: what the first line names, else /v1/chat/completions.")
    ] = None
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer, for lines that are prompts.")] = None


@dataclass(frozen=True)
class Submission:
    """A file with all that was asked for it."""

    file: Path
    requests: RequestOptions
    asked: Wishes
    metadata: dict[str, str]

    def input(self) -> AbstractContextManager[Input]:
        """The file as a batch input. Raises Failure (usage) when it can be none."""
        requests = self.requests
        return batch_input(
            self.file,
            model=requests.model,
            endpoint=requests.endpoint,
            max_tokens=requests.max_tokens,
            lenient=bool(self.asked.broker.get("skip_invalid")),
        )


@dataclass(frozen=True)
class Offered:
    """An uploaded file and what the broker says that a batch of it would cost; no quote when it refused to give one."""

    file_id: str
    endpoint: str | None
    quote: Document | None


def quote(file: File, requests: RequestOptions, wishes: WishOptions, target: Target) -> None:
    """What a batch would cost, where it would run and why. Nothing is created. Exit 6: over budget, 7: not feasible."""
    dry_run(Submission(file, requests, wishes.asked(), {}), target)


def dry_run(submission: Submission, target: Target) -> None:
    """Ask for a quote, show it, and end with its exit code. The uploaded file is deleted again."""

    async def work(client: Client) -> int:
        async with AsyncExitStack() as stack:
            uploaded = await upload(client, given.file, name=submission.file.name)
            stack.push_async_callback(client.discard, uploaded["id"])
            answer = await ask_quote(client, uploaded["id"], given.endpoint, submission.asked)
        if target.json:
            document(answer)
        else:
            report.print_explanation(answer, sys.stdout)
        return exits.OK if answer["feasible"] else exits.of_waiting(answer["waiting_on"])

    with submission.input() as given:  # before a broker is started: the file may be no batch at all
        target.run(work)


async def ask_quote(client: Client, file_id: str, endpoint: str | None, asked: Wishes) -> Document:
    body = {
        "input_file_id": file_id,
        "endpoint": endpoint,
        "completion_window": asked.window or WINDOW,
        "x_broker": asked.broker,
    }
    return await client.post("/v1/quotes", body)


def submit(
    file: File,
    requests: RequestOptions,
    wishes: WishOptions,
    target: Target,
    *,
    name: Annotated[str | None, typer.Option(help="A name for people; kept as metadata `name`.")] = None,
    metadata: Annotated[list[str] | None, typer.Option(help="KEY=VALUE, as often as needed.")] = None,
    dry: Annotated[
        bool, typer.Option("--dry-run", help="Only the quote: as `broker quote`, nothing is created.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask; without a terminal nobody is asked.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--detach", help="Watch it to the end, or return at once.")] = True,
) -> None:
    """Show the plan and its cost, ask (on a terminal), submit the batch and watch it to its end.

    The exit code tells how the batch ended. Exit 1 when the answer was no: then nothing is left at the broker. Ctrl-C
    while it watches (exit 130) leaves the batch running. Without a terminal, and with --json or --yes, nobody is asked.
    """
    described = pairs("--metadata", metadata) | ({"name": name} if name else {})
    submission = Submission(file, requests, wishes.asked(), described)
    if dry:
        dry_run(submission, target)
    stream = sys.stderr if target.json else sys.stdout
    with submission.input() as given:
        offered = target.ask(lambda client: offer(client, given, submission, stream))
        # Asked outside of any connection: a person may take hours, and a broker that idles ends.
        if not (yes or target.json) and is_interactive() and not agreed(offered.quote):
            target.ask(lambda client: client.discard(offered.file_id))
            raise Failure("nothing was submitted")
    target.run(lambda client: _submit(client, submission, offered, wait=wait, json=target.json, stream=stream))


def is_interactive() -> bool:
    """Is there somebody to ask?"""
    return sys.stdin.isatty() and is_terminal()


def agreed(quoted: Document | None) -> bool:
    """Ask the person whether to go on; Enter, Ctrl-D and Ctrl-C mean no."""
    question = "Submit it?" if quoted and quoted["feasible"] else "Submit it all the same?"
    try:
        return typer.confirm(question, default=False)
    except typer.Abort:
        return False


async def _submit(
    client: Client, submission: Submission, offered: Offered, *, wait: bool, json: bool, stream: IO[str]
) -> int:
    batch = await create(client, submission, offered, stream)
    if wait:
        batch = await watch(client, batch["id"], stream)
    elif not json:
        line(f"watch it with: broker status {batch['id']} -w", stream)
    if json:
        document({"batch": batch, "quote": offered.quote})
    return exits.of_batch(batch)


async def offer(client: Client, given: Input, submission: Submission, stream: IO[str]) -> Offered:
    """Upload, quote and show the plan. The file stays for `create`; when this fails, it is deleted."""
    async with AsyncExitStack() as stack:
        uploaded = await upload(client, given.file, name=submission.file.name)
        stack.push_async_callback(client.discard, uploaded["id"])
        quoted = await _quoted(client, uploaded["id"], given.endpoint, submission.asked, stream)
        stack.pop_all()
    return Offered(uploaded["id"], given.endpoint, quoted)


async def create(client: Client, submission: Submission, offered: Offered, stream: IO[str]) -> Document:
    """Create the batch, whatever the quote said: the broker judges again at validation, keeps the reasons, and reports
    every bad line, not only that there is one."""
    body = {
        "input_file_id": offered.file_id,
        "endpoint": offered.endpoint or CHAT,
        "completion_window": submission.asked.window or WINDOW,
        "metadata": submission.metadata or None,
        "x_broker": submission.asked.broker,
    }
    batch = await client.post("/v1/batches", body, idempotency_key=str(uuid.uuid4()))
    line(f"batch {batch['id']} created from {submission.file.name}", stream)
    return batch


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


async def watch(client: Client, batch_id: str, stream: IO[str]) -> Document:
    """Follow a batch to its end and say what became of it."""
    batch = await live.watch(client, batch_id, stream)
    for text in report.errors(batch):
        line(text, stream)
    if batch["output_file_id"]:
        line(f"answers: broker results {batch_id} -o answers.jsonl", stream)
    return batch
