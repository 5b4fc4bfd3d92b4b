"""What our ansible-lint rules share: `ansible-lint` puts this folder on the path when it loads them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ansiblelint.rules import AnsibleLintRule

if TYPE_CHECKING:
    from ansiblelint.file_utils import Lintable
    from ansiblelint.utils import Task

COMMANDS = ("command", "shell", "raw", "script", "expect")


class HouseRule(AnsibleLintRule):
    """A rule of this repository: subclasses say in `fault` what is wrong with a task."""

    severity = "MEDIUM"
    version_changed = "1.0.0"
    tags = ["idiom"]

    def matchtask(self, task: Task, file: Lintable | None = None) -> str:
        """Return the fault of the task, or nothing."""
        return self.fault(task, file) if file is not None else ""

    def fault(self, task: Task, file: Lintable) -> str:
        """Say what is wrong with the task; an empty text is praise."""
        raise NotImplementedError


def module(task: Task) -> str:
    """Return the module's short name."""
    return str(task["action"]["__ansible_module__"]).rsplit(".", maxsplit=1)[-1]


def arguments(task: Task) -> dict[str, Any]:
    """Return the module's arguments; none where they are one template."""
    found = task.args
    return dict(found) if isinstance(found, dict) else {}


def conditions(value: Any) -> list[str]:
    """Return a `when` as a list of texts."""
    if value is None:
        return []
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


def text(value: Any) -> str:
    """Return a value as one text to search in."""
    return json.dumps(value, default=str, ensure_ascii=False)


def role(file: Lintable) -> str:
    """Return the name of the role that a file is in, or nothing."""
    parts = file.path.parts
    return parts[len(parts) - 1 - parts[::-1].index("roles") + 1] if "roles" in parts[:-1] else ""


def comment_above(file: Lintable, line: int) -> str:
    """Return the comment lines that stand directly above a line (counted from 1)."""
    return " ".join(reversed(list(_comment_lines(file.content.splitlines()[: line - 1]))))


def _comment_lines(lines: list[str]) -> Iterator[str]:
    for item in reversed(lines):
        if not item.strip().startswith("#"):
            return
        yield item.strip().lstrip("# ")
