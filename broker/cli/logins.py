"""Tokens of people who logged in with `broker login`, kept in a private file, one entry a broker's URL."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import platformdirs

from broker.owner import write_private

FILE = "logins.json"
# A token that ends within this is renewed first: the request that carries it takes time, too.
EARLY_S = 60


@dataclass(frozen=True)
class Kept:
    """A login: `token` until `expires_s` (epoch), and what gets the next one."""

    token: str = field(repr=False)
    expires_s: float
    token_endpoint: str
    client_id: str
    refresh_token: str | None = field(default=None, repr=False)


def folder() -> Path:
    return Path(platformdirs.user_config_dir("compute-broker"))


def read(url: str) -> Kept | None:
    """The login at this broker, or None."""
    entry = _all().get(url.rstrip("/"))
    return Kept(**entry) if entry else None


def keep(url: str, login: Kept | None) -> None:
    """Remember the login at this broker, or forget it."""
    entries = _all()
    entries.pop(url.rstrip("/"), None)
    if login is not None:
        entries[url.rstrip("/")] = asdict(login)
    folder().mkdir(parents=True, exist_ok=True, mode=0o700)
    write_private(folder() / FILE, json.dumps(entries) + "\n")


async def current(url: str) -> str | None:
    """A token that is good now, renewed if need be; None: nobody logged in, or the login is over."""
    login = read(url)
    if login is None or time.time() < login.expires_s - EARLY_S:
        return login.token if login else None
    if login.refresh_token is None:
        return None
    import aiohttp  # noqa: PLC0415 - only who is logged in, and has to be again, waits for it

    form = {"grant_type": "refresh_token", "refresh_token": login.refresh_token, "client_id": login.client_id}
    async with aiohttp.ClientSession() as session, session.post(login.token_endpoint, data=form) as answer:
        document = await answer.json(content_type=None)
        if answer.status != 200:
            return None
    renewed = login_of(document, login.token_endpoint, login.client_id, login.refresh_token)
    keep(url, renewed)
    return renewed.token


def login_of(document: dict[str, object], token_endpoint: str, client_id: str, before: str | None = None) -> Kept:
    """The login in a token endpoint's answer: the ID token where there is one, for access tokens may be opaque."""
    token = document.get("id_token") or document["access_token"]
    refresh = document.get("refresh_token") or before
    life_s = float(str(document.get("expires_in") or 300))
    return Kept(str(token), time.time() + life_s, token_endpoint, client_id, None if refresh is None else str(refresh))


def _all() -> dict[str, dict[str, Any]]:
    file = folder() / FILE
    if not file.exists():
        return {}
    found: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    return found
