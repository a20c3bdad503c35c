"""The composition root: settings in, a running broker out. Every part is made here and given to those who need it."""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware
from alembic.util import CommandError
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncSession
from ulid import ULID
from yarl import URL

from broker.agreed import agreed, agreed_secret, one_at_a_time
from broker.api.app import build_app
from broker.api.intake import Intake
from broker.api.outside import certificates
from broker.authority import open_authority
from broker.claims import Claims
from broker.control.accrue import Accruer
from broker.control.anomalies import AnomalyWatch
from broker.control.answer import Answerer
from broker.control.budget import BudgetKeeper
from broker.control.collect import Collector
from broker.control.deliver import Deliverer
from broker.control.finalise import Finaliser
from broker.control.garbage import GarbageCollector
from broker.control.history import HistoryKeeper
from broker.control.loops import Loops, Step
from broker.control.place import Placer
from broker.control.plan import Planner
from broker.control.poll import ACCOUNTS, AccountPoller, polls
from broker.control.reconcile import Reconciler
from broker.control.remember import Rememberer
from broker.control.rest import HOLDS_S, Rest
from broker.control.seal import Sealer
from broker.control.settle import Settler
from broker.control.solver_process import SolverProcess
from broker.control.validate import Validator
from broker.control.watch import Watcher
from broker.credentials import Credentials
from broker.database import UNAVAILABLE, Database, Unreachable, sqlite_url
from broker.envelope import Unopenable
from broker.failpoints import Failpoints
from broker.house_accounts import HouseAccounts
from broker.keyring import OWN_KEK, BadKek, KekUnavailable, Keyring, open_keyring
from broker.keys import ensure_admin_key, ensure_project
from broker.leadership import Leadership, Standing, fence
from broker.market_set import open_accounts, open_markets
from broker.migrate import upgrade
from broker.model_set import model_profiles
from broker.object_keys import ObjectKeys
from broker.object_store import opened_store, told
from broker.oidc import Issuer
from broker.owner import ADMIN_KEY
from broker.provider_set import open_providers
from broker.replica_settings import digests
from broker.sealed_store import SealedStore
from broker.secret_files import kept
from broker.services import Services
from broker.settings import Settings
from broker.store_identity import require_same_store
from broker.tls import BadTls, ServerTls, trusted_ca
from broker.vault import Vault, has_data_keys
from broker.webhook_sender import WebhookSender
from broker.webhooks import adopt
from jobs import batches, outbox
from jobs.clock import db_now
from markets import rentals

log = structlog.get_logger()
# Beside these, each market has a loop of its own (`broker.control.poll`).
LOOPS = (
    "validate",
    "plan",
    "place",
    "reconcile",
    "settle",
    "accrue",
    "answer",
    "finalise",
    "remember",
    "collect",
    "garbage",
    "deliver",
    "watch",
    "history",
    "seal",
    "budget",
    "anomalies",
)
# What every broker of a database does: it claims each delivery, batch or upload that it works on. All else is the leader's.
EVERYWHERE = frozenset({"deliver", "validate", "finalise", "remember", "collect"})


async def serve(
    settings: Settings,
    *,
    ready: Callable[[Ready], None],
    exit_when_idle_s: float | None = None,
    new_admin_key: bool = False,
) -> None:
    """Run a broker until SIGTERM or SIGINT, or until nothing is left to do for `exit_when_idle_s`. Then it takes no new work,
    and what is begun is let end: requests first, then the loops' steps, each within `http.shutdown_timeout_s`.

    `ready` is called once; with the admin key at the first start, or when a new one is asked for. Rentals
    survive the end: their machines go on, and the next start finds them.
    """
    settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        listening = _listen(settings.http.host, settings.http.port)
        scheme = "http" if settings.http.tls_certificate is None else "https"
        url = str(URL.build(scheme=scheme, host=settings.http.host, port=listening.getsockname()[1]))
        services = await _services(settings, settings.http.public_url or url, stack)
        activity, intake = Activity(), Intake()
        deliverer = Deliverer(services, WebhookSender(settings.webhooks))
        stack.push_async_callback(deliverer.close, within_s=settings.http.shutdown_timeout_s)
        loops = _loops(services, deliverer)
        local_url = await _serve_http(services, loops, (activity.note, intake.guard), listening, stack) or url
        admin_key = await _admin_key(services, is_lost=new_admin_key)
        loops.start()
        stack.push_async_callback(loops.stop, within_s=settings.http.shutdown_timeout_s)
        ready(Ready(url, local_url, admin_key))
        log.info("broker.ready", url=url, markets=sorted(services.markets), models=sorted(services.models))
        await _until_done(stop, services, activity, exit_when_idle_s)
        log.info("broker.stopping", within_s=settings.http.shutdown_timeout_s)
        intake.close()
        await intake.drained(within_s=settings.http.shutdown_timeout_s)
    log.info("broker.stopped")


@dataclass(frozen=True)
class Ready:
    """Where the broker answers, and at its first start the admin key. `local_url` is for commands on this machine."""

    url: str
    local_url: str
    admin_key: str | None = field(repr=False)


@dataclass
class Activity:
    """When somebody last asked for something, on the monotonic clock."""

    last_s: float = field(default_factory=time.monotonic)

    @web.middleware
    async def note(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        self.last_s = time.monotonic()
        try:
            return await handler(request)
        finally:
            self.last_s = time.monotonic()


# A name of 4,096 characters is 48 kB percent-encoded; beyond its own 8 kB aiohttp answers in plain text.
MOST_URL_BYTES = 64 * 1024


# A renewed certificate is shown after so long at the latest.
LOOK_FOR_CERTIFICATE_S = 30


class CannotStart(Exception):
    """What the settings name cannot be used; the message says what, and how to mend it."""


def _listen(host: str, port: int) -> socket.socket:
    """Bound before anything is made, because workers must be told the port; `::` is for callers of both families. Raises
    CannotStart naming the address."""
    is_newer = ":" in host
    family = socket.AF_INET6 if is_newer else socket.AF_INET
    is_both = host == "::" and socket.has_dualstack_ipv6()
    try:
        return socket.create_server((host, port), family=family, backlog=512, dualstack_ipv6=is_both)
    except OSError as refused:
        said = (refused.strerror or str(refused)).partition(" (while")[0]
        mend = "another --port" if refused.errno in (errno.EADDRINUSE, errno.EACCES) else "a --host of this machine's"
        raise CannotStart(f"cannot listen on {host}:{port}: {said}; choose {mend}") from refused


async def _database(settings: Settings) -> Database:
    """The database with this code's schema. Raises Unreachable, and CannotStart when it is of a release that this one does not
    know."""
    database = Database(settings.database_url or sqlite_url(settings.data / "broker.db"), settings=settings.database)
    try:
        await database.require()
        await upgrade(database.url)
    except (Unreachable, CommandError) as refused:
        await database.close()
        if isinstance(refused, Unreachable):
            raise
        shown = make_url(database.url).render_as_string(hide_password=True)
        mend = "start the release that it was last used with, or a newer one"
        raise CannotStart(f"the database {shown} is of another release: {refused}; {mend}") from refused
    return database


async def _services(settings: Settings, public_url: str, stack: AsyncExitStack) -> Services:
    database = await _database(settings)
    stack.push_async_callback(database.close)
    solver = SolverProcess(timeout_s=settings.control.solve_timeout_s)
    stack.push_async_callback(solver.close)
    owner = (await _common(database, settings.data / "owner", lambda: str(ULID()).encode())).decode()
    keyring = open_keyring(settings.vault, settings.data, may_make=not await has_data_keys(database))
    await _require_common_key(database, settings, keyring)
    vault = await _proven(Vault(database, keyring))
    markets = await open_markets(settings, HouseAccounts(database), owner=owner, stack=stack)
    credentials = Credentials(database, vault)
    opened = await opened_store(settings, stack)
    await require_same_store(database, opened, told(settings.objects, settings.data))
    object_keys = ObjectKeys(database, vault, seals_new=settings.objects.encryption)
    services = Services(
        settings=settings,
        database=database,
        store=SealedStore(opened, object_keys),
        markets=markets,
        models=model_profiles(settings),
        solver=solver,
        secret=await _secret(database, vault, settings.data / "secret"),
        failpoints=Failpoints(settings.failpoint),
        public_url=public_url,
        owner=owner,
        vault=vault,
        credentials=credentials,
        providers=open_providers(settings, credentials, stack=stack),
        accounts=open_accounts(settings, credentials, owner=owner, stack=stack),
        authority=None if settings.http.tls_certificate is None else await open_authority(database, vault),
        issuer=None if settings.oidc is None else Issuer(settings.oidc),
        broker_ca=trusted_ca(settings.http),
    )
    services = replace(services, wake={name: asyncio.Event() for name in (*LOOPS, ACCOUNTS, *polls(services))})
    if database.is_shared:
        services = await _joined(services, stack)

    async with database.transaction() as session:
        for grant in settings.oidc.grants if settings.oidc else ():
            if grant.project:
                await ensure_project(session, grant.project, await db_now(session))
    await adopt(services.database, vault, services.secret)

    def tell(session: AsyncSession) -> None:
        # Parts are many, and no webhook is told of them: they wait for the loop's own time.
        if any(kind.startswith("batch.") for _, kind in outbox.told(session)):
            services.nudge("deliver")

    database.after_commit.append(tell)
    return services


async def _admin_key(services: Services, *, is_lost: bool) -> str | None:
    """A new admin key when nobody has one: the first broker of a shared database, or the owner of a folder without its."""
    async with services.database.transaction() as session:
        await one_at_a_time(session)
        is_kept = services.database.is_shared or (services.settings.data / ADMIN_KEY).exists()
        return await ensure_admin_key(session, await db_now(session), is_kept=is_kept and not is_lost)


async def _common(database: Database, file: Path, make: Callable[[], bytes]) -> bytes:
    """What the file keeps; of a shared database, what its first broker brought (from its file, where it has one)."""
    if not database.is_shared:
        return kept(file, make)
    async with database.transaction() as session:
        return await agreed(session, file.name, lambda: file.read_bytes() if file.exists() else make())


async def _secret(database: Database, vault: Vault, file: Path) -> bytes:
    """What permissions and sessions are signed with, as `_common` has it; in a shared database it is sealed."""
    if not database.is_shared:
        return kept(file, lambda: secrets.token_bytes(32))
    return await agreed_secret(
        database, vault, file.name, lambda: file.read_bytes() if file.exists() else secrets.token_bytes(32)
    )


async def _require_common_key(database: Database, settings: Settings, keyring: Keyring) -> None:
    """Raises BadKek for a broker that would wrap secrets with a key that no other broker of the database has."""
    if not database.is_shared or settings.vault.keys:
        return
    async with database.transaction() as session:
        theirs = (await agreed(session, "kek", keyring.current.encode)).decode()
    if theirs != keyring.current:
        raise BadKek(
            f"the brokers of this database wrap secrets with the key {theirs}, and {settings.data / OWN_KEK} is "
            f"{keyring.current}: copy the file from the broker that was first, or name one key in vault.keys of all"
        )


async def _proven(vault: Vault) -> Vault:
    """Raises BadKek for a key that is another than it was under its name. One that cannot be asked now is asked before it wraps
    anything, and what it opens meanwhile is told missing."""
    try:
        await vault.prove()
    except Unopenable as other:
        raise BadKek(str(other)) from other
    except KekUnavailable as silent:
        log.error("vault.unproven", error=str(silent))
    return vault


async def _joined(services: Services, stack: AsyncExitStack) -> Services:
    """Stand for election among the brokers of the database, and hear their nudges."""
    # Imported here: without PostgreSQL its driver need not be installed.
    from broker.replica_link import ReplicaLink  # noqa: PLC0415

    leadership = Leadership(Standing())

    def nudged(loop: str) -> None:
        if loop in services.wake:
            services.wake[loop].set()

    holder = f"{socket.gethostname()}:{os.getpid()}"
    link = ReplicaLink(
        database=services.database,
        leadership=leadership,
        nudged=nudged,
        holder=holder,
        url=services.public_url,
        patience_s=services.settings.database.leader_patience_s,
        settings=digests(services.settings),
    )
    for running in (link.attend(), link.tell()):
        stack.push_async_callback(_cancelled, asyncio.create_task(running))

    def pass_on(loop: str) -> None:
        if not leadership.leads and loop not in EVERYWHERE:
            link.nudge(loop)

    claims = Claims(holder, services.settings.database.leader_patience_s)
    return replace(services, leadership=leadership, claims=claims, pass_on=pass_on)


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


def _loops(services: Services, deliverer: Deliverer) -> Loops:
    """The loops of this broker; where others share its database, the leader's begin anew with each of its terms."""
    leadership, settings = services.leadership, services.settings
    rest = Rest(services.database, holds_s=0 if services.database.is_shared else HOLDS_S)
    control = settings.control
    everywhere: dict[str, tuple[float, Step]] = {
        "deliver": (settings.webhooks.deliver_s, deliverer.step),
        "validate": (control.plan_s, Validator(services).step),
        "finalise": (control.finalise_s, Finaliser(services).step),
        "remember": (control.plan_s, Rememberer(services).step),
        "collect": (control.collect_s, Collector(services).step),
    }
    loops = Loops(
        steps=rest.spare(_led(services) | everywhere),
        wake=services.wake,
        stands_by=lambda loop: loop not in EVERYWHERE and not leadership.leads,
    )

    def changed(standing: Standing) -> None:
        if standing.term is not None:
            fenced = replace(services, database=services.database.guarded(fence(standing.term)))
            loops.steps = rest.spare(_led(fenced) | everywhere)
        for event in services.wake.values():
            event.set()

    leadership.changed.append(changed)
    return loops


def _led(services: Services) -> dict[str, tuple[float, Step]]:
    """Where several brokers share the database, these write in fenced transactions alone: `services` brings the fence."""
    control = services.settings.control
    return {
        **{name: (poll.every_s, poll.step) for name, poll in polls(services).items()},
        ACCOUNTS: (control.poll_s, AccountPoller(services).step),
        "plan": (control.plan_s, Planner(services).step),
        "place": (control.plan_s, Placer(services, services.settings.agent_failpoint).step),
        "reconcile": (control.reconcile_s, Reconciler(services).step),
        "settle": (control.reconcile_s, Settler(services).step),
        "accrue": (control.accrue_s, Accruer(services).step),
        "answer": (control.plan_s, Answerer(services).step),
        "garbage": (control.garbage_s, GarbageCollector(services).step),
        "watch": (control.plan_s, Watcher(services).step),
        "history": (services.settings.prices.roll_up_s, HistoryKeeper(services).step),
        "budget": (control.accrue_s, BudgetKeeper(services).step),
        "anomalies": (control.anomaly_s, AnomalyWatch(services).step),
        "seal": (services.settings.ledger.checkpoint_s, Sealer(services).step),
    }


async def _serve_http(
    services: Services,
    loops: Loops,
    around: tuple[Middleware, Middleware],
    listening: socket.socket,
    stack: AsyncExitStack,
) -> str | None:
    """`around`: what stands before all middlewares of the application, and what after all of them. With TLS,
    commands on this machine get a plain listener of their own on loopback, and its URL is returned: the certificate is for the
    public name, and they could not check it."""
    app = build_app(services, loops=loops.states)
    app.middlewares.insert(0, around[0])
    app.middlewares.append(around[1])
    runner = web.AppRunner(
        app,
        auto_decompress=False,  # 292 kB of gzip became 300 MB otherwise
        access_log=None,  # paths of objects hold signed permissions
        max_line_size=MOST_URL_BYTES,
        shutdown_timeout=services.settings.http.shutdown_timeout_s,
    )
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    if services.authority is None:
        await web.SockSite(runner, listening).start()
        return None
    tls = ServerTls(services.settings.http, services.authority.certificate)
    stack.push_async_callback(_cancelled, asyncio.create_task(_renewed(tls)))
    for each in certificates(
        services.settings.http, services.public_url, services.authority.certificate, datetime.now(UTC)
    ):
        if not each.ok:
            log.error("tls.not_believed", what=each.name, found=each.found, mend=each.mend)
    await web.SockSite(runner, listening, ssl_context=tls.context).start()
    local = _listen("127.0.0.1", 0)
    await web.SockSite(runner, local).start()
    return f"http://127.0.0.1:{local.getsockname()[1]}"


async def _renewed(tls: ServerTls) -> None:
    """Certificates live for weeks, brokers longer."""
    while True:
        await asyncio.sleep(LOOK_FOR_CERTIFICATE_S)
        try:
            if await asyncio.to_thread(tls.look):
                log.info("tls.renewed")
        except BadTls as wrong:
            log.error("tls.not_renewed", error=str(wrong))


async def _until_done(
    stop: asyncio.Event, services: Services, activity: Activity, exit_when_idle_s: float | None
) -> None:
    while not stop.is_set():
        try:
            await asyncio.wait_for(stop.wait(), 1.0)
        except TimeoutError:
            if exit_when_idle_s is not None and await _is_idle(services, activity, exit_when_idle_s):
                log.info("broker.idle", for_s=exit_when_idle_s)
                return


async def _is_idle(services: Services, activity: Activity, for_s: float) -> bool:
    """No batch to work on, no machine to pay for, and nobody asking."""
    if time.monotonic() - activity.last_s < for_s:
        return False
    try:
        async with services.database.transaction() as session:
            open_batches = await batches.active_batches(session)
            open_rentals = await rentals.open_rentals(session)
            unsettled = await rentals.unsettled(session)
    except UNAVAILABLE as failure:
        log.info("broker.idle_unknown", error=type(failure).__name__)
        return False
    return not (open_batches or open_rentals or unsettled)
