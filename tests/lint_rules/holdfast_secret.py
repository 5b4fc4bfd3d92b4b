"""Rule holdfast-secret."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from holdfast_house import HouseRule, arguments, module, text

if TYPE_CHECKING:
    from ansiblelint.file_utils import Lintable
    from ansiblelint.utils import Task

SECRET = re.compile(r"[a-z0-9_]+_(password|passwords|secret|secrets|secret_key|token|credentials)\b")
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
        given = arguments(task)
        if hidden and module(task) in GROUPS:
            return "Set no_log on the very task that needs it, not on a group of tasks."
        found = SECRET.search(text({**given, "environment": task.get("environment")}))
        # A path such as /run/app_secrets is no secret: only what a template fills in is.
        if not hidden and found and "{{" in text(given) + text(task.get("environment")) and module(task) not in (*GROUPS, "refuse"):
            return f"The task shows {found.group()} when it fails: add `no_log: true`."
        if hidden and not ABOUT_SECRETS.search(text([task.name, task.get("loop"), task.get("environment"), given])):
            return "Nothing in this task is secret: take no_log away, it hides why the task fails."
        return ""
