"""`workers revoke`: cut off a worker that is not to be trusted any more."""

from __future__ import annotations

from typing import Annotated

import typer

from broker.cli import exits
from broker.cli.client import Client
from broker.cli.option_groups import declare
from broker.cli.options import Target
from broker.cli.output import document, line


def revoke(
    rental: Annotated[str, typer.Argument(help="The worker's rental, `rental_…`, as `status` and the log show it.")],
    target: Target,
) -> None:
    """Cut a worker off: its tokens and certificates end now, and its machine is given back."""

    async def work(client: Client) -> int:
        gone = await client.post(f"/v1/admin/workers/{rental}/revoke", {}, again=True)
        if target.json:
            document(gone)
        else:
            line(f"the worker of {gone['rental']} is cut off, and its machine is being given back")
        return exits.OK

    target.run(work)


workers = declare(
    typer.Typer(no_args_is_help=True, help="The workers on rented machines."),
    {"revoke": revoke},
)
