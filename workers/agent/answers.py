"""What an engine's answer means for a line, and how a finished line is written down and metered. Pure."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal, NoReturn

from workers.agent.lines import Line

Status = Literal["completed", "failed"]
FaultCode = Literal["engine_error", "worker_crash", "timeout"]
# Busy or warming up: nothing is wrong with the line, it did not run.
_AGAIN = frozenset({425, 429, 503})
# Ours to mend (a key, a bill, a path), not the line's.
_OUR_FAULT = frozenset({401, 402, 403, 407})
_CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one line: cached ones are part of the prompt's, reasoning ones of the completion's. `estimated`: the engine gave
    none, and characters were counted."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    estimated: bool = False
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    """A line that needs no more work. `record` is its line of the part (schemas/part.line.json), newline included."""

    idx: int
    status: Status
    record: bytes
    usage: Usage
    attempts: int


@dataclass(frozen=True, slots=True)
class Again:
    """Ask again later: the line was not run and no attempt is charged. `after_s` is what the engine asked for."""

    reason: str
    after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Fault:
    """The try is charged to the line: an error of the engine, a broken answer, or silence."""

    code: FaultCode
    message: str


@dataclass(frozen=True, slots=True)
class Misconfigured:
    """The engine refuses us, whatever the line. No line may be failed for it."""

    message: str


def judge(
    line: Line,
    status: int,
    body: bytes,
    request_id: str | None,
    retry_after_s: float | None = None,
    *,
    is_endpoint: bool = False,
) -> Finished | Again | Fault | Misconfigured:
    """Sort an answer. 4xx and 501 are permanent and the line's own; other 5xx and unreadable answers may pass. `retry_after_s` is
    for how long the engine wishes to be left alone.

    At a token endpoint (`is_endpoint`) a 404 is a model that was withdrawn or a wrong path, as the line names neither.
    """
    if status in _AGAIN or (status == 404 and is_endpoint):
        return Again(_refusal(status, body, is_endpoint), retry_after_s)
    if status in _OUR_FAULT:
        return Misconfigured(_refusal(status, body, is_endpoint))
    if status == 408 or (status >= 500 and status != 501):
        return Fault("timeout" if status == 408 else "engine_error", _said(status, body))
    parsed = parse(body)
    if status < 400 and (status != 200 or not isinstance(parsed, dict)):
        return Fault("engine_error", f"{_said(status, body)} (not a JSON object with status 200)")
    return _finish(line, status, request_id or f"req_{secrets.token_hex(16)}", body, parsed)


def dead_letter(line: Line) -> Finished:
    """The last word on a line that failed as often as it may."""
    code, message = line.last_fault or ("worker_crash", "the line was in flight each time that a worker died")
    error = {"code": code, "message": f"given up after {line.attempts} attempts; the last: {message}"}
    record = {
        "idx": line.idx,
        "status": "failed",
        "line": {"custom_id": line.custom_id, "response": None, "error": error},
    }
    return Finished(line.idx, "failed", json.dumps(record).encode() + b"\n", Usage(), line.attempts)


def usage_of(line: Line, answer: dict[str, Any]) -> Usage:
    """The tokens that the engine counted; for want of that an estimate, marked as such."""
    usage = answer.get("usage")
    if isinstance(usage, dict):
        prompt = _count(usage, "prompt_tokens", "input_tokens")
        completion = _count(usage, "completion_tokens", "output_tokens")
        details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
        cached = _count(details, "cached_tokens") if isinstance(details, dict) else None
        if prompt is not None:
            written = completion or 0
            return Usage(prompt, written, min(cached or 0, prompt), reasoning_tokens=min(_reasoning(usage), written))
    return Usage(_estimate(len(line.body)), _estimate(_written(answer)), estimated=True)


def _reasoning(usage: dict[str, Any]) -> int:
    """What an engine says that it thought before it answered: in the details (OpenAI), else beside the counts (SGLang)."""
    details = usage.get("completion_tokens_details") or usage.get("output_tokens_details")
    told = _count(details, "reasoning_tokens") if isinstance(details, dict) else None
    return (_count(usage, "reasoning_tokens") if told is None else told) or 0


def parse(body: bytes) -> Any:
    """The JSON value, or None when it is none that a line of JSON may hold (NaN, broken UTF-8, bottomless nesting)."""
    try:
        return _STRICT.decode(body.decode("utf-8"))
    except (ValueError, RecursionError):
        return None


def _finish(line: Line, status: int, request_id: str, raw: bytes, parsed: Any) -> Finished:
    verdict: Status = "completed" if status == 200 else "failed"
    usage = usage_of(line, parsed) if status == 200 else Usage()
    # the answer's own bytes go in as they are, unless they would break the line or are no JSON
    body = raw.strip()
    if parsed is None:
        body = json.dumps(raw.decode("utf-8", "replace")).encode()
    elif b"\n" in body or b"\r" in body:
        body = json.dumps(parsed).encode()
    record = (
        b'{"idx": %d, "status": "%b", "line": {"custom_id": %b, '
        b'"response": {"status_code": %d, "request_id": %b, "body": %b}, "error": null}}\n'
    ) % (line.idx, verdict.encode(), _text(line.custom_id), status, _text(request_id), body)
    return Finished(line.idx, verdict, record, usage, line.attempts + 1)


def _written(answer: dict[str, Any]) -> int:
    """Characters of text in an answer, whichever endpoint it is from."""
    total, left = 0, [answer.get("choices"), answer.get("output")]
    while left:
        part = left.pop()
        if isinstance(part, str):
            total += len(part)
        elif isinstance(part, list):
            left += part
        elif isinstance(part, dict):
            left += [part.get(name) for name in ("message", "text", "content", "reasoning_content", "arguments")]
    return total


def _estimate(characters: int) -> int:
    return -(-characters // _CHARACTERS_PER_TOKEN)


def _count(counts: dict[str, Any], *names: str) -> int | None:
    for name in names:
        value = counts.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
    return None


def seconds_until(retry_after: str | None, now: datetime) -> float | None:
    """What a `Retry-After` asks for, in seconds or as a date (RFC 9110, 10.2.3); None where it says neither.

    >>> seconds_until("120", datetime(2026, 11, 28, 8, 0, tzinfo=UTC))
    120.0
    >>> seconds_until("Sat, 28 Nov 2026 08:01:30 GMT", datetime(2026, 11, 28, 8, 0, tzinfo=UTC))
    90.0
    """
    if retry_after is None or retry_after.isdecimal():
        return None if retry_after is None else float(retry_after)
    try:
        at = parsedate_to_datetime(retry_after)
        return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - now).total_seconds())
    except (ValueError, OverflowError):  # a zone of years, or one that moves the date out of the calendar
        return None


def _refusal(status: int, body: bytes, is_endpoint: bool) -> str:
    """Of an endpoint the status alone: it may repeat the key in its answer, and this can become the worker's error."""
    return f"the engine answered {status}" if is_endpoint else _said(status, body)


def _said(status: int, body: bytes) -> str:
    return f"the engine answered {status}: {body[:300].decode('utf-8', 'replace')}"


def _text(text: str) -> bytes:
    return _ENCODER.encode(text).encode()


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_ENCODER = json.JSONEncoder()
_STRICT = json.JSONDecoder(parse_constant=_refuse_constant)
