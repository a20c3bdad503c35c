"""How a plan, a batch and its placements read. Everything is computed from the API's answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import IO, Any

from broker.cli.output import line, moment, rate, span, table, usd

Document = dict[str, Any]
ENDED = frozenset({"completed", "failed", "expired", "cancelled"})


def print_explanation(plan: Document, stream: IO[str]) -> None:
    """What was chosen, at which price, what was rejected by which rule, and what would have to change."""
    for text in _heading(plan):
        line(text, stream)
    for choice in plan["chosen"]:
        for text in _choice(choice):
            line(text, stream)
    for text in _beside(plan):
        line(text, stream)
    _variants(plan["variants"], stream)
    excluded = [pair for choice in plan["chosen"] for pair in choice["cheaper_excluded"]]
    if excluded:
        line("cheaper, and excluded:", stream)
        table(("offer", "why not"), excluded, stream)
    if plan["funnel"]:
        line(f"{plan['offers']} offers, by what became of them:", stream)
        rows = [(step["rule"], str(step["count"]), step["example"] or "") for step in plan["funnel"]]
        table(("rule", "offers", "for example"), rows, stream)
    if plan.get("elsewhere"):
        line("prices elsewhere, for comparison (nothing is placed there, and no policy was applied):", stream)
        elsewhere = [
            (
                each["offer_key"],
                usd(each["usd"]),
                rate(each["usd_per_million_tokens"]),
                moment(each["as_of"]),
                each["source"],
            )
            for each in plan["elsewhere"]
        ]
        table(("offer", "$ for all", "$/M out", "as of", "source"), elsewhere, stream)
    for text in waiting(plan["waiting_on"], plan["reasons"], plan["relaxations"]):
        line(text, stream)


def _heading(plan: Document) -> Iterator[str]:
    work = f"{plan['lines']:,} lines, {plan['input_tokens']:,} tokens in, about {plan['output_tokens']:,} out"
    if plan["feasible"]:
        yield f"plan for {work}: {usd(plan['usd'])}, done by {moment(plan['end'])}"
    else:
        yield f"no feasible plan for {work}"


def _beside(plan: Document) -> Iterator[str]:
    """Of a quote (an explanation has none): the long answer's price and end, and what the same tokens cost at an API."""
    if longest := plan.get("p90"):
        what = f"{usd(longest['usd'])}, done by {moment(longest['end'])}" if longest["feasible"] else "not feasible"
        yield f"with answers as long as they may be ({longest['output_tokens']:,} tokens): {what}"
    if plan.get("usd_per_million_tokens"):
        yield f"{rate(plan['usd_per_million_tokens'])} per million tokens"
    for each in plan.get("token_market", ()):
        told = "" if each["allowed"] else f"; not allowed: {each['reason']}"
        yield f"bought: {each['offer_key']} {usd(each['usd'])} ({rate(each['usd_per_million_tokens'])} per million tokens){told}"
    for each in plan.get("begins", ()):
        yield each["sentence"]
    for each in plan.get("savings", ()):
        yield each["message"]
    if of_month := plan.get("policy_month"):
        yield of_month["sentence"]
    if later := plan.get("later"):
        yield f"begun at {moment(later['begin'])} it should cost {usd(later['saves_usd'])} less, by {later['days']} past days"
    if plan.get("token_market"):
        yield f"advice: {plan['advice_reason']}"


def _choice(choice: Document) -> Iterator[str]:
    share = float(choice["share"])
    yield (
        f"chosen: {choice['offer_key']} for {share:.0%} of the work, {usd(choice['usd'])} "
        f"({rate(choice['usd_per_million_tokens'])} per million tokens), done by {moment(choice['end'])}"
    )
    if choice["sentence"]:
        yield f"  {choice['sentence']}"


VARIANT_COLUMNS = ("profile", "model", "precision", "", "$", "done by", "why not")


def _variants(variants: Sequence[Document], stream: IO[str]) -> None:
    if len(variants) > 1:
        line("profiles that may serve it:", stream)
        table(VARIANT_COLUMNS, [_variant_row(each) for each in variants], stream)
        for why in (each["sentence"] for each in variants if each.get("sentence")):
            line(why, stream)


def _variant_row(each: Document) -> tuple[str, ...]:
    why_not = "-" if each["feasible"] else f"{each['waiting_on'] or 'infeasible'}: {each['reason'] or ''}"
    mark = "chosen" if each["chosen"] else ""
    return each["profile"], each["model"], each["precision"], mark, usd(each["usd"]), moment(each["end"]), why_not


def waiting(waiting_on: str | None, reasons: Sequence[str], relaxations: Sequence[Document]) -> Iterator[str]:
    """Why work waits, and the smallest verified changes that would let it go on."""
    if waiting_on:
        yield f"waiting on {waiting_on}:"
    yield from (f"  {reason}" for reason in reasons)
    for change in relaxations:
        yield f"  what would do: {change['message']}"


BASES = {
    "plan": "by the newest plan",
    "relaxed": "if the cause went away now",
    "deadline": "its deadline: nothing better is known",
}


def why_waiting(batch: Document, now: float) -> Iterator[str]:
    """Why nothing moves at this moment, since when and until when; then what would let it go on."""
    ours = batch["x_broker"]
    pause = ours["waiting"]
    if pause is None:
        yield from waiting(ours["waiting_on"], ours["waiting_reasons"], ours["relaxations"])
        return
    yield f"waiting on {pause['on']} since {moment(pause['since'])} ({span(now - pause['since'])}):"
    yield from waiting(None, pause["reasons"], ours["relaxations"])


def state(batch: Document) -> str:
    """One word: how a batch ended, or what it does."""
    ours, status = batch["x_broker"], str(batch["status"])
    if status not in ("validating", "in_progress"):
        return status
    return "paused" if ours["paused"] else str(ours["phase"]) if status == "in_progress" else status


def counts(batch: Document) -> str:
    """`41/64 lines, 2 failed`: completed and failed count as done."""
    parts = batch["x_broker"]["counts"]
    text = f"{done(batch)}/{parts['total']} lines"
    return text + "".join(f", {parts[name]} {name}" for name in ("failed", "expired", "cancelled") if parts[name])


def done(batch: Document) -> int:
    parts: dict[str, int] = batch["x_broker"]["counts"]
    return sum(parts[name] for name in ("completed", "failed", "expired", "cancelled"))


def unanswered(batch: Document) -> int:
    """Lines that ended without an answer so far."""
    parts: dict[str, int] = batch["x_broker"]["counts"]
    return sum(parts[name] for name in ("failed", "expired", "cancelled"))


def money(batch: Document) -> str:
    """`$0.0008 of $0.0012 quoted`."""
    ours = batch["x_broker"]
    return usd(ours["cost_usd"]) + (f" of {usd(ours['quote_usd'])} quoted" if ours["quote_usd"] else "")


def eta(batch: Document, now: float) -> str:
    """`ETA 2 h 00 min (by the newest plan)`: when a batch that is under way is expected to have ended, and by what."""
    pause = batch["x_broker"]["waiting"]
    if pause is not None:
        return f"ETA {span(pause['eta'] - now)} ({BASES.get(pause['eta_basis'], pause['eta_basis'])})"
    end = batch["x_broker"]["eta"]
    return "ETA unknown" if end is None else f"ETA {span(end - now)} ({BASES['plan']})"


def where(placement: Document) -> str:
    """`sandbox DE: running, worker ready`."""
    worker = f", worker {placement['worker']}" if placement["worker"] else ""
    reason = f" ({placement['end_reason']})" if placement["end_reason"] else ""
    return f"{placement['market']} {placement['country'] or 'nowhere known'}: {placement['state']}{worker}{reason}"


PLACEMENT_COLUMNS = ("rental", "market", "country", "state", "worker", "$/h", "lines", "$", "ended")


def placement_rows(placements: Sequence[Document]) -> list[tuple[str, ...]]:
    return [
        (
            placement["rental"],
            placement["market"],
            placement["country"] or "-",
            placement["state"],
            placement["worker"] or "-",
            placement["usd_per_hour"],
            str(placement["lines"]),
            placement["usd"],
            placement["end_reason"] or "-",
        )
        for placement in placements
    ]


def print_batch(batch: Document, placements: Sequence[Document], stream: IO[str], now: float) -> None:
    """One batch in full: state, progress, money, where it runs, what went wrong."""
    ours = batch["x_broker"]
    line(f"{batch['id']}: {batch['status']} ({'paused' if ours['paused'] else ours['phase']}), {counts(batch)}", stream)
    line(f"model {batch['model'] or '-'}, {batch['endpoint']}, project {ours['project']}", stream)
    tokens = ours["tokens"]
    line(f"tokens {tokens.get('input', 0):,} in, {tokens.get('output', 0):,} out", stream)
    per_million = ours["usd_per_million_tokens"]
    line(money(batch) + (f", {rate(per_million)} per million tokens" if per_million else ""), stream)
    if ours["phase"] != "ended":
        line(f"{eta(batch, now)}, expires {moment(batch['expires_at'])}", stream)
    if ours["preemptions"]:
        line(f"preempted {ours['preemptions']} times", stream)
    if placements:
        table(PLACEMENT_COLUMNS, placement_rows(placements), stream)
    for text in (*extras(batch), *why_waiting(batch, now), *errors(batch)):
        line(text, stream)


def extras(batch: Document) -> Iterator[str]:
    """What only some batches have: lines left out, lines that cost nothing, an earlier batch that this one does again."""
    ours = batch["x_broker"]
    if ours["served_model"] not in (None, batch["model"]):
        yield f"served by {ours['served_model']}"
    if ours["invalid"]:
        yield f"{ours['invalid']} invalid lines were left out; see them with: broker lines {batch['id']} --status invalid"
    if ours["reused"]:
        yield f"{ours['reused']['lines']} lines were answered without running, which saved {usd(ours['reused']['saved_usd'])}"
    if ours["retry_of"]:
        yield f"does again what {ours['retry_of']} left undone"


def errors(batch: Document) -> Iterator[str]:
    """What the batch as a whole failed for: every bad line, not only the first."""
    for error in (batch["errors"] or {}).get("data", []):
        place = f"line {error['line']}: " if error["line"] is not None else ""
        yield f"{place}{error['message']} [{error['code']}]"
    found = batch["x_broker"]["errors_total"]
    shown = len((batch["errors"] or {}).get("data", []))
    if found > shown > 0:
        yield f"and {found - shown} more"
