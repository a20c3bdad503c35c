"""The part of the broker's welcome that says how to start and speak to the engine, and how to cut parts.

The agent and its driver know no engine by name: all they know is this (schemas/hello.response.json).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """`argv` None: the engine already runs at `base_url`. `metrics` maps our names to Prometheus sample names, `phases`
    those of its start to patterns of its log. `limits`: requests and tokens per minute that a server lets us ask.
    `patience_s`: so long such a server may give no answer at all.
    `unstated_tokens`: how long an answer may be where its line does not say, None as the engine likes."""

    argv: tuple[str, ...] | None
    env: Mapping[str, str]
    base_url: str | None
    health_path: str
    start_timeout_s: float
    stop_grace_s: float
    concurrency_start: int
    concurrency_max: int
    request_timeout_s: float
    metrics_path: str | None
    metrics: Mapping[str, str]
    headers: Mapping[str, str]
    served_model: str | None
    phases: Mapping[str, str] = field(default_factory=dict)
    limits: Mapping[str, int] = field(default_factory=dict)
    unstated_tokens: int | None = None
    patience_s: float = 300.0

    @classmethod
    def from_wire(cls, engine: Mapping[str, Any]) -> EngineSpec:
        """`engine` is the object of that name in the answer to hello."""
        argv = engine["argv"]
        start = max(1, engine["concurrency"]["start"])
        return cls(
            argv=None if argv is None else tuple(argv),
            env=dict(engine["env"]),
            base_url=engine["base_url"],
            health_path=engine["health_path"],
            start_timeout_s=engine["start_timeout_s"],
            stop_grace_s=engine["stop_grace_s"],
            concurrency_start=start,
            concurrency_max=max(start, engine["concurrency"]["max"]),
            request_timeout_s=engine["request_timeout_s"],
            metrics_path=engine["metrics_path"],
            metrics=dict(engine["metrics"]),
            headers=dict(engine["headers"]),
            served_model=engine["served_model"],
            phases=dict(engine.get("phases", {})),
            limits=dict(engine.get("limits", {})),
            unstated_tokens=engine.get("unstated_tokens"),
            patience_s=engine.get("patience_s", 300.0),
        )


@dataclass(frozen=True, slots=True)
class PartLimits:
    """A part is cut at whichever comes first. One of at most `delivered_bytes` goes with its commit in one request."""

    lines: int
    seconds: float
    bytes: int
    delivered_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Welcome:
    """The broker's answer to hello, without the token."""

    worker_id: str
    heartbeat_s: float
    engine: EngineSpec
    part: PartLimits
    max_attempts: int

    @classmethod
    def from_wire(cls, answer: Mapping[str, Any]) -> Welcome:
        part = answer["part"]
        return cls(
            worker_id=answer["worker_id"],
            heartbeat_s=answer["heartbeat_s"],
            engine=EngineSpec.from_wire(answer["engine"]),
            part=PartLimits(
                lines=max(1, part["lines"]),
                seconds=part["seconds"],
                bytes=part["bytes"],
                delivered_bytes=part.get("delivered_bytes", 0),
            ),
            max_attempts=max(1, answer["max_attempts"]),
        )
