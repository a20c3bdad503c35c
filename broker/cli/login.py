"""`login`, `logout`, `whoami`: people who log in at their own issuer instead of holding an API key (RFC 8628)."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING, Any

from broker.cli import exits, logins
from broker.cli.client import Client
from broker.cli.exits import USAGE, Failure
from broker.cli.options import Target
from broker.cli.output import document, line

if TYPE_CHECKING:
    import aiohttp

DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"


def login(target: Target) -> None:
    """Log in at the broker's issuer with a browser, here or elsewhere. Further commands to this --url use that login."""
    settings = target.settings()
    if not settings.url:
        raise Failure("log in at a broker elsewhere: name it with --url or BROKER_URL", USAGE)
    url = settings.url

    async def work(client: Client) -> int:
        offered = await client.get("/v1/login")
        if offered["device_authorization_endpoint"] is None:
            raise Failure(f"{offered['issuer']} has no device grant; get a token from it and set BROKER_API_KEY")
        kept = await _device_grant(offered)
        logins.keep(url, kept)
        async with Client(url, kept.token, settings.project) as known:
            who = await known.get("/v1/whoami")
        if target.json:
            document(who)
        else:
            line(
                f"logged in at {url} as {who['principal']}: {', '.join(who['roles'])}, {who['project'] or 'all projects'}"
            )
        return exits.OK

    target.run(work)


def logout(target: Target) -> None:
    """Forget the login at this --url. The issuer's session in the browser goes on."""
    settings = target.settings()
    if not settings.url:
        raise Failure("name the broker with --url or BROKER_URL", USAGE)
    logins.keep(settings.url, None)
    line(f"the login at {settings.url} is forgotten")


def whoami(target: Target) -> None:
    """Who you are at the broker, and what you may do."""

    async def work(client: Client) -> int:
        who = await client.get("/v1/whoami")
        if target.json:
            document(who)
        else:
            line(f"{who['principal']}: {', '.join(who['roles'])}, {who['project'] or 'all projects'}")
        return exits.OK

    target.run(work)


async def _device_grant(offered: dict[str, Any]) -> logins.Kept:
    """Ask for a code, show it, and wait until its owner has answered. Raises Failure."""
    import aiohttp  # noqa: PLC0415 - as in transport.py

    form = {"client_id": offered["client_id"], "scope": " ".join(offered["scopes"])}
    async with aiohttp.ClientSession() as session:
        status, code = await _post(session, offered["device_authorization_endpoint"], form)
        if status != 200:
            raise Failure(
                f"{offered['issuer']} gives out no code: {code.get('error_description') or code.get('error')}"
            )
        shown = code.get("verification_uri_complete") or code["verification_uri"]
        line(f"open {shown} and confirm the code {code['user_code']}", sys.stderr)
        pause_s, give_up = float(code.get("interval", 5)), time.monotonic() + float(code["expires_in"])
        asked = {"grant_type": DEVICE_GRANT, "device_code": code["device_code"], "client_id": offered["client_id"]}
        while time.monotonic() < give_up:
            await asyncio.sleep(pause_s)
            status, answer = await _post(session, offered["token_endpoint"], asked)
            if status == 200:
                return logins.login_of(answer, offered["token_endpoint"], offered["client_id"])
            if answer.get("error") == "slow_down":
                pause_s += 5
            elif answer.get("error") != "authorization_pending":
                raise Failure(f"the login ended: {answer.get('error_description') or answer.get('error') or status}")
    raise Failure("the code was not confirmed in time; log in again")


async def _post(session: aiohttp.ClientSession, url: str, form: dict[str, str]) -> tuple[int, dict[str, Any]]:
    import aiohttp  # noqa: PLC0415

    try:
        async with session.post(url, data=form, allow_redirects=False) as answer:
            found = await answer.json(content_type=None)
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise Failure(f"{url} does not answer as an issuer does: {type(error).__name__}") from error
    return answer.status, found if isinstance(found, dict) else {}
