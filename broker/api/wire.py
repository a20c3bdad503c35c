"""The worker wire's JSON Schemas (contract C11): read once, compiled once, each request checked against its own."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.validators import extend

from broker.api.problems import bad_request

_SUFFIX = ".json"


def _is_integer(_checker: object, value: object) -> bool:
    """JSON Schema calls 1.0 an integer; the database and the signatures do not."""
    return isinstance(value, int) and not isinstance(value, bool)


_TYPES = Draft202012Validator.TYPE_CHECKER.redefine("integer", _is_integer)
_Strict: type[Draft202012Validator] = extend(Draft202012Validator, type_checker=_TYPES)  # type: ignore[no-untyped-call]


class WireSchemas:
    """All schemas beside the agent, by name: `hello.request`, `commit.response`, …"""

    def __init__(self) -> None:
        folder = files("workers.agent") / "schemas"
        self.documents: dict[str, dict[str, Any]] = {
            file.name.removesuffix(_SUFFIX): json.loads(file.read_text())
            for file in folder.iterdir()
            if file.name.endswith(_SUFFIX)
        }
        self._validators = {name: _Strict(document) for name, document in self.documents.items()}

    def check(self, name: str, document: Any) -> None:
        """Raises 400 with the path in the document where it first leaves the schema."""
        error = next(
            iter(sorted(self._validators[name].iter_errors(document), key=lambda found: list(map(str, found.path)))),
            None,
        )
        if error is not None:
            raise bad_request("wire_violation", f"{name} at {error.json_path}: {error.message[:300]}", error.json_path)
