"""A line's own tags: `"x_broker": {"tags": {"agent": "planner"}}` beside its custom_id. They never reach an engine."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Any

from jobs.types import Finding, Limits, Ranges

LONGEST_KEY = 64
LONGEST_VALUE = 256


def problems(given: object, limits: Limits) -> Iterator[Finding]:
    """What is wrong with the `x_broker` of a line."""
    if not isinstance(given, dict):
        yield _finding("x_broker is not an object", "x_broker")
        return
    for key in given:
        if key != "tags":
            yield _finding(f"a line's x_broker has no {_short(key)}; it may hold tags alone", f"x_broker.{key}"[:80])
    tags = given.get("tags", {})
    if not isinstance(tags, dict):
        yield _finding('tags is not an object of texts, e.g. {"agent": "planner"}', "x_broker.tags")
        return
    if len(tags) > limits.max_tags:
        yield _finding(f"{len(tags)} tags; a line has at most {limits.max_tags} (limit max_tags)", "x_broker.tags")
    for key, value in tags.items():
        if not _fits(key, LONGEST_KEY):
            yield _finding(
                f"tag {_short(key)} is not a name of 1 to {LONGEST_KEY} characters without NUL", "x_broker.tags"
            )
        elif not _fits(value, LONGEST_VALUE):
            wanted = f"a text of 1 to {LONGEST_VALUE} characters without NUL"
            yield _finding(f"the value of tag {_short(key)} is not {wanted}", "x_broker.tags")


def _fits(text: object, longest: int) -> bool:
    return isinstance(text, str) and 0 < len(text) <= longest and "\0" not in text


def _short(key: str) -> str:
    return repr(key if len(key) <= 60 else f"{key[:57]}…")


def _finding(message: str, param: str) -> Finding:
    return Finding(code="invalid_parameter", message=message, param=param)


def tags_of(request: dict[str, Any]) -> dict[str, str]:
    """The tags of a line without problems."""
    tags: dict[str, str] = request.get("x_broker", {}).get("tags", {})
    return tags


class TagIndex:
    """(key, value) → the lines that carry it, as ranges. `is_full`: there are more pairs than a file may have."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._bounds: dict[tuple[str, str], array[int]] = {}  # start, stop, start, stop, …
        self.is_full = False

    def add(self, idx: int, tags: dict[str, str]) -> None:
        """Lines come in order."""
        for pair in tags.items():
            bounds = self._bounds.get(pair)
            if bounds is None:
                if len(self._bounds) >= self._most:
                    self.is_full = True
                    return
                self._bounds[pair] = array("Q", (idx, idx + 1))
            elif bounds[-1] == idx:
                bounds[-1] = idx + 1
            else:
                bounds.extend((idx, idx + 1))

    def ranges(self) -> dict[tuple[str, str], Ranges]:
        return {pair: tuple(zip(found[::2], found[1::2], strict=True)) for pair, found in self._bounds.items()}
