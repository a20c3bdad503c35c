"""vLLM's own judgement of command lines, run by a Python that has vLLM: cases as JSON lines in, answers as JSON lines out.

    {"argv": […after `vllm serve`…], "env": {…}, "config": true}  →  {"values": {…}} or {"error": "…"}

`values` are what `vllm serve`'s parser made of the words, as AsyncEngineArgs and the server's own arguments have them; with
`config` also what vLLM's engine configuration makes of them on this machine. The first line out is `{"options": …}`: every
option of the parser, which `make test` holds the broker's tables against.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import os
import sys
from typing import Any, get_args

from vllm import envs
from vllm.config.speculative import SpeculativeMethod
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.exceptions import VLLMValidationError
from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS, get_quantization_config
from vllm.utils.argparse_utils import FlexibleArgumentParser

REFUSALS = (
    VLLMValidationError,
    ValueError,
    TypeError,
    RuntimeError,
    OSError,
    ImportError,
    AssertionError,
    LookupError,
    AttributeError,
)


def main() -> int:
    parser = make_arg_parser(FlexibleArgumentParser())
    say({"options": described(parser), "facts": facts()})
    for row in sys.stdin:
        case = json.loads(row)
        os.environ.update(case["env"])
        try:
            with contextlib.redirect_stderr(io.StringIO()) as words:
                given = parser.parse_args(case["argv"])
                given.model = given.model_tag  # as `vllm serve` does
                validate_parsed_serve_args(given)
            values = {name: plain(value) for name, value in vars(given).items()}
            engine = AsyncEngineArgs.from_cli_args(given)
            values |= {name: plain(getattr(engine, name)) for name in vars(engine)}
            values["env.VLLM_BATCH_INVARIANT"] = bool(envs.VLLM_BATCH_INVARIANT)
            if case.get("config"):
                values |= configured(engine)
            say({"values": values})
        except SystemExit:
            say({"error": words.getvalue().strip().splitlines()[-1]})
        except REFUSALS as refused:
            say({"error": f"{type(refused).__name__}: {refused}"})
        for name in case["env"]:
            os.environ.pop(name)
    return 0


def configured(engine: Any) -> dict[str, Any]:
    config = engine.create_engine_config()
    return {
        "config.max_num_seqs": config.scheduler_config.max_num_seqs,
        "config.max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
        "config.max_model_len": config.model_config.max_model_len,
        "config.dtype": str(config.model_config.dtype),
        "config.prefix_caching": config.cache_config.enable_prefix_caching,
        "config.structured_outputs": config.structured_outputs_config.backend,
        "config.lora": config.lora_config and config.lora_config.max_lora_rank,
        "config.speculation": config.speculative_config and config.speculative_config.method,
        "config.kv_connector": config.kv_transfer_config and config.kv_transfer_config.kv_connector,
    }


def described(parser: argparse.ArgumentParser) -> dict[str, Any]:
    return {
        flag: {"choices": sorted(map(str, action.choices)) if action.choices else None, "takes": action.nargs != 0}
        for action in parser._actions
        for flag in action.option_strings
        if flag.startswith("--")
    }


def facts() -> dict[str, Any]:
    """What vLLM's sources say and its parser does not: the least compute capability of each quantisation, the methods."""
    least = {}
    for name in ("fp8", "awq", "gptq", "modelopt_fp4", "compressed-tensors"):
        made = get_quantization_config(name)
        least[name] = {
            "capability": made.get_min_capability(),
            "dtypes": sorted(str(each).removeprefix("torch.") for each in _act_dtypes(made)),
        }
    return {
        "quantization": sorted(QUANTIZATION_METHODS),
        "least": least,
        "speculative_methods": sorted({each for each in _flat(get_args(SpeculativeMethod)) if isinstance(each, str)}),
    }


def _act_dtypes(made: Any) -> Any:
    try:
        return made.get_supported_act_dtypes()
    except TypeError:  # an instance method in some, which does not look at itself
        return made.get_supported_act_dtypes(None)


def _flat(values: Any) -> Any:
    for value in values:
        inner = get_args(value)
        yield from _flat(inner) if inner else [value]


def plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(inner) for inner in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def say(answer: dict[str, Any]) -> None:
    sys.__stdout__.write("\x1e" + json.dumps(answer) + "\n")  # the mark tells our lines from vLLM's own
    sys.__stdout__.flush()


if __name__ == "__main__":
    sys.exit(main())
