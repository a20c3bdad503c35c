"""Where answers come from that a batch did not have computed: a sealed record names the batches whose parts they were copied
from, and `audit where` follows it to the machines that computed them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from broker.compliance.decisions import bodies_by_hash, of_batch, record
from jobs.clock import db_now
from jobs.own_parts import OwnPart
from jobs.tables import Batch
from solver.residency import Decision, Reason


class Reused(msgspec.Struct, frozen=True, kw_only=True):
    """So many lines of a part are answers of these other batches of the same project."""

    part: tuple[str, int]
    sources: tuple[tuple[str, int], ...]


def word_on(what: Reused) -> Decision:
    """Pure: what the record says."""
    found = " ".join(f"{batch}:{lines}" for batch, lines in what.sources)
    return Decision(
        outcome="allow",
        reasons=(Reason(rule_id="reuse", field="answers", wanted="same policy", found=found, code="reused"),),
    )


async def seal_reuse(session: AsyncSession, secret: bytes, part: OwnPart) -> None:
    """Keep from where a part's answers are, in the transaction that makes it count. Repeats of the batch's own lines need none:
    its own machines computed them."""
    if not part.sources:
        return
    batch = await session.get_one(Batch, part.batch_id)
    what = Reused(part=(part.shard_id, part.seq), sources=part.sources)
    await record(
        session,
        secret,
        point="reuse",
        kind="reuse",
        batch=batch.id,
        rental=None,
        offer_key=None,
        policy_hash=batch.policy_hash,
        policy=None,
        facts=what,
        decision=word_on(what),
        at_us=await db_now(session),
    )


async def sources_of(session: AsyncSession, batch: str) -> dict[str, int | None]:
    """All batches whose machines computed answers of this one. With how many lines where they were copied from it; None of
    those further back, for what was reused may have been reused there already and nobody counted which of it came along."""
    found: dict[str, int | None] = {**await _direct(session, batch)}
    waiting = list(found)
    while waiting:
        further = (await _direct(session, waiting.pop())).keys() - found.keys() - {batch}
        found |= dict.fromkeys(further)
        waiting += further
    return dict(sorted(found.items()))


async def _direct(session: AsyncSession, batch: str) -> Counter[str]:
    hashes = [row.facts_hash for row in await of_batch(session, batch) if row.kind == "reuse"]
    bodies: Sequence[bytes] = list((await bodies_by_hash(session, hashes)).values()) if hashes else []
    found = Counter[str]()
    for body in bodies:
        found.update(dict(msgspec.json.decode(body, type=Reused).sources))
    return found
