"""The common case, quickly: lines that are good beyond doubt. Everything else is left to `request_line.check`.

A line is accepted here only when the slow way would accept it with the same `Request`: msgspec refuses what is not JSON
(bad UTF-8, control characters, lone surrogates, numbers without end), `line_keys` proves that no key was written twice,
and what is left is compared with the same rules. In doubt the answer is None.
"""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

import msgspec

from jobs import estimates, media, prefix, repeatable, request_keys, request_line
from jobs.line_names import LONGEST_NAME
from jobs.request_line import Request, Terms

CHAT = "/v1/chat/completions"
KEYS_OF_LINE = 4  # custom_id, method, url, body
KEYS_OF_MESSAGE = 2
DEPTH_OF_CHAT = 4  # line, body, messages, message
REMEMBERED_SHAPES = 1_000
NO_TAGS: dict[str, str] = {}
TOO_DEEP = -(1 << 60)  # a number of keys that no line has
# Keys whose values are bounded, or must be off or of a certain kind.
_LOOKED_AT = frozenset(
    {*request_line.SEVERAL, *estimates.OUTPUT_LIMITS, "stream", "stream_options", "tools", "chat_template_kwargs"}
)


class _Message(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    role: str
    content: str


_SCALARS: dict[str, Any] = {
    "model": str,
    **dict.fromkeys(("n", "max_tokens", "max_completion_tokens", "seed", "top_k", "top_logprobs"), int | None),
    **dict.fromkeys(("temperature", "top_p", "frequency_penalty", "presence_penalty", "min_p"), int | float | None),
    **dict.fromkeys(("stream", "logprobs", "store", "parallel_tool_calls"), bool | None),
    **dict.fromkeys(("user", "reasoning_effort", "service_tier"), str | None),
}
_OPEN = request_keys.ALLOWED[CHAT] - _SCALARS.keys() - {"messages"}
# Keys that it does not name are skipped, and missed when keys are counted.
_Chat = TypedDict(  # type: ignore[misc]
    "_Chat",
    {"messages": list[_Message], "model": str}
    | {key: NotRequired[kind] for key, kind in _SCALARS.items() if key != "model"}
    | dict.fromkeys(_OPEN, NotRequired[Any]),
)


class _ChatLine(msgspec.Struct, gc=False):
    custom_id: str
    method: str
    url: str
    body: _Chat


_CHAT_LINE = msgspec.json.Decoder(_ChatLine)
_ANY = msgspec.json.Decoder()


class _Shape(msgspec.Struct, frozen=True):
    """What there is to look at in bodies with the same keys: values that may hold objects, and values that are limited.

    `limit` is the key that says how much may be written, if there is one; `is_common`: that is all there is to know of it.
    """

    open: tuple[str, ...]
    limited: tuple[str, ...]
    limit: str | None
    is_common: bool

    @classmethod
    def of(cls, keys: tuple[str, ...]) -> _Shape:
        limit = next((name for name in estimates.OUTPUT_LIMITS if name in keys), None)
        limited = tuple(_LOOKED_AT.intersection(keys))
        return cls(tuple(_OPEN.intersection(keys)), limited, limit, "n" not in keys)


class QuickReader:
    """Reads lines of one file, all held to the same terms."""

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self._longest_name = min(terms.limits.max_custom_id_chars, LONGEST_NAME)
        self._depth_inside = terms.limits.max_depth - 2  # of a value in a body
        self._is_flat = terms.limits.max_depth < DEPTH_OF_CHAT
        self._shapes: dict[tuple[str, ...], _Shape] = {}

    def read(self, row: bytes | memoryview, keys: int, may_hold_returns: bool = True) -> Request | None:
        """The request in a line without its newline, whose objects write `keys` keys at the most; None if a closer look is
        needed. `may_hold_returns`: whether there may be a carriage return in it, which is allowed at its end alone.
        """
        if may_hold_returns and b"\r" in bytes(row[:-1]):
            return None
        try:
            request = self._understood(_CHAT_LINE.decode(row), keys)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            request = None
        return request or self._read_any(row, keys)

    def _understood(self, line: _ChatLine, keys: int) -> Request | None:
        """The request that a plain chat is, if nothing is wrong with it."""
        body: dict[str, Any] = line.body  # type: ignore[assignment]
        messages: list[_Message] = body["messages"]
        name = line.custom_id
        model = body["model"]
        shape = self._shapes.get(tuple(body)) or self._shape(tuple(body))
        inside = keys - KEYS_OF_LINE - len(body) - KEYS_OF_MESSAGE * len(messages)
        for key in shape.open:
            value = body[key]
            if value.__class__ is dict or value.__class__ is list:
                inside -= _count(value, self._depth_inside)
        for key in shape.limited:
            if not self._is_allowed(key, body[key]):
                return None
        if (
            inside
            or self._is_flat
            or not (name and model and messages)
            or line.url != CHAT
            or line.method != "POST"
            or len(name) > self._longest_name
            or "\0" in name
        ):
            return None
        chars, texts = 0, []
        for message in messages:
            text = message.content
            texts.append(text)
            chars += len(message.role) + len(text)
        default = self._terms.default_output_tokens
        if shape.is_common and (limit := body[shape.limit] if shape.limit else default) is not None:
            output = limit
        else:
            output = estimates.output_tokens(body, CHAT, default)
        return Request(
            name,
            CHAT,
            model,
            estimates.of_chat(chars, len(texts)),
            output,
            prefix.of_texts(messages[0].role, texts),
            self._digest(body) if self._terms.reuse else None,
            NO_TAGS,
        )

    def _digest(self, body: dict[str, Any]) -> bytes | None:
        return repeatable.digest(body, CHAT) if repeatable.is_repeatable(body, CHAT) else None

    def _shape(self, keys: tuple[str, ...]) -> _Shape:
        shape = _Shape.of(keys)
        if len(self._shapes) < REMEMBERED_SHAPES:
            self._shapes[keys] = shape
        return shape

    def _is_allowed(self, name: str, value: object) -> bool:
        if value is None:
            return True
        if name in estimates.OUTPUT_LIMITS:
            return type(value) is int and 0 < value <= self._terms.limits.max_output_tokens
        if name in request_line.SEVERAL:
            return type(value) is int and 0 < value <= self._terms.limits.max_n
        if name == "tools":
            return next(media.tool_problems(value), None) is None
        if name == "chat_template_kwargs":
            return request_keys.is_harmless_template_kwargs(value)
        return value is False  # stream, stream_options

    def _read_any(self, row: bytes | memoryview, keys: int) -> Request | None:
        """Any line, by the slow way's own rules: only reading it is quicker."""
        try:
            parsed = _ANY.decode(row)
            if not isinstance(parsed, dict) or _count(parsed, self._terms.limits.max_depth) != keys:
                return None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        if next(request_line.problems(parsed, self._terms), None) is not None:
            return None
        return request_line.request_of(parsed, self._terms)


def _count(value: object, depth: int) -> int:
    """The keys of all objects in a value; far below zero if it is nested deeper than `depth`."""
    if depth <= 0:
        return TOO_DEEP
    if isinstance(value, dict):
        inside: Any = value.values()
        keys = len(value)
    else:
        inside, keys = value, 0
    for inner in inside:
        if inner.__class__ is dict or inner.__class__ is list:
            keys += _count(inner, depth - 1)
    return keys
