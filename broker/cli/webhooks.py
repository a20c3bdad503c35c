"""`webhooks`: whom a project tells of its batches, and whether they hear it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from broker.cli import exits
from broker.cli.client import Client
from broker.cli.option_groups import declare
from broker.cli.options import Target
from broker.cli.output import document, line, moment, table
from broker.cli.pages import pages

Document = dict[str, Any]
Webhook = Annotated[str, typer.Argument(help="The webhook's id.", metavar="WEBHOOK")]
Limit = Annotated[int, typer.Option(min=1, help="At most so many, newest first.")]
ALL = "/v1/webhook_endpoints"
COLUMNS = ("webhook", "url", "events", "state", "secret", "name")
SECRET = "keep it: it is not shown again; receivers verify deliveries with it"


def show_list(target: Target, limit: Limit = 100) -> None:
    """The project's webhooks, and whether they work."""

    async def work(client: Client) -> int:
        found = await pages(client, ALL, limit=limit)
        if target.json:
            document(found)
        else:
            table(COLUMNS, [_row(each) for each in found["data"]])
        return exits.OK

    target.run(work)


def create(
    address: Annotated[str, typer.Argument(help="Where to POST to: https, on the public internet.", metavar="URL")],
    target: Target,
    *,
    event: Annotated[
        list[str] | None, typer.Option(help="Such as batch.paused, as often as needed. Default: how batches end.")
    ] = None,
    name: Annotated[str, typer.Option(help="A name for people.")] = "",
) -> None:
    """Tell a URL of what happens to the project's batches. The signing secret is shown this once."""
    body: Document = {"url": address, "name": name} | ({"event_types": event} if event else {})

    async def work(client: Client) -> int:
        _show_secret(await client.post(ALL, body), json=target.json)
        return exits.OK

    target.run(work)


def delete(webhook: Webhook, target: Target) -> None:
    """Send nothing more to a webhook, and forget it."""

    async def work(client: Client) -> int:
        gone = await client.delete(f"{ALL}/{webhook}")
        if target.json:
            document(gone)
        else:
            line(f"{webhook} is deleted")
        return exits.OK

    target.run(work)


def test(
    webhook: Webhook,
    target: Target,
    event: Annotated[str, typer.Option(help="Of which event the sample shall be.")] = "batch.completed",
) -> None:
    """Send a sample event now. Exit 1 when the receiver does not answer, or answers with an error."""

    async def work(client: Client) -> int:
        told = await client.post(f"{ALL}/{webhook}/test", {"event_type": event})
        if target.json:
            document(told)
        else:
            line(f"{webhook} answered {told['status_code']} to a sample of {told['event_type']}")
        return exits.OK if told["status_code"] < 300 else exits.ERROR

    target.run(work)


def deliveries(webhook: Webhook, target: Target, limit: Limit = 20) -> None:
    """What was or is to be sent to a webhook: attempts, the last answer, the next attempt."""

    async def work(client: Client) -> int:
        found = await pages(client, f"{ALL}/{webhook}/deliveries", limit=limit)
        if target.json:
            document(found)
            return exits.OK
        columns = ("event", "type", "batch", "status", "attempts", "last answer", "next attempt", "error")
        table(columns, [_delivery_row(each) for each in found["data"]])
        return exits.OK

    target.run(work)


def resend(
    webhook: Webhook,
    event: Annotated[str, typer.Argument(help="The event's id, as `deliveries` shows it.", metavar="EVENT")],
    target: Target,
) -> None:
    """Send an event now, again if need be, whatever became of it so far."""

    async def work(client: Client) -> int:
        told = await client.post(f"{ALL}/{webhook}/deliveries/{event}/retry", {})
        if target.json:
            document(told)
        else:
            line(
                f"{event} is {told['status']} after {told['attempts']} attempts, next {moment(told['next_attempt_at'])}"
            )
        return exits.OK

    target.run(work)


def rotate(
    webhook: Webhook,
    target: Target,
    keep: Annotated[bool, typer.Option("--keep", help="The earlier secret stays good for 24 hours.")] = False,
) -> None:
    """Make another signing secret; it is shown this once."""

    async def work(client: Client) -> int:
        body = {"keep_old_secret_active_for_24_hours": keep}
        _show_secret(await client.post(f"{ALL}/{webhook}/rotate_secret", body), json=target.json)
        return exits.OK

    target.run(work)


def enable(webhook: Webhook, target: Target) -> None:
    """Send again to a webhook that was switched off, by you or because it failed for days."""
    _switch(webhook, target, on=True)


def disable(webhook: Webhook, target: Target) -> None:
    """Send nothing to a webhook until it is enabled again."""
    _switch(webhook, target, on=False)


def _switch(webhook: str, target: Target, *, on: bool) -> None:
    async def work(client: Client) -> int:
        shown = await client.post(f"{ALL}/{webhook}", {"x_broker": {"enabled": on}}, again=True)
        if target.json:
            document(shown)
        else:
            table(COLUMNS, [_row(shown)])
        return exits.OK

    target.run(work)


def _show_secret(made: Document, *, json: bool) -> None:
    if json:
        document(made)
        return
    table(COLUMNS, [_row(made)])
    line(f"{made['signing_secret']} ({SECRET})")


def _row(each: Document) -> tuple[str, ...]:
    ours = each["x_broker"]
    state = "ok" if ours["enabled"] else f"disabled: {ours['disabled_reason']}"
    if ours["enabled"] and ours["failing_since"]:
        state = f"failing since {moment(ours['failing_since'])}"
    return (
        each["id"],
        each["url"],
        ",".join(each["event_types"]),
        state,
        each["signing_secret_hint"],
        each["name"] or "-",
    )


def _delivery_row(each: Document) -> tuple[str, ...]:
    return (
        each["event_id"],
        each["event_type"],
        each["batch_id"],
        each["status"],
        str(each["attempts"]),
        "-" if each["last_status_code"] is None else str(each["last_status_code"]),
        moment(each["next_attempt_at"]),
        each["last_error"] or "-",
    )


webhooks = declare(
    typer.Typer(no_args_is_help=True, help="Webhooks: whom a project tells of its batches."),
    {
        "list": show_list,
        "create": create,
        "delete": delete,
        "test": test,
        "deliveries": deliveries,
        "resend": resend,
        "rotate": rotate,
        "enable": enable,
        "disable": disable,
    },
)
