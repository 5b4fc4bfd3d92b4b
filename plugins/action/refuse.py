"""Refuse inputs that a role can't work with: all of them at once, each in one sentence."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    """Take `rules`, a list of `when` (a condition) and `because` (variable, value, way out); fail where a condition holds.

    It runs on the controller and changes nothing. The result carries `faults`, the sentences of the rules that held.
    """

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Evaluate every rule."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, given = self.validate_argument_spec(
            argument_spec={
                "rules": {
                    "type": "list",
                    "elements": "dict",
                    "required": True,
                    "options": {"when": {"type": "raw", "required": True}, "because": {"type": "str", "required": True}},
                },
            },
        )
        faults = [rule["because"] for rule in given["rules"] if self._templar.evaluate_conditional(rule["when"])]
        result["changed"] = False
        if faults:
            host = (task_vars or {}).get("inventory_hostname", "the host")
            result.update(failed=True, faults=faults, msg=f"Nothing was changed on {host}. " + " ".join(faults))
        return result
