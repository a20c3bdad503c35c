"""YAML as policies are written in: plain values with the line and column of each, and none of YAML's surprises.

`no` is Norway, `on` is a word, and a date is the text that was written: only `true`, `false`, `null` and integers are anything
but text. Aliases, tags, a key twice and several documents are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

MAX_BYTES = 1_048_576
MAX_DEPTH = 40
Where = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong (`error`) or doubtful (`warning`) in a policy document, where, and how to mend it."""

    code: str
    message: str
    line: int
    column: int
    suggestion: str | None = None
    severity: str = "error"

    def __str__(self) -> str:
        hint = f"; {self.suggestion}" if self.suggestion else ""
        return f"line {self.line}, column {self.column}: {self.message}{hint} [{self.code}]"


@dataclass
class Marked:
    """The values of a document, and where each stands: by path, of its key (`keys`) and of itself."""

    value: Any = None
    values: dict[Where, tuple[int, int]] = field(default_factory=dict)
    keys: dict[Where, tuple[int, int]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def finding(
        self, code: str, message: str, where: Where, suggestion: str | None = None, *, key: bool = False
    ) -> Finding:
        """A finding at a path; where nothing stands there, at what it would stand in."""
        line, column = self.mark(where, key=key)
        return Finding(code, message, line, column, suggestion)

    def mark(self, where: Where, *, key: bool = False) -> tuple[int, int]:
        for table in (self.keys, self.values) if key else (self.values, self.keys):
            if where in table:
                return table[where]
        return self.mark(where[:-1]) if where else (1, 1)


def read(text: str) -> Marked:
    """The values of `text` with their marks; findings instead of exceptions, also for what is not YAML."""
    found = Marked()
    if len(text.encode()) > MAX_BYTES:
        found.findings.append(Finding("too_large", f"the document has more than {MAX_BYTES} bytes", 1, 1, "split it"))
        return found
    if (deep := _too_deep(text)) is not None:
        found.findings.append(Finding("too_deep", f"nested deeper than {MAX_DEPTH} levels", deep, 1, "flatten it"))
        return found
    try:
        nodes = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
    except yaml.YAMLError as wrong:
        mark = getattr(wrong, "problem_mark", None)
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        problem = getattr(wrong, "problem", None) or str(wrong)
        hint = "indent with spaces, and quote text that holds ': ' or begins with one of *&!%@`"
        found.findings.append(Finding("not_yaml", f"this is not YAML: {problem}", line, column, hint))
        return found
    if len(nodes) != 1 or nodes[0] is None:
        message = f"a file holds one policy, this one holds {len([node for node in nodes if node])}"
        found.findings.append(Finding("not_one_document", message, 1, 1, "write each policy in a file of its own"))
        return found
    found.value = _value(nodes[0], (), found, set())
    return found


def _too_deep(text: str) -> int | None:
    """The line where nesting passes what a policy can need: libyaml's parser recurses, and Python with it."""
    depth = 0
    for number, line in enumerate(text.splitlines(), 1):
        depth += sum(line.count(each) for each in "[{") - sum(line.count(each) for each in "]}")
        if depth > MAX_DEPTH or (len(line) - len(line.lstrip(" -"))) > 4 * MAX_DEPTH:
            return number
    return None


def _value(node: Any, where: Where, found: Marked, seen: set[int]) -> Any:
    found.values[where] = (node.start_mark.line + 1, node.start_mark.column + 1)
    if id(node) in seen:
        message = "aliases (*name) are not read: a policy says what it means where it means it"
        found.findings.append(found.finding("alias", message, where, "write the value out"))
        return None
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        return dict(_entries(node, where, found, seen))
    if isinstance(node, yaml.SequenceNode):
        return [_value(each, (*where, index), found, seen) for index, each in enumerate(node.value)]
    return _scalar(node)


def _entries(node: Any, where: Where, found: Marked, seen: set[int]) -> Iterator[tuple[str, Any]]:
    known: dict[str, int] = {}
    for key_node, value_node in node.value:
        key = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "?"
        at = (*where, key)
        line = key_node.start_mark.line + 1
        found.keys[at] = (line, key_node.start_mark.column + 1)
        if key in known:
            message = f"{key!r} stands here twice, first on line {known[key]}"
            found.findings.append(found.finding("key_twice", message, at, "keep one of the two", key=True))
        known[key] = line
        yield key, _value(value_node, at, found, seen)


def _scalar(node: Any) -> Any:
    text = str(node.value)
    if node.style is not None:  # quoted
        return text
    if text in ("true", "false"):
        return text == "true"
    if text in ("null", "~", ""):
        return None
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else text
