"""`policy propose|approve|reject|diff|list|dry-run|waive|break-glass|project|model`: how policies come into force."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from broker.cli import exits
from broker.cli.client import Client
from broker.cli.exits import USAGE, Failure
from broker.cli.options import Target
from broker.cli.output import document, line, table
from broker.cli.policy import PolicyFile, read

Document = dict[str, Any]
ProposalId = Annotated[str, typer.Argument(help="A proposal's id: proposal_…", metavar="PROPOSAL")]
Reason = Annotated[str, typer.Option(help="Why; kept with the proposal.")]
Until = Annotated[str, typer.Option(help="Until when: a day (2026-12-31) or a time with its offset from UTC.")]
Projects = Annotated[str, typer.Option("--for", help="A project or a path in the tree; it means all below.")]


def propose(
    file: PolicyFile,
    target: Target,
    *,
    node: Annotated[
        list[str] | None,
        typer.Option("--for", help="A project or path in the tree, `*` is all. Repeatable; none: by name only."),
    ] = None,
    since: Annotated[str | None, typer.Option("--from", help="The day or time from which it holds.")] = None,
    drain_by: Annotated[
        str | None, typer.Option(help="Until when running work may go on as before; default: not at all.")
    ] = None,
    reason: Reason = "",
) -> None:
    """Propose a policy document. Somebody else with the role compliance approves it."""
    body = {
        "text": _text(file),
        "nodes": node or [],
        "from_time": _seconds("--from", since),
        "drain_by": _seconds("--drain-by", drain_by),
        "reason": reason,
    }
    _post(target, "/v1/compliance/policies", body)


def waive(
    policy: Annotated[str, typer.Argument(help="The policy's name.", metavar="POLICY")],
    rule: Annotated[str, typer.Argument(help="The rule's id.", metavar="RULE")],
    target: Target,
    *,
    node: Projects,
    until: Until,
    reason: Reason,
) -> None:
    """Propose that a rule is not asked of some projects until a time."""
    body = {"policy": policy, "rule": rule, "projects": node, "until": _seconds("--until", until), "reason": reason}
    _post(target, "/v1/compliance/waivers", body)


def break_glass(
    policy: Annotated[str, typer.Argument(help="The policy's name.", metavar="POLICY")],
    target: Target,
    *,
    node: Projects,
    reason: Reason,
    hours: Annotated[int, typer.Option(min=1, max=24, help="For how many hours, from the second approval on.")] = 24,
) -> None:
    """Propose that a policy is not asked of some projects for some hours. Two others must approve; everybody hears of it."""
    body = {"policy": policy, "projects": node, "hours": hours, "reason": reason}
    _post(target, "/v1/compliance/break-glass", body)


def project(
    name: Annotated[str, typer.Argument(help="The project's name.", metavar="PROJECT")],
    target: Target,
    *,
    node: Annotated[str, typer.Option(help="Its path in the tree: org/team/PROJECT.")],
    data_class: Annotated[str, typer.Option("--class", help="The class of its data.")],
    reason: Reason = "",
) -> None:
    """Propose a project's place in the tree and the class of its data."""
    body = {"project": name, "node": node, "data_class": data_class, "reason": reason}
    _post(target, "/v1/compliance/projects", body)


def model(
    name: Annotated[str, typer.Argument(help="The model's name.", metavar="MODEL")],
    target: Target,
    *,
    node: Projects,
    until: Until,
    reason: Reason = "",
) -> None:
    """Propose that some projects may use a model until a time, where policies ask for an approval."""
    body = {"model": name, "projects": node, "until": _seconds("--until", until), "reason": reason}
    _post(target, "/v1/compliance/models", body)


def approve(proposal: ProposalId, target: Target) -> None:
    """Approve a proposal of somebody else."""
    _post(target, f"/v1/compliance/proposals/{proposal}/approve", {})


def reject(proposal: ProposalId, target: Target) -> None:
    """Reject a proposal of somebody else."""
    _post(target, f"/v1/compliance/proposals/{proposal}/reject", {})


def withdraw(proposal: ProposalId, target: Target, *, reason: Reason) -> None:
    """Take back a waiver, a break-glass or a model's approval, at once; running work is asked anew."""
    _post(target, f"/v1/compliance/proposals/{proposal}/withdraw", {"reason": reason})


def show_list(target: Target) -> None:
    """All proposals: what is proposed, approved, in force, superseded, expired."""

    async def work(client: Client) -> int:
        found = await client.get("/v1/compliance/proposals")
        if target.json:
            document(found)
            return exits.OK
        rows = [_row(each) for each in found["data"]]
        table(("proposal", "kind", "subject", "version", "for", "state", "proposer", "approved by"), rows)
        return exits.OK

    target.run(work)


def diff(proposal: ProposalId, target: Target) -> None:
    """A proposed policy beside the version that is in force."""

    async def work(client: Client) -> int:
        found = await client.get(f"/v1/compliance/proposals/{proposal}/diff")
        if target.json:
            document(found)
        else:
            for each in (found["diff"] or "no difference").splitlines():
                line(each)
        return exits.OK

    target.run(work)


def dry_run(
    file: PolicyFile,
    target: Target,
    *,
    node: Annotated[list[str] | None, typer.Option("--for", help="A project or path in the tree; default all.")] = None,
    days: Annotated[int, typer.Option(min=1, max=366, help="How many days of placements to look at.")] = 30,
) -> None:
    """What a policy would have meant for the placements of the last days, and means for the offers of now."""
    from broker.compliance.trial import sentence  # noqa: PLC0415 - only who runs it dry waits for the evaluator

    async def work(client: Client) -> int:
        body = {"text": _text(file), "nodes": node or ["*"], "days": days}
        found = await client.post("/v1/compliance/dry-run", body, again=True)
        if target.json:
            document(found)
            return exits.OK
        table(
            ("batch", "rental", "offer", "refused by", "found"),
            [
                (each["batch"], each["rental"], each["offer"], f"{each['rule']}: {each['field']}", each["found"])
                for each in found["refusals"]
            ],
        )
        line(f"{found['policy']}, last {found['days']} days: {found['sentence']}")
        line(sentence(found["offers"]))
        return exits.OK

    target.run(work)


def _post(target: Target, path: str, body: Document) -> None:
    async def work(client: Client) -> int:
        made = await client.post(path, body)
        if target.json:
            document(made)
        else:
            line(_told(made))
        return exits.OK

    target.run(work)


def _told(made: Document) -> str:
    version = f"@{made['version']}" if made["version"] else ""
    given = sum(each["outcome"] == "approved" for each in made["verdicts"])
    told = f"{made['id']}: {made['kind']} {made['subject']}{version} is {made['state']}"
    missing = made["needs"] - given
    if made["state"] != "proposed":
        return told
    return f"{told}; {missing} other{'s' if missing != 1 else ''} must approve: broker policy approve {made['id']}"


def _row(each: Document) -> tuple[str, ...]:
    by = [word["principal"] for word in each["verdicts"] if word["outcome"] == "approved"]
    whom = each["nodes"] or [each["body"].get("projects") or each["body"].get("node") or "by name"]
    version = str(each["version"] or "-")
    return (
        each["id"],
        each["kind"],
        each["subject"],
        version,
        ",".join(whom),
        each["state"],
        each["proposer"],
        ",".join(by) or "-",
    )


def _text(file: Path) -> str:
    reading = read(file)
    if reading.document is None:
        raise Failure(f"{file}: {reading.errors[0]}; `broker policy validate {file}` shows all", USAGE)
    return file.read_text(encoding="utf-8")


def _seconds(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as wrong:
        raise Failure(
            f"{option} {text!r}: write a day or a time, as 2026-12-31 or 2026-12-31T18:00+01:00", USAGE
        ) from wrong
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
