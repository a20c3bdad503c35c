"""Providers whose prices are read: who they are, what each needs, whether it is asked, and if not, why not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import structlog
from pydantic import SecretStr

from broker.credentials import Credentials, Kept
from broker.envelope import Unopenable
from broker.market_settings import ClusterSettings, ProviderSettings
from broker.rates_of_day import RatesOfDay
from broker.settings import Settings
from markets.errors import NotAuthorized
from markets.hourly import FxRate
from markets.market import PriceSource
from markets.provider.api import Reach
from markets.provider.login import ANONYMOUS, CredentialSource, Login
from markets.sources import (
    akash,
    aws,
    azure,
    fluence,
    gcp,
    ionet,
    koyeb,
    kubernetes,
    lambda_cloud,
    oci,
    openrouter,
    prime_intellect,
    runpod,
    salad,
    scaleway,
    shadeform,
    thunder,
    vast,
    verda,
    vultr,
)
from markets.sources.resold import Direct
from markets.tokens.source import CardSource, shipped_cards, template_words

log = structlog.get_logger()

ProviderClass = Literal["hyperscaler", "neocloud", "aggregator", "decentralized", "token", "own"]
PUBLIC = "public"
# A card is read anew each hour, for somebody may have mended it; half a year after its prices were read nobody vouches for them.
CARD_CADENCE_S, CARD_MAX_AGE_S = 3600, 180 * 86_400


@dataclass(frozen=True, slots=True)
class Ground:
    """What an adapter is made of. `direct` are the markets that this broker asks itself, whose machines aggregators list
    and leave alone; `fx` gives the rates of the day; `cache` is a folder for what can be fetched again.
    """

    credentials: CredentialSource
    reach: Reach
    settings: ProviderSettings
    direct: Direct
    fx: Callable[[], Mapping[str, FxRate]]
    cache: Path


@dataclass(frozen=True, slots=True)
class Provider:
    """One provider. `login.needs` are the names of its credentials; without any, or where they are optional, its prices are

    public. `cadence_s` is how often its prices are worth asking for, `max_age_s` how old they may be (None: three polls).
    `lacks` says what else the settings must hold, `is_chosen` whether they say by themselves that it is to be asked.
    `is_card`: its prices are those of a card that somebody wrote, not what a service says.
    """

    name: str
    kind: ProviderClass
    make: Callable[[Ground], PriceSource]
    reach: Reach
    login: Login = ANONYMOUS
    cadence_s: int = 300
    max_age_s: int | None = None
    lacks: Callable[[ProviderSettings], str | None] = lambda settings: None
    is_chosen: Callable[[ProviderSettings], bool] = lambda settings: False
    is_card: bool = False

    @property
    def is_public(self) -> bool:
        return self.login.is_optional or not self.login.needs


def _token_card(name: str) -> Provider:
    """An endpoint by its price card: the shipped one, or the file that the settings name."""
    return Provider(
        name,
        "token",
        lambda ground: CardSource(name, ground.settings.card, base_url=ground.settings.url),
        Reach(""),
        cadence_s=CARD_CADENCE_S,
        max_age_s=CARD_MAX_AGE_S,
        lacks=lambda own: None if own.card is not None else template_words(name),
        is_chosen=lambda own: own.card is not None,
        is_card=True,
    )


def _rate_card(own: ClusterSettings) -> kubernetes.RateCard:
    return kubernetes.RateCard(
        usd_per_gpu_hour=own.rates,
        counts=own.counts,
        country=own.country,
        regions=own.places,
        operator=own.operator,
        home=own.home,
        tolerations=frozenset(own.tolerations),
    )


def _cluster_lacks(own: ProviderSettings) -> str | None:
    if own.url is None:
        return "no cluster is named: set providers.kubernetes.url to its API server"
    return None if own.cluster.rates else "a cluster says nothing of prices: set providers.kubernetes.cluster.rates"


# In the order of docs/markets.md. A new adapter is one line here.
PROVIDERS: tuple[Provider, ...] = (
    Provider(
        "aws",
        "hyperscaler",
        lambda ground: aws.AwsPrices(
            ground.credentials,
            regions=ground.settings.regions,
            cache=ground.cache,
            endpoint_url=ground.settings.url,
            price_list_url=ground.settings.url and f"{ground.settings.url}/price-list/{{region}}/index.csv",
            advisor_url=ground.settings.url and f"{ground.settings.url}/spot-advisor-data.json",
        ),
        aws.REACH,
        aws.LOGIN,
        cadence_s=900,
        lacks=lambda own: (
            None if own.regions else 'no region is named: set providers.aws.regions, for example ["eu-central-1"]'
        ),
    ),
    # a list that changes by the day, of some sixty regions
    Provider(
        "azure",
        "hyperscaler",
        lambda ground: azure.AzureSource(ground.reach, regions=ground.settings.regions),
        azure.REACH,
        cadence_s=21_600,
    ),
    Provider(
        "gcp",
        "hyperscaler",
        lambda ground: gcp.GcpSource(
            ground.credentials, ground.reach, compute=ground.settings.url, project=ground.settings.project
        ),
        gcp.REACH,
        gcp.LOGIN,
        cadence_s=3600,
    ),
    Provider(
        "oci",
        "hyperscaler",
        lambda ground: oci.OciSource(ground.reach, regions=ground.settings.regions),
        oci.REACH,
        cadence_s=3600,
    ),
    Provider(
        "runpod",
        "neocloud",
        lambda ground: runpod.RunPodSource(ground.credentials, ground.reach),
        runpod.REACH,
        runpod.LOGIN,
    ),
    Provider(
        "vast",
        "decentralized",
        lambda ground: vast.VastSource(ground.credentials, ground.reach),
        vast.REACH,
        vast.LOGIN,
    ),
    Provider(
        "verda",
        "neocloud",
        lambda ground: verda.VerdaSource(ground.credentials, ground.reach),
        verda.REACH,
        verda.LOGIN,
    ),
    Provider("vultr", "neocloud", lambda ground: vultr.VultrSource(ground.reach), vultr.REACH, cadence_s=900),
    Provider(
        "scaleway",
        "neocloud",
        lambda ground: scaleway.ScalewaySource(
            ground.credentials, ground.reach, zones=ground.settings.regions or scaleway.ZONES, fx=ground.fx
        ),
        scaleway.REACH,
        scaleway.LOGIN,
        cadence_s=900,
    ),
    Provider(
        "lambda",
        "neocloud",
        lambda ground: lambda_cloud.LambdaSource(ground.credentials, ground.reach),
        lambda_cloud.REACH,
        lambda_cloud.LOGIN,
        cadence_s=120,
    ),
    Provider("thunder", "neocloud", lambda ground: thunder.ThunderSource(ground.reach), thunder.REACH),
    Provider(
        "koyeb",
        "neocloud",
        lambda ground: koyeb.KoyebSource(ground.credentials, ground.reach),
        koyeb.REACH,
        koyeb.LOGIN,
    ),
    Provider(
        "shadeform",
        "aggregator",
        lambda ground: shadeform.ShadeformSource(ground.credentials, ground.reach, direct=ground.direct),
        shadeform.REACH,
        shadeform.LOGIN,
    ),
    Provider(
        "prime-intellect",
        "aggregator",
        lambda ground: prime_intellect.PrimeIntellectSource(
            ground.credentials, ground.reach, direct=ground.direct, fx=ground.fx
        ),
        prime_intellect.REACH,
        prime_intellect.LOGIN,
    ),
    # its prices are of the last weeks' bids, and cached for a quarter of an hour
    Provider("akash", "decentralized", lambda ground: akash.AkashSource(ground.reach), akash.REACH, cadence_s=900),
    Provider(
        "salad",
        "decentralized",
        lambda ground: salad.SaladSource(
            ground.credentials,
            ground.reach,
            organization=ground.settings.organization or "",
            countries=ground.settings.countries,
        ),
        salad.REACH,
        salad.LOGIN,
        lacks=lambda own: (
            None if own.organization else "its prices are an organization's: set providers.salad.organization"
        ),
    ),
    Provider(
        "fluence",
        "decentralized",
        lambda ground: fluence.FluenceSource(ground.credentials, ground.reach, direct=ground.direct),
        fluence.REACH,
        fluence.LOGIN,
    ),
    Provider(
        "io-net",
        "decentralized",
        lambda ground: ionet.IonetSource(ground.credentials, ground.reach),
        ionet.REACH,
        ionet.LOGIN,
    ),
    Provider(
        "kubernetes",
        "own",
        lambda ground: kubernetes.KubernetesSource(
            ground.credentials,
            replace(ground.reach, ca=ground.settings.cluster.ca),
            card=_rate_card(ground.settings.cluster),
        ),
        Reach(""),
        kubernetes.LOGIN,
        cadence_s=60,
        lacks=_cluster_lacks,
        is_chosen=lambda own: own.url is not None,
    ),
    Provider(
        "openrouter",
        "token",
        lambda ground: openrouter.OpenRouterSource(ground.reach),
        openrouter.REACH,
        cadence_s=3600,
    ),
    *(_token_card(name) for name in shipped_cards()),
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


@dataclass
class Lender:
    """The login with which a market's prices are read: the house's; without one, that of a project that has its own there.

    Prices are the same for all who ask; what a project's credentials are used for is this question and nothing else. Those that
    cannot be opened, or that the market refused, are passed over, said once, and looked at again when they are set anew, or
    when no other is left.
    """

    market: str
    house: Mapping[str, SecretStr]
    credentials: Credentials
    _given: Kept | None = None
    _bad: dict[tuple[str, int], str] = field(default_factory=dict)

    async def give(self) -> Mapping[str, str] | None:
        """Raises NotAuthorized when there are credentials, and none that can be opened."""
        self._given = None
        if self.house:
            return {name: value.get_secret_value() for name, value in self.house.items()}
        kept = await self.credentials.at_market(self.market)
        good = [each for each in kept if (each.project, each.version) not in self._bad]
        if kept and not good:
            self._bad.clear()
            good = list(kept)
        for each in good:
            try:
                values = await self.credentials.for_project(each.project, self.market)
            except Unopenable as closed:
                self._pass_over(each, f"cannot be opened: {closed}")
                continue
            if values is not None:
                self._given = each
                return {name: value.get_secret_value() for name, value in values.items()}
        if good:
            raise NotAuthorized(f"{self.market}: the credentials of no project can be opened; set them anew")
        return None

    def refused(self, error: str) -> bool:
        """The market did not let in whom it was given last. Whether another may be tried."""
        if self._given is None:
            return False
        self._pass_over(self._given, error)
        self._given = None
        return True

    def _pass_over(self, kept: Kept, error: str) -> None:
        self._bad[kept.project, kept.version] = error
        log.warning("credential.passed_over", market=self.market, project=kept.project, error=error)


@dataclass(frozen=True)
class Providers:
    """The adapters, opened (no connection is made before the first question), by market name."""

    sources: Mapping[str, PriceSource] = field(default_factory=dict)
    settings: Settings | None = None
    credentials: Credentials | None = None
    known: tuple[Provider, ...] = ()
    direct: Direct = field(default_factory=Direct)
    rates: RatesOfDay = field(default_factory=RatesOfDay)
    lenders: Mapping[str, Lender] = field(default_factory=dict)

    async def standings(self) -> list[Standing]:
        """Of every provider that there is an adapter for. Not to be called inside a transaction."""
        if self.settings is None or self.credentials is None:
            return []
        held = await self.credentials.held()
        found = [_standing(each, self.settings, each.name in held) for each in self.known]
        self.direct.markets = frozenset(
            {*self.settings.markets, *(each.provider.name for each in found if each.is_asked)}
        )
        return found

    async def wanted(self) -> dict[str, PriceSource]:
        """Those to ask: whoever has credentials, and the public ones that the settings name."""
        return {
            each.provider.name: self.sources[each.provider.name] for each in await self.standings() if each.is_asked
        }

    async def wants(self, name: str) -> bool:
        """Whether this one is to be asked."""
        return any(each.provider.name == name and each.is_asked for each in await self.standings())


def _standing(provider: Provider, given: Settings, is_held: bool) -> Standing:
    """`is_held`: some project has credentials of its own there."""
    own = given.providers.get(provider.name, ProviderSettings())
    has = bool(own.credentials) or is_held
    named = provider.name in given.sources or PUBLIC in given.sources or provider.is_chosen(own)
    reason = None
    if not has and not provider.is_public:
        reason = (
            f"no credentials: needs {', '.join(provider.login.needs)}; give them with `broker credentials set "
            f"{provider.name}`, or as providers.{provider.name}.credentials in broker.toml"
        )
    elif not (has or named):
        what = "a price card of it is shipped" if provider.is_card else "its prices are public"
        reason = provider.lacks(own) or (
            f'{what}: add "{provider.name}" (or "public") to sources in broker.toml to have them read'
        )
    return Standing(provider, has, reason or provider.lacks(own))


def open_providers(settings: Settings, credentials: Credentials, *, stack: AsyncExitStack) -> Providers:
    """All adapters. Raises ValueError for a name in `providers` or `sources` that none answers to."""
    cards = {name for name, own in settings.providers.items() if own.card} - {each.name for each in PROVIDERS}
    providers = (*PROVIDERS, *(_token_card(name) for name in sorted(cards)))
    known = {each.name for each in providers}
    unknown = sorted((set(settings.providers) | set(settings.sources)) - known - {PUBLIC})
    if unknown:
        raise ValueError(f"no provider is called {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    rates, direct, sources = RatesOfDay(), Direct(), {}
    lenders: dict[str, Lender] = {}
    for provider in providers:
        own = settings.providers.get(provider.name, ProviderSettings())
        reach = replace(provider.reach, base_url=own.url) if own.url else provider.reach
        lenders[provider.name] = Lender(provider.name, own.credentials, credentials)
        ground = Ground(lenders[provider.name].give, reach, own, direct, rates.all, settings.cache / "prices")
        source = provider.make(ground)
        stack.push_async_callback(source.close)
        sources[provider.name] = source
    return Providers(MappingProxyType(sources), settings, credentials, providers, direct, rates, lenders)
