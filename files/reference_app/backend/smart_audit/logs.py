"""Logs: one JSON object a line on standard output, each with the trace id of what it belongs to."""

import json
import logging
import sys
from datetime import datetime, timezone
from typing import Any

from smart_audit import trace


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON; `extra={"fields": {...}}` adds members."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without a newline in it."""
        current = trace.current()
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            # Lines outside any request (start, stop) carry the member too, so that no reader needs a special case.
            "trace_id": current.trace_id if current else None,
        }
        if current:
            line["span_id"] = current.span_id
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure(level: str) -> None:
    """Send every logger of the process to standard output as JSON, from `level` on."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)
    for noisy in ("urllib3", "alembic.runtime.plugins"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
