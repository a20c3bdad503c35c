"""What can end the agent, or end one of its dealings. `exit_status` is what the process then returns."""

from __future__ import annotations

from typing import ClassVar


class AgentError(Exception):
    """The agent cannot go on."""

    exit_status: ClassVar[int] = 1


class BadConfig(AgentError):
    """The configuration file is missing, unreadable or incomplete."""

    exit_status = 2


class Missing(AgentError):
    """The machine's Python lacks a module that is needed."""

    exit_status = 3


class Dismissed(AgentError):
    """The broker no longer wants this machine: 401, 403, 422 to hello, or a revoked placement."""

    exit_status = 4


class EngineFailed(AgentError):
    """The engine cannot be started, does not stay up, or refuses our credentials."""

    exit_status = 5


class Forgotten(AgentError):
    """The broker has not answered for `dead_man_s`."""

    exit_status = 6


class ProtocolDefect(AgentError):
    """The broker refuses, again and again, what the agent believes to be right."""

    exit_status = 7


class Refused(Exception):
    """The broker answered one call with a 4xx other than 401, 403, 425 and 429. Asking again would not help."""

    def __init__(self, call: str, status: int, body: str) -> None:
        super().__init__(f"{call}: the broker answered {status}: {body[:500]}")
        self.call = call
        self.status = status
