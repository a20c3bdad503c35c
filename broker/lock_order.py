"""The one order in which transactions of the whole house lock rows. Who keeps to it never waits in a ring.

PostgreSQL ends one of two transactions that wait for each other; that a caller tries again hides it, and under load it
happens again. A table that is not named here is written by one place alone, or its rows are only ever added.

Several rows of one table are locked in the order of their ids. The two heads come last, for everybody queues there: what
is slow, and what belongs to one batch or machine, is done before. `tests/support/lock_watch.py` watches that it holds.
"""

from __future__ import annotations

from typing import Final

ORDER: Final = (
    "broker_approval",
    "broker_budget",  # a limit that is set, a breaker that is looked at
    "broker_team_project",
    "broker_team",
    "broker_invoice_exception",
    "jobs_batch",  # jobs/transitions.py: whoever locks a shard as well does so afterwards
    "broker_assignment",
    "broker_waiting",
    "markets_rental",
    "jobs_shard",
    "broker_worker",  # the agent's calls lock its shards, then its worker, and read the rental
    "broker_object_key",  # broker/compliance/destruction.py: after what has made it unneeded
    "ledger_head",  # ledger/book.py `lock`: posts, holds, admission
    "ledger_seal_head:books",  # only behind the ledger's head
    "ledger_seal_head:decisions",  # ledger/seal.py `append`: what was decided is sealed at the end
)


def rank(table: str) -> int | None:
    """Where a table is in the order; None: it does not matter.

    >>> rank("jobs_batch") < rank("ledger_head"), rank("markets_offer")
    (True, None)
    """
    return ORDER.index(table) if table in ORDER else None
