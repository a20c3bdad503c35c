"""Which keys the body of a request may have: those that OpenAI documents, and extras of the engines that shape one answer.

Bodies go to engines that trust their caller, and ignore or obey what they are sent. So this is a list of what is
allowed: a key that reaches an engine's network peers, templates, files, adapters, caches or scheduler is refused, and so
is a slip of the pen that would silently change nothing. After OpenAI's OpenAPI document, vLLM's and SGLang's protocol
classes and llama.cpp's server.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

from jobs.types import Finding

_SAMPLING = {"temperature", "top_p", "frequency_penalty", "presence_penalty", "logit_bias", "seed", "stop", "n"}
# Ours to know or nobody's: the engine does nothing with them.
_LABELS = {
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
}
_STREAM = {"stream", "stream_options"}  # allowed to be off

# vLLM, SGLang and llama.cpp: how one answer is drawn, cut off and shown.
_ENGINE_SAMPLING = {
    "top_k", "min_p", "typical_p", "top_n_sigma", "repetition_penalty", "repeat_penalty", "repeat_last_n",
    "length_penalty", "mirostat", "mirostat_tau", "mirostat_eta", "dynatemp_range", "dynatemp_exponent",
    "xtc_probability", "xtc_threshold", "dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n",
    "dry_sequence_breakers", "stop_token_ids", "include_stop_str_in_output", "no_stop_trim", "ignore_eos", "min_tokens",
    "skip_special_tokens", "spaces_between_special_tokens", "truncate_prompt_tokens", "truncation_side",
    "allowed_token_ids", "bad_words", "repetition_detection", "thinking_token_budget",
    "prompt_logprobs", "logprob_token_ids", "return_tokens_as_token_ids", "return_token_ids",
    "add_special_tokens",
}  # fmt: skip
_STRUCTURE = {
    "response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
    "guided_whitespace_pattern", "json_schema", "grammar", "regex", "ebnf",
}  # fmt: skip
_GENERATION = _SAMPLING | _LABELS | _STREAM | _ENGINE_SAMPLING | _STRUCTURE

ALLOWED: dict[str, frozenset[str]] = {
    "/v1/chat/completions": frozenset(
        _GENERATION
        | {
            "model", "messages", "max_tokens", "max_completion_tokens", "logprobs", "top_logprobs", "tools", "tool_choice",
            "parallel_tool_calls", "functions", "function_call", "reasoning_effort", "verbosity", "modalities",
            "prediction", "echo", "add_generation_prompt", "continue_final_message", "documents", "chat_template_kwargs",
            "include_reasoning", "separate_reasoning",
        }
    ),
    "/v1/completions": frozenset(
        _GENERATION | {"model", "prompt", "max_tokens", "best_of", "echo", "logprobs", "suffix"}
    ),
    "/v1/embeddings": frozenset(
        {"model", "input", "encoding_format", "dimensions", "user", "truncate_prompt_tokens", "truncation_side",
         "add_special_tokens", "normalize"}
    ),
    "/v1/responses": frozenset(
        _SAMPLING - {"n"} | _LABELS | _STREAM | {
            "model", "input", "instructions", "max_output_tokens", "max_tool_calls", "include", "parallel_tool_calls",
            "reasoning", "text", "tools", "tool_choice", "top_logprobs", "truncation", "top_k", "repetition_penalty",
            "ignore_eos", "skip_special_tokens", "include_stop_str_in_output", "structured_outputs",
        }
    ),
}  # fmt: skip

# Refused with their own reason, because people do send them.
_ENGINE_INTERNAL = {
    "kv_transfer_params", "ec_transfer_params", "chat_template", "mm_processor_kwargs", "media_io_kwargs",
    "logits_processors", "custom_logit_processor", "custom_params", "cache_salt", "extra_key", "priority", "request_id",
    "rid", "session_id", "session_params", "vllm_xargs", "extra_args", "prompt_embeds", "lora", "lora_path", "id_slot",
    "slot_id", "cache_prompt", "bootstrap_host", "bootstrap_port", "bootstrap_room", "data_parallel_rank",
    "routed_dp_rank", "return_hidden_states", "guided_decoding_backend", "use_beam_search", "stream_interval",
}  # fmt: skip
_STATEFUL = {"previous_response_id", "previous_response", "previous_input_messages", "conversation", "prompt", "background",
             "context_management"}  # fmt: skip
_HOSTED = {"web_search_options", "audio", "moderation"}

# What templates of reasoning models read; anything else would reach the template engine's own arguments.
TEMPLATE_KWARGS = frozenset(
    {"enable_thinking", "thinking", "thinking_budget", "preserve_thinking", "clear_thinking", "reasoning_effort"}
)


def problems(body: dict[str, Any], url: str) -> Iterator[Finding]:
    """One finding for each key that a request to `url` may not have."""
    allowed = ALLOWED[url]
    for key, value in body.items():
        if key not in allowed and not (key in _STATEFUL and value in (None, False)):
            message = _reason(key, url)
            yield Finding(code="unsupported_parameter", message=message, param=f"body.{key}"[:80])
    if "chat_template_kwargs" in body and "chat_template_kwargs" in allowed:
        yield from _template_problems(body["chat_template_kwargs"])


def _reason(key: str, url: str) -> str:
    shown = repr(key if len(key) <= 60 else f"{key[:57]}…")
    if key in _ENGINE_INTERNAL:
        return f"{shown} changes how the engine works, not this request; remove it"
    if key in _STATEFUL and (url == "/v1/responses" or key != "prompt"):
        return f"{shown} needs what another request left behind; in a batch each line stands alone: remove it"
    if key in _HOSTED:
        return f"{shown} is a service of OpenAI's that the engine does not have; remove it"
    near = difflib.get_close_matches(key[:60], ALLOWED[url], n=1, cutoff=0.8)
    return f"{shown} is no parameter of {url}; {f'did you mean {near[0]!r}?' if near else 'remove it'}"


def _template_problems(given: object) -> Iterator[Finding]:
    if is_harmless_template_kwargs(given):
        return
    known = ", ".join(sorted(TEMPLATE_KWARGS))
    message = f"chat_template_kwargs may hold {known} with simple values, and nothing else"
    yield Finding(code="unsupported_parameter", message=message, param="body.chat_template_kwargs")


def is_harmless_template_kwargs(given: object) -> bool:
    """
    >>> is_harmless_template_kwargs({"enable_thinking": False}), is_harmless_template_kwargs({"tokenize": True})
    (True, False)
    """
    if given is None:
        return True
    return isinstance(given, dict) and all(
        key in TEMPLATE_KWARGS and not isinstance(value, (dict, list)) for key, value in given.items()
    )
