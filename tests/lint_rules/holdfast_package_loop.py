"""Rule holdfast-package-loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from holdfast_house import HouseRule, module

if TYPE_CHECKING:
    from ansiblelint.file_utils import Lintable
    from ansiblelint.utils import Task

PACKAGE_MODULES = ("apt", "package", "dpkg_selections", "pip", "deb822_repository")


class PackageLoop(HouseRule):
    """Give a package module its list, do not loop."""

    id = "holdfast-package-loop"
    description = "One task with a list resolves the packages together and costs one connection; a loop installs them one by one."

    def fault(self, task: Task, file: Lintable) -> str:
        """Refuse loops around package modules."""
        loops = [key for key in task if key == "loop" or key.startswith("with_")]
        return f"Give {module(task)} the whole list instead of a loop." if loops and module(task) in PACKAGE_MODULES else ""
