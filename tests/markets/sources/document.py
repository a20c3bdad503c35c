"""An official OpenAPI 3 or Swagger 2 document as a judge of requests and answers. Not ours, so it can disagree with us."""

from __future__ import annotations

import csv
import functools
import gzip
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from jsonschema import Draft202012Validator
from referencing import Registry
from referencing.jsonschema import DRAFT202012

Json = Any


class Document:
    """`base` is the path of the document's server, which its own paths leave out."""

    def __init__(self, content: Json, base: str = "") -> None:
        self._content = _nullable(content)
        self._base = base
        self._registry: Registry[Any] = Registry().with_resource("doc:", DRAFT202012.create_resource(self._content))

    def request_problems(self, request: web.Request, body: bytes) -> Iterator[str]:
        """What the document does not allow: unknown path or parameter, a missing one, a wrong body, no log-in."""
        where = f"{request.method} {request.path}"
        operation = self._operation(request.method, request.path)
        if operation is None:
            yield f"{where}: not in the document"
            return
        parameters = [self._resolved(each) for each in operation.get("parameters", [])]
        known = {each["name"]: each for each in parameters if each["in"] == "query"}
        for name, value in request.query.items():
            if name not in known:
                yield f"{where}: query parameter {name!r} is not in the document"
            else:
                yield from self._wrong(
                    _of_text(known[name].get("schema", known[name]), value), known[name].get("schema"), where
                )
        for name, each in known.items():
            if each.get("required") and name not in request.query:
                yield f"{where}: query parameter {name!r} is required"
        yield from self._body_problems(operation, parameters, body, where)
        security = operation.get("security", self._content.get("security", []))
        if security and {} not in security and not self._proven(request, security):
            yield f"{where}: none of the log-ins {security} is there"

    def answer_problems(self, request: web.Request, content: Json) -> Iterator[str]:
        """Whether a fake's answer is one that the document allows: else the test proves nothing."""
        operation = self._operation(request.method, request.path)
        responses = operation["responses"] if operation else {}
        said = self._resolved(responses.get("200", responses.get("default", {})))
        schema = _json_schema(said.get("content", {})) if "content" in said else said.get("schema")
        yield from self._wrong(content, schema, f"answer to {request.method} {request.path}")

    def example(self, method: str, path: str) -> Json | None:
        """The document's own example of a 200 answer, or None."""
        operation = self._operation(method, path) or {}
        said = self._resolved(operation.get("responses", {}).get("200", {}))
        for kind, body in said.get("content", {}).items():
            if "json" not in kind:
                continue
            if "example" in body:
                return body["example"]
            for each in body.get("examples", {}).values():
                return each.get("value")
            return self._example_of(body.get("schema", {}))
        return said.get("examples", {}).get("application/json")

    def answer_schema(self, method: str, path: str) -> Json:
        """The schema of a 200 answer, with all that it refers to."""
        operation = self._operation(method, path) or {}
        said = self._resolved(operation["responses"].get("200", operation["responses"].get("default", {})))
        schema = _json_schema(said["content"]) if "content" in said else said["schema"]
        kept = {name: self._content[name] for name in ("components", "definitions") if name in self._content}
        return {**(schema or {}), **kept}

    def _example_of(self, schema: Json) -> Json | None:
        """Of a schema: its own, or an object of its members' examples."""
        schema = self._resolved(schema)
        if "example" in schema:
            return schema["example"]
        members = {name: self._example_of(each) for name, each in schema.get("properties", {}).items()}
        return members if members and None not in members.values() else None

    def _operation(self, method: str, path: str) -> Json | None:
        asked = path.removeprefix(self._base)
        for template, methods in self._content["paths"].items():
            pattern = re.sub(r"\\\{[^}]+\\\}", "[^/]+", re.escape(template.rstrip("/")))
            if re.fullmatch(pattern + "/?", asked) and method.lower() in methods:
                operation = methods[method.lower()]
                shared = methods.get("parameters", [])
                return {**operation, "parameters": [*shared, *operation.get("parameters", [])]}
        return None

    def _body_problems(self, operation: Json, parameters: list[Json], body: bytes, where: str) -> Iterator[str]:
        schema = next((each["schema"] for each in parameters if each["in"] == "body"), None)
        given = self._resolved(operation.get("requestBody", {}))
        if given:
            schema = _json_schema(given["content"])
        if body and schema is None:
            yield f"{where}: the document has no body there"
        elif body:
            yield from self._wrong(json.loads(body), schema, where)
        elif given.get("required"):
            yield f"{where}: a body is required"

    def _proven(self, request: web.Request, security: list[Json]) -> bool:
        schemes = self._content.get("components", {}).get(
            "securitySchemes", self._content.get("securityDefinitions", {})
        )
        for name in [name for option in security for name in option]:
            scheme = schemes.get(name, {})
            if scheme.get("type") == "apiKey":
                place = request.headers if scheme["in"] == "header" else request.query
                if scheme["name"] in place:
                    return True
            elif "Authorization" in request.headers:
                return True
        return False

    def _wrong(self, value: Json, schema: Json | None, where: str) -> Iterator[str]:
        if schema is None:
            return
        resource = {"$id": "doc:here", **_anchored(schema)}
        validator = Draft202012Validator(resource, registry=self._registry)
        for error in validator.iter_errors(value):
            yield f"{where}: {'/'.join(map(str, error.absolute_path))}: {error.message[:200]}"

    def _resolved(self, node: Json) -> Json:
        while "$ref" in node:
            node = functools.reduce(
                lambda at, part: at[part], node["$ref"].removeprefix("#/").split("/"), self._content
            )
        return node


def official(provider: str, name: str, *, base: str = "") -> Document | None:
    """`specs/PROVIDER/NAME` of the reference folder, or None without one."""
    folder = os.environ.get("BROKER_REFERENCE")
    return None if folder is None else _read(Path(folder) / "specs" / provider / name, base)


def transcribed(name: str, *, base: str = "") -> Document:
    """What a provider's documentation says of its answers, where its own document cannot be had: `documents/NAME`, which says of
    which pages it was made."""
    return _read(Path(__file__).parent / "documents" / name, base)


def recorded(provider: str, name: str) -> Json:
    """A recorded answer of the reference folder; skips without one."""
    folder = os.environ.get("BROKER_REFERENCE")
    if folder is None:
        pytest.skip("BROKER_REFERENCE names no reference folder")
    return json.loads((Path(folder) / "specs" / provider / name).read_text())


def cassette(provider: str, name: str) -> list[Json]:
    """Requests and answers that somebody's client recorded, of the reference folder; skips without one."""
    folder = os.environ.get("BROKER_REFERENCE")
    if folder is None:
        pytest.skip("BROKER_REFERENCE names no reference folder")
    text = (Path(folder) / "specs" / provider / f"{name}.cassette.yaml").read_text()
    found: list[Json] = yaml.load(text, Loader=yaml.CSafeLoader)["interactions"]
    return found


def price_data(name: str) -> list[dict[str, str]]:
    """Rows of real prices of the reference folder; skips without one."""
    folder = os.environ.get("BROKER_REFERENCE")
    if folder is None:
        pytest.skip("BROKER_REFERENCE names no reference folder")
    with gzip.open(Path(folder) / "data" / "prices" / name, "rt", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@functools.cache
def _read(file: Path, base: str) -> Document:
    text = file.read_text()
    return Document(json.loads(text) if file.suffix == ".json" else yaml.load(text, Loader=_Yaml12), base)


class _Yaml12(yaml.CSafeLoader):
    """`no` is Norway, not false; a date is a text."""


_Yaml12.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:timestamp")
    ]
    for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}
_Yaml12.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(?:true|false)$"), list("tf"))


def _nullable(node: Json) -> Json:
    """OpenAPI 3.0's `nullable` in the words of JSON Schema; string-typed examples and the like are left alone."""
    if isinstance(node, list):
        return [_nullable(each) for each in node]
    if not isinstance(node, dict):
        return node
    made = {name: _nullable(value) for name, value in node.items()}
    if made.get("nullable") is True and isinstance(made.get("type"), str):
        made["type"] = [made["type"], "null"]
        if isinstance(made.get("enum"), list):
            made["enum"] = [*made["enum"], None]
    return made


def _anchored(node: Json) -> Json:
    if isinstance(node, list):
        return [_anchored(each) for each in node]
    if not isinstance(node, dict):
        return node
    return {
        name: f"doc:{value}"
        if name == "$ref" and isinstance(value, str) and value.startswith("#")
        else _anchored(value)
        for name, value in node.items()
    }


def _json_schema(content: Mapping[str, Json]) -> Json | None:
    for kind, said in content.items():
        if "json" in kind:
            return said.get("schema")
    return None


def _of_text(schema: Json, text: str) -> Json:
    """A query parameter's text as the value that its schema speaks of."""
    kind = schema.get("type")
    if kind in ("integer", "number") and re.fullmatch(r"-?\d+(\.\d+)?", text):
        return int(text) if kind == "integer" else float(text)
    if kind == "boolean" and text in ("true", "false"):
        return text == "true"
    if kind == "array":
        return text.split(",")
    return text
