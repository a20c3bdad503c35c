"""What the content of a prompt may make an engine fetch or load: nothing. Pure.

vLLM and llama.cpp fetch the URLs in content parts themselves, from inside the machine that we rented (metadata services,
neighbours, local files), and unpickle tensors. Media come along as `data:` URLs, or from hosts that the broker's owner
named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import NoneType
from typing import Any
from urllib.parse import urlsplit

from jobs.line_json import shown
from jobs.types import Finding

# Content parts and items of the Responses API that hold nothing but what is in them.
PART_TYPES = frozenset({
    "text", "refusal", "thinking", "reasoning", "image_url", "input_audio", "audio_url", "video_url", "file",
    "input_text", "output_text", "input_image", "input_file", "summary_text", "reasoning_text", "message",
    "function_call", "function_call_output", "custom_tool_call", "custom_tool_call_output", "function", "custom",
    "tool_reference",
})  # fmt: skip
TOOL_TYPES = frozenset({"function", "custom"})
# Parts that are told apart by their key, whether or not they name a type.
_LOADED = frozenset({"prompt_embeds", "image_embeds", "audio_embeds", "video_embeds", "image_pil"})
_REMEMBERED = frozenset({"file_id"})
_NESTED_URL = ("url", "uri")


def problems(value: object, where: str, hosts: frozenset[str]) -> Iterator[Finding]:
    """Everything in a prompt that would be fetched, loaded or looked up. `hosts` may be fetched from."""
    if isinstance(value, list):
        for at, inner in enumerate(value):
            yield from problems(inner, f"{where}[{at}]", hosts)
    elif isinstance(value, dict):
        kind = value.get("type")
        if kind is not None and (not isinstance(kind, str) or kind not in PART_TYPES):
            message = f"{shown(kind)} at {where} is no kind of content that an engine may be given"
            yield Finding(code="unsupported_content", message=message, param=where)
        for key, inner in value.items():
            at_key = f"{where}.{key}"[:120]
            if is_url_key(key) and not isinstance(inner, (dict, NoneType)):
                yield from _url_problems(inner, at_key, hosts)
            elif key in _LOADED:
                message = f"{key} at {where} would be unpacked by the engine; send text or media"
                yield Finding(code="unsupported_content", message=message, param=at_key)
            elif key in _REMEMBERED and inner is not None:
                message = f"{key} at {where} names a file that the engine does not have; send its bytes as a data: URL"
                yield Finding(code="unsupported_content", message=message, param=at_key)
            else:
                yield from problems(inner, at_key, hosts)


def is_url_key(key: str) -> bool:
    """
    >>> [is_url_key(key) for key in ("image_url", "url", "file_uri", "curl", "text")]
    [True, True, True, False, False]
    """
    return key in _NESTED_URL or key.endswith(("_url", "_uri"))


def _url_problems(url: object, where: str, hosts: frozenset[str]) -> Iterator[Finding]:
    if isinstance(url, str) and url.startswith("data:"):
        return
    reason = _why_not(url, hosts) if isinstance(url, str) else " and is no text"
    if reason is not None:
        message = f"{shown(url)} at {where} would be fetched by the engine{reason}; send the bytes as a data: URL"
        yield Finding(code="unsupported_media_url", message=message, param=where)


def _why_not(url: str, hosts: frozenset[str]) -> str | None:
    if not hosts:
        return ""
    # what one reader takes for the host, another takes for the path: nothing that is read in two ways
    if "\\" in url or "@" in url or not url.isascii() or any(char <= " " for char in url):
        return " and is not plainly written"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return " and is no URL"
    if parts.scheme != "https" or port not in (None, 443):
        return " and is not https"
    return None if host in hosts else f"; its host is not among {', '.join(sorted(hosts))}"


def tool_problems(tools: object) -> Iterator[Finding]:
    """Tools that the engine would run itself, such as an MCP server's, instead of naming them in its answer."""
    if not isinstance(tools, list):
        return
    for at, tool in enumerate(tools):
        kind = tool.get("type", "function") if isinstance(tool, Mapping) else None
        if not isinstance(kind, str) or kind not in TOOL_TYPES:
            message = (
                f"tool {shown(kind)} at body.tools[{at}] is not one that is only named in the answer: function, custom"
            )
            yield Finding(code="unsupported_tool", message=message, param=f"body.tools[{at}]")


_PLAIN_KEYS = frozenset({"role", "content", "name", "tool_call_id", "refusal", "reasoning", "reasoning_content"})


def is_plain(message: Mapping[str, Any]) -> bool:
    """Whether a message holds nothing but texts under well-known keys, so that there is nothing to look for in it."""
    return message.keys() <= _PLAIN_KEYS and all(type(value) is str for value in message.values())
