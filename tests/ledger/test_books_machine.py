"""The books under everything at once: all kinds of events, delivered any number of times, with crashes in the middle.

After every step the audit finds nothing (zero in each unit, holds resolved once, every cache what its entries add up to, the
seal unbroken), and at the end a replay of the leaves gives the same ledger, byte for byte.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, get_args

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy.ext.asyncio import AsyncSession

from broker.database import Database, sqlite_url
from broker.migrate import upgrade
from ledger import audit, holds, lots, positions, seal, waste
from ledger.accrual import Meter, accrue
from ledger.besides import charge_besides
from ledger.book import find, post
from ledger.budgets import grant
from ledger.errors import HoldExceeded, HoldResolved, LedgerError, LotsExhausted
from ledger.event import Dims, Event, Kind, Line
from ledger.lots import consume
from ledger.replay import replay

NOW = 1_795_305_600_000_000
SECOND = 1_000_000
NAMES = st.integers(0, 3)
NANO = st.integers(1, 10**12)
# `BROKER_LONG_MACHINES=1`: many times as many steps (make ledger).
LONG = bool(os.environ.get("BROKER_LONG_MACHINES"))


# A debit and a credit of every kind that has no rule of its own below.
MOVES: dict[str, tuple[str, str]] = {
    "refund.expected": ("Assets:Receivable:Aws", "Income:Refunds:Aws"),
    "refund.received": ("Assets:Bank:Main", "Assets:Receivable:Aws"),
    "credit.grant": ("Assets:Credits:Aws", "Income:Grants:Aws"),
    "credit.apply": ("Liabilities:Accrued:Aws", "Assets:Credits:Aws"),
    "prepaid.fund": ("Assets:Prepaid:Runpod", "Assets:Bank:Main"),
    "deposit.pay": ("Assets:Deposit:Vast-ai", "Assets:Bank:Main"),
    "deposit.return": ("Assets:Bank:Main", "Assets:Deposit:Vast-ai"),
    "escrow.fund": ("Assets:Escrow:Akash", "Assets:Wallet:Akash"),
    "escrow.return": ("Assets:Wallet:Akash", "Assets:Escrow:Akash"),
    "commitment.buy": ("Assets:Commitments:Ri1", "Liabilities:Payable:Aws"),
    "commitment.amortise": ("Expenses:Unused:Ri1", "Assets:Commitments:Ri1"),
    "invoice.match": ("Liabilities:Accrued:Aws", "Liabilities:Payable:Aws"),
    "invoice.variance": ("Expenses:Variance:Aws", "Assets:Suspense:Aws"),
    "invoice.pay": ("Liabilities:Payable:Aws", "Assets:Bank:Main"),
    "chargeback.bill": ("Assets:Chargeback:Demo", "Income:Chargeback:Demo"),
    "saving.reuse": ("Memo:Saved:Demo", "Memo:Contra"),
    "saving.on_demand": ("Memo:Avoided:OnDemand:Demo", "Memo:Contra"),
    "saving.api": ("Memo:Avoided:Api:Demo", "Memo:Contra"),
}
# Kinds that the other rules make.
RULED = {
    "budget.grant", "hold.open", "hold.extend", "hold.post", "hold.void", "hold.expire", "usage.accrue", "usage.waste",
    "fx.buy", "fx.sell", "escrow.spend", "correction", "period.close",
}  # fmt: skip


class Crash(Exception):
    """The process ends before the commit."""


Work = Callable[[AsyncSession], Awaitable[object]]


class Books(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = Path(tempfile.mkdtemp(prefix="broker-machine-"))
        self.done: list[Event] = []
        self.seen = 0

    @initialize()
    def begin(self) -> None:
        self.database = Database(self.fresh())

    def fresh(self) -> str:
        if not TEMPLATE:
            TEMPLATE.append(Path(tempfile.mkdtemp(prefix="broker-machine-")) / "template.db")
            self.runner.run(upgrade(sqlite_url(TEMPLATE[0])))
        self.seen += 1
        target = self.folder / f"{self.seen}.db"
        shutil.copy(TEMPLATE[0], target)
        return sqlite_url(target)

    def teardown(self) -> None:
        self.runner.run(self._same_again())
        self.runner.run(self.database.close())
        self.runner.close()
        shutil.rmtree(self.folder)

    async def _same_again(self) -> None:
        async with self.database.transaction() as session:
            told = [leaf.payload for leaf in await seal.leaves(session, "books", limit=100_000)]
        other = Database(self.fresh())
        result = await replay(other.transaction, told)
        async with other.transaction() as session:
            again = [leaf.payload for leaf in await seal.leaves(session, "books", limit=100_000)]
        await other.close()
        assert result.refused == ()
        assert again == told

    def do(self, work: Work, *, crash: bool = False, allowed: tuple[type[LedgerError], ...] = ()) -> bool:
        """The work in a transaction, twice, as a retry after a lost answer; with `crash` first once in vain."""
        for attempt in (["crash"] if crash else []) + ["first", "again"]:
            try:
                self.runner.run(self._transact(work, attempt))
            except Crash:
                continue
            except allowed:
                return False
        return True

    async def _transact(self, work: Work, attempt: str) -> None:
        async with self.database.transaction() as session:
            await work(session)
            if attempt == "crash":
                raise Crash

    @rule(number=st.integers(0, 5), nano=NANO)
    def grants(self, number: int, nano: int) -> None:
        key = f"grant-{number}-{nano}"
        self.do(lambda s: grant(s, grant_id=key, project="demo", nano=nano, occurred_at_us=NOW, actor="fin"))

    @rule(name=NAMES, nano=NANO, crash=st.booleans())
    def opens(self, name: int, nano: int, crash: bool) -> None:
        async def work(session: AsyncSession) -> object:
            if await holds.hold(session, f"rental_{name}") is not None:
                return None
            return await holds.open_hold(
                session, hold_id=f"rental_{name}", nano=nano, project="demo", batch=None, rental=f"rental_{name}",
                offer_key=None, occurred_at_us=NOW, actor="plan", scopes=("org:acme", "team:ml") if name % 2 else (),
            )  # fmt: skip

        self.do(work, crash=crash, allowed=(HoldExceeded,))

    @rule(name=NAMES, nano=NANO, sequence=st.integers(1, 3))
    def extends(self, name: int, nano: int, sequence: int) -> None:
        async def work(session: AsyncSession) -> object:
            found = await holds.hold(session, f"rental_{name}")
            key = f"hold.extend:rental_{name}:{sequence}"
            if found is None or found.resolved or await find(session, key) is not None:
                return None
            return await holds.extend_hold(
                session, hold_id=found.id, add_nano=nano, sequence=sequence, occurred_at_us=NOW, actor="plan"
            )

        self.do(work, allowed=(HoldExceeded,))

    @rule(name=NAMES, seconds=st.integers(0, 5000), final=st.booleans(), crash=st.booleans())
    def accrues(self, name: int, seconds: int, final: bool, crash: bool) -> None:
        async def work(session: AsyncSession) -> object:
            if not await positions.holds_of_rental(session, f"rental_{name}"):
                return None
            until = NOW + seconds * SECOND
            return await accrue(session, meter(name), until_us=until, final=final, actor="a", recorded_at_us=until)

        self.do(work, crash=crash)

    @rule(name=NAMES, ready=st.integers(0, 5000), end=st.sampled_from(["released", "preempted", "failed"]))
    def splits(self, name: int, ready: int, end: Any) -> None:
        life = waste.Timeline(NOW, NOW + 5000 * SECOND, NOW + ready * SECOND, None, 900 * SECOND, 0, None, end)
        self.do(lambda s: waste.split(s, meter(name), life, occurred_at_us=NOW, actor="a", recorded_at_us=NOW))

    @rule(name=NAMES, what=st.sampled_from(["deposit", "data"]), nano=NANO, crash=st.booleans())
    def charges_besides(self, name: int, what: Any, nano: int, crash: bool) -> None:
        """Once for a rental, whatever is asked for the second time, under its hold or after it."""

        async def work(session: AsyncSession) -> object:
            if not await positions.holds_of_rental(session, f"rental_{name}"):
                return None
            return await charge_besides(
                session, meter(name), what, nano, occurred_at_us=NOW, actor="a", recorded_at_us=NOW
            )

        self.do(work, crash=crash)

    @rule(name=NAMES)
    def resolves(self, name: int) -> None:
        async def work(session: AsyncSession) -> object:
            if await holds.hold(session, f"rental_{name}") is None:
                return None
            return await holds.void_hold(session, hold_id=f"rental_{name}", occurred_at_us=NOW, actor="a")

        self.do(work, allowed=(HoldResolved,))  # one that ran out is resolved otherwise

    @rule(number=st.integers(0, 9), akt=NANO, cost=NANO)
    def buys(self, number: int, akt: int, cost: int) -> None:
        liquidity = "Equity:FX:Liquidity:AKT"
        lines = [("Assets:Wallet:Akash", akt, "AKT"), (liquidity, -akt, "AKT"), (liquidity, cost, "USD")]
        self.posts(f"fx-{number}-{akt}-{cost}", "fx.buy", [*lines, ("Assets:Bank:Main", -cost, "USD")])

    @rule(number=st.integers(0, 99), akt=NANO, worth=NANO, crash=st.booleans())
    def spends(self, number: int, akt: int, worth: int, crash: bool) -> None:
        async def work(session: AsyncSession) -> object:
            key = f"spend-{number}-{akt}-{worth}"
            if await find(session, key) is not None:
                return None
            cost = consume(await lots.pool(session, "AKT"), akt)[1]
            liquidity = "Equity:FX:Liquidity:AKT"
            lines = [("Assets:Wallet:Akash", -akt, "AKT"), (liquidity, akt, "AKT"), (liquidity, -cost, "USD"),
                     ("Expenses:Compute:OnDemand:Akash", worth, "USD"), ("Income:FX:Realised", cost - worth, "USD")]  # fmt: skip
            return await post(session, event(key, "escrow.spend", lines), recorded_at_us=NOW)

        self.do(work, crash=crash, allowed=(LotsExhausted,))

    @rule(number=st.integers(0, 5), nano=NANO, kind=st.sampled_from(sorted(MOVES)), crash=st.booleans())
    def moves(self, number: int, nano: int, kind: Any, crash: bool) -> None:
        self.posts(f"{kind}-{number}-{nano}", kind, moved(kind, nano), crash=crash)

    @rule(
        numbers=st.lists(st.tuples(st.integers(0, 3), NANO, st.sampled_from(sorted(MOVES))), min_size=2, max_size=4),
        order=st.randoms(use_true_random=False),
    )
    def arrives_in_any_order(self, numbers: list[tuple[int, int, Any]], order: Any) -> None:
        """Each is sent twice, and one's second may come before another's first."""
        made = {
            f"{kind}-{number}-{nano}": event(f"{kind}-{number}-{nano}", kind, moved(kind, nano))
            for number, nano, kind in numbers
        }
        sent = [*made.values(), *made.values()]
        order.shuffle(sent)
        for each in sent:
            self.do(lambda s, each=each: post(s, each, recorded_at_us=NOW))
        self.done += made.values()

    @rule(number=st.integers(0, 9), akt=NANO, cost=NANO)
    def sells(self, number: int, akt: int, cost: int) -> None:
        async def work(session: AsyncSession) -> object:
            key = f"sell-{number}-{akt}-{cost}"
            if await find(session, key) is not None:
                return None
            worth = consume(await lots.pool(session, "AKT"), akt)[1]
            liquidity = "Equity:FX:Liquidity:AKT"
            lines = [("Assets:Wallet:Akash", -akt, "AKT"), (liquidity, akt, "AKT"), (liquidity, -worth, "USD"),
                     ("Assets:Bank:Main", cost, "USD"), ("Income:FX:Realised", worth - cost, "USD")]  # fmt: skip
            return await post(session, event(key, "fx.sell", lines), recorded_at_us=NOW)

        self.do(work, allowed=(LotsExhausted,))

    @rule(name=NAMES, tokens=st.integers(1, 10**6), parts=st.integers(0, 2), crash=st.booleans())
    def sets_tokens_aside(self, name: int, tokens: int, parts: int, crash: bool) -> None:
        async def work(session: AsyncSession) -> object:
            hold_id = f"tokens:batch_{name}"
            found = await holds.hold(session, hold_id)
            if found is None:
                await holds.open_hold(
                    session, hold_id=hold_id, nano=tokens, project="demo", batch=f"batch_{name}", rental=None, offer_key=None,
                    occurred_at_us=NOW, actor="plan", unit="MTOKEN",
                )  # fmt: skip
            elif found.resolved is None and await find(session, f"hold.post:{hold_id}:{parts}") is None:
                if parts == 0:
                    return await holds.void_hold(session, hold_id=hold_id, occurred_at_us=NOW, actor="a")
                if found.remaining_nano >= tokens:
                    return await holds.post_part(
                        session, hold_id=hold_id, nano=tokens, sequence=parts, occurred_at_us=NOW, actor="a"
                    )
            return None

        self.do(work, crash=crash)

    @rule(name=NAMES, crash=st.booleans())
    def expires(self, name: int, crash: bool) -> None:
        """What nobody resolves runs out: once, and not beside a void."""

        async def work(session: AsyncSession) -> object:
            found = await holds.hold(session, f"rental_{name}")
            if found is None or found.resolved is not None:
                return None
            ended = Event(
                key=f"hold.expire:{found.id}", kind="hold.expire", occurred_at_us=NOW, actor="a",
                dims=Dims(project="demo", rental=found.rental), lines=holds._resolution(found), hold=found.id,
                scopes=holds.scopes_of(found),
            )  # fmt: skip
            return await post(session, ended, recorded_at_us=NOW)

        self.do(work, crash=crash)

    @rule(month=st.sampled_from(["2026-09", "2026-10"]))
    def closes(self, month: str) -> None:
        self.posts(
            f"period.close:{month}", "period.close", [(f"Memo:Closed:{month}", 1, "USD"), ("Memo:Contra", -1, "USD")]
        )

    @precondition(lambda self: self.done)
    @rule(chance=st.integers(0, 10**6))
    def corrects(self, chance: int) -> None:
        wrong = self.done[chance % len(self.done)]
        if wrong.kind in ("fx.buy", "period.close"):
            return  # lots are undone by a sale, and a month stays closed
        lines = [(line.account, -line.nano, line.unit) for line in wrong.lines]
        self.posts(f"{wrong.key}:undone", "correction", lines, corrects=wrong.key)

    @precondition(lambda self: self.done)
    @rule(chance=st.integers(0, 10**6))
    def delivers_again(self, chance: int) -> None:
        before = self.done[chance % len(self.done)]
        self.do(lambda s: post(s, before, recorded_at_us=NOW + chance))

    def posts(
        self, key: str, kind: Any, lines: list[tuple[str, int, str]], *, crash: bool = False, **more: Any
    ) -> None:
        made = event(key, kind, lines, **more)
        if self.do(lambda s: post(s, made, recorded_at_us=NOW), crash=crash):
            self.done.append(made)

    @invariant()
    def holds_together(self) -> None:
        if hasattr(self, "database"):
            assert self.runner.run(self._findings()) == []

    async def _findings(self) -> list[str]:
        async with self.database.transaction() as session:
            found = await audit.check(session)
        return [f"{each.code} {each.message}" for each in found if each.severity == "error"]


def meter(name: int) -> Meter:
    return Meter(
        rental=f"rental_{name}", offer_key="sandbox/eu/-/gpu/-/1/spot", market="sandbox", pricing="spot", project="demo",
        batch=None, price_nano_hour=3_600_000_000 + name, started_us=NOW, granularity_s=60,
    )  # fmt: skip


def event(key: str, kind: Any, lines: list[tuple[str, int, str]], **more: Any) -> Event:
    return Event(
        key=key, kind=kind, occurred_at_us=NOW, actor="fin", dims=Dims(project="demo"),
        lines=tuple(Line(account=account, nano=nano, unit=unit) for account, nano, unit in lines if nano), **more,
    )  # fmt: skip


def moved(kind: str, nano: int) -> list[tuple[str, int, str]]:
    debit, credit = MOVES[kind]
    unit = "USD" if kind.startswith("saving.") else "EUR"
    return [(debit, nano, unit), (credit, -nano, unit)]


def test_the_machine_knows_every_kind_of_event() -> None:
    """A kind that is added without a rule here would be the one that is never crashed, doubled or reordered."""
    assert MOVES.keys() | RULED == set(get_args(Kind))


TEMPLATE: list[Path] = []
Books.TestCase.settings = settings(
    max_examples=150 if LONG else 8,
    stateful_step_count=60 if LONG else 20,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestBooks = Books.TestCase
