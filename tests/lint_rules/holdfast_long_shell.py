"""Rule holdfast-long-shell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from holdfast_house import HouseRule, arguments, module

if TYPE_CHECKING:
    from ansiblelint.file_utils import Lintable
    from ansiblelint.utils import Task

MOST_LINES = 3


class LongShell(HouseRule):
    """Keep shell in scripts of its own."""

    id = "holdfast-long-shell"
    description = "Shell of more than three lines is a script in files/ or templates/, where shellcheck reads it and a person can run it."

    def fault(self, task: Task, file: Lintable) -> str:
        """Refuse long inline shell."""
        given = arguments(task)
        lines = str(given.get("cmd") or given.get("_raw_params") or "").strip().splitlines()
        if module(task) not in ("shell", "raw") or len(lines) <= MOST_LINES:
            return ""
        return f"Move these {len(lines)} lines of shell into a script in files/ or templates/."
