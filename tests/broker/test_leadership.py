"""Who leads the brokers of one PostgreSQL database, and that a leader of before writes nothing any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field

import psycopg
import pytest
from sqlalchemy import select, text
from sqlalchemy.engine import make_url

from broker.agreed import agreed, agreed_secret
from broker.database import Database
from broker.envelope import Unopenable, new_key
from broker.keyring import Keyring, LocalKek
from broker.leadership import THE_TERM, Cut, Deposed, Elected, Leadership, News, Passed, Standing, after, fence
from broker.replica_link import RAISE_TERM, ReplicaLink
from broker.settings import DatabaseSettings
from broker.tables import Agreed, Project, Term
from broker.vault import Vault
from tests.support.databases import SERVER, Server, until_it_waits
from tests.support.postgres_server import postgres_server

# a test's own transactions are ended after so long, too
PATIENCE_S = 2.5


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Databases of the server that these tests run on, else of one of their own."""
    if SERVER:
        databases = Server(SERVER)
        yield databases
        databases.close()
        return
    with postgres_server() as own:
        databases = Server(own.url())
        yield databases
        databases.close()


@dataclass
class Brokers:
    """Brokers of one database, without all that is not their election."""

    url: str
    _running: list[tuple[Database, asyncio.Task[None], asyncio.Task[None]]] = field(default_factory=list)

    def join(self) -> tuple[ReplicaLink, list[str]]:
        """Another broker, and the nudges that it hears."""
        heard: list[str] = []
        link = ReplicaLink(
            database=Database(self.url),
            leadership=Leadership(Standing()),
            nudged=heard.append,
            holder=f"broker {len(self._running)}",
            url="http://127.0.0.1",
            patience_s=PATIENCE_S,
        )
        self._running.append((link.database, asyncio.create_task(link.attend()), asyncio.create_task(link.tell())))
        return link, heard

    async def leave(self, number: int) -> None:
        """The `number`th dies."""
        database, *tasks = self._running[number]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await database.close()

    async def close(self) -> None:
        for number in range(len(self._running)):
            await self.leave(number)


@pytest.fixture
async def brokers(server: Server) -> AsyncIterator[Brokers]:
    url = await asyncio.to_thread(server.migrated)
    brokers = Brokers(url)
    yield brokers
    await brokers.close()
    await asyncio.to_thread(server.drop, url)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - what it waits for happens in another process
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("before", "news", "expected"),
    [
        (Standing(), Elected(3), Standing(term=3)),
        (Standing(), Passed(), Standing()),
        # a leader without its connection has no lock, whatever it believes
        (Standing(term=3), Cut("gone"), Standing(trouble="gone")),
        (Standing(trouble="gone"), Cut("gone still"), Standing(trouble="gone still")),
        (Standing(trouble="gone"), Elected(4), Standing(term=4)),
        (Standing(trouble="gone"), Passed(), Standing()),
    ],
)
def test_a_broker_leads_only_while_it_has_the_databases_word(before: Standing, news: News, expected: Standing) -> None:
    assert after(before, news) == expected


async def test_one_of_many_leads_and_when_it_dies_another_does_in_a_later_term(brokers: Brokers) -> None:
    first, _ = brokers.join()
    await until(lambda: first.leadership.leads)
    others = [brokers.join()[0] for _ in range(3)]
    await brokers.leave(0)
    await until(lambda: any(other.leadership.leads for other in others))
    (leader,) = [other for other in others if other.leadership.leads]
    assert (leader.leadership.standing.term or 0) > 1
    async with leader.database.transaction() as session:
        term = await session.get_one(Term, THE_TERM)
        assert (term.term, term.holder) == (leader.leadership.standing.term, leader.holder)


async def test_a_leader_whose_connection_is_ended_leads_no_more_until_it_is_elected_again(brokers: Brokers) -> None:
    link, _ = brokers.join()
    terms: list[int | None] = []
    link.leadership.changed.append(lambda standing: terms.append(standing.term))
    await until(lambda: terms == [1])
    async with link.database.transaction() as session:
        await session.execute(
            text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'broker leader'")
        )
    await until(lambda: len(terms) == 3)
    assert terms == [1, None, 2]


async def test_the_database_ends_the_leadership_of_a_broker_that_says_nothing(brokers: Brokers) -> None:
    silent, _ = brokers.join()
    await until(lambda: silent.leadership.leads)
    silent.patience_s = 10_000  # it will not beat again; the server has been told another patience
    other, _ = brokers.join()
    await until(lambda: other.leadership.leads)
    with pytest.raises(Deposed, match="term 1, now it is term 2"):
        async with silent.database.guarded(fence(1)).transaction():
            pass


async def test_a_broker_that_stopped_between_two_messages_of_a_pipeline_keeps_its_term_from_nobody(
    brokers: Brokers,
) -> None:
    """PostgreSQL's `idle_in_transaction_session_timeout` is not running there: a paused broker was never succeeded."""
    plain = make_url(brokers.url).set(drivername="postgresql").render_as_string(hide_password=False)
    silent = await psycopg.AsyncConnection.connect(
        plain, application_name="broker", options=f"-c idle_in_transaction_session_timeout={PATIENCE_S * 1000:.0f}"
    )
    try:
        await silent.execute("SELECT term FROM broker_term FOR SHARE")
        silent.pgconn.enter_pipeline_mode()
        silent.pgconn.send_query_params(b"SELECT 1", None)
        silent.pgconn.send_flush_request()
        silent.pgconn.flush()
        link, _ = brokers.join()
        await until(lambda: link.leadership.leads)
    finally:
        await silent.close()


async def test_a_broker_that_stopped_reading_a_long_answer_keeps_its_term_from_nobody(brokers: Brokers) -> None:
    """The server waits to write, which is no silence of a session: only its TCP can tell that nobody reads."""
    paused = Database(brokers.url, settings=DatabaseSettings(leader_patience_s=PATIENCE_S))
    async with paused.engine.connect() as connection:
        raw = (await connection.get_raw_connection()).driver_connection
        await raw.execute("SELECT term FROM broker_term FOR SHARE")
        raw.pgconn.send_query(b"SELECT repeat('x', 1000) FROM generate_series(1, 100000)")
        raw.pgconn.flush()
        link, _ = brokers.join()
        await until(lambda: link.leadership.leads)
        await connection.invalidate()
    await paused.close()


async def test_what_a_deposed_leader_decides_is_not_written(brokers: Brokers) -> None:
    link, _ = brokers.join()
    await until(lambda: link.leadership.leads)
    database = link.database
    fenced = database.guarded(fence(await current(database)))
    async with fenced.transaction() as session:
        session.add(Project(id="a", name="a", created_us=0))
    await lead(database)
    with pytest.raises(Deposed):
        async with fenced.transaction() as session:
            session.add(Project(id="b", name="b", created_us=0))
    async with database.transaction() as session:
        assert await session.get(Project, "a") is not None
        assert await session.get(Project, "b") is None


async def test_a_successor_begins_after_the_last_transaction_of_the_term_before(server: Server) -> None:
    url = await asyncio.to_thread(server.migrated)
    database = Database(url)
    fenced = database.guarded(fence(await current(database)))
    async with fenced.transaction() as session:
        successor = asyncio.create_task(lead(database))
        await until_it_waits(database, successor)
        assert not successor.done()
        session.add(Project(id="a", name="a", created_us=0))
    await successor
    async with database.transaction() as session:
        assert await session.get(Project, "a") is not None
    await database.close()
    await asyncio.to_thread(server.drop, url)


async def test_a_nudge_reaches_the_other_brokers(brokers: Brokers) -> None:
    first, heard = brokers.join()
    await until(lambda: first.leadership.leads)
    second, _ = brokers.join()
    second.nudge("plan")
    second.nudge("validate")
    await until(lambda: {"plan", "validate"} <= set(heard))


async def test_brokers_that_start_together_agree_on_what_the_first_one_made(brokers: Brokers) -> None:
    database = brokers.join()[0].database

    async def ask(value: bytes) -> bytes:
        async with database.transaction() as session:
            return await agreed(session, "secret", lambda: value)

    found = await asyncio.gather(*(ask(bytes([number])) for number in range(5)))
    assert len(set(found)) == 1
    assert await ask(b"another") == found[0]


async def test_a_connection_that_died_in_the_pool_is_replaced_after_a_pause(
    brokers: Brokers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.database.TRUSTED_S", 0.0)
    mine, other = Database(brokers.url), Database(brokers.url)
    async with mine.transaction() as session:
        backend = await session.scalar(text("SELECT pg_backend_pid()"))
    async with other.transaction() as session:
        assert await session.scalar(text(f"SELECT pg_terminate_backend({backend}, 5000)"))
    async with mine.transaction() as session:
        assert await session.scalar(text("SELECT pg_backend_pid()")) != backend
    await mine.close()
    await other.close()


async def test_what_brokers_sign_with_lies_in_the_database_under_a_key_also_if_an_earlier_version_left_it_in_clear(
    brokers: Brokers,
) -> None:
    database = brokers.join()[0].database
    ring = Keyring("one", {"one": LocalKek(new_key())})

    async def ask(value: bytes) -> bytes:
        return await agreed_secret(database, Vault(database, ring), "signature", lambda: value)

    async with database.transaction() as session:
        await agreed(session, "signature", lambda: b"left in clear")
    assert await ask(b"another") == b"left in clear"
    assert set(await asyncio.gather(*(ask(bytes([number])) for number in range(5)))) == {b"left in clear"}
    async with database.transaction() as session:
        kept = [(row.name, row.value) for row in await session.scalars(select(Agreed))]
    assert [name for name, _ in kept if name.startswith("signature")] == ["signature.sealed"]
    assert not any(b"left in clear" in value for _, value in kept)
    with pytest.raises(Unopenable):
        other = Keyring("two", {"two": LocalKek(new_key())})
        await agreed_secret(database, Vault(database, other), "signature", lambda: b"another")


async def lead(database: Database) -> None:
    """Raise the term, as whoever is elected does."""
    statement = RAISE_TERM.replace("%(holder)s", "'x'").replace("%(url)s", "'x'").replace("%(id)s", "1")
    async with database.transaction() as session:
        await session.execute(text(statement))


async def current(database: Database) -> int:
    async with database.transaction() as session:
        return (await session.get_one(Term, THE_TERM)).term
