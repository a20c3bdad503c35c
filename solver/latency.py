"""How long one request takes when so many are computed at once, and how many may be so that 95 of 100 take no longer than wished.

With B requests in an engine that batches continuously, each token of an answer takes one step of the whole batch, and while a
request runs the prompts of the B that come meanwhile are read (Little's law: B requests in B times the machine's time of one):

    step(B)    = B₀ / R_out · (f + (1 − f) · B / B₀)            R_out: output tokens a second at B₀ at once
    seconds(B) = B · in / R_in + out · step(B)                  of a mean request, R_in: input tokens a second
    p95(B)     = seconds(B) · long / out · slower / cautious    long: output tokens of a request that is as long as it may be

f is the part of a step that does not shrink with fewer requests (reading the weights). `slower` is what was observed of it. Fewer
at once are answered sooner, and the machine does less in an hour: R_out(B) = B / step(B).
"""

from __future__ import annotations

import math

import msgspec

from solver.types import Throughput, Work


def seconds(work: Work, rate: Throughput, at_once: float) -> float:
    """p95 of a request of the work with so many at once."""
    alone, more = _terms(work, rate)
    return alone + more * at_once


def most_at_once(work: Work, rate: Throughput) -> int:
    """The most requests at once with which p95 keeps the work's `max_p95_ms`; 0 where even one takes longer, or where nobody
    knows. Raises ValueError for a work without a limit."""
    if work.max_p95_ms is None:
        raise ValueError(f"work {work.id} has no max_p95_ms")
    if rate.sequences < 1:
        return 0
    alone, more = _terms(work, rate)
    left = work.max_p95_ms / 1000 - alone
    most = math.floor(rate.sequences)
    if left < 0:
        return 0
    return most if left >= more * most else math.floor(left / more)


def paced(rate: Throughput, at_once: int) -> Throughput:
    """The rates with so many at once, of which there is at least one."""
    return msgspec.structs.replace(rate, output_per_s=rate.output_per_s * output_part(rate, max(1, at_once)))


def output_part(rate: Throughput, at_once: float) -> float:
    """Output tokens a second with so many at once, as a part of those at the most."""
    part = at_once / rate.sequences if rate.sequences >= 1 else 1.0
    return min(1.0, part / (rate.fixed + (1.0 - rate.fixed) * part))


def slow_down(work: Work, rate: Throughput, at_once: int) -> float:
    """How much longer the machine is busy with the work than it would be with as many at once as it takes."""
    read, answers = work.input_tokens / rate.input_per_s, work.output_tokens_p50 / rate.output_per_s
    whole = read + answers
    return (read + answers / output_part(rate, at_once)) / whole if whole else 1.0


def _terms(work: Work, rate: Throughput) -> tuple[float, float]:
    """p95 in seconds is the first, and the second for each request at once."""
    lines = max(1, work.lines)
    long = max(work.output_tokens_p50, work.output_tokens_p90) / max(1, work.output_tokens_p50)
    surely = long * rate.slower / (rate.cautious if 0 < rate.cautious < 1 else 1.0)
    answer = work.output_tokens_p50 / lines / rate.output_per_s
    read = work.input_tokens / lines / rate.input_per_s
    return answer * rate.sequences * rate.fixed * surely, (read + answer * (1.0 - rate.fixed)) * surely
