"""What a batch has answered so far, as a file: composed for one request, and kept until the batch has moved on.

A view is named by the state of the batch that it shows, so that its bytes never change and a broken download can be
resumed. There is at most one of each kind and order: a newer one replaces it, and the end of the batch removes them all.
Of a batch that has ended only the order that was not published needs one.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec
from sqlalchemy import or_, select
from sqlmodel import col

from jobs.composer import Composer
from jobs.errors import ObjectCorrupt
from jobs.final_plan import LineOrder, load_plan
from jobs.keys import view_key, view_prefix
from jobs.objects import ObjectStore
from jobs.part_objects import Damaged
from jobs.part_rows import PartRows, Transaction
from jobs.tables import Batch, File
from jobs.types import TERMINAL

Kind = Literal["output", "errors"]


class View(msgspec.Struct, frozen=True, kw_only=True):
    """The output or error lines of a batch in one state. `state_sha256` names the state, `key` its object.

    `lines` is how many there are; without any there is no object.
    """

    batch_id: str
    project: str
    kind: Kind
    order: LineOrder
    state_sha256: str
    lines: int

    @property
    def key(self) -> str:
        return view_key(self.project, self.batch_id, self.kind, self.order, self.state_sha256)


def view_of(batch: Batch, kind: Kind, order: LineOrder) -> View:
    """The view of a batch as its row stands.

    Between two transitions parts are only added, and each adds a line of the kind or changes nothing in the view: so
    version and count together name the parts.
    """
    lines = batch.completed if kind == "output" else batch.failed + batch.expired + batch.cancelled
    state = hashlib.sha256(f"{batch.id} {batch.version} {kind} {order} {lines}".encode()).hexdigest()
    return View(batch_id=batch.id, project=batch.project, kind=kind, order=order, state_sha256=state, lines=lines)


async def compose_view(
    store: ObjectStore, transaction: Transaction, batch_id: str, kind: Kind, order: LineOrder
) -> View:
    """Write the view of the batch as it is now, and remove what it replaces. A view that is there already is kept.

    Damaged parts of a batch that has not ended are left out; the finaliser will withdraw them. Raises CountsDisagree,
    ObjectCorrupt (a part of a batch that has ended, or the input of one that has not), ObjectMissing (the latter), and
    BadTransition when parts were withdrawn while it was composed.
    """
    async with transaction() as session:
        batch = await session.get_one(Batch, batch_id)
        view, is_open = view_of(batch, kind, order), batch.status not in TERMINAL
        # what the batch is closed as is not yet published
        ending = None if is_open else batch.ending
        plan = await load_plan(session, batch, ending=ending, line_order=order)  # type: ignore[arg-type]
    if view.lines == 0:
        return view
    composer = Composer(store, plan, PartRows(transaction, plan), skip_damaged=is_open)
    try:
        await store.put_same(view.key, composer.output if kind == "output" else composer.errors)
    except Damaged as damage:
        raise ObjectCorrupt(f"a part of batch {batch_id}, which has ended, is damaged: {damage}") from damage
    await drop_views(store, view.project, batch_id, kind=kind, order=order, keep=view.key)
    async with transaction() as session:
        has_ended = (await session.get_one(Batch, batch_id)).status in TERMINAL
    if is_open and has_ended:
        # The end removed the views, perhaps just before this one was written: nobody would ever remove it.
        await store.delete(view.key)
    return view


async def drop_views(
    store: ObjectStore,
    project: str,
    batch_id: str,
    *,
    kind: Kind | None = None,
    order: LineOrder | None = None,
    keep: str | None = None,
) -> None:
    """Remove the views of a batch (of one kind, in one order), but not the one under the key `keep`."""
    folder = view_prefix(project, batch_id)
    start = f"{folder}/{kind or ''}" + (f"-{order}-" if order else "")
    async for key in store.keys(folder):
        if key.startswith(start) and key != keep:
            await store.delete(key)


async def drop_views_of(store: ObjectStore, transaction: Transaction, file: File) -> None:
    """After an output or error file was deleted: remove the other order of the same lines."""
    if file.purpose != "batch_output":
        return
    async with transaction() as session:
        made = select(Batch).where(
            col(Batch.project) == file.project,
            or_(col(Batch.output_file_id) == file.id, col(Batch.error_file_id) == file.id),
        )
        batch = await session.scalar(made)
    if batch is not None:
        kind: Kind = "output" if batch.output_file_id == file.id else "errors"
        await drop_views(store, batch.project, batch.id, kind=kind)
