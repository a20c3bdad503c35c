"""People by OpenID Connect: a token of the issuer's becomes a principal with the roles that the settings grant its groups.

The token is checked as OpenID Connect Core §3.1.3.7 and RFC 8725 want it: asymmetric algorithms of a fixed list, a key of
the issuer's published set, issuer, audience, times, and the claims that are needed. A key that is not known is asked for
once, at most every `REFETCH_S` seconds, so that nobody makes us ask for every made-up key id.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import jwt
import structlog
from jwt import PyJWK, PyJWKSet
from yarl import URL

from broker.keys import DEFAULT_PROJECT, Principal
from broker.settings import OidcGrant, OidcSettings

log = structlog.get_logger()

# No `none`, and no HMAC: with it, the issuer's public key would be a secret that everybody has.
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
REQUIRED = ("exp", "iat", "iss", "aud", "sub")
LEEWAY_S = 60
REFETCH_S = 60
KEEP_S = 3_600
MOST_CHARS = 8_000  # what fits into a header at all is 8,190 bytes
MOST_BYTES = 1024 * 1024
_TIMEOUT = aiohttp.ClientTimeout(total=10)


class BadToken(Exception):
    """A token that opens nothing; the message says why without showing it."""


class IssuerSilent(Exception):
    """The issuer does not answer, or not what an issuer answers: nothing is known of the token."""


@dataclass(frozen=True, slots=True)
class Person:
    """Who a token speaks of. `subject` is unique at the issuer, `name` is how people know it."""

    subject: str
    name: str
    groups: frozenset[str]


class Issuer:
    """One issuer: its documents, fetched when they are needed and kept for an hour."""

    def __init__(self, settings: OidcSettings) -> None:
        self.settings = settings
        self._documents: Mapping[str, Any] | None = None
        self._keys: dict[str, PyJWK] = {}
        self._asked_s = self._fetched_s = float("-inf")  # when they were last asked for, and last had
        self._asking = asyncio.Lock()

    async def person(self, token: str) -> Person:
        """Whom the token speaks of. Raises BadToken, IssuerSilent."""
        header = _header(token)
        key = await self._key(str(header.get("kid") or ""))
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=list(ALGORITHMS),
                audience=self.settings.audience,
                issuer=self.settings.issuer,
                leeway=LEEWAY_S,
                options={"require": list(REQUIRED)},
            )
        except jwt.PyJWTError as refused:
            raise BadToken(f"{type(refused).__name__}: {refused}") from refused
        return person_of(claims, self.settings)

    async def document(self) -> Mapping[str, Any]:
        """What the issuer says of itself (OpenID Connect Discovery). Raises IssuerSilent."""
        if self._documents is None:
            base = self.settings.issuer.rstrip("/")
            found = await _fetched(f"{base}/.well-known/openid-configuration")
            if found.get("issuer") != self.settings.issuer:
                raise IssuerSilent(f"{base} says that its name is {found.get('issuer')!r}, and oidc.issuer is another")
            self._documents = found
        return self._documents

    async def _key(self, kid: str) -> PyJWK:
        async with self._asking:  # who comes while the first asks waits for what it gets
            age_s = time.monotonic() - self._asked_s
            if age_s > KEEP_S or (kid not in self._keys and age_s > REFETCH_S):
                await self._fetch_keys()
        if not self._keys:
            raise IssuerSilent(f"it was asked for its keys {age_s:.0f} s ago and did not answer")
        if kid not in self._keys:
            raise BadToken("it is signed by a key that the issuer does not publish")
        return self._keys[kid]

    async def _fetch_keys(self) -> None:
        # first the time: a failure counts, too, so that a silent issuer is not asked by every request
        self._asked_s = time.monotonic()
        try:
            self._documents = None
            address = str((await self.document()).get("jwks_uri"))
            keys = PyJWKSet.from_dict(dict(await _fetched(address)))
        except IssuerSilent:
            if self._keys and time.monotonic() - self._fetched_s < 24 * KEEP_S:
                log.warning("oidc.keys_stale", issuer=self.settings.issuer)
                return
            self._keys = {}  # a key that was withdrawn a day ago opens nothing
            raise
        except jwt.PyJWTError as error:
            raise IssuerSilent(f"its keys cannot be read: {error}") from error
        self._keys = {str(key.key_id or ""): key for key in keys.keys if key.public_key_use in (None, "sig")}
        self._fetched_s = self._asked_s
        log.info("oidc.keys", issuer=self.settings.issuer, count=len(self._keys))


def person_of(claims: Mapping[str, Any], settings: OidcSettings) -> Person:
    """The person that verified claims name. Raises BadToken."""
    name = claims.get(settings.name_claim)
    if not isinstance(name, str) or not 0 < len(name) <= 100:
        raise BadToken(f"its claim {settings.name_claim!r} is no name; see oidc.name_claim")
    # Some issuers send no such claim (their mail addresses can be changed by their owners), some send it as a text.
    if settings.name_claim == "email" and claims.get("email_verified") not in (True, "true"):
        raise BadToken(
            "its email is not said to be verified, so that it may be anybody's; set oidc.name_claim to another"
        )
    groups = claims.get(settings.groups_claim, [])
    listed = [groups] if isinstance(groups, str) else groups
    if not isinstance(listed, list) or not all(isinstance(each, str) for each in listed):
        raise BadToken(f"its claim {settings.groups_claim!r} is no list of names; see oidc.groups_claim")
    return Person(str(claims["sub"]), name, frozenset(listed))


@dataclass(frozen=True, slots=True)
class Unplaced:
    """A person whom the settings grant nothing, or nothing in the project that was named, or several projects."""

    projects: tuple[str, ...] = field(default=())


def principal_of(person: Person, settings: OidcSettings, named: str | None) -> Principal | Unplaced:
    """What a person may do, in the project that the request names, or in its only one.

    Grants for all projects count alone, so that a role in one project is never one in all.

    >>> grant = OidcGrant(group="ml", project="ml", roles=("viewer",))
    >>> settings = OidcSettings(issuer="https://i", audience="b", grants=(grant,))
    >>> principal_of(Person("1", "ada", frozenset({"ml"})), settings, None).project
    'ml'
    >>> principal_of(Person("1", "ada", frozenset({"ml"})), settings, "other")
    Unplaced(projects=('ml',))
    """
    granted = [each for each in settings.grants if each.group in person.groups]
    everywhere = [each for each in granted if each.project is None]
    if everywhere:
        return _principal(person, settings, None, everywhere)
    projects = tuple(sorted({each.project for each in granted if each.project}))
    wanted = named or (projects[0] if len(projects) == 1 else DEFAULT_PROJECT)
    if wanted not in projects:
        return Unplaced(projects)
    return _principal(person, settings, wanted, [each for each in granted if each.project == wanted])


def _principal(person: Person, settings: OidcSettings, project: str | None, grants: list[OidcGrant]) -> Principal:
    number = hashlib.sha256(f"{settings.issuer}\n{person.subject}".encode()).hexdigest()[:26]
    roles = frozenset(role for each in grants for role in each.roles)
    return Principal(key_id=f"oidc_{number}", name=person.name, project=project, roles=roles)


def is_token(text: str) -> bool:
    """Whether a bearer text looks like a JWT, and not like a key of ours."""
    return not text.startswith("brk_") and text.count(".") == 2


def _header(token: str) -> Mapping[str, Any]:
    """Raises BadToken for what is no JWT, or signed in a way that is not trusted."""
    if len(token) > MOST_CHARS:
        raise BadToken(f"it has {len(token)} characters; at most {MOST_CHARS} are read")
    try:
        header: Mapping[str, Any] = jwt.get_unverified_header(token)
    except jwt.PyJWTError as error:
        raise BadToken("it is not a JWT") from error
    if header.get("alg") not in ALGORITHMS:
        raise BadToken(f"its algorithm {str(header.get('alg'))[:20]!r} is not one of {', '.join(ALGORITHMS)}")
    return header


async def _fetched(address: str) -> Mapping[str, Any]:
    """A JSON object over https; over http from this machine only. Raises IssuerSilent."""
    try:
        url = URL(address)
        if url.scheme != "https" and not (url.scheme == "http" and _is_loopback(url.host or "")):
            raise IssuerSilent(f"{address!r} is not https")
        async with (
            aiohttp.ClientSession(timeout=_TIMEOUT) as session,
            session.get(url, allow_redirects=False) as answer,
        ):
            if answer.status != 200:
                raise IssuerSilent(f"{address} answered {answer.status}")
            document = json.loads(await _whole(answer, address))
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise IssuerSilent(f"{address} did not answer with JSON: {type(error).__name__}") from error
    if not isinstance(document, dict):
        raise IssuerSilent(f"{address} answered no JSON object")
    return document


async def _whole(answer: aiohttp.ClientResponse, address: str) -> bytes:
    """The body, however many pieces it comes in. Raises IssuerSilent for one that is too long."""
    raw = bytearray()
    async for piece in answer.content.iter_any():
        raw += piece
        if len(raw) > MOST_BYTES:
            raise IssuerSilent(f"{address} answered more than {MOST_BYTES} bytes")
    return bytes(raw)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
