"""One line of an input file: is it a request that we can run, and what is wrong with it if not. Pure.

The codes are OpenAI's where it has one.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, get_args

import msgspec

from jobs import estimates, line_tags, media, prefix, repeatable, request_keys
from jobs.estimates import OUTPUT_LIMITS, PROMPT_FIELD
from jobs.line_json import NotJson, parse, shown
from jobs.line_names import LONGEST_NAME
from jobs.types import Endpoint, Finding, Limits

ENDPOINTS: tuple[str, ...] = get_args(Endpoint)
SEVERAL = ("n", "best_of")
MOST_FINDINGS = 20  # of one line: it may have a hundred thousand unknown keys


class Request(msgspec.Struct, frozen=True):
    """What the validator needs to know of a good line. Tokens are estimates.

    `prefix` identifies the shared beginning of the prompt; `digest` is given for lines whose answer may be reused, when
    that was asked for.
    """

    custom_id: str
    url: str
    model: str
    input_tokens: int
    output_tokens: int
    prefix: str | None
    digest: bytes | None
    tags: dict[str, str]


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What lines are held to, and what is wanted of them: the same for the whole file. `endpoint`: the batch's, if known."""

    limits: Limits
    default_output_tokens: int
    endpoint: str | None = None
    reuse: bool = False
    media_hosts: frozenset[str] = frozenset()


def check(content: bytes, terms: Terms) -> Request | list[Finding]:
    """The request in `content` (a line without its line ending), or what is wrong with it, `MOST_FINDINGS` at the most."""
    try:
        parsed = parse(content, terms.limits)
    except NotJson as error:
        return [Finding(code="invalid_json_line", message=str(error))]
    findings = list(islice(problems(parsed, terms), MOST_FINDINGS))
    return findings or request_of(parsed, terms)


def request_of(parsed: dict[str, Any], terms: Terms) -> Request:
    """What matters of a line without problems."""
    body, url = parsed["body"], parsed["url"]
    return Request(
        custom_id=parsed["custom_id"],
        url=url,
        model=body["model"],
        input_tokens=estimates.input_tokens(body[PROMPT_FIELD[url]], url),
        output_tokens=estimates.output_tokens(body, url, terms.default_output_tokens),
        prefix=prefix.prefix_of(body, url),
        digest=repeatable.digest(body, url) if terms.reuse and repeatable.is_repeatable(body, url) else None,
        tags=line_tags.tags_of(parsed),
    )


# --- the request -----------------------------------------------------------------------------------------------------


def problems(request: dict[str, Any], terms: Terms) -> Iterator[Finding]:
    """Everything that is wrong with a JSON object as a request."""
    yield from _custom_id_problems(request, terms.limits)
    yield from _method_problems(request)
    url_problems = list(_url_problems(request, terms.endpoint))
    yield from url_problems
    if "x_broker" in request:
        yield from line_tags.problems(request["x_broker"], terms.limits)
    if "body" not in request:
        yield _missing("body", "the request itself")
    elif not isinstance(request["body"], dict):
        yield _wrong("body", request["body"], "an object")
    else:
        # Of a line that is at the wrong endpoint, nobody wants to hear what is wrong with its body there.
        yield from _body_problems(request["body"], None if url_problems else request["url"], terms)


def _custom_id_problems(request: dict[str, Any], limits: Limits) -> Iterator[Finding]:
    if "custom_id" not in request:
        yield _missing("custom_id", "it is how you will know the answer")
        return
    value = request["custom_id"]
    longest = min(limits.max_custom_id_chars, LONGEST_NAME)
    if not isinstance(value, str) or not value:
        yield _wrong("custom_id", value, "a non-empty string")
    elif len(value) > longest:
        yield Finding(
            code="invalid_custom_id",
            message=f"custom_id has {len(value)} characters; at most {longest} fit (limit max_custom_id_chars)",
            param="custom_id",
        )
    elif "\0" in value:
        yield Finding(code="invalid_custom_id", message="custom_id holds a NUL; remove it", param="custom_id")


def _method_problems(request: dict[str, Any]) -> Iterator[Finding]:
    if "method" not in request:
        yield _missing("method", 'write "POST"')
    elif request["method"] != "POST":
        yield Finding(code="invalid_method", message=f'method {shown(request["method"])} is not "POST"', param="method")


def _url_problems(request: dict[str, Any], endpoint: str | None) -> Iterator[Finding]:
    if "url" not in request:
        yield _missing("url", f"write one of {', '.join(ENDPOINTS)}")
    elif not isinstance(request["url"], str) or request["url"] not in ENDPOINTS:
        message = f"url {shown(request['url'])} {_why_no_endpoint(request['url'])}"
        yield Finding(code="invalid_url", message=message, param="url")
    elif endpoint is not None and request["url"] != endpoint:
        message = f"url {shown(request['url'])} differs: the batch's endpoint is {endpoint}; a batch has one endpoint"
        yield Finding(code="invalid_url", message=message, param="url")


def _why_no_endpoint(url: object) -> str:
    if isinstance(url, str) and ("://" in url or url.startswith(("//", "\\"))):
        return f"names a host; the broker decides where lines run: write the path alone, one of {', '.join(ENDPOINTS)}"
    if isinstance(url, str) and (".." in url or "%" in url or "\\" in url or "?" in url or "#" in url):
        return f"leaves its path or adds to it; write exactly one of {', '.join(ENDPOINTS)}"
    return f"is not one of {', '.join(ENDPOINTS)}"


def _body_problems(body: dict[str, Any], url: str | None, terms: Terms) -> Iterator[Finding]:
    """`url` None: it is wrong, so what an endpoint asks of its bodies is not known."""
    if "model" not in body:
        yield _missing("body.model", "name the model")
    elif not isinstance(body["model"], str) or not body["model"]:
        yield _wrong("body.model", body["model"], "a non-empty string")
    if url is not None:
        yield from _prompt_problems(body, url, terms.media_hosts)
        yield from request_keys.problems(body, url)
        yield from media.tool_problems(body.get("tools"))
    for name in ("stream", "stream_options"):
        if body.get(name) not in (None, False):
            yield Finding(
                code="invalid_parameter",
                message=f"{name} is {shown(body[name])}; a batch has no one to stream to: remove it",
                param=f"body.{name}",
            )
    for name in SEVERAL:
        yield from _bound(body, name, terms.limits.max_n, "max_n")
    for name in OUTPUT_LIMITS:
        yield from _bound(body, name, terms.limits.max_output_tokens, "max_output_tokens")


def _prompt_problems(body: dict[str, Any], url: str, media_hosts: frozenset[str]) -> Iterator[Finding]:
    field = PROMPT_FIELD[url]
    if field not in body:
        yield _missing(f"body.{field}", "there is nothing to answer")
    elif field == "messages" and not _is_list_of_objects(body[field]):
        yield _wrong(f"body.{field}", body[field], "a list of one or more objects")
    elif not isinstance(body[field], (str, list)) or not body[field]:
        yield _wrong(f"body.{field}", body[field], "a text or a list that is not empty")
    elif url == "/v1/responses" and isinstance(body[field], list) and not _is_list_of_objects(body[field]):
        yield _wrong(f"body.{field}", body[field], "a text or a list of objects")
    elif url in ("/v1/completions", "/v1/embeddings") and not _is_plain_prompt(body[field]):
        yield _wrong(f"body.{field}", body[field], "a text, a list of texts, or one or more lists of token ids")
    elif isinstance(body[field], list):
        yield from media.problems(body[field], f"body.{field}", media_hosts)


def _is_list_of_objects(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, dict) for entry in value)


def _is_plain_prompt(value: str | list[Any]) -> bool:
    if isinstance(value, str) or all(isinstance(entry, str) for entry in value):
        return True
    return _are_tokens(value) or all(isinstance(entry, list) and _are_tokens(entry) for entry in value)


def _are_tokens(value: list[Any]) -> bool:
    return all(type(entry) is int for entry in value)


def _bound(body: dict[str, Any], name: str, highest: int, limit: str) -> Iterator[Finding]:
    value = body.get(name)
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        yield _wrong(f"body.{name}", value, "a positive whole number")
    elif value > highest:
        yield Finding(
            code="invalid_parameter",
            message=f"{name} {shown(value)} is more than {highest} (limit {limit})",
            param=f"body.{name}",
        )


def _missing(param: str, why: str) -> Finding:
    return Finding(code="missing_required_parameter", message=f"{param} is missing; {why}", param=param)


def _wrong(param: str, value: object, wanted: str) -> Finding:
    return Finding(code="invalid_parameter", message=f"{param} {shown(value)} is not {wanted}", param=param)
