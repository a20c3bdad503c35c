"""The command line's root: every command, and the one place where a failure becomes a line and an exit code."""

from __future__ import annotations

import os
import sys

import typer

from broker.cli import batches, budget, demo, doctor, hosts, ledger, logs, market, serve, submit
from broker.cli.exits import Failure

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # a pretty traceback shows local variables, and those may be secrets
    rich_markup_mode=None,
    help="Batch LLM inference at the lowest cost, by the deadline, only where the policy allows.",
)
app.command()(serve.serve)
app.command()(submit.submit)
app.command()(submit.quote)
app.command()(batches.status)
app.command("list")(batches.show_list)
app.command()(batches.results)
app.command()(batches.explain)
app.command()(batches.cancel)
app.command()(market.offers)
app.command()(hosts.hosts)
app.add_typer(market.models, name="models")
app.add_typer(ledger.ledger, name="ledger")
app.add_typer(budget.budget, name="budget")
app.command()(doctor.doctor)
app.command()(demo.demo)


def run() -> None:
    """What the installed `broker` calls."""
    logs.configure("warning")
    try:
        app()
    except Failure as failure:
        sys.stderr.write(f"broker: {failure}\n")
        sys.exit(failure.code)
    except BrokenPipeError:
        # `broker list | head`: the reader has what it wanted. Python would complain once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
