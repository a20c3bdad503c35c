"""Exports of the books over HTTP: one zip of files with a manifest of hashes, and the account mapping of the ERP journal."""

from __future__ import annotations

import asyncio
import tempfile
import zipfile
from pathlib import Path
from typing import Literal

import structlog
from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from broker.api import shapes
from broker.api.auth import PROJECT_HEADER, no_such_project
from broker.api.files import whole_or_aborted
from broker.api.problems import bad_request, conflict, not_found
from broker.api.registry import Call, Route, route
from broker.control.seal import seal_streams
from broker.finance.account_maps import newest_map, set_map
from broker.finance.exports import ExportRefused, Format, Wanted, export
from broker.ledger_key import ledger_signer
from jobs.clock import db_now
from ledger.erp import BadMap
from ledger.focus.table import Mode

log = structlog.get_logger()
CHUNK = 1 << 18
PERIOD = r"^[12][0-9]{3}-(0[1-9]|1[0-2])$"


class ExportWanted(shapes.Own):
    """Which export. A key of one project exports that project only."""

    model_config = ConfigDict(extra="forbid")

    format: Format
    mode: Mode = "passthrough"
    period: str | None = Field(default=None, pattern=PERIOD, description="a UTC month, YYYY-MM")
    project: str | None = Field(default=None, max_length=64)


class AccountMapping(BaseModel):
    """The account mapping that holds."""

    object: Literal["ledger.accounts"] = "ledger.accounts"
    version: int
    suspense: str
    rounding: str
    rules: list[dict[str, str]]


class NewMapping(shapes.Own):
    """The whole mapping: the first rule that matches holds. `account` and `project` are patterns with `*`."""

    suspense: str = Field(min_length=1, max_length=64)
    rounding: str = Field(min_length=1, max_length=64)
    rules: list[MappingRule] = Field(max_length=10_000)


class MappingRule(shapes.Own):
    account: str = Field(min_length=1, max_length=200)
    gl: str = Field(min_length=1, max_length=64)
    project: str = Field(default="*", min_length=1, max_length=64)
    cost_centre: str = Field(default="", max_length=64)


NewMapping.model_rebuild()


def seen_project(call: Call, named: str | None) -> str | None:
    """The project whose books may be seen; None: all of them."""
    own = call.caller.project
    if own is None:
        return named or (call.project if PROJECT_HEADER in call.request.headers else None)
    if named is not None and named != own:
        raise no_such_project(named)
    return own


async def export_zip(call: Call, query: ExportWanted) -> web.StreamResponse:
    """The books in one of finance's formats: a zip whose manifest.json has the sha256 of every file in it.

    What is missing for a format (a month, the account mapping, an optional library) is refused before anything is sent.
    """
    project = seen_project(call, query.project)
    async with call.services.database.transaction() as session:
        now_us = await db_now(session)
    wanted = Wanted(format=query.format, mode=query.mode, period=query.period, project=project, now_us=now_us)
    with tempfile.TemporaryDirectory(prefix="broker-export-") as scratch:
        folder, packed = Path(scratch) / "export", Path(scratch) / "export.zip"
        folder.mkdir()
        try:
            if query.format == "audit" and project is None:
                await seal_streams(call.services)
            signer = await asyncio.to_thread(ledger_signer, call.services.settings)
            await export(call.services.database, wanted, folder, signer)
        except ExportRefused as refused:
            raise conflict(refused.code, str(refused)) from refused
        await asyncio.to_thread(_pack, folder, packed)
        log.info("ledger.exported", format=query.format, mode=query.mode, period=query.period, by=call.caller.key_id)
        return await send_packed(call, packed, f"ledger-{query.format}-{query.period or 'all'}.zip")


def _pack(folder: Path, packed: Path) -> None:
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(folder).as_posix())


async def send_packed(call: Call, packed: Path, name: str) -> web.StreamResponse:
    """Answer with a zip that lies in a file, chunk by chunk."""
    answer = web.StreamResponse(
        headers={"Content-Type": "application/zip", "Content-Disposition": f'attachment; filename="{name}"'}
    )
    with packed.open("rb") as file:
        answer.content_length = file.seek(0, 2)
        file.seek(0)
        async with whole_or_aborted(call.request):
            await answer.prepare(call.request)
            while chunk := await asyncio.to_thread(file.read, CHUNK):
                await answer.write(chunk)
            await answer.write_eof()
    return answer


async def get_mapping(call: Call) -> AccountMapping:
    """The account mapping of the ERP journal that holds now."""
    async with call.services.database.transaction() as session:
        found = await newest_map(session)
    if found is None:
        raise not_found(
            "no_account_mapping", "There is no account mapping yet; set one with `broker ledger accounts set FILE`."
        )
    version, mapping = found
    rules = [
        {"account": rule.account, "gl": rule.gl, "project": rule.project, "cost_centre": rule.cost_centre}
        for rule in mapping.rules
    ]
    return AccountMapping(version=version, suspense=mapping.suspense, rounding=mapping.rounding, rules=rules)


async def set_mapping(call: Call, body: NewMapping) -> AccountMapping:
    """Make the next version of the account mapping. Older versions stay, and every export names the one it was made with."""
    if call.caller.project is not None:
        raise bad_request("all_projects_only", "The mapping is of all projects; this key is of one.")
    try:
        async with call.services.database.transaction() as session:
            by, text = call.caller.name, body.model_dump_json().encode()
            await set_map(session, text, now_us=await db_now(session), by=by)
    except BadMap as wrong:
        raise bad_request("bad_mapping", str(wrong)) from wrong
    return await get_mapping(call)


ROUTES: tuple[Route, ...] = (
    route("GET", "/v1/ledger/exports", export_zip, tag="ledger", roles=("finance",), produces=("application/zip",),
          errors=(422,)),
    route("GET", "/v1/ledger/accounts", get_mapping, tag="ledger", roles=("finance",)),
    route("PUT", "/v1/ledger/accounts", set_mapping, tag="ledger", roles=("finance",)),
)  # fmt: skip
