"""The action plugin systemd_unit: a check passes over a unit that is not there yet, and nothing else is passed over."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ansible.module_utils.service import fail_if_missing
from ansible.plugins.action import ActionBase

from plugins.action import systemd_unit

TIMER = {"name": "x.timer", "enabled": True, "state": "started"}


def missing() -> dict[str, Any]:
    """What the module answers where there is no such unit, in its own words."""
    said: dict[str, Any] = {"failed": True}
    fail_if_missing(SimpleNamespace(fail_json=said.update), found=False, service="x.timer", msg="host")
    return said


def play(monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], answer: dict[str, Any], *, check: bool) -> dict[str, Any]:
    """Run the plugin on a host that answers so."""
    asked: list[dict[str, Any]] = []

    def module(**call: Any) -> dict[str, Any]:
        asked.append(call)
        return answer

    task = SimpleNamespace(args=given, check_mode=check, diff=False, async_val=0, action="systemd_unit", environment=[])
    action = systemd_unit.ActionModule(task, SimpleNamespace(), SimpleNamespace(), None, None, None)
    monkeypatch.setattr(ActionBase, "run", lambda *_: {})
    monkeypatch.setattr(action, "_execute_module", module)
    found: dict[str, Any] = action.run(None, {})
    assert [(call["module_name"], call["module_args"]) for call in asked] == [("ansible.builtin.systemd_service", given)]
    return found


@pytest.mark.parametrize(
    ("given", "changed"),
    [
        (TIMER, True),
        ({"name": "x.timer", "state": "restarted", "daemon_reload": True}, True),
        ({"name": "x.timer", "enabled": "true"}, True),
        ({"name": "x.timer", "enabled": "false", "state": "stopped"}, False),
    ],
)
def test_check_passes_over_a_missing_unit(given: dict[str, Any], *, changed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts as changed where a run would lift it."""
    found = play(monkeypatch, given, missing(), check=True)
    assert found == {"changed": changed, "name": "x.timer"}


def test_run_fails_without_the_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert play(monkeypatch, TIMER, missing(), check=False)["failed"]


def test_check_tells_of_other_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = {"failed": True, "msg": "Error loading unit file 'x.timer': bad-setting"}
    assert play(monkeypatch, TIMER, broken, check=True) == broken


@pytest.mark.parametrize("check", [True, False])
def test_unit_that_is_there(*, check: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = {"changed": False, "name": "x.timer", "status": {"ActiveState": "active"}}
    assert play(monkeypatch, TIMER, answer, check=check) == answer
