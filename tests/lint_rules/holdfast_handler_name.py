"""Rule holdfast-handler-name."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from holdfast_house import HouseRule

if TYPE_CHECKING:
    from ansiblelint.file_utils import Lintable
    from ansiblelint.utils import Task

NAME = re.compile(r"^(Reload|Restart|Update|Apply|Create|Load) [a-zA-Z]")


class HandlerName(HouseRule):
    """Name handlers Reload x, Restart x."""

    id = "holdfast-handler-name"
    description = (
        "A handler says what it does to which service: `Reload x`, `Restart x`; for what is no service `Update`, `Apply`, `Create`, `Load`."
    )
    tags = ["formatting"]

    def fault(self, task: Task, file: Lintable) -> str:
        """Refuse handlers with other names."""
        name = task.name or ""
        if file.kind != "handlers" or NAME.match(name):
            return ""
        return f"Call the handler 'Reload …' or 'Restart …' (or Update, Apply, Create, Load), not '{name}'."
