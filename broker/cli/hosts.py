"""`hosts`: the own hosts, whether they let us in, and the line that makes them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import typer

from broker.cli import configuration, exits, options
from broker.cli.exits import USAGE, Failure
from broker.cli.output import document, line, table, usd

if TYPE_CHECKING:
    from broker.market_settings import OwnHost
    from broker.settings import Settings
    from markets.offer import Offer


def hosts(json: options.Json = False, data: options.Data = None) -> None:
    """Log in to each own host of the data folder's settings, and print the line that authorized_keys on a host needs.

    Makes the folder's SSH authority if there is none yet, so that hosts can be prepared before the first `serve`.
    """
    raise typer.Exit(options.ended(_hosts(configuration.load(data=data), json)))


async def _hosts(settings: Settings, json: bool) -> int:
    # Imported here, and below: the markets' libraries are for this command alone.
    from broker.market_set import ssh_authority  # noqa: PLC0415

    settings.data.mkdir(parents=True, exist_ok=True)
    trust_line = ssh_authority(settings).trust_line
    offers = await _offers(settings)
    listed = [_shape(each, offers[each.name]) for each in settings.own.hosts]
    if json:
        document({"object": "list", "trust_line": trust_line, "data": listed})
        return exits.OK
    rows = [(each["name"], each["where"], usd(each["usd_per_hour"]), each["state"], each["found"]) for each in listed]
    table(("host", "where", "$/h", "", "found"), rows)
    line()
    line("~/.ssh/authorized_keys of the user on each host needs this line:")
    line(trust_line)
    return exits.OK


async def _offers(settings: Settings) -> dict[str, Offer]:
    """Each host's own answer by its name. Raises Failure for hosts that are configured wrongly."""
    from broker.market_set import hosts_market  # noqa: PLC0415

    try:
        # offers belong to nobody: whose rentals this market would see does not matter here
        market = await asyncio.to_thread(hosts_market, settings, owner="")
    except ValueError as wrong:
        raise Failure(f"setting own.hosts: {wrong}", USAGE) from wrong
    try:
        return {offer.key.sku: offer for offer in await market.offers()}
    finally:
        await market.close()


def _shape(host: OwnHost, offer: Offer) -> dict[str, Any]:
    return {
        "name": host.name,
        "where": f"{host.user}@{host.address}:{host.port}",
        "country": host.country,
        "usd_per_hour": str(host.usd_per_hour),
        "state": "NOT OK" if offer.quarantined else "ok",
        "found": offer.quarantined or f"{offer.capacity} of {host.slots} slots are free",
    }
