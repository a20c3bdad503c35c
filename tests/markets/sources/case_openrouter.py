"""OpenRouter: a priced model, a free one, one that depends, one that charges by the request, a painter."""

from __future__ import annotations

from typing import Any

from markets.sources.openrouter import OpenRouterSource
from tests.markets.sources.cases import Case


def model(name: str, prompt: str, completion: str, *, writes: str = "text", **more: str) -> dict[str, Any]:
    return {
        "id": name, "canonical_slug": name, "name": name, "created": 1_733_506_137, "description": "…", "context_length": 131_072,
        "architecture": {"input_modalities": ["text"], "output_modalities": [writes], "tokenizer": "Llama3", "modality": None},
        "pricing": {"prompt": prompt, "completion": completion, "request": "0", "image": "0", **more},
        "top_provider": {"context_length": 131_072, "max_completion_tokens": 16_384, "is_moderated": False},
        "per_request_limits": None, "supported_parameters": ["max_tokens"], "default_parameters": None, "supported_voices": None,
        "links": {"details": f"/api/v1/models/{name}/endpoints"},
    }  # fmt: skip


MODELS = [
    model("meta-llama/llama-3.3-70b-instruct", "0.0000001", "0.00000032", input_cache_read="0.00000005"),
    model("meta-llama/llama-3.3-70b-instruct:free", "0", "0"),
    model("openrouter/auto", "-1", "-1"),
    model("perplexity/sonar-pro-search", "0.000003", "0.000015", request="0.018"),
    model("black-forest-labs/flux.2", "0.000001", "0.000001", writes="image"),
]

CASE = Case(
    name="openrouter",
    make=lambda _, reach: OpenRouterSource(reach),
    answers={"GET /api/v1/models": {"data": MODELS, "links": {"next": None}, "total_count": len(MODELS)}},
    offers=4,
    is_public=True,
)
