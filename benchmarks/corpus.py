"""Request lines as people write them: chats of several shapes, in several tongues, with code, quotes and line breaks.

The same for the same number: prompts are drawn from a small vocabulary by a seeded source. Lines are written by Python's
own `json.dumps`, as in OpenAI's cookbook, so that characters beyond ASCII are escapes in most of them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

_COMMON = (
    "the of and to in a is that for it as was with be by on not he this are or his from at which but have an they you "
    "were her she there would their we him been has when who will more no if out so said what up its about into than "
    "them can only other new some could time these two may then do first any my now such like our over man me even most "
    "made after also did many before must through back years where much your way well down should because each just"
)
WORDS = _COMMON.split()
CODE = 'def answer(question: str) -> str:\n    """One line."""\n    return {"a": [1, 2, 3]}[question]  # see http://x/y\n\n'
ABROAD = "Überraschung, naïveté, señor — «où?» 東京タワー Привет, мир ☕ “quoted” it’s "
SCHEMA = {
    "type": "object",
    "properties": {
        name: {"type": "string", "description": f"the {name} of it"} for name in ("title", "author", "year")
    },
    "required": ["title"],
}


def prose(source: random.Random, chars: int) -> str:
    """About so many characters: sentences, with a paragraph, some code or something foreign now and then."""
    pieces: list[str] = []
    size = 0
    while size < chars:
        draw = source.random()
        piece = CODE if draw < 0.01 else ABROAD if draw < 0.02 else " ".join(source.choices(WORDS, k=12)).capitalize()
        piece += source.choice((". ", ". ", ", ", ".\n\n", "? "))
        pieces.append(piece)
        size += len(piece)
    return "".join(pieces)


def line(number: int, size: int) -> bytes:
    """Request line `number` of about `size` bytes, newline included."""
    source = random.Random(number)
    room = max(40, size - 400)
    # ten prompts of a system, as if ten agents had written the file, fifty lines at a time
    system = prose(random.Random(f"system {number // 50 % 10}"), room // 3)
    body: dict[str, Any] = {"model": "tiny", "messages": [{"role": "system", "content": system}]}
    turns = 1 if number % 10 < 7 else 5
    for turn in range(turns):
        role = "user" if turn % 2 == 0 else "assistant"
        body["messages"].append({"role": role, "content": prose(source, (room - room // 3) // turns)})
    body |= {"temperature": 0.2, "max_tokens": 256}
    if number % 5 == 0:
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "book", "schema": SCHEMA}}
    request = {"custom_id": f"request-{number:07}", "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(request, ensure_ascii=number % 4 != 0).encode() + b"\n"


def lines(count: int, size: int) -> Iterator[bytes]:
    """`count` lines of about `size` bytes."""
    for number in range(count):
        yield line(number, size)
