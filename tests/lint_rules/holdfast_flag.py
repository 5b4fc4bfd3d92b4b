"""Rule holdfast-flag."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from holdfast_house import HouseRule, arguments, conditions, module

if TYPE_CHECKING:
    from ansiblelint.file_utils import Lintable
    from ansiblelint.utils import Task

CHANGED = re.compile(r"\bis\s+(not\s+)?changed\b|\.changed\b|\[.changed.\]|\|\s*changed\b")
FLAG = re.compile(r"restart|reload|changed")


class Flag(HouseRule):
    """Use handlers, no restart flags."""

    id = "holdfast-flag"
    description = (
        "A service restarts or reloads by a handler. A task that waits for another one to be changed (also as one of several conditions, "
        "which no-handler lets pass) or a fact that remembers it is lost when the run fails in between."
    )

    def fault(self, task: Task, file: Lintable) -> str:
        """Refuse conditions on `changed` in tasks, and facts that remember a change."""
        if module(task) == "set_fact" and (flags := [name for name in arguments(task) if FLAG.search(name)]):
            return f"Notify a handler instead of the fact {flags[0]}."
        if file.kind != "handlers" and any(CHANGED.search(item) for item in conditions(task.get("when"))):
            return "Notify a handler instead of asking whether another task changed something."
        return ""
