"""Logs: lines for people on a terminal, JSON objects for machines."""

import json
import logging
import sys
import traceback
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

# Tasks and threads that a call starts inherit it, so their lines carry the call's fields too.
_bound: ContextVar[Mapping[str, Any]] = ContextVar("log_fields", default={})  # noqa: B039  never changed in place


def bind_log_fields(**fields: Any) -> None:
    """Adds fields to every JSON line that this task, and whatever it starts from now on, logs."""
    _bound.set({**_bound.get(), **fields})


def log_fields(**fields: Any) -> dict[str, Any]:
    """What ``extra=`` takes: fields of one JSON line, as ``logger.info("text", extra=log_fields(rows=3))``."""
    return {"fields": fields}


def log_exception(logger: logging.Logger, what: str, error: BaseException) -> None:
    """Logs an unexpected exception as an ERROR: its type and where it came from.

    Its text may quote what a caller sent, so that is a line of its own at DEBUG.
    """
    frames = "".join(traceback.format_tb(error.__traceback__))
    logger.error("%s: %s", what, type(error).__name__, extra=log_fields(traceback=frames))
    logger.debug("the exception says: %s", error)


class _JsonFormatter(logging.Formatter):
    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
            **_bound.get(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class _PlainFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        frames = getattr(record, "fields", {}).get("traceback")
        return super().format(record) + ("" if frames is None else f"\n{frames.rstrip()}")


def configure_logging(service: str, *, level: str = "INFO", json_lines: bool | None = None) -> None:
    """Sends all logging to stderr; JSON when asked for, or when stderr is not a terminal."""
    handler = logging.StreamHandler(sys.stderr)
    if json_lines if json_lines is not None else not sys.stderr.isatty():
        handler.setFormatter(_JsonFormatter(service))
    else:
        handler.setFormatter(_PlainFormatter(f"%(asctime)s {service} %(levelname)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # Both log every request or download at INFO; what matters of them is in our own lines.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("transformers").setLevel(logging.ERROR)
