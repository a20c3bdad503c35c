"""What the demonstration proves, judged from what was written, not from what the broker says of itself."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Answers:
    """What an output file holds: each custom_id and how often, of the ids that were asked for."""

    asked: int
    answered: int
    missing: tuple[str, ...]
    duplicates: int
    foreign: tuple[str, ...]
    empty: tuple[str, ...]

    @property
    def once_each(self) -> bool:
        return not (self.missing or self.duplicates or self.foreign or self.empty)


def count_answers(prompts: Iterable[str], output: Iterable[str]) -> Answers:
    """Compare the lines that went in with the lines that came out. An answer without text is no answer."""
    asked = [json.loads(line)["custom_id"] for line in prompts]
    answers = [json.loads(line) for line in output]
    times = Counter(answer["custom_id"] for answer in answers)
    return Answers(
        asked=len(asked),
        answered=sum(1 for custom_id in asked if times[custom_id]),
        missing=tuple(custom_id for custom_id in asked if not times[custom_id]),
        duplicates=sum(count - 1 for count in times.values()),
        foreign=tuple(sorted(times.keys() - set(asked))),
        empty=tuple(answer["custom_id"] for answer in answers if not _text(answer)),
    )


def read_answers(prompts: Path, output: Path) -> Answers:
    return count_answers(
        prompts.read_text(encoding="utf-8").splitlines(), output.read_text(encoding="utf-8").splitlines()
    )


def _text(answer: dict[str, Any]) -> str:
    response = answer["response"] or {}
    if response.get("status_code") != 200:
        return ""
    text: str = response["body"]["choices"][0]["message"]["content"]
    return text.strip()


@dataclass(frozen=True)
class Verdict:
    """The demonstration's last line. `passed` is its exit code."""

    batch: str
    answers: Answers
    failed: int
    preemptions: int
    cost_usd: str
    usd_per_million_tokens: str | None
    output: str
    ledger_balanced: bool

    @property
    def passed(self) -> bool:
        return bool(self.answers.once_each and not self.failed and self.preemptions and self.ledger_balanced)

    def document(self) -> dict[str, Any]:
        return {
            "batch": self.batch,
            "total": self.answers.asked,
            "completed": self.answers.answered,
            "failed": self.failed,
            "duplicates": self.answers.duplicates,
            "preemptions": self.preemptions,
            "cost_usd": self.cost_usd,
            "usd_per_million_tokens": self.usd_per_million_tokens,
            "output": self.output,
            "ledger_balanced": self.ledger_balanced,
        }
