"""People by tokens of an issuer: what opens, what does not, and who they are here."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from cryptography.hazmat.primitives import hashes, hmac, serialization

from broker.api.app import build_app
from broker.cli import login as login_command
from broker.cli import logins
from broker.cli.client import Client
from broker.keys import ensure_project
from broker.oidc import Issuer
from broker.settings import OidcGrant, OidcSettings
from tests.support.issuer import AUDIENCE, LoopbackIssuer


@dataclass
class Site:
    url: str
    issuer: LoopbackIssuer
    known: Issuer
    http: aiohttp.ClientSession

    async def ask(self, token: str, path: str = "/v1/whoami", project: str | None = None) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {token}"} | ({"OpenAI-Project": project} if project else {})
        async with self.http.get(self.url + path, headers=headers) as answer:
            return answer.status, await answer.json()


@pytest.fixture
async def site(server: Any) -> AsyncIterator[Site]:
    """The broker with an issuer: `ml` are submitters of project ml, `money` finance of two, `root` admins of all."""
    issuer = LoopbackIssuer()
    issuer.new_key("k1")
    runners = []

    async def serve(app: web.Application) -> str:
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        runners.append(runner)
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    issuer.url = await serve(issuer.app())
    grants = (
        OidcGrant(group="ml", project="ml", roles=("submitter", "viewer")),
        OidcGrant(group="money", project="ml", roles=("finance",)),
        OidcGrant(group="money", project="art", roles=("finance",)),
        OidcGrant(group="root", roles=("admin",)),
    )
    known = Issuer(OidcSettings(issuer=issuer.url, audience=AUDIENCE, grants=grants))
    async with server.services.database.transaction() as session:
        for name in ("ml", "art"):
            await ensure_project(session, name, 1)
    url = await serve(build_app(replace(server.services, issuer=known)))
    yield Site(url, issuer, known, server.http)
    for runner in runners:
        await runner.cleanup()


def unsigned(claims: dict[str, Any], algorithm: str) -> str:
    parts = [{"alg": algorithm, "typ": "JWT", "kid": "k1"}, claims]
    return ".".join(base64.urlsafe_b64encode(json.dumps(p).encode()).rstrip(b"=").decode() for p in parts) + "."


async def test_a_token_of_the_issuer_is_a_person_with_the_roles_of_their_groups(site: Site) -> None:
    status, who = await site.ask(site.issuer.token())
    assert (status, who) == (
        200,
        {"object": "caller", "principal": "ada@example.com", "project": "ml", "roles": ["submitter", "viewer"]},
    )
    site.issuer.new_key("k2", "EC")
    site.known._asked_s = float("-inf")
    assert (await site.ask(site.issuer.token(kid="k2")))[0] == 200


async def test_tokens_that_must_not_open_do_not(site: Site) -> None:
    issuer, now = site.issuer, int(time.time())
    claims = json.loads(base64.urlsafe_b64decode(issuer.token().split(".")[1] + "=="))
    public = issuer.keys["k1"].public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )  # fmt: skip
    confused = unsigned(claims, "HS256").rstrip(".")
    mac = hmac.HMAC(public, hashes.SHA256())
    mac.update(confused.encode())
    confused += "." + base64.urlsafe_b64encode(mac.finalize()).rstrip(b"=").decode()
    stranger = LoopbackIssuer(url=issuer.url)
    stranger.new_key("k1")
    stranger.new_key("k9", "EC")
    good = issuer.token()
    head, body, signature = good.split(".")
    other_body = base64.urlsafe_b64encode(json.dumps(claims | {"groups": ["root"]}).encode()).rstrip(b"=").decode()
    for token, why in {
        unsigned(claims, "none"): "alg none",
        unsigned(claims, "None"): "alg None",
        confused: "HS256 with the public key as the secret",
        stranger.token(): "signed by another key under a known id",
        stranger.token(kid="k9"): "a key that is not published",
        f"{head}.{other_body}.{signature}": "changed claims",
        f"{head}.{body}.": "no signature",
        issuer.token(aud="another-app"): "for somebody else",
        issuer.token(aud=None): "for nobody",
        issuer.token(iss="https://evil.example"): "another issuer",
        issuer.token(iss=issuer.url + "/"): "nearly the issuer",
        issuer.token(exp=now - 61): "expired",
        issuer.token(exp=None): "never expires",
        issuer.token(nbf=now + 120): "not yet",
        issuer.token(iat=now + 120): "issued in the future",
        issuer.token(sub=None): "of nobody",
        issuer.token(email=None): "without a name",
        issuer.token(email_verified=False): "an address that is anybody's",
        issuer.token(email_verified=None): "an address of which nobody says that it was verified",
        issuer.token(groups={"ml": True}): "groups that are no list",
        "a.b.c": "no JWT",
        "..": "nothing",
        "e30.e30.e30": "empty objects",
        "a" * 8_010 + ".b.c": "too long",
    }.items():
        status, answer = await site.ask(token)
        assert (status, answer["error"]["code"]) == (401, "invalid_token"), why
        assert signature not in json.dumps(answer), why
    assert (await site.ask(good))[0] == 200
    assert (await site.ask(issuer.token(exp=now - 30)))[0] == 200, "clocks may differ by a minute"


async def test_a_new_key_is_fetched_when_it_is_met_but_made_up_ids_do_not_make_us_ask(site: Site) -> None:
    issuer = site.issuer
    assert (await site.ask(issuer.token()))[0] == 200
    issuer.new_key("k2")
    stranger = LoopbackIssuer(url=issuer.url)
    for number in range(5):
        stranger.new_key(f"made-up-{number}", "EC")
        assert (await site.ask(stranger.token(kid=f"made-up-{number}")))[0] == 401
    assert issuer.asked["/keys"] == 1
    site.known._asked_s -= 61
    assert (await site.ask(issuer.token(kid="k2")))[0] == 200
    assert issuer.asked["/keys"] == 2


async def test_an_issuer_that_is_away_is_503_at_first_and_missed_by_nobody_later(site: Site) -> None:
    site.issuer.is_away = True
    status, answer = await site.ask(site.issuer.token())
    assert (status, answer["error"]["code"]) == (503, "issuer_unavailable")
    assert (await site.ask(site.issuer.token()))[0] == 503, "not 401: nothing is known of the token"
    site.issuer.is_away, site.known._asked_s = False, float("-inf")
    assert (await site.ask(site.issuer.token()))[0] == 200
    site.issuer.is_away = True
    site.known._asked_s -= 3_601
    assert (await site.ask(site.issuer.token()))[0] == 200
    site.known._asked_s -= 3_601
    site.known._fetched_s -= 24 * 3_601
    assert (await site.ask(site.issuer.token()))[0] == 503, "keys of a day ago may have been withdrawn"


async def test_a_person_of_several_projects_names_one_and_one_of_none_gets_in_nowhere(site: Site) -> None:
    token = site.issuer.token(groups=["money"])
    status, answer = await site.ask(token)
    assert (status, answer["error"]["code"]) == (400, "project_required")
    assert (await site.ask(token, project="art"))[1]["project"] == "art"
    assert (await site.ask(token, project="default"))[0] == 404
    status, answer = await site.ask(site.issuer.token(groups=["strangers"]))
    assert (status, answer["error"]["code"]) == (403, "nothing_granted")
    assert (await site.ask(site.issuer.token(groups=["ml"]), "/v1/ledger/entries"))[0] == 403
    status, who = await site.ask(site.issuer.token(groups=["root", "ml"]))
    assert (who["project"], who["roles"]) == (None, ["admin"]), "a role in one project is none in all"


async def test_a_person_cannot_approve_by_token_what_they_proposed_by_key(site: Site, server: Any) -> None:
    """Two ways in are one person: the approver's principal must differ (C14)."""
    await server.call("PATCH", "/v1/admin/projects/ml", json={"approve_above_usd": "0.000001"})
    key = await server.key("submitter", project="ml", principal="ada@example.com")
    batch = await server.new_batch(key=key)
    async with server.services.database.transaction() as session:
        from broker import approvals  # noqa: PLC0415
        from jobs.tables import Batch  # noqa: PLC0415

        await approvals.propose(session, await session.get_one(Batch, batch["id"]), "test", 1)
    for name, expected in (("ada@example.com", 403), ("bob@example.com", 200)):
        token = site.issuer.token(groups=["money"], email=name, sub=name)
        headers = {"Authorization": f"Bearer {token}", "OpenAI-Project": "ml"}
        async with site.http.post(f"{site.url}/v1/batches/{batch['id']}/approve", headers=headers) as answer:
            assert answer.status == expected, await answer.text()


async def test_login_by_a_code_keeps_a_token_privately_and_renews_it(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logins, "folder", lambda: tmp_path / "config")
    async with Client(site.url, None) as client:
        offered = await client.get("/v1/login")
    kept = await login_command._device_grant(offered)
    logins.keep(site.url, kept)
    said = capsys.readouterr()
    assert "ABCD-EFGH" in said.err
    assert "canary" not in said.err + said.out
    file = tmp_path / "config" / logins.FILE
    assert file.stat().st_mode & 0o777 == 0o600
    before = site.issuer.asked["/token"]
    token = await logins.current(site.url)
    assert token is not None
    assert site.issuer.asked["/token"] == before + 1, "30 s are too few: it was renewed"
    async with Client(site.url, token) as client:
        assert (await client.get("/v1/whoami"))["principal"] == "ada@example.com"
    logins.keep(site.url, None)
    assert await logins.current(site.url) is None


async def test_without_an_issuer_a_token_is_an_unknown_key(server: Any, site: Site) -> None:
    answer = await server.call("GET", "/v1/whoami", key=site.issuer.token())
    assert (answer.status, answer.code) == (401, "invalid_api_key")
    assert (await server.call("GET", "/v1/login", key=None)).status == 404
