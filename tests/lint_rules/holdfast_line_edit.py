"""Rule holdfast-line-edit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from holdfast_house import HouseRule, comment_above, module

if TYPE_CHECKING:
    from ansiblelint.file_utils import Lintable
    from ansiblelint.utils import Task


class LineEdit(HouseRule):
    """Own whole files; an edited line needs a reason."""

    id = "holdfast-line-edit"
    description = (
        "A file is ours as a whole, or a drop-in is. Where lineinfile, blockinfile or replace is the only way, a comment directly above "
        "the task says why."
    )

    def fault(self, task: Task, file: Lintable) -> str:
        """Refuse edits of lines that have no comment above."""
        if module(task) not in ("lineinfile", "blockinfile", "replace") or comment_above(file, task.line):
            return ""
        return f"Write the whole file or a drop-in, or say in a comment above the task why {module(task)} is the only way."
