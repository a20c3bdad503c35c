"""`plan`: what the planner would do now, or in another world. `solve`: the planner on a snapshot of a file, without a broker."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from broker.cli import exits, options
from broker.cli.client import Client
from broker.cli.exits import ERROR, USAGE, Failure
from broker.cli.options import Target
from broker.cli.output import document, line, table, usd

if TYPE_CHECKING:
    from solver.types import Plan

Document = dict[str, Any]
NANO = 10**9
# So many batches that wait are told one by one.
MOST_WAITING = 10


def plan(
    *,
    what_if: Annotated[
        Path | None,
        typer.Option(
            help="A JSON file that says what is different, by market, offer or batch (`*`: all): without, price_factor, rtt_ms, "
            'later_hours, max_usd, max_rtt_ms, countries, policies (files); as {"without": ["aws"], "later_hours": {"*": 2}}.',
            metavar="FILE",
        ),
    ] = None,
    target: Target,
) -> None:
    """What the planner would start, keep and drain now, and what it would cost. Nothing is rented. Exit 7: something waits."""
    question = _question(what_if) if what_if else {}

    async def work(client: Client) -> int:
        answer = await client.post("/v1/plan", question)
        if target.json:
            document(answer)
        else:
            _tell(answer)
        return exits.INFEASIBLE if answer["summary"]["waiting"] else exits.OK

    target.run(work)


def solve(
    file: Annotated[
        Path, typer.Argument(help="A snapshot (contract C4, version 1; `-` is not read).", metavar="SNAPSHOT")
    ],
    *,
    stage: Annotated[str, typer.Option(help="`program`, or `greedy`: the first placement alone.")] = "program",
    effort: Annotated[str, typer.Option(help="For large queues: `fast`, `normal` or `certify` (a minute).")] = "normal",
    json: options.Json = False,
) -> None:
    """Plan a snapshot of a file and check the plan, without a broker. Exit 1: a wrong snapshot, or a plan that breaks a rule."""
    import msgspec  # noqa: PLC0415

    from solver import check as checker  # noqa: PLC0415 - HiGHS is for commands that solve
    from solver.errors import SolverError  # noqa: PLC0415
    from solver.fluid.effort import EFFORTS  # noqa: PLC0415
    from solver.plan import decode  # noqa: PLC0415
    from solver.plan import solve as solved  # noqa: PLC0415

    if stage not in ("program", "greedy"):
        raise Failure(f"--stage {stage} is neither program nor greedy", USAGE)
    if effort not in EFFORTS:
        raise Failure(f"--effort {effort} is none of {', '.join(EFFORTS)}", USAGE)
    try:
        snapshot = decode(_bytes(file))
        found = solved(snapshot, stage="greedy" if stage == "greedy" else "program", effort=EFFORTS[effort])
    except msgspec.DecodeError as wrong:
        raise Failure(f"{file} is no snapshot: {wrong}", ERROR) from wrong
    except SolverError as wrong:
        raise Failure(f"{file}: {wrong}", ERROR) from wrong
    violations = checker.check(snapshot, found)
    if json:
        document({**msgspec.to_builtins(found), "violations": [f"{each.rule}: {each.message}" for each in violations]})
    else:
        _tell_plan(found)
    for each in violations:
        line(f"{each.rule}: {each.message}")
    raise typer.Exit(ERROR if violations else exits.OK)


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as wrong:
        raise Failure(f"{file} cannot be read: {wrong.strerror}", USAGE) from wrong


def _object(file: Path) -> Document:
    try:
        value = jsonlib.loads(_bytes(file))
    except ValueError as wrong:
        raise Failure(f"{file} is not JSON: {wrong}", USAGE) from wrong
    if not isinstance(value, dict):
        raise Failure(f"{file} holds no JSON object", USAGE)
    return value


def _question(file: Path) -> Document:
    """The file's object; policies that it names by their file, beside it, are read, and amounts may be numbers. What they say is
    the broker's to judge."""
    question = {name: _as_text(name, each) for name, each in _object(file).items()}
    named = question.get("policies", {})
    if not isinstance(named, dict) or not all(isinstance(each, str) for each in named.values()):
        raise Failure(f"{file}: policies is no object of batches and policy files", USAGE)
    texts = {}
    for batch, name in named.items():
        try:
            texts[batch] = _bytes(file.parent / name).decode("utf-8")
        except UnicodeDecodeError as wrong:
            raise Failure(f"{file.parent / name}: not UTF-8 text (byte {wrong.start})", USAGE) from wrong
    return {**question, "policies": texts} if texts else question


def _as_text(name: str, given: Any) -> Any:
    """Decimals are text on the wire; who writes a file writes 1.5."""
    if name not in ("price_factor", "max_usd") or not isinstance(given, dict):
        return given
    return {key: str(each) if type(each) in (int, float) else each for key, each in given.items()}


def _tell(answer: Document) -> None:
    now, today = answer["summary"], answer["today"]
    _rows(answer["plan"]["starts"])
    line(f"{now['starts']} to start, {now['keeps']} kept, {now['drains']} drained, {now['waiting']} batches wait")
    line(f"costs {usd(now['usd'])}; no plan costs less than {usd(now['bound_usd'])} ({now['stage']})")
    for each in answer.get("scarce", ()):
        line(each["message"])
    for each in answer["plan"].get("later", ()):
        line(each["sentence"])
    for each in answer["plan"]["unplaced"][:MOST_WAITING]:
        line(f"{each['work_id']} waits on {each['waiting_on']}: {each['reasons'][0]}")
    if (more := len(answer["plan"]["unplaced"]) - MOST_WAITING) > 0:
        line(f"and {more} more wait (--json has all)")
    if today:
        line(f"today's plan costs {usd(today['usd'])}, {today['waiting']} batches wait")


def _tell_plan(plan: Plan) -> None:
    _rows(
        [
            {"offer_key": each.offer_key, "model": each.model, "count": each.count, "cost_nano": each.cost_nano}
            for each in plan.starts
        ]
    )
    cost, bound = f"{plan.cost_nano / NANO:.4f}", f"{plan.bound_nano / NANO:.4f}"
    line(f"costs {cost} USD, no plan less than {bound}, {len(plan.unplaced)} works wait ({plan.stage})")


def _rows(starts: list[Document]) -> None:
    rows = [
        (each["offer_key"], each["model"], str(each["count"]), f"{each['cost_nano'] / NANO:.4f}") for each in starts
    ]
    table(("offer", "model", "count", "usd"), rows)
