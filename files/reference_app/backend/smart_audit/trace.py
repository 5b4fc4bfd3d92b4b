"""W3C trace context: one trace id from the browser's request to the worker's last log line."""

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


@dataclass(frozen=True)
class Trace:
    """One hop of a trace.

    Attributes:
        trace_id: 32 hexadecimal digits, the same on every hop.
        span_id: 16 hexadecimal digits, new on every hop.
        flags: two hexadecimal digits; bit 0 says that the trace is sampled.
    """

    trace_id: str
    span_id: str
    flags: str = "01"

    @property
    def traceparent(self) -> str:
        """The header that hands this trace on."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags}"


_current: ContextVar[Trace | None] = ContextVar("trace", default=None)


def current() -> Trace | None:
    """Return the trace that the running code belongs to, if any."""
    return _current.get()


def continue_from(traceparent: str | None) -> Trace:
    """Return the next hop of `traceparent`, or the first hop of a new trace where the header is absent or malformed."""
    match = _TRACEPARENT.fullmatch((traceparent or "").strip())
    if match:
        version, trace_id, parent_id, flags, rest = match.groups()
        well_formed = version != "ff" and not (version == "00" and rest) and trace_id.strip("0") and parent_id.strip("0")
        if well_formed:
            return Trace(trace_id, secrets.token_hex(8), flags)
    return Trace(secrets.token_hex(16), secrets.token_hex(8))


@contextmanager
def use(trace: Trace) -> Iterator[Trace]:
    """Make `trace` the current one inside the block."""
    token = _current.set(trace)
    try:
        yield trace
    finally:
        _current.reset(token)
