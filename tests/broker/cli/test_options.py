"""Options that commands share: written once, the same everywhere, and none of the API's wishes without one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from broker.api.shapes import BatchWishes
from broker.cli.main import app
from broker.cli.option_groups import declare, spread
from broker.cli.wishes import WishOptions


@dataclass(frozen=True, kw_only=True)
class Paint:
    colour: Annotated[str, typer.Option(help="Which.")] = "red"
    coats: Annotated[int, typer.Option("--coat", min=1)] = 1


def test_a_group_of_options_arrives_as_one_value() -> None:
    seen: list[object] = []

    def paint(wall: str, paint: Paint, *, dry: bool = False) -> None:
        """Paint it."""
        seen.append((wall, paint, dry))

    shop = typer.Typer()
    shop.command()(spread(paint))
    assert CliRunner().invoke(shop, ["north", "--coat", "2", "--dry"]).exit_code == 0
    assert seen == [("north", Paint(coats=2), True)]
    assert "Paint it." in CliRunner().invoke(shop, ["--help"]).stdout


def test_two_options_of_one_name_are_refused_when_the_command_is_declared() -> None:
    def paint(colour: str, paint: Paint) -> None: ...

    with pytest.raises(TypeError, match="colour"):
        spread(paint)


def test_a_negative_number_is_an_argument_and_a_misspelt_option_is_still_named() -> None:
    """`ledger rates add EUR -1` said "No such option: -1", and nothing of the rate."""
    seen: list[str] = []

    def rate(unit: str, usd: str, *, source: Annotated[str, typer.Option()] = "") -> None:
        seen.append(usd)

    shop = declare(typer.Typer(), {"rate": rate, "other": lambda: None})
    assert CliRunner().invoke(shop, ["rate", "EUR", "-1.5", "--source", "ECB"]).exit_code == 0
    assert seen == ["-1.5"]
    for misspelt in (
        ["rate", "EUR", "-1.5", "--sauce", "ECB"],
        ["rate", "-1.5", "--sauce"],
        ["rate", "-1.5", "--sauce=2"],
    ):
        told = CliRunner().invoke(shop, misspelt)
        assert told.exit_code == 2 and "--sauce" in told.output and seen == ["-1.5"], "it was the second argument"


EVERYTHING = WishOptions(
    deadline="2027-01-01T00:00:00Z",
    max_usd="1.5",
    max_rtt_ms=40,
    max_p95_ms=2_000,
    residency="eu, CH",
    data_class="confidential",
    confidentiality="dedicated",
    models="a,b",
    precision="bf16",
    engine_profile="fast",
    priority=3,
    tag=["team=x"],
    order="completion",
    skip_invalid=True,
    reuse=True,
    queue=True,
    part_lines=5,
)


def test_every_wish_of_a_batch_has_an_option() -> None:
    """`project` is not of a submission alone: it is an option of every command, and goes with every request."""
    wished = EVERYTHING.asked().broker
    assert wished.keys() | {"project"} == BatchWishes.model_fields.keys()
    taken = BatchWishes(**wished)
    assert (taken.residency, taken.on_infeasible, taken.tags) == (["eu", "CH"], "queue", {"team": "x"})
    assert taken.confidentiality == "dedicated"


def test_wishes_that_were_not_made_are_left_to_the_broker() -> None:
    assert (WishOptions().asked().window, WishOptions().asked().broker) == (None, {})
    assert replace(EVERYTHING, tag=None).asked().broker.keys() == EVERYTHING.asked().broker.keys() - {"tags"}


def test_quote_takes_the_wishes_that_submit_takes() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    wished = {parameter.name for parameter in commands["submit"].params}
    assert wished - {parameter.name for parameter in commands["quote"].params} == {
        "name", "metadata", "dry", "yes", "wait",
    }  # fmt: skip
