"""One line of an input file: is it a request that we can run, and what is wrong with it if not. Pure.

The codes are OpenAI's where it has one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import msgspec

from jobs import line_tags, prefix, repeatable
from jobs.line_json import NotJson, parse, shown
from jobs.line_names import LONGEST_NAME
from jobs.types import Endpoint, Finding, Limits

ENDPOINTS: tuple[str, ...] = get_args(Endpoint)
PROMPT_FIELD = {
    "/v1/chat/completions": "messages",
    "/v1/completions": "prompt",
    "/v1/embeddings": "input",
    "/v1/responses": "input",
}
OUTPUT_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
# Bodies go to an engine that trusts its caller: these reach its network peers, its template engine or its code paths.
FORBIDDEN = ("kv_transfer_params", "chat_template", "mm_processor_kwargs", "logits_processors")
CHARS_PER_TOKEN = 4
TOKENS_PER_MESSAGE = 4  # role and separators of a chat template


class Request(msgspec.Struct, frozen=True, kw_only=True):
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
    """What lines are held to, and what is wanted of them: the same for the whole file."""

    limits: Limits
    default_output_tokens: int
    reuse: bool = False


def check(content: bytes, terms: Terms) -> Request | list[Finding]:
    """The request in `content` (a line without its line ending), or everything that is wrong with it."""
    try:
        parsed = parse(content, terms.limits)
    except NotJson as error:
        return [Finding(code="invalid_json_line", message=str(error))]
    findings = list(_problems(parsed, terms.limits))
    return findings or request_of(parsed, terms)


def request_of(parsed: dict[str, Any], terms: Terms) -> Request:
    """What matters of a line without problems."""
    body, url = parsed["body"], parsed["url"]
    return Request(
        custom_id=parsed["custom_id"],
        url=url,
        model=body["model"],
        input_tokens=_input_tokens(body, url),
        output_tokens=_output_tokens(body, url, terms.default_output_tokens),
        prefix=prefix.prefix_of(body, url),
        digest=repeatable.digest(body, url) if terms.reuse and repeatable.is_repeatable(body, url) else None,
        tags=line_tags.tags_of(parsed),
    )


# --- the request -----------------------------------------------------------------------------------------------------


def _problems(request: dict[str, Any], limits: Limits) -> Iterator[Finding]:
    yield from _custom_id_problems(request, limits)
    yield from _method_problems(request)
    yield from _url_problems(request)
    if "x_broker" in request:
        yield from line_tags.problems(request["x_broker"], limits)
    if "body" not in request:
        yield _missing("body", "the request itself")
    elif not isinstance(request["body"], dict):
        yield _wrong("body", request["body"], "an object")
    else:
        yield from _body_problems(request["body"], request.get("url"), limits)


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


def _url_problems(request: dict[str, Any]) -> Iterator[Finding]:
    if "url" not in request:
        yield _missing("url", f"write one of {', '.join(ENDPOINTS)}")
    elif request["url"] not in ENDPOINTS:
        yield Finding(
            code="invalid_url",
            message=f"url {shown(request['url'])} is not one of {', '.join(ENDPOINTS)}",
            param="url",
        )


def _body_problems(body: dict[str, Any], url: object, limits: Limits) -> Iterator[Finding]:
    if "model" not in body:
        yield _missing("body.model", "name the model")
    elif not isinstance(body["model"], str) or not body["model"]:
        yield _wrong("body.model", body["model"], "a non-empty string")
    field = PROMPT_FIELD.get(url) if isinstance(url, str) else None
    if field is not None:
        yield from _prompt_problems(body, field)
    if body.get("stream") not in (None, False):
        yield Finding(
            code="invalid_parameter",
            message=f"stream is {shown(body['stream'])}; a batch has no one to stream to: remove it",
            param="body.stream",
        )
    for name in FORBIDDEN:
        if name in body:
            yield Finding(
                code="unsupported_parameter",
                message=f"{name} changes how the engine works, not this request; remove it",
                param=f"body.{name}",
            )
    yield from _bound(body, "n", limits.max_n, "max_n")
    for name in OUTPUT_LIMITS:
        yield from _bound(body, name, limits.max_output_tokens, "max_output_tokens")


def _prompt_problems(body: dict[str, Any], field: str) -> Iterator[Finding]:
    if field not in body:
        yield _missing(f"body.{field}", "there is nothing to answer")
    elif field == "messages" and not _is_list_of_objects(body[field]):
        yield _wrong(f"body.{field}", body[field], "a list of one or more objects")
    elif not isinstance(body[field], (str, list)) or not body[field]:
        yield _wrong(f"body.{field}", body[field], "a text or a list that is not empty")


def _is_list_of_objects(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, dict) for entry in value)


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


# --- estimates -------------------------------------------------------------------------------------------------------


def _input_tokens(body: dict[str, Any], url: str) -> int:
    """Characters / 4 of all text in the prompt, plus a few tokens for each message."""
    prompt = body[PROMPT_FIELD[url]]
    chars, tokens = _size(prompt)
    messages = len(prompt) if url == "/v1/chat/completions" else 0
    return max(1, -(-chars // CHARS_PER_TOKEN) + tokens + TOKENS_PER_MESSAGE * messages)


def _size(value: object) -> tuple[int, int]:
    """(characters of all strings, numbers: a completion's prompt may be a list of token ids)."""
    if isinstance(value, str):
        return len(value), 0
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return 0, 1
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    sizes = [_size(entry) for entry in inner]
    return sum(chars for chars, _ in sizes), sum(numbers for _, numbers in sizes)


def _output_tokens(body: dict[str, Any], url: str, default: int) -> int:
    if url == "/v1/embeddings":
        return 0
    limit = next((body[name] for name in OUTPUT_LIMITS if body.get(name) is not None), default)
    return int(limit) * int(body.get("n") or 1)
