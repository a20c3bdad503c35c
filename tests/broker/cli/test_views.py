"""What people are shown of a batch and a plan. Documents are made from the API's own shapes."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from broker.api import quote_shapes, shapes
from broker.cli import live, redrawn, report

NOW = 1_795_305_600


def batch(**changed: Any) -> dict[str, Any]:
    ours: dict[str, Any] = {
        "project": "default",
        "phase": "running",
        "waiting_on": None,
        "counts": shapes.LineCounts(total=64, completed=24, failed=1, expired=0, cancelled=0),
        "tokens": {"input": 1200, "output": 800},
        "cost_usd": "0.000412000",
        "quote_usd": "0.001",
        "quote_end": NOW + 60,
        "eta": NOW + 42,
        "usd_per_million_tokens": "0.206",
        "preemptions": 0,
        "max_usd": None,
        "deadline": None,
        "residency": ["eu"],
        "priority": 0,
        "tags": {},
        "order": "input",
    }
    status = changed.pop("status", "in_progress")
    made = shapes.Batch(
        id="batch_1",
        endpoint="/v1/chat/completions",
        model="m",
        input_file_id="file-1",
        completion_window="24h",
        status=status,
        created_at=NOW,
        request_counts=shapes.RequestCounts(total=64, completed=24, failed=1),
        errors=changed.pop("errors", None),
        x_broker=shapes.BatchBroker(**(ours | changed)),
    )
    return made.model_dump(mode="json")


def placement(**changed: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "rental": "rental_1",
        "offer_key": "sandbox/eu-de/eu-de-1/de-spot-2/cpu/0/spot",
        "market": "sandbox",
        "country": "DE",
        "location_tier": "named_datacenter",
        "state": "running",
        "worker": "ready",
        "usd_per_hour": "0.018",
        "lines": 24,
        "usd": "0.000412",
        "started_at": NOW,
        "ended_at": None,
        "end_reason": None,
        "exit_status": None,
    }
    return shapes.Placement(**(fields | changed)).model_dump(mode="json")


def test_one_line_tells_progress_money_time_and_place() -> None:
    text = live.sentence(batch(), [placement()], NOW)
    assert text == (
        "running | 25/64 lines, 1 failed | 2,000 tokens | $0.000412 of $0.001 quoted | ETA 42 s (by the newest plan) | "
        "sandbox DE: running, worker ready"
    )


def test_a_waiting_batch_says_why_since_when_and_until_when() -> None:
    """An ETA without its basis would be taken for a promise."""
    why = shapes.WaitingNow(
        on="capacity",
        reasons=["all 3 offers in DE are sold out"],
        since=NOW - 180,
        eta=NOW + 7200,
        eta_basis="relaxed",
    )
    waiting = batch(phase="queued", waiting=why, eta=None)
    assert live.sentence(waiting, [], NOW).endswith(
        "ETA 2 h 00 min (if the cause went away now) | "
        "waiting on capacity since 2026-11-21 23:57:00Z: all 3 offers in DE are sold out"
    )
    assert list(report.why_waiting(waiting, NOW)) == [
        "waiting on capacity since 2026-11-21 23:57:00Z (3 min 00 s):",
        "  all 3 offers in DE are sold out",
    ]


def test_a_paused_batch_is_called_paused() -> None:
    assert live.sentence(batch(paused=True), [], NOW).startswith("paused | ")


def test_what_was_left_out_and_what_cost_nothing_is_told() -> None:
    reused = shapes.Reused(lines=5, input_tokens=50, output_tokens=10, saved_usd="0.0004")
    told = "\n".join(report.extras(batch(invalid=2, reused=reused, retry_of="batch_0", served_model="m-fp8")))
    for fact in ("2 invalid lines", "5 lines were answered without running", "$0.0004", "batch_0", "served by m-fp8"):
        assert fact in told


def test_a_pipe_gets_a_line_when_something_changes_and_not_at_every_look() -> None:
    now = 0.0
    stream = io.StringIO()
    view = live.PlainView(stream, clock=lambda: now)
    view.show(batch(), [placement()])
    view.show(batch(), [placement()])
    more = shapes.LineCounts(total=64, completed=30, failed=1, expired=0, cancelled=0)
    view.show(batch(counts=more), [placement()])
    assert len(stream.getvalue().splitlines()) == 1, "progress alone waits its turn"
    now = live.PLAIN_LINE_S
    view.show(batch(counts=more), [placement()])
    view.show(batch(counts=more), [placement(state="ended", worker="gone", end_reason="preempted")])
    assert len(stream.getvalue().splitlines()) == 3, "a lost machine is told at once"
    assert "\x1b" not in stream.getvalue()


def test_the_redrawn_view_shows_the_same_facts() -> None:
    stream = io.StringIO()
    Console(file=stream, width=160).print(redrawn.panel(batch(), [placement()], NOW))
    for fact in ("25/64 lines, 1 failed", "1,200 tokens in, 800 out", "$0.000412 of $0.001 quoted", "ETA 42 s", "DE"):
        assert fact in stream.getvalue()


def test_every_bad_line_is_reported() -> None:
    bad = [shapes.BatchError(code="invalid_json", message=f"broken {number}", line=number) for number in (3, 7)]
    refused = batch(status="failed", phase="ended", errors=shapes.BatchErrors(data=bad))
    assert list(report.errors(refused)) == ["line 3: broken 3 [invalid_json]", "line 7: broken 7 [invalid_json]"]


def test_an_explanation_shows_the_funnel_and_the_cheaper_offers_that_were_excluded() -> None:
    chosen = quote_shapes.Chosen(
        offer_key="offer-b",
        share="0.75",
        usd="0.0009",
        end=NOW,
        usd_per_million_tokens="0.3",
        next_best="offer-c",
        next_best_usd_per_million_tokens="0.4",
        cheaper_excluded=[("offer-a", "residency: US is not in eu")],
        sentence="offer-b is the cheapest that the policy allows",
    )
    steps = [
        quote_shapes.FunnelStep(rule="residency", count=5, example="offer-a: US is not in eu"),
        quote_shapes.FunnelStep(rule="eligible", count=2, example=None),
    ]
    plan = quote_shapes.Explanation(
        feasible=True,
        plan="plan_1",
        planned_at=NOW,
        lines=64,
        input_tokens=1200,
        output_tokens=3072,
        offers=7,
        funnel=steps,
        chosen=[chosen],
        usd="0.0009",
        end=NOW,
        waiting_on=None,
        reasons=[],
        relaxations=[],
    ).model_dump(mode="json")
    stream = io.StringIO()
    report.print_explanation(plan, stream)
    lines = stream.getvalue().splitlines()
    assert (
        "chosen: offer-b for 75% of the work, $0.0009 ($0.30 per million tokens), done by 2026-11-22 00:00:00Z" in lines
    )
    assert "offer-a\tresidency: US is not in eu" in lines
    assert "residency\t5\toffer-a: US is not in eu" in lines
    assert "eligible\t2\t" in lines


def test_profiles_that_were_compared_are_shown_with_the_reason_against_each() -> None:
    told = {
        "model": "m",
        "end": NOW,
        "usd": "0.5",
        "chosen": True,
        "feasible": True,
        "waiting_on": None,
        "reason": None,
    }
    dear = told | {"chosen": False, "feasible": False, "usd": None, "waiting_on": "capacity", "reason": "sold out"}
    variants = [told | {"profile": "m-fp8", "precision": "fp8"}, dear | {"profile": "m", "precision": "bf16"}]
    plan = {"feasible": False, "chosen": [], "funnel": [], "waiting_on": None, "reasons": [], "relaxations": []}
    stream = io.StringIO()
    report.print_explanation(plan | {"lines": 1, "input_tokens": 1, "output_tokens": 1, "variants": variants}, stream)
    assert "m-fp8\tm\tfp8\tchosen\t$0.50\t2026-11-22 00:00:00Z\t-" in stream.getvalue()
    assert "m\tm\tbf16\t\t-\t2026-11-22 00:00:00Z\tcapacity: sold out" in stream.getvalue()
