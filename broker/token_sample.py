"""How many tokens a model's own tokenizer makes of some lines of a file, beside our estimate by
characters: what a quote corrects by.

The tokenizer is at hand where the profile's weights are a folder on this machine with a `tokenizer.json`, and the library that
reads it (`tokenizers`, the extra `tokenizer`) is installed. Otherwise the estimate stands.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog

from jobs.estimates import PROMPT_FIELD, TOKENS_PER_MESSAGE, input_tokens
from jobs.objects import ObjectStore
from jobs.types import ShardSpec
from workers.profile import ModelProfile

log = structlog.get_logger()
Count = Callable[[str], int]
# So many places of the file are looked at, and so many bytes of each.
PLACES, BYTES = 8, 64 * 1024
# Fewer lines say nothing.
LEAST_LINES = 1


@dataclass(frozen=True, slots=True)
class Sample:
    """Of so many lines, the tokens by our estimate and by the tokenizer."""

    lines: int
    estimated: int
    counted: int

    def of(self, estimated: int) -> int:
        """The estimate of the whole file, corrected.

        >>> Sample(10, 100, 130).of(1000)
        1300
        """
        return -(-estimated * self.counted // self.estimated)


def counter_of(profile: ModelProfile) -> Count | None:
    """What counts tokens as the profile's model does; None where no tokenizer is at hand."""
    path = Path(profile.weights or "") / "tokenizer.json"
    if not profile.weights or not profile.weights.startswith("/") or not path.is_file():
        return None
    try:
        from tokenizers import Tokenizer  # noqa: PLC0415 - of an extra
    except ModuleNotFoundError:
        return None
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as wrong:  # noqa: BLE001 - the library raises bare Exception for a file that it cannot read
        log.warning("model.tokenizer_unread", model=profile.id, path=str(path), error=str(wrong))
        return None
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


async def sample(
    store: ObjectStore, key: str, shards: Sequence[ShardSpec], url: str, profiles: Iterable[ModelProfile]
) -> Sample | None:
    """Lines from all over the file, by the tokenizer of the first profile that has one. Raises ObjectMissing."""
    count = await asyncio.to_thread(lambda: next((found for each in profiles if (found := counter_of(each))), None))
    if count is None or not shards:
        return None
    step = max(1, len(shards) // PLACES)
    pieces = [await store.get(key, each.start, min(each.stop, each.start + BYTES)) for each in shards[::step][:PLACES]]
    return await asyncio.to_thread(measured, pieces, url, count)


def measured(pieces: Iterable[bytes], url: str, count: Count) -> Sample | None:
    """The whole lines at the beginning of each piece; None where there are none with text."""
    lines = estimated = counted = 0
    for line in (each for piece in pieces for each in piece.split(b"\n")):
        try:
            prompt = msgspec.json.decode(line)["body"][PROMPT_FIELD[url]]
        except (msgspec.DecodeError, KeyError, TypeError):
            continue  # cut off by the end of the piece, empty, or bad, which validation has told
        texts = [text for text in _texts(prompt) if text]
        if not texts:
            continue
        messages = len(prompt) if url == "/v1/chat/completions" else 0
        lines += 1
        estimated += input_tokens(prompt, url)
        counted += sum(map(count, texts)) + TOKENS_PER_MESSAGE * messages
    return Sample(lines, estimated, counted) if lines >= LEAST_LINES and counted else None


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for each in inner:
        yield from _texts(each)
