"""`python agent.pyz run --config agent.json`: the agent. `guard` and `llamacpp` are its own children (see there).

Exit statuses: 0 ended as told; 1 a defect of the agent; 2 usage or configuration; 3 a module is missing; 4 dismissed by
the broker; 5 the engine failed; 6 no answer from the broker for too long; 7 the broker refuses the agent's work.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

from workers.agent import VERSION
from workers.agent.errors import AgentError, Missing
from workers.agent.log import event


def main(argv: list[str]) -> int:
    if argv[:2] == ["guard", "--"] and len(argv) > 2:
        from workers.agent import guard  # noqa: PLC0415 - starts in milliseconds because it loads nothing else

        return guard.main(argv[2:])
    try:
        if argv[:1] == ["llamacpp"]:
            from workers.agent import llamacpp  # noqa: PLC0415 - needs no aiohttp

            return llamacpp.main(argv[1:])
        return _run(_arguments(argv).config)
    except AgentError as error:
        event("agent.ended", error=str(error), kind=type(error).__name__, status=error.exit_status)
        return error.exit_status


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="agent.pyz", description="Works for a compute broker on this machine.")
    parser.add_argument("--version", action="version", version=VERSION)
    commands = parser.add_subparsers(dest="command", required=True, metavar="run")
    run = commands.add_parser("run", help="dial the broker and work until told to stop")
    run.add_argument("--config", type=Path, required=True, help="agent.json as the launcher wrote it")
    return parser.parse_args(argv)


def _run(path: Path) -> int:
    if importlib.util.find_spec("aiohttp") is None:
        raise Missing(
            f"the Python at {sys.executable} has no module 'aiohttp'; install it there (aiohttp>=3.9) "
            "or start the agent with the Python of the engine's image"
        )
    import asyncio  # noqa: PLC0415 - with aiohttp, whose absence was to be told first

    from workers.agent import run  # noqa: PLC0415
    from workers.agent.config import read_config  # noqa: PLC0415

    config = read_config(path)
    event("agent.started", version=VERSION, rental=config.rental_id, python=sys.version.split()[0])
    if importlib.util.find_spec("uvloop") is None:
        status = asyncio.run(run.run(config))
    else:
        import uvloop  # type: ignore[import-not-found,unused-ignore] # noqa: PLC0415

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            status = runner.run(run.run(config))
    event("agent.ended", status=status)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
