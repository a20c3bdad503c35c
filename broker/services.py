"""What the API's handlers and the control loops are given: made once by the composition root, never global."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

from broker.accounts import Accounts
from broker.authority import Authority
from broker.claims import Claims
from broker.compliance.networks import Networks
from broker.credentials import Credentials
from broker.database import Database
from broker.failpoints import Failpoints
from broker.leadership import Leadership
from broker.metrics.counters import Counters
from broker.object_keys import ObjectKeys, ProjectKey
from broker.oidc import Issuer
from broker.provider_set import Providers
from broker.refusals import Refusals
from broker.sealed_store import SealedStore
from broker.settings import Settings
from broker.vault import Vault
from jobs.objects import ObjectStore
from markets.market import Market
from solver.types import Plan, Snapshot
from workers.profile import ModelProfile


class Planning(Protocol):
    """Who plans. A broker leaves it to a child process that can be killed (`broker/control/solver_process.py`)."""

    async def solve(self, snapshot: Snapshot) -> Plan:
        """The plan for `snapshot`. Raises SolverError when the snapshot itself is bad."""


@dataclass(frozen=True)
class Services:
    """The broker's parts. `owner` marks its machines at every market; `secret` signs worker tokens and object URLs. Both
    live in the data folder, or in the database where several brokers share one. `vault` has the data keys of other people's
    secrets; `credentials` are what projects log in with at markets. `authority` signs for workers, where this broker ends TLS
    itself; `broker_ca` (PEM) is what they trust beside what their system does. `issuer` knows people by its tokens.

    `providers` say what things cost; at none of them is rented. `markets` are rented at with the house's login, `accounts` are
    the same markets with projects' own.

    `renting`: rentals whose market is being asked for a machine at this moment, however long it takes (a host pulls 10 GB of
    image first). `refusals`: what budgets refused to hold a moment ago.

    `nudge` names loops that should run now rather than at their next tick: `nudge("plan")` after a batch was created.
    `pass_on` is given the name, too, for brokers elsewhere.
    """

    settings: Settings
    database: Database
    store: ObjectStore
    markets: Mapping[str, Market]
    models: Mapping[str, ModelProfile]
    solver: Planning
    secret: bytes = field(repr=False)
    failpoints: Failpoints
    public_url: str
    owner: str
    vault: Vault
    credentials: Credentials
    authority: Authority | None = None
    issuer: Issuer | None = None
    broker_ca: str | None = None
    providers: Providers = field(default_factory=Providers)
    accounts: Accounts = field(default_factory=Accounts)
    wake: Mapping[str, asyncio.Event] = field(default_factory=dict)
    counters: Counters = field(default_factory=Counters, repr=False)
    leadership: Leadership = field(default_factory=Leadership)
    claims: Claims | None = None
    renting: set[str] = field(default_factory=set)
    networks: Networks = field(default_factory=Networks)
    refusals: Refusals = field(default_factory=Refusals)
    pass_on: Callable[[str], None] | None = None

    @property
    def sealed_store(self) -> SealedStore | None:
        """The store, where what is written is sealed."""
        return self.store if isinstance(self.store, SealedStore) else None

    @property
    def object_keys(self) -> ObjectKeys | None:
        """The keys of stored objects, where what is written is sealed."""
        return None if self.sealed_store is None else self.sealed_store.secrets

    async def begin_objects(self, project: str, owner: str) -> None:
        """Make the key of a new file or upload, before its first object is written. Not inside a transaction."""
        if self.object_keys is not None:
            await self.object_keys.begin(project, owner)

    async def objects_of(self, project: str) -> ProjectKey | None:
        """To make keys of new batches with, inside a transaction; None where nothing is sealed. Not inside a transaction."""
        return None if self.object_keys is None else await self.object_keys.of_project(project)

    def forget_keys(self, owners: Iterable[str]) -> None:
        """The keys of these were destroyed."""
        for owner in owners:
            if self.object_keys is not None:
                self.object_keys.forget(owner)

    @asynccontextmanager
    async def claimed(self, work: str, subject: str) -> AsyncIterator[Services | None]:
        """These services while nobody else does this work on the subject; None: another broker is at it."""
        if self.claims is None:
            yield self
            return
        async with self.claims.of(self.database, work, subject) as database:
            yield None if database is None else replace(self, database=database)

    def market(self, name: str) -> Market | None:
        """The market with this name, or the account; None: it is not open here."""
        return self.markets.get(name) or self.accounts.opened.get(name)

    def nudge(self, loop: str) -> None:
        if loop in self.wake:
            self.wake[loop].set()
        if self.pass_on is not None:
            self.pass_on(loop)
