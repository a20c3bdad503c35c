"""The configured markets, opened. Each is closed again by the composition root's stack; rentals go on."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from broker.accounts import Accounts, Opener, Teller, Values
from broker.credentials import Credentials
from broker.house_accounts import HouseAccounts
from broker.market_settings import OwnHost as OwnHostSettings
from broker.secret_files import kept
from broker.settings import Settings
from markets.errors import NotAuthorized
from markets.held_account import HeldMarket
from markets.local import LocalMarket
from markets.market import Market
from markets.sandbox.client import SandboxMarket
from markets.sandbox.process import SandboxHandle, ensure_running
from markets.tokens.market import TokenMarket
from markets.tokens.source import CardSource

if TYPE_CHECKING:
    from markets.aws.account import AwsKeys
    from markets.aws.market import AwsMarket, AwsOptions
    from markets.hosts import HostsMarket, OwnHost
    from markets.ssh import Authority


class UnknownMarket(ValueError):
    """A market in the settings that no adapter answers to, or whose section is not as it must be."""


async def open_markets(
    settings: Settings, house: HouseAccounts, *, owner: str, stack: AsyncExitStack
) -> Mapping[str, Market]:
    """One adapter for each name in `settings.markets`; `house` holds those that have logins to their accounts.

    Raises UnknownMarket naming the known ones.
    """
    opened: dict[str, Market] = {}
    for name in settings.markets:
        if name == "aws" and not settings.aws.house:
            _aws_options(settings)  # says now what is missing, not at the first project's machine
            continue
        market = await _open(name, settings, house, owner)
        stack.push_async_callback(market.close)
        opened[name] = market
    for name, own in settings.providers.items():
        if own.buy is None:
            continue
        if name in opened:
            raise UnknownMarket(
                f"providers.{name}.buy: {name!r} rents machines; a token endpoint has a name of its own"
            )
        opened[name] = TokenMarket(
            CardSource(name, own.card, base_url=own.url),
            settings.data / "tokens" / name,
            owner=owner,
            models=frozenset(own.buy.models.values()),
            executors=own.buy.executors,
        )
    return opened


async def _open(name: str, settings: Settings, house: HouseAccounts, owner: str) -> Market:
    match name:
        case "local":
            local = settings.local
            return LocalMarket(
                settings.data / "local", owner=owner, price=local.usd_per_hour, country=local.country, slots=local.slots
            )
        case "sandbox":
            return _sandbox(settings, owner)
        case "hosts":
            try:
                return await asyncio.to_thread(hosts_market, settings, owner=owner)
            except ValueError as wrong:
                raise UnknownMarket(f"own.hosts: {wrong}") from wrong
        case "aws":
            return HeldMarket(await asyncio.to_thread(_aws, settings, owner), partial(house.hold, name))
    raise UnknownMarket(f"market {name!r} in settings is not one of local, sandbox, hosts, aws")


def open_accounts(settings: Settings, credentials: Credentials, *, owner: str, stack: AsyncExitStack) -> Accounts:
    """The markets of the settings at which projects may rent with their own credentials; none is opened yet."""
    openers: dict[str, Opener] = {}
    tellers: dict[str, Teller] = {}
    if "aws" in settings.markets:
        loader: list[
            Any
        ] = []  # what boto3 reads of its services' descriptions costs a second: read once for all accounts

        async def aws(values: Values, mark: str) -> Market:
            return await asyncio.to_thread(_aws_of, settings, values, mark, loader)

        async def aws_account(values: Mapping[str, str]) -> str:
            from markets.aws.identity import account_id  # noqa: PLC0415

            options = await asyncio.to_thread(_aws_options, settings)
            return await account_id(_aws_keys(values), options, _loader(loader))

        openers["aws"], tellers["aws"] = aws, aws_account
    accounts = Accounts(credentials, owner, openers, tellers)
    stack.push_async_callback(accounts.close)
    return accounts


def _aws(settings: Settings, owner: str) -> AwsMarket:
    """EC2 with the house's login. Raises UnknownMarket when boto3 is not installed, or no region is named."""
    options = _aws_options(settings)
    from markets.aws.account import AwsKeys, fixed  # noqa: PLC0415
    from markets.aws.market import AwsMarket  # noqa: PLC0415

    aws = settings.aws
    keys = None
    if aws.access_key_id and aws.secret_access_key:
        token = aws.session_token.get_secret_value() if aws.session_token else None
        keys = AwsKeys(aws.access_key_id, aws.secret_access_key.get_secret_value(), token)
    return AwsMarket(options, credentials=fixed(keys), owner=owner, cache=settings.cache / "prices")


def _aws_of(settings: Settings, values: Values, owner: str, loader: list[Any]) -> Market:
    """EC2 with a project's login, by the house's terms."""
    options = _aws_options(settings)
    from markets.aws.market import AwsMarket  # noqa: PLC0415

    async def keys() -> AwsKeys:
        return _aws_keys(await values())

    cache = settings.cache / "prices"
    return AwsMarket(options, credentials=keys, owner=owner, cache=cache, loader=_loader(loader))


def _aws_keys(kept: Mapping[str, str]) -> AwsKeys:
    """Raises NotAuthorized when one is missing: never boto3's own chain, which would be the house's login."""
    from markets.aws.account import AwsKeys  # noqa: PLC0415

    missing = [name for name in ("access_key_id", "secret_access_key") if not kept.get(name)]
    if missing:
        raise NotAuthorized(f"aws: the project's credentials lack {', '.join(missing)}; set them anew")
    return AwsKeys(kept["access_key_id"], kept["secret_access_key"], kept.get("session_token"))


def _loader(shared: list[Any]) -> Any:
    from botocore.loaders import Loader  # noqa: PLC0415

    if not shared:
        shared.append(Loader(include_default_search_paths=True))
    return shared[0]


def _aws_options(settings: Settings) -> AwsOptions:
    """Raises UnknownMarket when boto3 is not installed, or no region is named."""
    try:
        from markets.aws.advisor import ADVISOR  # noqa: PLC0415 - boto3 is an extra, and takes a second to load
        from markets.aws.market import AwsOptions  # noqa: PLC0415
        from markets.aws.price_list import BULK  # noqa: PLC0415
    except ModuleNotFoundError as missing:
        raise UnknownMarket(f"market 'aws' needs {missing.name}; install compute-broker[aws]") from missing
    aws = settings.aws
    if not aws.regions:
        raise UnknownMarket("market 'aws' has no region; set aws.regions, for example [\"eu-central-1\"]")
    return AwsOptions(
        regions=aws.regions,
        instance_types=aws.instance_types,
        pricings=aws.pricings,
        image=aws.image,
        disk_gib=aws.disk_gib,
        boot_s=aws.boot_s,
        subnets=aws.subnets,
        security_groups=aws.security_groups,
        endpoint_url=aws.endpoint_url,
        sts_endpoint_url=aws.sts_endpoint_url,
        price_list_url=aws.price_list_url or BULK,
        # a broker whose EC2 is not Amazon's own has no interruptions of Amazon's either
        advisor_url=aws.advisor_url or (None if aws.endpoint_url else ADVISOR),
    )


def _sandbox(settings: Settings, owner: str) -> Market:
    """The provider at the configured URL, or one of our own in the data folder: a process that outlives this one."""
    sandbox = settings.sandbox

    async def find() -> SandboxHandle:
        if sandbox.url is not None:
            token = sandbox.token.get_secret_value() if sandbox.token else ""
            return SandboxHandle(url=sandbox.url, token=token, pid=0)
        return await ensure_running(settings.data / "sandbox", catalogue=sandbox.catalogue)

    return SandboxMarket(find, owner=owner)


def hosts_market(settings: Settings, *, owner: str) -> HostsMarket:
    """The own hosts. Raises ValueError when two have one name or a pinned key cannot be read."""
    # Imported where it is used: paramiko takes 0.4 s that nobody without own hosts should pay.
    from markets.hosts import HostsMarket  # noqa: PLC0415

    hosts = [_own_host(host) for host in settings.own.hosts]
    return HostsMarket(hosts, authority=ssh_authority(settings), owner=owner)


def ssh_authority(settings: Settings) -> Authority:
    """The broker's SSH certificate authority, made at its first use."""
    from markets.ssh import Authority, new_authority_key  # noqa: PLC0415

    return Authority(kept(settings.data / "ssh_authority", new_authority_key))


def _own_host(given: OwnHostSettings) -> OwnHost:
    from markets.docker_run import Docker  # noqa: PLC0415
    from markets.hosts import OwnHost, accelerator_of  # noqa: PLC0415
    from markets.ssh import Target  # noqa: PLC0415

    return OwnHost(
        target=Target(given.name, given.address, given.port, given.user, given.host_key),
        price=given.price,
        components=given.components,
        country=given.country,
        slots=given.slots,
        accelerator=accelerator_of(
            given.accelerator,
            count=given.accelerator_count,
            memory_mib=given.accelerator_memory_mib,
            kind=given.accelerator_kind,
        ),
        docker=Docker(
            command=given.docker,
            network=given.network,
            gpus=given.gpus,
            devices=given.devices,
            volumes=given.volumes,
        ),
    )
