"""Who a worker is after hello: its client certificate over real TLS, or its proofs behind a proxy that ends TLS."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from sqlalchemy import select, update
from sqlmodel import col

from broker.api import binding
from broker.api.app import build_app
from broker.authority import BadCsr, checked_csr, open_authority, revoke
from broker.tls import BadTls, ServerTls, server_context
from broker.used_proofs import forget, use
from broker.vault import Vault
from broker.vault_tables import AuthorityRow, CertificateRow
from jobs.clock import db_now
from tests.support.tls_files import server_certificate
from tests.support.wire_agent import Agent, Rent, confirm, conforms, offer, running_batch, worker_row
from workers.agent import identity
from workers.agent.errors import Dismissed
from workers.agent.identity import Identity, Prover, make_request
from workers.agent.wire import Wire

HOURS_US = 3600 * 1_000_000


@dataclass
class TlsServer:
    url: str
    ca: str
    services: Any

    async def certificates(self) -> list[CertificateRow]:
        async with self.services.database.transaction() as session:
            return list(await session.scalars(select(CertificateRow).order_by(col(CertificateRow.issued_us))))


@pytest.fixture
async def tls(server: Any, tmp_path: Path) -> AsyncIterator[TlsServer]:
    """The same broker behind TLS of its own."""
    http = server_certificate(tmp_path)
    authority = await open_authority(server.services.database, server.services.vault)
    services = replace(server.services, authority=authority)
    runner = web.AppRunner(build_app(services), auto_decompress=False, access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=server_context(http, authority.certificate)).start()
    ca = (tmp_path / "tls.pem").read_text()
    yield TlsServer(f"https://127.0.0.1:{runner.addresses[0][1]}", ca, services)
    await runner.cleanup()


@dataclass
class Known:
    """An agent's wire and identity, as run.py has them."""

    wire: Wire
    identity: Identity
    facts: dict[str, Any]
    answer: dict[str, Any]

    async def heartbeat(self, **more: Any) -> dict[str, Any]:
        state = {"state": "ready", "leases": [], "metrics": {}, "notice_in_s": None, "error": None}
        return await self.wire.heartbeat(state | more)


async def hello(agent: Agent, session: aiohttp.ClientSession, url: str, ca: str | None, known: Identity) -> Known:
    wire = Wire(session, url, agent.bootstrap)
    if ca:
        wire.use_tls(identity.trusting(ca))
    facts = {
        "rental_id": agent.rental, "pubkey": known.pubkey, "agent_version": "1", "hostname": "h", "pid": 1,
        "cpu_count": 1, "memory_mib": 1, "disk_free_mib": 1, "accelerators": [], "driver": None, "evidence": {},
    }  # fmt: skip
    facts |= await known.introduction()
    answer = await wire.hello(facts)
    conforms("hello.request", facts)
    conforms("hello.response", answer)
    wire.use_token(answer["token"])
    context, prover = known.adopt(answer)
    if context is not None:
        wire.use_tls(context)
    if prover is not None:
        wire.use_proof(prover)
    return Known(wire, known, facts, answer)


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def rented(server: Any, rent: Rent) -> Agent:
    return await rent(batches=(await running_batch(server, offer()),))


# --- certificates ----------------------------------------------------------------------------------------------------


async def test_a_token_works_only_over_its_rentals_certificate(
    server: Any, tls: TlsServer, rent: Rent, http: aiohttp.ClientSession
) -> None:
    agent = await rented(server, rent)
    known = await hello(agent, http, tls.url, tls.ca, Identity(wants_certificate=True, broker_ca=tls.ca))
    assert known.answer["binding"] == "certificate"
    assert (await known.heartbeat())["lost"] == []
    thief = Wire(http, tls.url, known.answer["token"])
    thief.use_tls(identity.trusting(tls.ca))
    with pytest.raises(Dismissed, match="certificate_required"):
        await thief.lease(0)
    other = await rent(batches=())
    another = await hello(other, http, tls.url, tls.ca, Identity(wants_certificate=True, broker_ca=tls.ca))
    another.wire.use_token(known.answer["token"])
    with pytest.raises(Dismissed, match="certificate_required"):
        await another.wire.lease(0)
    people = await http.get(
        f"{tls.url}/v1/models", headers={"Authorization": f"Bearer {server.admin_key}"}, ssl=identity.trusting(tls.ca)
    )
    assert people.status == 200, "people come to the same port without a certificate"


async def test_a_certificate_names_the_rental_and_lives_a_day_whatever_the_request_said(
    server: Any, tls: TlsServer, rent: Rent, http: aiohttp.ClientSession
) -> None:
    agent = await rented(server, rent)
    known = await hello(agent, http, tls.url, tls.ca, Identity(wants_certificate=True, broker_ca=tls.ca))
    made = x509.load_pem_x509_certificate(known.answer["certificate"].encode())
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [f"spiffe://broker/rental/{agent.rental}"]
    assert not made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert made.not_valid_after_utc - made.not_valid_before_utc == timedelta(hours=25), "a day, and an hour of skew"
    ca = x509.load_pem_x509_certificate(tls.services.authority.certificate.encode())
    made.verify_directly_issued_by(ca)


async def test_a_repeated_hello_gets_the_same_certificate_and_another_key_gets_none(
    server: Any, tls: TlsServer, rent: Rent, http: aiohttp.ClientSession
) -> None:
    agent = await rented(server, rent)
    known = await hello(agent, http, tls.url, tls.ca, Identity(wants_certificate=True, broker_ca=tls.ca))
    wire = Wire(http, tls.url, agent.bootstrap)
    wire.use_tls(identity.trusting(tls.ca))
    again = await wire.hello(known.facts)
    assert again["certificate"] == known.answer["certificate"], "a lost answer must not strand a machine"
    overheard = make_request()
    assert overheard is not None
    for changes in ({"csr": overheard.csr}, {"pubkey": "cd" * 32}):
        with pytest.raises(Dismissed, match="bootstrap_used"):
            await wire.hello(known.facts | changes)
    assert len(await tls.certificates()) == 1
    worker = await worker_row(server, agent)
    assert "tried to use its bootstrap token" in (worker.error or ""), "the operator is told"
    assert worker.state == "starting", "the worker itself goes on"
    await known.heartbeat()


async def test_a_certificate_is_renewed_at_half_life_with_a_new_key(
    server: Any, tls: TlsServer, rent: Rent, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = await rented(server, rent)
    known = await hello(agent, http, tls.url, tls.ca, Identity(wants_certificate=True, broker_ca=tls.ca))
    assert known.answer["certificate_renew_s"] == 12 * 3600
    assert await known.identity.renewal() is None
    now = identity.time.monotonic()
    monkeypatch.setattr(identity.time, "monotonic", lambda: now + 12 * 3600 + 1)
    csr = await known.identity.renewal()
    assert csr is not None
    assert await known.identity.renewal() == csr, "the same until it is answered"
    answer = await known.heartbeat(csr=csr)
    repeated = await known.heartbeat(csr=csr)
    assert answer["certificate"] == repeated["certificate"] is not None
    conforms("heartbeat.response", answer)
    context = known.identity.renewed(answer["certificate"])
    assert context is not None
    known.wire.use_tls(context)
    assert await known.identity.renewal() is None
    first, second = await tls.certificates()
    assert first.public_key_sha256 != second.public_key_sha256
    async with server.services.database.transaction() as session:
        await session.execute(
            update(CertificateRow).where(col(CertificateRow.serial) == first.serial).values(revoked_us=1)
        )
    await known.heartbeat()


async def test_a_revoked_expired_or_released_certificate_is_worth_nothing(
    server: Any, tls: TlsServer, rent: Rent, http: aiohttp.ClientSession
) -> None:
    for end in ("revoked", "expired", "released", "goodbye"):
        agent = await rented(server, rent)
        known = await hello(agent, http, tls.url, tls.ca, Identity(wants_certificate=True, broker_ca=tls.ca))
        await known.heartbeat()
        async with server.services.database.transaction() as session:
            now_us = await db_now(session)
            if end == "revoked":
                await revoke(session, agent.rental, "by the operator", now_us)
            if end == "expired":
                mine = col(CertificateRow.rental) == agent.rental
                await session.execute(update(CertificateRow).where(mine).values(expires_us=now_us))
        if end == "released":
            await confirm(server, agent, offer(), ended=True)
        if end == "goodbye":
            await known.wire.goodbye("drain", None)
            assert [each.revoked_reason for each in await tls.certificates()][-1] == "goodbye: drain"
        with pytest.raises(Dismissed):
            await known.heartbeat()


async def test_an_operator_cuts_a_worker_off(
    server: Any, tls: TlsServer, rent: Rent, http: aiohttp.ClientSession
) -> None:
    agent = await rented(server, rent)
    known = await hello(agent, http, tls.url, tls.ca, Identity(wants_certificate=True, broker_ca=tls.ca))
    for _ in range(2):
        done = await server.call("POST", f"/v1/admin/workers/{agent.rental}/revoke")
        assert done.json == {"rental": agent.rental, "object": "worker.revoked"}
    assert [each.revoked_reason for each in await tls.certificates()] == ["by admin"]
    with pytest.raises(Dismissed):
        await known.heartbeat()
    with pytest.raises(Dismissed, match="worker_over"):
        await hello(agent, http, tls.url, tls.ca, known.identity)
    assert server.services.wake["reconcile"].is_set(), "its machine is given back"


@pytest.mark.parametrize("late", ["heartbeat", "goodbye"])
async def test_a_call_that_was_under_way_undoes_no_revocation(
    server: Any,
    tls: TlsServer,
    rent: Rent,
    http: aiohttp.ClientSession,
    monkeypatch: pytest.MonkeyPatch,
    late: str,
) -> None:
    """Its token was checked before, its rows locked after: the worker was ready again, with a new certificate."""
    agent = await rented(server, rent)
    known = await hello(agent, http, tls.url, tls.ca, Identity(wants_certificate=True, broker_ca=tls.ca))
    await known.heartbeat()
    renewal = make_request()
    assert renewal is not None
    identify = binding.identify

    async def then_revoked(*given: Any) -> Any:
        call = await identify(*given)
        if call.rental:
            assert (await server.call("POST", f"/v1/admin/workers/{agent.rental}/revoke")).status == 200
        return call

    monkeypatch.setattr(binding, "identify", then_revoked)
    with pytest.raises(Dismissed, match="session_ended"):
        await (known.heartbeat(csr=renewal.csr) if late == "heartbeat" else known.wire.goodbye("drain", None))
    worker = await worker_row(server, agent)
    assert (worker.state, worker.error) == ("failed", "revoked by admin")
    assert [each.revoked_reason for each in await tls.certificates()] == ["by admin"], "and no other was given out"


async def test_a_worker_that_failed_is_not_ready_again_nor_merely_gone(server: Any, rent: Rent) -> None:
    agent = await rented(server, rent)
    await agent.hello()
    await agent.heartbeat("failed", error="the engine died")
    await agent.heartbeat("ready")
    assert (await worker_row(server, agent)).state == "failed"
    assert (await agent.post("goodbye", {"reason": "drain", "error": None})).status == 204
    assert (await worker_row(server, agent)).state == "failed"


async def test_what_a_revoked_worker_had_leased_is_anothers_at_once(server: Any, rent: Rent) -> None:
    """Its leases once ran on until they expired, and the batch waited for it."""
    batch = await running_batch(server, offer(), lines=4)
    first, second = await rent(batches=(batch,)), await rent(batches=(batch,))
    for agent in (first, second):
        await agent.hello()
        await agent.heartbeat()
    held = [(await first.lease())["lease"] for _ in range(4)]
    shards = {each["shard_id"] for each in held if each}
    assert shards
    assert (await server.call("POST", f"/v1/admin/workers/{first.rental}/revoke")).status == 200
    found = [(await second.lease())["lease"] for _ in range(4)]
    assert shards <= {each["shard_id"] for each in found if each}


async def test_a_certificate_of_another_authority_is_no_certificate(
    server: Any, tls: TlsServer, rent: Rent, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    context = identity.trusting(tls.ca)
    context.load_cert_chain(tmp_path / "tls.pem", tmp_path / "tls.key")
    with pytest.raises((aiohttp.ClientError, OSError)):
        await http.get(f"{tls.url}/v1/models", ssl=context)


def test_only_requests_that_prove_a_p256_key_are_granted() -> None:
    def encoded(request: x509.CertificateSigningRequest) -> bytes:
        return request.public_bytes(serialization.Encoding.DER)

    def pem(der: bytes) -> str:
        return x509.load_der_x509_csr(der).public_bytes(serialization.Encoding.PEM).decode()

    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    mine, other = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    good = encoded(builder.sign(mine, hashes.SHA256()))
    point = serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    stolen = good.replace(mine.public_key().public_bytes(*point), other.public_key().public_bytes(*point))
    checked_csr(pem(good))
    for bad, reason in (
        (pem(stolen), "not signed by its own key"),
        (pem(encoded(builder.sign(ec.generate_private_key(ec.SECP384R1()), hashes.SHA256()))), "P-256"),
        (pem(encoded(builder.sign(rsa.generate_private_key(65537, 2048), hashes.SHA256()))), "P-256"),
        ("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", "cannot be read"),
        ("x" * 5000, "5000 characters"),
        ("", "cannot be read"),
    ):
        with pytest.raises(BadCsr, match=reason):
            checked_csr(bad)


async def test_replicas_share_one_authority_whose_key_lies_sealed(server: Any) -> None:
    database, keyring = server.services.database, server.services.vault.keyring
    first, second = await asyncio.gather(*(open_authority(database, Vault(database, keyring)) for _ in range(2)))
    assert first.certificate == second.certificate
    async with database.transaction() as session:
        row = (await session.scalars(select(AuthorityRow))).one()
    plain = first.key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    assert plain not in row.sealed
    assert second.key.private_numbers() == first.key.private_numbers()


@pytest.mark.parametrize("without", ["", "cryptography", "both"])
async def test_the_key_is_made_by_module_or_program_or_not_at_all(
    without: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if without:
        monkeypatch.setattr(identity.importlib.util, "find_spec", lambda name: None)
    if without == "both":
        monkeypatch.setattr(identity.shutil, "which", lambda name: None)
    made = make_request()
    if without == "both":
        assert made is None
        assert "identity.no_certificate" in capsys.readouterr().err
        return
    assert made is not None
    checked_csr(made.csr)
    assert (made.folder / "key.pem").stat().st_mode & 0o777 == 0o600
    identity.shutil.rmtree(made.folder)


# --- proofs ----------------------------------------------------------------------------------------------------------


async def test_behind_a_proxy_each_call_proves_the_key_that_said_hello(
    server: Any, rent: Rent, http: aiohttp.ClientSession
) -> None:
    agent = await rented(server, rent)
    known = await hello(agent, http, server.url, None, Identity(wants_certificate=True, broker_ca=None))
    assert known.answer["binding"] == "proof", "this broker gives out no certificates"
    await known.heartbeat()
    with pytest.raises(Dismissed, match="proof_required"):
        await Wire(http, server.url, known.answer["token"]).lease(0)
    liar = Wire(http, server.url, known.answer["token"])
    prover = Prover("cd" * 32)
    prover.set_clock(known.answer["now_us"])
    liar.use_proof(prover)
    with pytest.raises(Dismissed, match="proof_required"):
        await liar.lease(0)


async def test_a_proof_is_of_one_request_and_of_now(server: Any, rent: Rent, http: aiohttp.ClientSession) -> None:
    agent = await rented(server, rent)
    known = await hello(agent, http, server.url, None, Identity(wants_certificate=False, broker_ca=None))
    prover = Prover(known.identity.pubkey)
    prover.set_clock(known.answer["now_us"])
    body = b'{"wait_s": 0}'
    path = "/worker/v1/leases"
    whole = prover.header("POST", path, body)
    late, early = Prover(known.identity.pubkey), Prover(known.identity.pubkey)
    late.set_clock(known.answer["now_us"] - 601 * 1_000_000)
    early.set_clock(known.answer["now_us"] + 660 * 1_000_000)
    for proof in (
        whole.replace(whole[:-1], whole[:-1][::-1]),
        "", ".", "x.y", "1.é".encode("utf-8", "surrogateescape").decode("latin-1"),
        prover.header("GET", path, body), prover.header("POST", "/worker/v1/heartbeat", body),
        prover.header("POST", path, b"{}"), late.header("POST", path, body), early.header("POST", path, body),
        whole,
    ):  # fmt: skip
        headers = {
            "Authorization": f"Bearer {known.answer['token']}",
            "Content-Type": "application/json",
            "X-Worker-Proof": proof,
        }
        async with http.post(server.url + path, data=body, headers=headers) as answer:
            assert answer.status == (200 if proof == whole else 401), proof


async def test_a_call_that_was_overheard_is_worth_nothing(server: Any, rent: Rent, http: aiohttp.ClientSession) -> None:
    """Repeated behind the TLS proxy, it once gave out what the worker was given, for ten minutes."""
    agent = await rented(server, rent)
    known = await hello(agent, http, server.url, None, Identity(wants_certificate=False, broker_ca=None))
    prover = Prover(known.identity.pubkey)
    prover.set_clock(known.answer["now_us"])
    body, path = b'{"wait_s": 0}', "/worker/v1/leases"

    async def call(proof: str) -> int:
        headers = {
            "Authorization": f"Bearer {known.answer['token']}",
            "Content-Type": "application/json",
            "X-Worker-Proof": proof,
        }
        async with http.post(server.url + path, data=body, headers=headers) as answer:
            return answer.status

    overheard = prover.header("POST", path, body)
    assert [await call(overheard), await call(overheard)] == [200, 425]
    raced = prover.header("POST", path, body)
    assert sorted(await asyncio.gather(*(call(raced) for _ in range(5)))) == [200, *[425] * 4], (
        "one of them alone counts"
    )
    assert await call(prover.header("POST", path, body)) == 200, "the worker itself goes on"
    async with server.services.database.transaction() as session:
        now_us = await db_now(session)
        assert await use(session, [overheard], now_us) == frozenset(), "another broker of the database knows it, too"
        await forget(session, now_us + 1201 * 1_000_000)
        assert await use(session, [overheard], now_us) == {overheard}


async def test_a_worker_whose_clock_is_years_off_proves_itself(
    server: Any, rent: Rent, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity.time, "time", lambda: 0.0)
    agent = await rented(server, rent)
    known = await hello(agent, http, server.url, None, Identity(wants_certificate=False, broker_ca=None))
    await known.heartbeat()


def test_the_context_of_a_broker_demands_no_certificate_and_refuses_bad_files(tmp_path: Path) -> None:
    http = server_certificate(tmp_path)
    assert server_context(http, (tmp_path / "tls.pem").read_text()).verify_mode == ssl.CERT_OPTIONAL
    (tmp_path / "other").mkdir()
    other = server_certificate(tmp_path / "other").tls_key
    locked = tmp_path / "locked.key"
    locked.write_bytes(
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"pass"),
        )
    )
    (tmp_path / "nonsense").write_text("nonsense")
    for changed, told in (
        ({"tls_key": other}, "is not the key of http.tls_certificate .*requested with"),
        ({"tls_key": locked}, "passphrase.*openssl pkey"),  # OpenSSL asked the terminal for it, and waited
        ({"tls_key": tmp_path / "nonsense"}, r"http\.tls_key = .*nonsense' is no private key in PEM"),
        ({"tls_key": tmp_path / "none"}, r"http\.tls_key = .*none' cannot be read: No such file"),
        ({"tls_certificate": tmp_path / "none"}, r"http\.tls_certificate = .*none' cannot be read"),
        ({"tls_certificate": http.tls_key}, r"http\.tls_certificate = .* is no PEM of a certificate"),
    ):
        with pytest.raises(BadTls, match=told):
            server_context(http.model_copy(update=changed))


async def test_a_certificate_that_is_renewed_in_its_place_is_shown_without_a_restart(tmp_path: Path) -> None:
    """It was shown until somebody restarted the broker, or until it had ended and no machine could say hello."""
    http = server_certificate(tmp_path)
    assert http.tls_certificate and http.tls_key
    folder = tmp_path / "renewed"
    folder.mkdir()
    server_certificate(folder)
    tls = ServerTls(http, http.tls_certificate.read_text())
    runner = web.AppRunner(web.Application(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls.context).start()

    async def shown() -> str:
        return await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", runner.addresses[0][1]))

    first = await shown()
    assert first == http.tls_certificate.read_text()
    assert not tls.look()
    (folder / "tls.pem").rename(http.tls_certificate)
    with pytest.raises(BadTls, match="is not the key"):
        tls.look()
    assert not tls.look(), "the same trouble is told once"
    assert await shown() == first, "half of a pair changes nothing"
    (folder / "tls.key").rename(http.tls_key)
    assert tls.look()
    assert await shown() == http.tls_certificate.read_text() != first
    await runner.cleanup()
