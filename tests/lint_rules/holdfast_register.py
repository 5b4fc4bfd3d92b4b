"""Rule holdfast-register."""

from __future__ import annotations

from typing import TYPE_CHECKING

from holdfast_house import HouseRule, arguments, module, role

if TYPE_CHECKING:
    from ansiblelint.file_utils import Lintable
    from ansiblelint.utils import Task


class Register(HouseRule):
    """Name internals __<role>_x."""

    id = "holdfast-register"
    description = (
        "What a role registers, sets as a fact, loops with or keeps as a task variable is internal and begins with `__<role>_`: an input "
        "of that name could otherwise be overwritten, and a reader could take it for one."
    )

    def fault(self, task: Task, file: Lintable) -> str:
        """Refuse internals that do not begin with two underscores and the role's name."""
        if not (name := role(file)):
            return ""
        prefix = f"__{name}_"
        names = [str(task.get("register") or prefix), *map(str, task.get("vars") or {})]
        if control := task.get("loop_control"):
            names += [str(control.get(key) or prefix) for key in ("loop_var", "index_var")]
        if module(task) == "set_fact":
            names += [key for key in arguments(task) if key != "cacheable"]
        # Variables of an included role are its inputs; preflight alone includes other roles.
        wrong = [
            item for item in names if not item.startswith((prefix, "ansible_")) and not item.endswith("__")
        ]  # __file__ and __line__ are the linter's
        return f"Call it {prefix}{wrong[0].lstrip('_').removeprefix(f'{name}_')}, not {wrong[0]}." if wrong else ""
