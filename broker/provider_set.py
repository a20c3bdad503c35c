"""Providers whose prices are read: who they are, what each needs, whether it is asked, and if not, why not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

from broker.credentials import Credentials
from broker.envelope import Unopenable
from broker.settings import ProviderSettings, Settings
from markets.errors import NotAuthorized
from markets.market import PriceSource
from markets.provider.api import Reach
from markets.provider.login import ANONYMOUS, CredentialSource, Login
from markets.sources import lambda_cloud

ProviderClass = Literal["hyperscaler", "neocloud", "aggregator", "decentralized", "token"]
PUBLIC = "public"


@dataclass(frozen=True, slots=True)
class Ground:
    """What an adapter is made of. `asked` are the markets that this broker may ask itself (aggregators leave those out)."""

    credentials: CredentialSource
    reach: Reach
    settings: ProviderSettings
    asked: frozenset[str]


@dataclass(frozen=True, slots=True)
class Provider:
    """One provider. `login.needs` are the names of its credentials; without any, or where they are optional, its prices are

    public. `cadence_s` is how often its prices are worth asking for. `lacks` says what else the settings must hold.
    """

    name: str
    kind: ProviderClass
    make: Callable[[Ground], PriceSource]
    reach: Reach
    login: Login = ANONYMOUS
    cadence_s: int = 300
    lacks: Callable[[ProviderSettings], str | None] = lambda settings: None

    @property
    def is_public(self) -> bool:
        return self.login.is_optional or not self.login.needs


# In the order of docs/markets.md. A new adapter is one line here.
PROVIDERS: tuple[Provider, ...] = (
    Provider(
        "lambda",
        "neocloud",
        lambda ground: lambda_cloud.LambdaSource(ground.credentials, ground.reach),
        lambda_cloud.REACH,
        lambda_cloud.LOGIN,
        cadence_s=120,
    ),
)


@dataclass(frozen=True, slots=True)
class Standing:
    """Whether a provider is asked; `reason` says why not, and what to do about it."""

    provider: Provider
    credentials: bool
    reason: str | None

    @property
    def is_asked(self) -> bool:
        return self.reason is None


@dataclass(frozen=True)
class Providers:
    """The adapters, opened (no connection is made before the first question), by market name."""

    sources: Mapping[str, PriceSource] = field(default_factory=dict)
    settings: Settings | None = None
    credentials: Credentials | None = None

    async def standings(self) -> list[Standing]:
        """Of every provider that there is an adapter for. Not to be called inside a transaction."""
        return [await self._standing(each) for each in PROVIDERS if each.name in self.sources]

    async def wanted(self) -> dict[str, PriceSource]:
        """Those to ask: whoever has credentials, and the public ones that the settings name."""
        return {
            each.provider.name: self.sources[each.provider.name] for each in await self.standings() if each.is_asked
        }

    async def wants(self, name: str) -> bool:
        """Whether this one is to be asked."""
        return any(each.provider.name == name and each.is_asked for each in await self.standings())

    async def _standing(self, provider: Provider) -> Standing:
        assert self.settings is not None and self.credentials is not None
        settings = self.settings.providers.get(provider.name, ProviderSettings())
        has = bool(settings.credentials) or bool(await self.credentials.holders(provider.name))
        named = provider.name in self.settings.sources
        reason = None
        if not has and not provider.is_public:
            reason = (
                f"no credentials: needs {', '.join(provider.login.needs)}; give them with `broker credentials set "
                f"{provider.name}`, or as providers.{provider.name}.credentials in broker.toml"
            )
        elif not (has or named or PUBLIC in self.settings.sources):
            reason = f'its prices are public: add "{provider.name}" (or "public") to sources in broker.toml to have them read'
        return Standing(provider, has, reason or provider.lacks(settings))


def open_providers(settings: Settings, credentials: Credentials, *, stack: AsyncExitStack) -> Providers:
    """All adapters. Raises ValueError for a name in `providers` or `sources` that none answers to."""
    known = {each.name for each in PROVIDERS}
    unknown = sorted((set(settings.providers) | set(settings.sources)) - known - {PUBLIC})
    if unknown:
        raise ValueError(f"no provider is called {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    named = known if PUBLIC in settings.sources else known & (set(settings.sources) | set(settings.providers))
    asked = frozenset(named | set(settings.markets))
    sources = {}
    for provider in PROVIDERS:
        own = settings.providers.get(provider.name, ProviderSettings())
        reach = replace(provider.reach, base_url=own.url) if own.url else provider.reach
        ground = Ground(_source(provider.name, own, credentials), reach, own, asked - {provider.name})
        source = provider.make(ground)
        stack.push_async_callback(source.close)
        sources[provider.name] = source
    return Providers(MappingProxyType(sources), settings, credentials)


def _source(market: str, own: ProviderSettings, credentials: Credentials) -> CredentialSource:
    """The house's credentials; without them those of the first project that has its own there.

    Prices are the same for all who ask; what a project's credentials are used for is this question and nothing else.
    """

    async def give() -> Mapping[str, str] | None:
        if own.credentials:
            return {name: value.get_secret_value() for name, value in own.credentials.items()}
        for project in await credentials.holders(market):
            try:
                kept = await credentials.for_project(project, market)
            except Unopenable as closed:
                raise NotAuthorized(f"{market}: the credentials of a project cannot be opened: {closed}") from closed
            if kept is not None:
                return {name: value.get_secret_value() for name, value in kept.items()}
        return None

    return give
