"""The common case, quickly: lines that are good beyond doubt. Everything else is left to `request_line.check`.

A line is accepted here only when the slow way would accept it with the same `Request`: msgspec refuses what is not JSON
(bad UTF-8, control characters, lone surrogates, numbers without end), `line_keys` proves that no key was written twice,
and what is left is compared with the same rules. In doubt the answer is None.

Plain chats are read many at once (`read_chats`): one call of the decoder, one comparison of keys, and a loop over the
lines without a function call in it. Any other line is read alone, by the slow way's own rules.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

import msgspec

from jobs import estimates, media, prefix, repeatable, request_keys, request_line
from jobs.line_names import LONGEST_NAME
from jobs.request_line import Request, Terms

CHAT = "/v1/chat/completions"
KEYS_OF_LINE = 4  # custom_id, method, url, body
KEYS_OF_MESSAGE = 2
DEPTH_OF_CHAT = 4  # line, body, messages, message
REMEMBERED_SHAPES = 1_000
REMEMBERED_VALUES, LONGEST_REMEMBERED = 64, 64 * 1024  # 4 MiB at the most
NO_TAGS: dict[str, str] = {}
TOO_DEEP = -(1 << 60)  # a number of keys that no line has
REFUSED = TOO_DEEP
# Keys whose values are bounded, or must be off or of a certain kind.
_BOUNDED = frozenset({*request_line.SEVERAL, *estimates.OUTPUT_LIMITS, "stream"})
_SAID_BY_SYSTEM = ("system", "developer")


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
# Keys that it does not name are skipped, and missed when keys are counted. A dict, not a struct of eighty fields: it knows
# how many keys it has, and takes no longer to make. `Raw`: lines repeat their tools and schemas, see `_keys_within`.
_Chat = TypedDict(  # type: ignore[misc]
    "_Chat",
    {"messages": list[_Message], "model": str}
    | {key: NotRequired[kind] for key, kind in _SCALARS.items() if key != "model"}
    | dict.fromkeys(_OPEN, NotRequired[msgspec.Raw]),
)


class _ChatLine(msgspec.Struct, gc=False):
    custom_id: str
    method: Literal["POST"]
    url: Literal["/v1/chat/completions"]
    body: _Chat


_CHAT_LINE = msgspec.json.Decoder(_ChatLine)
_ANY = msgspec.json.Decoder()


class Chats(msgspec.Struct):
    """Good lines in their order, one entry a line in each list; what a `Request` says of one."""

    names: list[str]
    models: list[str]
    input_tokens: list[int]
    output_tokens: list[int]
    prefixes: list[str | None]
    digests: list[bytes | None]

    def only(self) -> Request:
        """The request, if there is one."""
        return Request(
            custom_id=self.names[0],
            url=CHAT,
            model=self.models[0],
            input_tokens=self.input_tokens[0],
            output_tokens=self.output_tokens[0],
            prefix=self.prefixes[0],
            digest=self.digests[0] if self.digests else None,
            tags=NO_TAGS,
        )


class _Shape(msgspec.Struct, frozen=True):
    """What there is to look at in bodies with the same keys: values that may hold objects, and values that are bounded.

    `limit` is the key that says how much may be written, if it is the only bounded one; `is_common`: if there is no other.
    """

    open: tuple[str, ...]
    bounded: tuple[str, ...]
    limit: str | None
    is_common: bool

    @classmethod
    def of(cls, keys: tuple[str, ...]) -> _Shape:
        bounded = tuple(_BOUNDED.intersection(keys))
        limit = bounded[0] if len(bounded) == 1 and bounded[0] in estimates.OUTPUT_LIMITS else None
        return cls(tuple(_OPEN.intersection(keys)), bounded, limit, not bounded or limit is not None)


class QuickReader:
    """Reads lines of one file, all held to the same terms."""

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self._longest_name = min(terms.limits.max_custom_id_chars, LONGEST_NAME)
        self._depth_inside = terms.limits.max_depth - 2  # of a value in a body
        self._is_flat = terms.limits.max_depth < DEPTH_OF_CHAT
        self._shapes: dict[tuple[str, ...], _Shape] = {}
        self._values: dict[tuple[str, bytes], int] = {}

    def read(self, row: bytes | memoryview, keys: int, may_hold_returns: bool = True) -> Request | None:
        """The request in a line without its newline, whose objects write `keys` keys at the most; None if a closer look is
        needed. `may_hold_returns`: whether there may be a carriage return in it, which is allowed at its end alone.
        """
        if may_hold_returns and b"\r" in bytes(row[:-1]):
            return None
        chats = self.read_chats(row, 1, keys)
        return chats.only() if chats else self._read_any(row, keys)

    def read_chats(self, rows: bytes | memoryview, lines: int, keys: int) -> Chats | None:
        """The requests in so many lines whose objects write `keys` keys at the most; None if any needs a closer look.

        There is no carriage return in the rows but at the end of the last. Of several, each begins with { and ends with },
        so that no object spans two lines: nowhere in JSON may a newline stand between the two but after an object.
        """
        try:
            found = _CHAT_LINE.decode_lines(rows)
            if len(found) != lines or self._is_flat:
                return None
            return self._understood(found, keys)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None

    def _understood(self, lines: list[_ChatLine], keys: int) -> Chats | None:
        """The requests that plain chats are, if nothing is wrong with any.

        Here and in `_prompts` a line costs 1.5 µs, of 9 in all, because nothing is called for it: mind that.
        """
        shapes, default, most = self._shapes, self._terms.default_output_tokens, self._terms.limits.max_output_tokens
        custom_ids = [line.custom_id for line in lines]
        bodies: list[dict[str, Any]] = [line.body for line in lines]  # type: ignore[misc]
        models: list[str] = [body["model"] for body in bodies]
        known, inputs, prefixes = _prompts([body["messages"] for body in bodies])
        known += KEYS_OF_LINE * len(lines)
        outputs: list[int] = []
        digests: list[bytes | None] = []
        for body in bodies:
            names = tuple(body)
            shape = shapes.get(names) or self._shape(names)
            known += len(names)
            for key in shape.open:
                known += self._keys_within(key, body[key])
            output = body[shape.limit] if shape.limit else default
            if not shape.is_common or output is None or not 0 < output <= most:
                output = self._output(body, shape)
                if output is None:
                    return None
            outputs.append(output)
            if self._terms.reuse:
                digests.append(_digest(body, shape))
        if known != keys or not all(models) or not self._are_names(custom_ids):
            return None
        return Chats(custom_ids, models, inputs, outputs, prefixes, digests)

    def _output(self, body: dict[str, Any], shape: _Shape) -> int | None:
        """The tokens that may be written; None if what bounds them is not allowed."""
        if not all(self._is_bounded(key, body[key]) for key in shape.bounded):
            return None
        return estimates.output_tokens(body, CHAT, self._terms.default_output_tokens)

    def _are_names(self, names: list[str]) -> bool:
        return all(names) and max(map(len, names)) <= self._longest_name and "\0" not in "".join(names)

    def _shape(self, keys: tuple[str, ...]) -> _Shape:
        shape = _Shape.of(keys)
        if len(self._shapes) < REMEMBERED_SHAPES:
            self._shapes[keys] = shape
        return shape

    def _is_bounded(self, name: str, value: object) -> bool:
        if value is None:
            return True
        if name in estimates.OUTPUT_LIMITS:
            return type(value) is int and 0 < value <= self._terms.limits.max_output_tokens
        if name in request_line.SEVERAL:
            return type(value) is int and 0 < value <= self._terms.limits.max_n
        return value is False  # stream

    def _keys_within(self, name: str, written: msgspec.Raw) -> int:
        """How many keys the objects in a body's value write; far below zero if it is not allowed.

        Agents repeat the same tools and the same schema line after line: what was seen lately is looked up (0.3 µs for a
        schema that takes 6 µs to read and count).
        """
        value = (name, bytes(written))
        keys = self._values.get(value)
        if keys is None:
            keys = self._keys_read(*value)
            if len(self._values) >= REMEMBERED_VALUES:
                self._values.clear()
            if len(value[1]) <= LONGEST_REMEMBERED:
                self._values[value] = keys
        return keys

    def _keys_read(self, name: str, written: bytes) -> int:
        value = _ANY.decode(written)
        if name == "tools" and next(media.tool_problems(value), None) is not None:
            return REFUSED
        if name == "chat_template_kwargs" and not request_keys.is_harmless_template_kwargs(value):
            return REFUSED
        if name == "stream_options" and value not in (None, False):
            return REFUSED
        return _count(value, self._depth_inside) if isinstance(value, (dict, list)) else 0

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


def _prompts(conversations: list[list[_Message]]) -> tuple[int, list[int], list[str | None]]:
    """Of several: the keys that all messages write together (far below zero if one is empty), and tokens and prefix of each."""
    worth_keeping, looked_at, chars_per_token = prefix.WORTH_KEEPING, prefix.LOOKED_AT, estimates.CHARS_PER_TOKEN
    inputs: list[int] = []
    prefixes: list[str | None] = []
    count = 0
    for messages in conversations:
        if not messages:
            return REFUSED, [], []
        chars = 0
        for message in messages:
            chars += len(message.role) + len(message.content)
        turns = len(messages)
        count += turns
        inputs.append(-(-chars // chars_per_token) + estimates.TOKENS_PER_MESSAGE * turns)  # estimates.of_chat
        first = messages[0]
        if len(first.content) >= worth_keeping and first.role in _SAID_BY_SYSTEM:
            prefixes.append(first.content)
        elif chars + turns <= looked_at:  # too short, even with all line breaks between
            prefixes.append(None)
        else:
            prefixes.append(prefix.of_texts(first.role, [message.content for message in messages]))
    return KEYS_OF_MESSAGE * count, inputs, prefixes


def _digest(body: dict[str, Any], shape: _Shape) -> bytes | None:
    if not repeatable.is_repeatable(body, CHAT):
        return None
    return repeatable.digest(body | {key: _ANY.decode(body[key]) for key in shape.open}, CHAT)


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
