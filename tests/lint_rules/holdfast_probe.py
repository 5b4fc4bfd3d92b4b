"""Rule holdfast-probe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from holdfast_house import COMMANDS, HouseRule, comment_above, module, role

if TYPE_CHECKING:
    from ansiblelint.file_utils import Lintable
    from ansiblelint.utils import Task


class Probe(HouseRule):
    """Let probes run in check mode too."""

    id = "holdfast-probe"
    description = (
        "A command that only reads (`changed_when: false`) has `check_mode: false`: without it a check skips the probe, and what needs its "
        "result fails or reports nonsense. A command that may change something has it only "
        "where a comment above says why a check is safe."
    )
    tags = ["idempotency"]

    def fault(self, task: Task, file: Lintable) -> str:
        """Refuse probes that a check skips, and changes that a check makes."""
        if not role(file) or module(task) not in COMMANDS or file.kind == "handlers":
            return ""
        reads = task.get("changed_when") in (False, "false", ["false"], [False])
        runs = task.get("check_mode") in (False, "false")
        if reads and not runs:
            return "A command that only reads needs `check_mode: false` beside `changed_when: false`."
        if runs and not reads and "check" not in comment_above(file, task.line):
            return (
                "A command that may change something must not run in a check: take `check_mode: false` away, or say above why it is safe."
            )
        return ""
