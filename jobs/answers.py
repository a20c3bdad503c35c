"""Remembered answers: where the answer lies to a request that a project had answered before.

A row says which line of which part object holds it, never the answer itself. Whoever uses it verifies the object; one
that is missing or damaged is no answer, and no error. Rows are only ever found within their project.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec
import structlog
from sqlalchemy import delete, or_, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from jobs.tables import AnswerRow, Batch, File

log = structlog.get_logger()
PAGE = 500  # names in one question to the database


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """Line `idx` of the part object `part_key`, and the tokens that it took to compute."""

    part_key: str
    part_sha256: str
    idx: int
    prompt_tokens: int
    completion_tokens: int


def request_sha256(revision: str, policy_hash: str, endpoint: str, digest: bytes) -> str:
    """The name of a request: whose model revision answers it, where it was allowed to run, and what it asks.

    The policy is part of it: an answer that was computed where this batch may not go is not its answer.
    """
    head = "\0".join((revision, policy_hash, endpoint)).encode()
    return hashlib.sha256(head + b"\0" + digest).hexdigest()


async def known(session: AsyncSession, project: str, requests: Iterable[str]) -> dict[str, Known]:
    """Of these requests, those that the project has an answer to."""
    found: dict[str, Known] = {}
    for page in _pages(requests):
        statement = select(AnswerRow).where(col(AnswerRow.project) == project, col(AnswerRow.request_sha256).in_(page))
        for row in await session.scalars(statement):
            found[row.request_sha256] = Known(
                part_key=row.part_key,
                part_sha256=row.part_sha256,
                idx=row.idx,
                prompt_tokens=row.prompt_tokens,
                completion_tokens=row.completion_tokens,
            )
    return found


async def remember(session: AsyncSession, batch: Batch, requests: Mapping[str, Known], now_us: int) -> int:
    """Keep where these requests are answered; a request that is known already stays as it is, also one that another replica
    of the broker remembers at the same time. Returns how many are new."""
    before = await known(session, batch.project, requests)
    rows = [
        {
            "project": batch.project,
            "request_sha256": name,
            "batch_id": batch.id,
            "created_us": now_us,
            **msgspec.structs.asdict(answer),
        }
        for name, answer in requests.items()
        if name not in before
    ]
    if not rows:
        return 0
    insert = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    # always in one order, or two replicas could wait for each other's rows
    fresh = insert(AnswerRow).values(sorted(rows, key=lambda row: str(row["request_sha256"]))).on_conflict_do_nothing()
    return len((await session.scalars(fresh.returning(col(AnswerRow.request_sha256)))).all())


async def may_remember(session: AsyncSession, batch: Batch) -> bool:
    """Whether the batch's input and results are all still there. They are not deleted until the transaction ends, so that
    `forget_file` comes after what is remembered in it."""
    of_batch = [each for each in (batch.input_file_id, batch.output_file_id, batch.error_file_id) if each is not None]
    statement = select(File).where(col(File.id).in_(of_batch)).order_by(col(File.id)).with_for_update(read=True)
    rows = await session.scalars(statement.execution_options(populate_existing=True))
    return all(file.deleted_us is None for file in rows)


async def forget(session: AsyncSession, project: str, requests: Iterable[str]) -> None:
    """These answers turned out to be gone or damaged."""
    for page in _pages(requests):
        await session.execute(
            delete(AnswerRow).where(col(AnswerRow.project) == project, col(AnswerRow.request_sha256).in_(page))
        )


async def forget_file(session: AsyncSession, file_id: str) -> None:
    """A person deleted a batch's input or results: what it answered is not told to others any more."""
    batches = select(col(Batch.id)).where(
        or_(
            col(Batch.input_file_id) == file_id,
            col(Batch.output_file_id) == file_id,
            col(Batch.error_file_id) == file_id,
        )
    )
    await session.execute(delete(AnswerRow).where(col(AnswerRow.batch_id).in_(batches)))


async def forget_before(session: AsyncSession, before_us: int) -> None:
    """Answers are kept for a time, not for ever."""
    await session.execute(delete(AnswerRow).where(col(AnswerRow.created_us) < before_us))


def _pages(names: Iterable[str]) -> Iterator[Sequence[str]]:
    wanted = list(names)
    for start in range(0, len(wanted), PAGE):
        yield wanted[start : start + PAGE]
