"""Which free shard suits a placement best: one whose shared prompt prefix its engine keeps warm."""

from __future__ import annotations

from sqlalchemy import ColumnElement, and_, case, or_, select
from sqlmodel import col

from jobs.tables import LeaseRow, Shard

WARM, UNCLAIMED, CLAIMED = 0, 1, 2


def rank(placement_id: str, batch_id: str, now_us: int) -> ColumnElement[int]:
    """Order free shards of a batch by this, then by number: WARM, the prefix that the placement worked on last;
    UNCLAIMED, none, or one that nobody else works on now; CLAIMED, the rest.

    An order, never a filter: a worker that finds only other workers' prefixes helps with those, and the lowest number
    goes first among equals, so that no shard waits for ever.
    """
    last = (
        select(col(Shard.prefix))
        .join(LeaseRow, col(LeaseRow.shard_id) == col(Shard.id))
        .where(col(LeaseRow.placement_id) == placement_id)
        .order_by(col(LeaseRow.granted_us).desc(), col(LeaseRow.shard_id).desc(), col(LeaseRow.epoch).desc())
        .limit(1)
        .scalar_subquery()
    )
    claimed = select(col(Shard.prefix)).where(
        col(Shard.batch_id) == batch_id,
        col(Shard.prefix).is_not(None),
        and_(col(Shard.state) == "leased", col(Shard.lease_expires_us) > now_us),
        col(Shard.placement_id) != placement_id,
    )
    return case(
        (col(Shard.prefix) == last, WARM),
        (or_(col(Shard.prefix).is_(None), col(Shard.prefix).not_in(claimed)), UNCLAIMED),
        else_=CLAIMED,
    )
