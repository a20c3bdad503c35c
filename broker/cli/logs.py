"""Where log events go: standard error, and nowhere else. Readable on a terminal, JSON lines everywhere else."""

from __future__ import annotations

import logging
import sys
from typing import Literal, TextIO

import structlog


def without_content(record: logging.LogRecord) -> bool:
    """Leave of an error its kind alone: neither its message nor its trace. Always lets the record through."""
    if record.exc_info and record.exc_info[0] is not None:
        record.msg, record.args = f"{record.getMessage()}: {record.exc_info[0].__name__}", ()
        record.exc_info = record.exc_text = None
    return True


def configure(level: str, form: Literal["auto", "json", "console"] = "auto") -> None:
    """For this process. `level` is a name of the standard library's: debug, info, warning, error."""
    threshold = logging.getLevelNamesMapping()[level.upper()]
    live = form == "console" or (form == "auto" and sys.stderr.isatty())
    _of_libraries(max(threshold, logging.WARNING), live=live)
    # a request that cannot be parsed is logged with what was read of it, and that may be somebody's key
    logging.getLogger("aiohttp.server").addFilter(without_content)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([] if live else [structlog.processors.format_exc_info]),
            structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
            if live
            else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
    )


def _of_libraries(level: int, *, live: bool) -> None:
    """What libraries log, and Python's warnings: in the form of our own events, for collectors that read JSON."""
    root, handler = logging.getLogger(), _Ours(sys.stderr)
    if live:
        handler.setFormatter(logging.Formatter("%(name)s %(message)s"))
    else:
        processors = structlog.processors
        known = [structlog.stdlib.add_log_level, structlog.stdlib.add_logger_name]
        handler.setFormatter(
            structlog.stdlib.ProcessorFormatter(
                foreign_pre_chain=[*known, processors.TimeStamper(fmt="iso", utc=True)],
                processors=[
                    structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                    processors.format_exc_info,
                    processors.JSONRenderer(),
                ],
            )
        )
    for earlier in [each for each in root.handlers if isinstance(each, _Ours)]:
        root.removeHandler(earlier)
    root.addHandler(handler)
    root.setLevel(level)
    logging.captureWarnings(True)


class _Ours(logging.StreamHandler[TextIO]):
    """Known by its kind, so that a second `configure` replaces it and leaves others' handlers alone."""
