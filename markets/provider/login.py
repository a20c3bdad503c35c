"""How providers are logged in at: what each style needs, and which header or parameter it becomes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from markets.errors import NoCredentials

# The door to wherever credentials are kept; asked at first, and again after a refusal (rotation). None: there are none.
CredentialSource = Callable[[], Awaitable[Mapping[str, str] | None]]


async def nobody() -> None:
    """No credentials: for what a provider tells everybody."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What a request carries to show who asks. `secrets` is what must never appear in a message."""

    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    query: Mapping[str, str] = field(default_factory=dict, repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Login:
    """One style. `needs` are the names of the values that a project or the house keeps for this market.

    `is_optional`: the provider also answers without. `token_path`: an OAuth2 token is fetched there first (client
    credentials), and the proof is made of the token.
    """

    needs: tuple[str, ...] = ()
    prove: Callable[[Mapping[str, str]], Proof] = lambda values: Proof()
    is_optional: bool = False
    token_path: str | None = None

    def proof(self, market: str, values: Mapping[str, str] | None) -> Proof:
        """Raises NoCredentials, naming what is missing and how to give it."""
        missing = [name for name in self.needs if not (values or {}).get(name)]
        if missing and self.is_optional and not values:
            return Proof()
        if missing or values is None:
            if not self.needs:
                return Proof()
            raise NoCredentials(
                f"{market}: no credentials here; needs {', '.join(missing)}: `broker credentials set {market}` for a "
                f"project, or providers.{market}.credentials in broker.toml for the house"
            )
        made = self.prove(values)
        secrets = tuple(value for name, value in values.items() if name in self.needs and len(value) > 3)
        return Proof(made.headers, made.query, secrets + made.secrets)


ANONYMOUS = Login()


def bearer(name: str = "api_key", *, is_optional: bool = False) -> Login:
    """`Authorization: Bearer …`."""
    return header("Authorization", name, prefix="Bearer ", is_optional=is_optional)


def header(header_name: str, name: str = "api_key", *, prefix: str = "", is_optional: bool = False) -> Login:
    """A header of the provider's own, such as `X-API-KEY`."""
    return Login((name,), lambda values: Proof(headers={header_name: prefix + values[name]}), is_optional)


def client_credentials(token_path: str, client_id: str = "client_id", client_secret: str = "client_secret") -> Login:
    """OAuth2: id and secret are given for a token of some minutes, which is the bearer."""
    return Login((client_id, client_secret), token_path=token_path)
