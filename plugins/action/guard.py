"""Change what can lock the owner out (firewall, sshd): the host takes it back by itself unless a new connection gets in."""

from __future__ import annotations

import json
import time
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

PROGRAM = "/usr/local/bin/holdfast"
# After the host's own timer: a connection that was dropped is tried again by TCP only after some seconds, as is taking back what fails.
GRACE_SECONDS = 60
PAUSE_SECONDS = 1
FILE = {
    "path": {"type": "path", "required": True},
    "content": {"type": "str", "default": ""},
    "mode": {"type": "str", "default": "0644"},
    "validate": {"type": "list", "elements": "str", "default": []},
    "link": {"type": "str", "default": ""},
}


class ActionModule(ActionBase):
    """Hand whole files to `holdfast guard apply`, then confirm them over a connection made after the change.

    name: what is changed, one word.
    seconds: how long the host waits for that connection.
    files: `path`, `content`, `mode`, and `validate` (command; %s stands for a copy) of each file; `path` and `link` of a symlink.
    folders: folders in which no other file may lie.
    apply, retire, check: see `holdfast.guard.Request`.
    """

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_diff = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Apply, connect anew, confirm."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        commands: dict[str, Any] = {"type": "list", "elements": "list", "default": []}
        _, given = self.validate_argument_spec(
            argument_spec={
                "name": {"type": "str", "required": True},
                "seconds": {"type": "int", "required": True},
                "files": {"type": "list", "elements": "dict", "required": True, "options": FILE},
                "folders": {"type": "list", "elements": "path", "default": []},
                "apply": {**commands, "required": False},
                "retire": commands,
                "check": {"type": "list", "elements": "str", "default": []},
            },
        )
        name, seconds = given.pop("name"), given["seconds"]
        host = (task_vars or {}).get("inventory_hostname", "the host")
        checking, self._task.check_mode = self._task.check_mode, False
        # Ansible on the host itself makes no connection, so the change would confirm itself.
        local = self._connection.transport == "local"

        begun = time.monotonic()
        done = self._holdfast(["apply", name, *(["--check"] if checking or local else [])], task_vars, json.dumps(given))
        if checking and (done.get("rc") == 2 or "No such file" in str(done.get("msg"))):
            # A bare host has no such program yet.
            return result | {"changed": True}
        if done.get("failed"):
            return result | {"failed": True, "msg": str(done.get("stderr") or done.get("msg") or done).removeprefix("holdfast: ")}
        answer = json.loads(done["stdout"])
        result["diff"] = answer["difference"] if self._task.diff else []
        result["changed"] = answer["state"] != "unchanged"
        if local and result["changed"] and not checking:
            return result | {
                "failed": True,
                "changed": False,
                "msg": (
                    f"Nothing of {name} was changed on {host}, as only a new connection can confirm the change, "
                    "and ansible_connection is local: run from another machine, over ssh."
                ),
            }
        if answer["state"] != "armed":
            return result

        state = ""
        while state in ("", "restoring") and time.monotonic() < begun + seconds + GRACE_SECONDS:
            state = self._confirm(name, answer["token"], task_vars)
        if state == "confirmed":
            return result
        back = {
            "": "it has not come back since either: look at its console",
            "restoring": f"the host is taking it back, in which something fails: `journalctl --unit holdfast-guard-{name}` there says what",
        }.get(state, "the host took it back by itself and is as it was")
        return result | {
            "failed": True,
            "msg": (
                f"The new {name} kept new connections from {host} for {seconds} s, so {back}: correct the inputs of the role {name} "
                "(does it let in this user, from this address, on this port?) and run again."
            ),
        }

    def _confirm(self, name: str, token: str, task_vars: dict[str, Any] | None) -> str:
        """Try once to confirm over a new connection; return what the host says, or nothing where it can't be reached."""
        try:
            self._connection.reset()
            done = self._holdfast(["confirm", name, token], task_vars)
        except AnsibleConnectionFailure:
            done = {"unreachable": True}
        state = "" if done.get("unreachable") or done.get("failed") else str(json.loads(done["stdout"])["state"])
        if state in ("", "restoring"):
            time.sleep(PAUSE_SECONDS)
        return state

    def _holdfast(self, words: list[str], task_vars: dict[str, Any] | None, stdin: str | None = None) -> dict[str, Any]:
        arguments: dict[str, Any] = {"argv": [PROGRAM, "guard", *words], "_uses_shell": False}
        if stdin is not None:
            arguments |= {"stdin": stdin, "stdin_add_newline": False}
        done: dict[str, Any] = self._execute_module(
            module_name="ansible.legacy.command", module_args=arguments, task_vars=task_vars, wrap_async=False
        )
        return done
