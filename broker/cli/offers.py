"""`offers` and what hangs below it: `history`, `explain`, `pool`, `import`, `export`; and `markets`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import typer

from broker.cli import exits
from broker.cli.chart import Step, chart
from broker.cli.client import Client, Query
from broker.cli.completion import model_names
from broker.cli.exits import USAGE, Failure
from broker.cli.explained_offer import explanation
from broker.cli.option_groups import declare, spread
from broker.cli.options import Target
from broker.cli.output import document, line, moment, rate, span, table, usd

Document = dict[str, Any]
COLUMNS = ("offer", "country", "gpu", "pricing", "$/h", "capacity", "lost/h", "location", "note")
MARKET_COLUMNS = ("market", "class", "prices", "renting", "credentials", "age", "offers", "note")
FORMATS = {".csv": "csv", ".json": "json", ".parquet": "parquet"}
CHART_COLUMNS = 72


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Which offers are meant: all given filters must hold."""

    market: Annotated[str | None, typer.Option(help="Only of this market.")] = None
    country: Annotated[str | None, typer.Option(help="Only in this country (ISO alpha-2).")] = None
    region: Annotated[str | None, typer.Option(help="Only in this region, as the market calls it.")] = None
    model: Annotated[
        str | None,
        typer.Option(help="Only where this model can run, by $ per million tokens.", autocompletion=model_names),
    ] = None
    gpu: Annotated[str | None, typer.Option(help="Only this accelerator, or names that begin so: h100.")] = None
    pricing: Annotated[str | None, typer.Option(help="on_demand, spot, bid, reserved or token.")] = None
    location: Annotated[str | None, typer.Option(help="Only this tier of location, such as named_datacenter.")] = None
    min_gpus: Annotated[int | None, typer.Option(help="Machines with at least so many accelerators.")] = None
    max_usd: Annotated[str | None, typer.Option(help="At most so many $ an hour, for the whole machine.")] = None
    usable: Annotated[bool, typer.Option("--usable", help="Only prices that are believed, fresh and not sold out.")] = (
        False
    )
    limit: Annotated[int | None, typer.Option(help="The first so many.")] = None

    def query(self) -> dict[str, str | int | list[str] | None]:
        return {
            "market": self.market,
            "country": self.country,
            "region": self.region,
            "model": self.model,
            "gpu": self.gpu,
            "pricing": self.pricing,
            "location_tier": self.location,
            "min_gpus": self.min_gpus,
            "max_usd": self.max_usd,
            "usable": "true" if self.usable else None,
            "limit": self.limit,
        }


def list_offers(context: typer.Context, filters: Filters, target: Target) -> None:
    """The price book, cheapest first; what cannot be chosen comes last, with the reason."""
    if context.invoked_subcommand:
        return

    async def work(client: Client) -> int:
        found = await client.get("/v1/market/offers", filters.query())
        if target.json:
            document({"object": "list", "data": found["data"]} | _million(found))
            return exits.OK
        per_million = found.get("usd_per_million")
        columns = COLUMNS if per_million is None else (*COLUMNS[:5], "$/M out", *COLUMNS[5:])
        table(columns, [_row(offer, per_million) for offer in found["data"]])
        if not found["data"]:
            line("no offer that is known of is so; `broker markets` lists the markets and what each lacks", sys.stderr)
        return exits.OK

    target.run(work)


def history(
    offer: Annotated[str, typer.Argument(help="The offer's key, as `offers` prints it.", metavar="KEY")],
    target: Target,
    *,
    days: Annotated[int, typer.Option(help="So many days back.")] = 30,
) -> None:
    """What an offer cost, as a chart and change by change."""

    async def work(client: Client) -> int:
        found = await client.get("/v1/market/offers/history", {"key": offer, "days": days})
        if target.json:
            document(found)
            return exits.OK
        for text in chart(steps(found), found["since"], found["until"], columns=CHART_COLUMNS):
            line(text)
        is_of_tokens = any(each["usd_per_million_output"] for each in found["changes"])
        price = "$/M out" if is_of_tokens else "$/h"
        table(("since", "state", price, "capacity", "note"), [_change(each) for each in found["changes"]])
        return exits.OK

    target.run(work)


def explain(
    offer: Annotated[str, typer.Argument(help="The offer's key, as `offers` prints it.", metavar="KEY")], target: Target
) -> None:
    """Where an offer's price comes from, why its place is believed, and what our own rentals taught."""

    async def work(client: Client) -> int:
        found = await client.get("/v1/market/offers/explain", {"key": offer})
        if target.json:
            document(found)
            return exits.OK
        for text in explanation(found):
            line(text)
        return exits.OK

    target.run(work)


def pool(
    market: Annotated[str, typer.Argument(help="A market.")],
    gpu: Annotated[str, typer.Argument(help="An accelerator, by its name in `offers`.")],
    target: Target,
    *,
    pricing: Annotated[str, typer.Option(help="on_demand, spot, bid or reserved.")] = "on_demand",
    days: Annotated[int, typer.Option(help="Of so many days.")] = 28,
) -> None:
    """At which hour of the day (UTC) a market's accelerators are cheap, and are to be had."""

    async def work(client: Client) -> int:
        query: Query = {"market": market, "gpu": gpu, "pricing": pricing, "days": days}
        found = await client.get("/v1/market/pool", query)
        if target.json:
            document(found)
            return exits.OK
        rows = [
            (f"{each['hour']:02}", usd(each["usd_per_gpu_hour"]), each["listed"] or "?", each["available"] or "?")
            for each in found["hours"]
        ]
        table(("hour", "$/gpu-h", "listed", "available"), rows)
        return exits.OK

    target.run(work)


def take(
    card: Annotated[Path, typer.Argument(help="A CSV file; - is standard input.", metavar="CARD")],
    target: Target,
    *,
    market: Annotated[
        str | None, typer.Option(help="The market that its offers are of (default: the file's name).")
    ] = None,
    provider: Annotated[
        str | None, typer.Option(help="Whose region names it uses, such as aws (default: the market).")
    ] = None,
    source: Annotated[str | None, typer.Option(help="Where the prices are from (default: the file's name).")] = None,
    observed_on: Annotated[
        str | None, typer.Option(help="The day of its prices (default: today).", metavar="DATE")
    ] = None,
    valid_days: Annotated[int | None, typer.Option(help="For how many days they count.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it holds.")] = False,
) -> None:
    """Take over a rate card: CSV of ours, of gpuhunt or of SkyPilot. With a wrong line nothing is taken over."""
    text = _read(card)
    body = {
        "market": market or _named(card),
        "text": text,
        "source": source or card.name,
        "provider": provider,
        "observed_on": observed_on,
        "valid_days": valid_days,
        "dry_run": dry_run,
    }

    async def work(client: Client) -> int:
        given = {name: value for name, value in body.items() if value is not None}
        found = await client.post("/v1/market/cards", given, again=True)
        if target.json:
            document(found)
        else:
            for each in found["findings"]:
                line(f"line {each['line']}: {each['message']} [{each['code']}]", sys.stderr)
            for each in found["doubted"]:
                reason = each["reason"].removeprefix("offer ").removeprefix(f"{each['key']}: ")
                line(f"quarantined {each['key']}: {reason}", sys.stderr)
            if found["doubted"]:
                line("they are listed and never chosen; mend it and hand the card in again", sys.stderr)
            done = "taken over" if found["stored"] else "not taken over"
            until = moment(found["valid_until"])
            line(
                f"{found['offers']} offers of {found['market']} ({found['quarantined']} quarantined), valid until {until}: {done}"
            )
        return exits.OK if found["stored"] or (dry_run and not found["findings"]) else exits.FAILED_LINES

    target.run(work)


def export(
    out: Annotated[Path, typer.Argument(help="The file: .csv, .json or .parquet says its format.", metavar="FILE")],
    filters: Filters,
    target: Target,
) -> None:
    """Write the offers into a file, by the same filters and in the same order."""
    form = FORMATS.get(out.suffix)
    if form is None:
        raise Failure(f"{out}: the name must end in {', '.join(FORMATS)}", USAGE)

    async def work(client: Client) -> int:
        chunks = [
            chunk async for chunk in client.stream("/v1/market/offers/export", {**filters.query(), "format": form})
        ]
        content = b"".join(chunks)
        try:
            out.write_bytes(content)
        except OSError as refused:
            raise Failure(f"{out} cannot be written: {refused.strerror}") from refused
        if target.json:
            document({"file": str(out), "format": form, "bytes": len(content)})
        else:
            line(f"{out}: {len(content)} bytes")
        return exits.OK

    target.run(work)


def markets(target: Target) -> None:
    """Every market that is known of: where its prices come from, whether machines are rented there, and what is missing."""

    async def work(client: Client) -> int:
        found = await client.get("/v1/markets")
        if target.json:
            document(found)
            return exits.OK
        table(MARKET_COLUMNS, [_market(each) for each in found["data"]])
        return exits.OK

    target.run(work)


def steps(found: Document) -> list[Step]:
    """The history as steps of a chart: rolled-up days by their mean, then the changes."""
    first = found["changes"][0]["at"] if found["changes"] else found["until"]
    days = [
        Step(int(moment_of(each["day"])), None if each["mean_usd"] is None else Decimal(each["mean_usd"]))
        for each in found["days"]
    ]
    # A snapshot's price was one day's: whether it held on any other nobody knows.
    told = [Step(each["at"], None if each["state"] == "snapshot" else _amount(each)) for each in found["changes"]]
    return [*(each for each in days if each.at < first), *told]


def moment_of(day: str) -> float:
    from datetime import UTC, datetime  # noqa: PLC0415

    return datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()


def by_price(offer: Document) -> tuple[bool, bool, Decimal, str]:
    """Usable offers first, then by price; an unknown price is not a low one."""
    price = offer["usd_per_hour"]
    return offer["quarantined"], price is None, Decimal(price or 0), offer["key"]


def _million(found: Document) -> Document:
    told = found.get("usd_per_million")
    return {} if told is None else {"usd_per_million": told}


def _row(offer: Document, per_million: Document | None) -> tuple[str, ...]:
    capacity = offer["capacity"]
    gpu = f"{offer['gpu_count']}x {offer['gpu']}" if offer["gpu_count"] else offer["gpu"]
    row: tuple[str, ...] = (offer["key"], offer["country"] or "-", gpu, offer["pricing"], usd(offer["usd_per_hour"]))
    if per_million is not None:
        row = (*row, rate(per_million.get(offer["key"])))
    rest = ("?" if capacity is None else str(capacity), offer["interruption_per_hour"] or "?", offer["location_tier"])
    return (*row, *rest, offer["reason"] or "")


def _change(each: Document) -> tuple[str, ...]:
    capacity = each["capacity"]
    amount = _amount(each)
    return (
        moment(each["at"]),
        each["state"],
        usd(None if amount is None else str(amount)),
        "?" if capacity is None else str(capacity),
        each["reason"] or "",
    )


def _amount(each: Document) -> Decimal | None:
    text = each["usd_per_hour"] or each["usd_per_million_output"]
    return None if text is None else Decimal(text)


def _market(each: Document) -> tuple[str, ...]:
    yes = {True: "yes", False: "no"}
    return (
        each["name"],
        each["class"],
        each["prices"],
        yes[each["renting"]],
        yes[each["credentials"]],
        span(each["age_s"]),
        str(each["offers"]),
        each["reason"] or "",
    )


def _read(card: Path) -> str:
    try:
        return sys.stdin.read() if str(card) == "-" else card.read_text(encoding="utf-8")
    except OSError as refused:
        raise Failure(f"{card} cannot be read: {refused.strerror}", USAGE) from refused
    except UnicodeDecodeError as refused:
        raise Failure(f"{card} is not UTF-8 text: {refused}; save it as CSV UTF-8", USAGE) from refused


def _named(card: Path) -> str:
    name = card.stem.lower()
    if str(card) == "-" or not name:
        raise Failure("a card from standard input has no name; give --market", USAGE)
    return "".join(each if each.isalnum() else "-" for each in name).strip("-")[:64]


def _declared() -> typer.Typer:
    group = typer.Typer(no_args_is_help=False, help="What can be rented or bought, and at which price.")
    group.callback(invoke_without_command=True)(spread(list_offers))
    commands: dict[str, Any] = {"history": history, "explain": explain, "pool": pool, "import": take, "export": export}
    return declare(group, commands)


offers = _declared()
__all__: Sequence[str] = ("by_price", "explanation", "markets", "offers", "steps")
