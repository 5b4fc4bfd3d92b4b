"""Keep a unit as ansible.builtin.systemd_service does, but let a check pass over a unit that only a run would bring."""

from __future__ import annotations

from typing import Any

from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase

# The module asks for the unit in check mode as well, and these are its words where there is none.
MISSING = "Could not find the requested service"


class ActionModule(ActionBase):
    """Take the arguments of ansible.builtin.systemd_service, and answer what it answers.

    A check of a host that has the package and not yet our unit (a new one, or one whose run broke off) says that the unit changes, as a run
    would have it; a run without the unit fails.
    """

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Call the module."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        given = self._task.args
        done: dict[str, Any] = self._execute_module(
            module_name="ansible.builtin.systemd_service", module_args=given, task_vars=task_vars, wrap_async=False
        )
        if self._task.check_mode and done.get("failed") and MISSING in str(done.get("msg")):
            # A unit that is to be off is so from its first moment on.
            wanted = given.get("state", "stopped") != "stopped" or boolean(given.get("enabled", False), strict=False)
            return result | {"changed": wanted, "name": given.get("name")}
        return result | done
