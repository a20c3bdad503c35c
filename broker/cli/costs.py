"""`costs` and `tags erase`: what the lines of each machine, model, agent or task cost, and forgetting who they were."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from broker.cli import exits
from broker.cli.batches import BatchId
from broker.cli.client import Client
from broker.cli.completion import batch_ids
from broker.cli.exits import USAGE, Failure
from broker.cli.option_groups import declare
from broker.cli.options import Target
from broker.cli.output import document, line, table, usd
from broker.cli.wishes import unix_seconds


def unit_costs(batch_id: BatchId, target: Target) -> None:
    """What a million tokens, a request and a useful response of a batch did cost so far, and how busy its machines were."""

    async def work(client: Client) -> int:
        found = await client.get(f"/v1/batches/{batch_id}/unit-costs")
        if target.json:
            document(found)
            return exits.OK
        names = {"usd": "in all", "usd_per_million_output_tokens": "a million output tokens",
                 "usd_per_million_tokens": "a million tokens", "usd_per_request": "a request",
                 "usd_per_useful_response": "a useful response", "usd_per_busy_hour": "a busy hour"}  # fmt: skip
        table(
            ("what", "cost"), [(what, "-" if found[name] is None else usd(found[name])) for name, what in names.items()]
        )
        line(f"{found['useful']} of {found['requests']} responses are useful")
        line(f"machines worked {found['busy_seconds']:.0f} of {found['billed_seconds']:.0f} billed seconds")
        return exits.OK

    target.run(work)


def costs(
    by: Annotated[
        str,
        typer.Option(help="placement, model, or a tag such as agent (tag:NAME is always the tag).", metavar="KEY"),
    ],
    target: Target,
    *,
    batch_id: Annotated[
        str | None,
        typer.Argument(help="The batch's id; else all of the project's.", metavar="[BATCH]", autocompletion=batch_ids),
    ] = None,
    since: Annotated[str | None, typer.Option(help="Only batches created from then on; as --until, ISO 8601.")] = None,
    until: Annotated[str | None, typer.Option(help="Only batches created before then.")] = None,
) -> None:
    """What lines cost so far by machine, by model, or by the value of a tag; the rows sum to the whole, to the last digit.

    Tags are a line's own (`"x_broker": {"tags": {…}}` beside its custom_id), else its batch's (`submit --tag`).
    """
    if batch_id and (since or until):
        raise Failure("--since and --until choose among a project's batches; one is named already", USAGE)
    query: dict[str, str | int | None] = {"by": by}
    if since is not None:
        query["since"] = unix_seconds(since, "--since")
    if until is not None:
        query["until"] = unix_seconds(until, "--until")

    async def work(client: Client) -> int:
        path = f"/v1/batches/{batch_id}/costs" if batch_id else "/v1/costs"
        found = await client.get(path, query)
        if target.json:
            document(found)
            return exits.OK
        table((by, "lines", "completed", "failed", "tokens in", "tokens out", "cost"), _rows(found))
        return exits.OK

    target.run(work)


def _rows(found: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row a value; `-` are the lines without one."""
    counts = ("lines", "completed", "failed", "input_tokens", "output_tokens")
    return [(each["value"], *(str(each[name]) for name in counts), usd(each["usd"])) for each in found["data"]]


def erase(batch_id: BatchId, target: Target) -> None:
    """Forget the tags of a batch and of its lines. Counts, tokens and cost stay."""

    async def work(client: Client) -> int:
        gone = await client.delete(f"/v1/batches/{batch_id}/tags")
        if target.json:
            document(gone)
        else:
            line(f"the tags of {batch_id} are erased")
        return exits.OK

    target.run(work)


tags = declare(
    typer.Typer(no_args_is_help=True, help="Tags of batches and lines, by which `costs` are told."), {"erase": erase}
)
