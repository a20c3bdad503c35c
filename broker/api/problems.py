"""What the API itself refuses, before or beside any room: a wrong key, a malformed body, a media type."""

from __future__ import annotations

from collections.abc import Mapping


class Problem(Exception):
    """A refusal with everything that its answer needs: HTTP status, OpenAI envelope fields, extra headers."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.headers = dict(headers or {})


def bad_request(code: str, message: str, param: str | None = None) -> Problem:
    return Problem(400, code, message, param=param)


def not_found(code: str, message: str) -> Problem:
    return Problem(404, code, message)


def unauthorized(code: str, message: str) -> Problem:
    return Problem(401, code, message, headers={"WWW-Authenticate": 'Bearer realm="broker"'})


def forbidden(code: str, message: str) -> Problem:
    return Problem(403, code, message)


def conflict(code: str, message: str, param: str | None = None) -> Problem:
    """A conflict that asking again cannot mend. Never 409: the stock clients retry that (research/api_worker.md §1.2)."""
    return Problem(422, code, message, param=param, headers={"x-should-retry": "false"})


def unavailable(code: str, message: str, retry_after_s: int = 1) -> Problem:
    return Problem(503, code, message, headers={"Retry-After": str(retry_after_s)})
