"""The commands of `broker policy`."""

from __future__ import annotations

import typer

from broker.cli import policy as texts
from broker.cli import policy_changes as changes
from broker.cli.option_groups import declare

policy = declare(
    typer.Typer(no_args_is_help=True, help="Residency policies: where data of which class may be."),
    {
        "validate": texts.validate,
        "test": texts.test,
        "schema": texts.schema,
        "groups": texts.groups,
        "propose": changes.propose,
        "approve": changes.approve,
        "reject": changes.reject,
        "diff": changes.diff,
        "list": changes.show_list,
        "dry-run": changes.dry_run,
        "waive": changes.waive,
        "break-glass": changes.break_glass,
        "withdraw": changes.withdraw,
        "project": changes.project,
        "model": changes.model,
    },
)
