"""What is wrong with a failed line, in one form: the error that was written, or what the engine's refusal says."""

from __future__ import annotations

import msgspec

from jobs.part_objects import AnswerError, AnswerLine, AnswerResponse

MAX_MESSAGE_CHARS = 1_000  # an engine may answer a refusal with a page of text; the whole is in the error file


class _EngineError(msgspec.Struct):
    message: str | None = None
    code: str | int | None = None
    type: str | None = None


class _Refusal(msgspec.Struct):
    """OpenAI's error envelope, and the bare object that some engines answer instead."""

    error: _EngineError | str | None = None
    message: str | None = None
    type: str | None = None


_refusals = msgspec.json.Decoder(_Refusal)


def error_of(line: AnswerLine) -> AnswerError | None:
    """Code and message of a line that failed; None when neither an error nor an answer was written.

    >>> refused = msgspec.Raw(b'{"error": {"message": "too long", "code": 400, "type": "BadRequestError"}}')
    >>> error_of(AnswerLine("a", AnswerResponse(400, "r", refused), None))
    AnswerError(code='BadRequestError', message='too long', line=None)
    """
    if line.error is not None or line.response is None:
        return line.error
    return _refused(line.response)


def _refused(response: AnswerResponse) -> AnswerError:
    status = f"http_{response.status_code}"
    try:
        said = _refusals.decode(response.body)
    except msgspec.MsgspecError:
        return AnswerError(status, bytes(response.body).decode("utf-8", "replace")[:MAX_MESSAGE_CHARS])
    error = said.error if isinstance(said.error, _EngineError) else _EngineError(said.message, None, said.type)
    # some engines repeat the HTTP status as a number in `code`; their `type` says more
    code = error.code if isinstance(error.code, str) else error.type
    message = said.error if isinstance(said.error, str) else error.message
    return AnswerError(code or status, (message or f"the engine answered {response.status_code}")[:MAX_MESSAGE_CHARS])
