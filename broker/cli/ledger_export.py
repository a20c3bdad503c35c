"""`ledger export --format …` and `ledger accounts`: the books in the formats of finance's tools, in a folder with hashes."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from broker.cli import exits
from broker.cli.client import Client
from broker.cli.exits import ERROR, USAGE, Failure
from broker.cli.option_groups import declare
from broker.cli.options import Target
from broker.cli.output import document, line, table

FORMATS = ("focus-1.4", "focus-1.2", "beancount", "hledger", "erp", "xlsx", "csv", "audit")
MODES = ("passthrough", "chargeback")


def folder_export(
    form: str, mode: str, period: str | None, out: Path | None, target: Target
) -> Callable[[Client], Coroutine[Any, Any, int]]:
    """The command's work. Raises Failure (usage) before a broker is asked."""
    if form not in FORMATS:
        raise Failure(f"--format {form!r}: one of {', '.join(FORMATS)} is meant", USAGE)
    if mode not in MODES:
        raise Failure(f"--mode {mode!r}: passthrough or chargeback is meant", USAGE)
    if out is None:
        raise Failure("--format makes a folder; name it with --out DIR", USAGE)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Failure(f"--out {out} is there and not an empty folder; an export is never mixed into another", USAGE)
    folder = out

    async def work(client: Client) -> int:
        query = {"format": form, "mode": mode, "period": period}
        manifest = await _fetch(client, query, folder)
        if target.json:
            document({"output": str(folder), **manifest})
        else:
            table(("file", "bytes", "sha256"), [(f["name"], str(f["bytes"]), f["sha256"]) for f in manifest["files"]])
            line(f"{form} of {period or 'all months'} in {folder}")
            for each in manifest.get("unmapped", ()):
                line(f"not mapped, went to suspense, blocks the close: {each}")
        return ERROR if manifest.get("blocks_close") else exits.OK

    return work


async def _fetch(client: Client, query: Mapping[str, str | None], folder: Path) -> dict[str, Any]:
    """Download, unpack, and check every file against the manifest. What broke off leaves nothing in `folder`."""
    from ledger.manifest import MANIFEST, check_manifest  # noqa: PLC0415 - few commands need it

    folder.parent.mkdir(parents=True, exist_ok=True)
    partial, packed = folder.parent / f".{folder.name}.partial", folder.parent / f".{folder.name}.zip"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with packed.open("wb") as file:
            async for chunk in client.stream("/v1/ledger/exports", query):
                file.write(chunk)
        with zipfile.ZipFile(packed) as archive:
            archive.extractall(partial)
        if wrong := check_manifest(partial):
            raise Failure(f"the export arrived damaged: {'; '.join(wrong)}; ask for it again")
        partial.replace(folder)  # takes the place of an empty folder
    finally:
        packed.unlink(missing_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
    found: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return found


def set_accounts(
    file: Annotated[
        Path, typer.Argument(help="JSON: suspense, rounding, rules [{account, gl, project, cost_centre}].")
    ],
    target: Target,
) -> None:
    """Make the next version of the account mapping for the ERP journal. Older versions stay."""
    try:
        body = json.loads(file.read_text(encoding="utf-8"))
    except OSError as missing:
        raise Failure(f"{file} cannot be read: {missing.strerror}", USAGE) from missing
    except ValueError as wrong:
        raise Failure(f"{file} is not JSON: {wrong}", USAGE) from wrong

    async def work(client: Client) -> int:
        made = await client.put("/v1/ledger/accounts", body)
        if target.json:
            document(made)
        else:
            line(f"version {made['version']} of the account mapping holds, with {len(made['rules'])} rules")
        return exits.OK

    target.run(work)


def show_accounts(target: Target) -> None:
    """The account mapping that holds."""

    async def work(client: Client) -> int:
        found = await client.get("/v1/ledger/accounts")
        if target.json:
            document(found)
            return exits.OK
        table(
            ("account", "project", "general ledger", "cost centre"),
            [(rule["account"], rule["project"], rule["gl"], rule["cost_centre"]) for rule in found["rules"]],
        )
        line(f"version {found['version']}; suspense {found['suspense']}, rounding {found['rounding']}")
        return exits.OK

    target.run(work)


accounts = declare(
    typer.Typer(no_args_is_help=True, help="How our accounts become those of the ERP: a mapping with versions."),
    {"set": set_accounts, "show": show_accounts},
)
