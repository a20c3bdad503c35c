"""What a request may carry to an engine that trusts its caller: no URL to fetch, no engine internals, no unknown key."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.input_files import LIMITS, check, line

CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
)
METADATA = "http://169.254.169.254/latest/meta-data/"


def part(**content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "look"}, content]}]}


def image(url: Any) -> dict[str, Any]:
    return part(type="image_url", image_url={"url": url})


CONTENT = [
    (CHAT, image(METADATA), "unsupported_media_url"),  # the cloud's credentials of the rented machine
    (CHAT, image("https://example.org/a.png"), "unsupported_media_url"),
    (CHAT, image("file:///etc/passwd"), "unsupported_media_url"),
    (CHAT, image("DATA:image/png;base64,AA"), "unsupported_media_url"),  # not what every reader takes for data
    (CHAT, image(" data:image/png;base64,AA"), "unsupported_media_url"),
    (CHAT, part(image_url=[METADATA]), "unsupported_media_url"),
    (CHAT, part(image_url=METADATA), "unsupported_media_url"),  # vLLM takes it without a type, too
    (CHAT, part(type="audio_url", audio_url={"url": METADATA}), "unsupported_media_url"),
    (CHAT, part(type="video_url", video_url={"url": METADATA}), "unsupported_media_url"),
    (CHAT, part(type="file", file={"file_url": METADATA}), "unsupported_media_url"),
    (CHAT, part(type="file", file={"file_id": "file-1"}), "unsupported_content"),
    (CHAT, part(type="prompt_embeds", data="gAJ"), "unsupported_content"),  # a pickle
    (CHAT, part(image_embeds="gAJ"), "unsupported_content"),
    (CHAT, part(type=["image_url"]), "unsupported_content"),
    (CHAT, part(type="shell"), "unsupported_content"),
    (CHAT, {"messages": [{"role": "user", "content": "hi", "image_url": METADATA}]}, "unsupported_media_url"),
    (CHAT, {"messages": [{"role": "user", "content": [[{"image_url": METADATA}]]}]}, "unsupported_media_url"),
    (RESPONSES, {"input": [{"type": "input_image", "image_url": METADATA}]}, "unsupported_media_url"),
    (
        RESPONSES,
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": METADATA}]}]},
        "unsupported_media_url",
    ),
    (RESPONSES, {"input": [{"type": "item_reference", "id": "rs_1"}]}, "unsupported_content"),
    (RESPONSES, {"tools": [{"type": "mcp", "server_url": METADATA}]}, "unsupported_tool"),
    (RESPONSES, {"tools": [{"type": "code_interpreter"}]}, "unsupported_tool"),
    (CHAT, {"tools": ["search"]}, "unsupported_tool"),
]


@pytest.mark.parametrize(("url", "body", "code"), CONTENT)
async def test_what_an_engine_would_fetch_or_load_is_refused(url: str, body: dict[str, Any], code: str) -> None:
    verdict = await check(line(0, url=url) + b"\n" + line(1, url=url, body=body))
    assert [(found.code, found.line) for found in verdict.findings] == [(code, 2)]
    assert (verdict.findings[0].param or "").startswith("body.")


FETCHED = [
    ("https://media.example.org/a.png?x=1", True),
    ("https://media.example.org:443/a.png", True),
    ("http://media.example.org/a.png", False),  # anyone on the way may answer
    ("https://media.example.org:8443/a.png", False),
    ("https://other.example.org/a.png", False),
    ("https://media.example.org.evil.example/a.png", False),
    ("https://evil.example\\@media.example.org/a.png", False),  # one reader's host is another's path
    ("https://media.example.org@evil.example/a.png", False),
    ("https://media.example.org\t.evil.example/a.png", False),
    ("//media.example.org/a.png", False),
    ("https://[media.example.org/a.png", False),
    ("https://media.example.org:x/a.png", False),
]


@pytest.mark.parametrize(("url", "is_allowed"), FETCHED)
async def test_media_come_from_named_hosts_alone(url: str, is_allowed: bool) -> None:
    verdict = await check(line(body=image(url)), media_hosts=frozenset({"media.example.org"}))
    assert [found.code for found in verdict.findings] == ([] if is_allowed else ["unsupported_media_url"])


KEYS = [
    # vLLM
    (CHAT, "kv_transfer_params", {"remote_host": "10.0.0.1"}, "how the engine works"),  # network peers
    (CHAT, "chat_template", "{{ x }}", "how the engine works"),  # template code
    (CHAT, "mm_processor_kwargs", {}, "how the engine works"),
    (CHAT, "media_io_kwargs", {}, "how the engine works"),
    (CHAT, "vllm_xargs", {}, "how the engine works"),
    (CHAT, "priority", -1, "how the engine works"),  # before everybody else
    (CHAT, "cache_salt", "x", "how the engine works"),
    (CHAT, "request_id", "x", "how the engine works"),
    (CHAT, "logits_processors", ["os.system"], "how the engine works"),
    (COMPLETIONS, "prompt_embeds", "gAJ", "how the engine works"),
    # SGLang
    (CHAT, "lora_path", "/etc", "how the engine works"),
    (CHAT, "custom_logit_processor", "x", "how the engine works"),
    (CHAT, "bootstrap_host", "10.0.0.1", "how the engine works"),
    # llama.cpp
    (CHAT, "id_slot", 1, "how the engine works"),
    (CHAT, "cache_prompt", False, "how the engine works"),
    (COMPLETIONS, "n_predict", -1, "no parameter of /v1/completions"),  # around the limit of max_tokens
    # OpenAI
    (RESPONSES, "previous_response_id", "resp_1", "each line stands alone"),
    (RESPONSES, "background", True, "each line stands alone"),
    (RESPONSES, "prompt", {"id": "p"}, "each line stands alone"),
    (CHAT, "web_search_options", {}, "a service of OpenAI's"),
    # slips of the pen, and keys of other endpoints
    (CHAT, "max_token", 5, "did you mean 'max_tokens'?"),
    (CHAT, "temprature", 0, "did you mean 'temperature'?"),
    (CHAT, "prompt", "hi", "no parameter of /v1/chat/completions"),
    (EMBEDDINGS, "temperature", 0, "no parameter of /v1/embeddings"),
    (CHAT, "x" * 100_000, 0, "no parameter"),
    (CHAT, "chat_template_kwargs", {"tokenize": True}, "enable_thinking"),  # reaches the template engine's arguments
    (CHAT, "chat_template_kwargs", {"thinking": {"deep": 1}}, "enable_thinking"),
    (CHAT, "chat_template_kwargs", "x", "enable_thinking"),
]


@pytest.mark.parametrize(("url", "key", "value", "said"), KEYS)
async def test_keys_that_no_request_may_have_are_named(url: str, key: str, value: Any, said: str) -> None:
    limits = LIMITS if len(key) < 99 else type(LIMITS)()
    verdict = await check(line(0, url=url) + b"\n" + line(1, url=url, body={key: value}), limits=limits)
    assert [(found.code, found.line) for found in verdict.findings] == [("unsupported_parameter", 2)]
    assert said in verdict.findings[0].message and len(verdict.findings[0].message) < 300


WELCOME: list[tuple[str, dict[str, Any]]] = [
    (CHAT, image("data:image/png;base64,AA")),
    (CHAT, part(type="input_audio", input_audio={"data": "AA", "format": "wav"})),
    (CHAT, part(type="file", file={"filename": "a.pdf", "file_data": "data:application/pdf;base64,AA"})),
    (CHAT, {"messages": [{"role": "user", "content": "see https://example.org and http://169.254.169.254"}]}),
    (
        CHAT,
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"image_url": {"type": "string"}}}}]},
    ),
    (
        CHAT,
        {
            "messages": [
                {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function", "function": {}}]},
                {"role": "tool", "tool_call_id": "c", "content": '{"url": "http://x"}'},
            ]
        },
    ),
    (CHAT, {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "ignore_eos": True, "stop_token_ids": [1]}),
    (CHAT, {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"url": "x"}}}}),
    (CHAT, {"structured_outputs": {"regex": "a+"}, "chat_template_kwargs": {"enable_thinking": False}}),
    (CHAT, {"metadata": {"team": "a"}, "store": False, "user": "u", "service_tier": "auto", "stream": None}),
    (COMPLETIONS, {"prompt": [[1, 2], [3]], "echo": True, "suffix": "s", "best_of": 2}),
    (COMPLETIONS, {"prompt": [1, 2, 3]}),
    (EMBEDDINGS, {"input": ["a", "b"], "dimensions": 8, "encoding_format": "base64"}),
    (RESPONSES, {"input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}], "instructions": "be"}),
    (RESPONSES, {"background": False, "previous_response_id": None, "reasoning": {"effort": "low"}, "text": {}}),
]


@pytest.mark.parametrize(("url", "body"), WELCOME)
async def test_what_clients_really_send_is_welcome(url: str, body: dict[str, Any]) -> None:
    assert (await check(line(url=url, body=body))).findings == ()


URLS = [
    ("https://api.openai.com/v1/chat/completions", "names a host"),
    ("//evil.example/v1/chat/completions", "names a host"),
    ("/v1/../admin", "leaves its path"),
    ("/v1/chat/completions?x=1", "leaves its path or adds to it"),
    ("/v1/%63hat/completions", "leaves its path"),
    ("/v1/chat/completions/", "is not one of /v1/chat/completions"),
    ("v1/chat/completions", "is not one of"),
    ("/v1/moderations", "is not one of"),
    ("/V1/CHAT/COMPLETIONS", "is not one of"),
]


@pytest.mark.parametrize(("url", "said"), URLS)
async def test_a_wrong_url_is_told_what_is_wrong_with_it(url: str, said: str) -> None:
    [found] = (await check(line(url=url))).findings
    assert (found.code, found.param) == ("invalid_url", "url")
    assert said in found.message and "/v1/chat/completions" in found.message


MENDED = [
    (b"\xff\xfe{\0", "save it as UTF-8"),
    (b"\x1f\x8b\x08\0", "upload the plain JSONL"),
    (b"[\n{}\n]", "each of its objects on a line of its own"),
    (b"{\n}", "write each object on one line"),
    (b"nope", "one JSON object a line"),
    (line().replace(b"hi", b"a\0b"), "remove it or write \\u0000"),
    (line().replace(b"hi", b"a\rb"), "end lines with"),
    (line().replace(b"hi", b"\xff"), "save the file as UTF-8"),
    (line().replace(b"hi", rb"\udead"), "write the character itself or both halves"),
    (line(0) + b"\n" + line(0), "already used on line 1; make each custom_id unique"),
    (line(0) + b"\n" + line(1, body={"model": "b"}), 'line 1 has "tiny"; a batch has one model'),
    (line(0) + b"\n" + line(1, url=COMPLETIONS), "a batch has one endpoint"),
    (line(body={"stream": True}), "no one to stream to: remove it"),
    (line(body={"n": 99}), "limit max_n"),
    (line(body={"max_tokens": 999_999}), "limit max_output_tokens"),
    (line(custom_id="x" * 33), "limit max_custom_id_chars"),
    (line(body={"user": "x" * 2_000}), "limit max_line_bytes"),
    (line().replace(b'"hi"', b"[" * 30 + b"]" * 30), "limit max_depth"),
    (line().replace(b'"hi"', b'"hi", "content": "ho"'), 'the key "content" appears twice in one object; keep one'),
    (line().replace(b'"hi"', b"1e999"), "larger than any engine can hold"),
    (line().replace(b'"hi"', b"NaN"), "write a number or null"),
]


@pytest.mark.parametrize(("content", "said"), MENDED)
async def test_each_finding_says_how_to_mend_it(content: bytes, said: str) -> None:
    [found] = (await check(content)).findings
    assert said in found.message
