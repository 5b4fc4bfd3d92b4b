"""Rule holdfast-secret."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from holdfast_house import HouseRule, arguments, comment_above, module, text

if TYPE_CHECKING:
    from ansiblelint.file_utils import Lintable
    from ansiblelint.utils import Task

SECRET = re.compile(r"\b[a-z0-9_]+_(?:password|passwords|secret|secrets|secret_key|token|credentials)\b")
SECRET_PARAMETER = re.compile(r"password|secret|token|access_key")
TEMPLATE = re.compile(r"\{\{.*?\}\}")
ABOUT_SECRETS = re.compile(r"password|secret|key|token|credential|scram|login|vault|certificate|acl", re.IGNORECASE)
GROUPS = ("import_tasks", "include_tasks", "import_role", "include_role", "block/always/rescue")


class Secret(HouseRule):
    """Hide secrets, and only them."""

    id = "holdfast-secret"
    description = (
        "A task whose arguments hold a secret has `no_log: true`. A task that has nothing to do with secrets does not: blanket silence "
        "hides faults. `no_log` never stands on a block or an import. A template's task needs `diff: false` (a convention test sees to it)."
    )
    tags = ["security"]

    def fault(self, task: Task, file: Lintable) -> str:
        """Refuse secrets without `no_log`, and `no_log` without secrets."""
        hidden = task.get("no_log") not in (None, False)
        if hidden and module(task) in GROUPS:
            return "Set no_log on the very task that needs it, not on a group of tasks."
        # A parameter of such a name is masked by its module; what passes through any other one is printed.
        given = {name: value for name, value in arguments(task).items() if not SECRET_PARAMETER.search(name)}
        shown = text([given, task.get("environment"), task.get("loop")])
        found = next((name for part in TEMPLATE.findall(shown) for name in SECRET.findall(part)), "")
        if not hidden and found and module(task) not in (*GROUPS, "refuse", "assert"):
            return f"The task shows {found} when it fails: add `no_log: true`."
        if hidden and not ABOUT_SECRETS.search(
            text([task.name, task.get("loop"), task.get("environment"), arguments(task), comment_above(file, task.line)])
        ):
            return "Nothing in this task is secret: take no_log away, it hides why the task fails."
        return ""
