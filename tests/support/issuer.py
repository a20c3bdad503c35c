"""An OpenID provider on loopback that signs with real keys: discovery, key set, device grant (RFC 8628), refresh."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import jwt
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, rsa

AUDIENCE = "compute-broker"


@dataclass
class LoopbackIssuer:
    """`keys` by key id are what it signs with; those in `published` are what it tells. `asked` counts requests by path."""

    url: str = ""
    keys: dict[str, Any] = field(default_factory=dict)
    published: list[str] = field(default_factory=list)
    asked: Counter[str] = field(default_factory=Counter)
    is_confirmed: bool = False
    is_away: bool = False

    def new_key(self, kid: str, kind: str = "RSA", *, publish: bool = True) -> None:
        made = rsa.generate_private_key(65537, 2048) if kind == "RSA" else ec.generate_private_key(ec.SECP256R1())
        self.keys[kid] = made
        if publish:
            self.published.append(kid)

    def token(self, *, kid: str = "k1", key: Any = None, algorithm: str | None = None, **changes: Any) -> str:
        """A token for ada; a claim that is changed to None is left out."""
        now = int(time.time())
        claims = {
            "iss": self.url, "aud": AUDIENCE, "sub": "user-1", "email": "ada@example.com", "email_verified": True,
            "groups": ["ml"], "iat": now, "exp": now + 300,
        } | changes  # fmt: skip
        claims = {name: value for name, value in claims.items() if value is not None}
        key = self.keys[kid] if key is None else key
        algorithm = algorithm or ("RS256" if isinstance(key, rsa.RSAPrivateKey) else "ES256")
        return jwt.encode(claims, key, algorithm=algorithm, headers={"kid": kid})

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/.well-known/openid-configuration", self._document)
        app.router.add_get("/keys", self._keys)
        app.router.add_post("/device", self._device)
        app.router.add_post("/token", self._token)
        return app

    async def _document(self, request: web.Request) -> web.Response:
        self._count(request)
        return web.json_response(
            {
                "issuer": self.url,
                "jwks_uri": f"{self.url}/keys",
                "token_endpoint": f"{self.url}/token",
                "device_authorization_endpoint": f"{self.url}/device",
            }
        )

    async def _keys(self, request: web.Request) -> web.Response:
        self._count(request)
        return web.json_response({"keys": [self._public(kid) for kid in self.published]})

    def _public(self, kid: str) -> dict[str, Any]:
        key = self.keys[kid]
        kind: Any = jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
        return {**json.loads(kind.to_jwk(key.public_key())), "kid": kid, "use": "sig"}

    async def _device(self, request: web.Request) -> web.Response:
        self._count(request)
        form = await request.post()
        assert form["client_id"] == AUDIENCE
        return web.json_response(
            {
                "device_code": "canary-device-code",
                "user_code": "ABCD-EFGH",
                "verification_uri": f"{self.url}/confirm",
                "expires_in": 60,
                "interval": 0,
            }
        )

    async def _token(self, request: web.Request) -> web.Response:
        self._count(request)
        form = await request.post()
        if form["grant_type"] != "refresh_token" and not self.is_confirmed:
            self.is_confirmed = True  # the person confirms between the first question and the second
            return web.json_response({"error": "authorization_pending"}, status=400)
        answer = {
            "id_token": self.token(),
            "access_token": "opaque",
            "refresh_token": "canary-refresh",
            "expires_in": 30,
        }
        return web.json_response(answer)

    def _count(self, request: web.Request) -> None:
        self.asked[request.path] += 1
        if self.is_away:
            raise web.HTTPServiceUnavailable
