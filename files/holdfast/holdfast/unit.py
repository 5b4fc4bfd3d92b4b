"""What systemd tells a unit of its own end, in ExecStopPost=."""

from __future__ import annotations

import os


def ended_from_outside() -> str:
    """Return what ended it (timeout, oom-kill, signal …); nothing where its program ended by itself, and has recorded how it went."""
    result = os.environ.get("SERVICE_RESULT", "success")
    return "" if result in ("success", "exit-code") else result
