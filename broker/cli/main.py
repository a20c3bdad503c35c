"""The command line's root: every command, and the one place where a failure becomes a line and an exit code."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from broker.cli import (
    audit,
    backtest,
    backup,
    batch_changes,
    batches,
    budget,
    completion,
    costs,
    credentials,
    demo,
    doctor,
    events,
    finance,
    hosts,
    keys,
    ledger,
    lines,
    login,
    market,
    offers,
    planning,
    policy_group,
    projects,
    results,
    retry,
    serve,
    submit,
    webhooks,
    workers,
)
from broker.cli.exits import Failure, ReaderLeft
from broker.cli.option_groups import Command, declare

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,  # `completion` prints the same scripts, and changes nobody's files
    pretty_exceptions_enable=False,  # a pretty traceback shows local variables, and those may be secrets
    rich_markup_mode=None,
    help="Batch LLM inference at the lowest cost, by the deadline, only where the policy allows.",
)
COMMANDS: dict[str, Command] = {
    "serve": serve.serve,
    "submit": submit.submit,
    "quote": submit.quote,
    "status": batches.status,
    "list": batches.show_list,
    "results": results.results,
    "explain": batches.explain,
    "plan": planning.plan,
    "solve": planning.solve,
    "lines": lines.lines,
    "shards": lines.shards,
    "events": events.events,
    "retry": retry.retry,
    "costs": costs.costs,
    "unit-costs": costs.unit_costs,
    "spend": finance.spend,
    "pause": batch_changes.pause,
    "resume": batch_changes.resume,
    "change": batch_changes.change,
    "approve": batch_changes.approve,
    "reject": batch_changes.reject,
    "cancel": batch_changes.cancel,
    "login": login.login,
    "logout": login.logout,
    "whoami": login.whoami,
    "markets": offers.markets,
    "profiles": market.profiles,
    "timings": market.timings,
    "hosts": hosts.hosts,
    "doctor": doctor.doctor,
    "backtest": backtest.backtest,
    "backup": backup.backup,
    "restore": backup.restore,
    "demo": demo.demo,
    "completion": completion.completion,
}
GROUPS = {
    "tags": costs.tags,
    "webhooks": webhooks.webhooks,
    "projects": projects.projects,
    "keys": keys.keys,
    "credentials": credentials.credentials,
    "workers": workers.workers,
    "budget": budget.budget,
    "ledger": ledger.ledger,
    "reports": finance.reports,
    "decide": finance.decide,
    "models": market.models,
    "offers": offers.offers,
    "policy": policy_group.policy,
    "audit": audit.audit,
}


def _version(is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import version  # noqa: PLC0415 - no other command needs it

        sys.stdout.write(f"broker {version('compute-broker')}\n")
        raise typer.Exit


@app.callback()
def _about(
    is_asked: Annotated[
        bool, typer.Option("--version", help="Say which version this is.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


declare(app, COMMANDS)
for name, group in GROUPS.items():
    app.add_typer(group, name=name)

# The commands that do a broker's own work in this process; all others ask a broker, and have no events to tell.
OWN_WORK = frozenset({"serve", "hosts", "demo", "doctor", "models", "backup", "restore", "backtest", "solve"})


def run() -> None:
    """What the installed `broker` calls."""
    if OWN_WORK.intersection(sys.argv[1:2]):
        from broker.cli import logs  # noqa: PLC0415 - structlog brings rich along

        logs.configure("warning")
    completion.answer_shells()
    try:
        app()
    except Failure as failure:
        sys.stderr.write(f"broker: {failure}\n")
        sys.exit(failure.code)
    except ReaderLeft:
        # Python would complain once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
