"""The action plugin guard: which connections confirm a change, and what the run says; the host's answers are made up."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.plugins.action import ActionBase

from plugins.action import guard

ARMED = {"state": "armed", "token": "a", "difference": []}
CHANGE = {"name": "firewall", "seconds": 60, "files": [{"path": "/x", "content": "new"}], "apply": [["load"]]}


@dataclass
class Connection:
    """A connection that counts how often it was made anew."""

    transport: str = "ssh"
    resets: int = 0

    def reset(self) -> None:
        self.resets += 1


@dataclass
class Host:
    """A host that answers what it is told to, the last answer again and again, and a clock that each answer moves by a second."""

    answers: list[dict[str, Any]]
    asked: list[list[str]] = field(default_factory=list)

    def __call__(self, words: list[str], *_: object) -> dict[str, Any]:
        self.asked.append(words)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return answer if "failed" in answer or "unreachable" in answer else {"stdout": json.dumps(answer)}


def play(monkeypatch: pytest.MonkeyPatch, host: Host, connection: Connection, *, check: bool = False) -> dict[str, Any]:
    """Run the plugin."""
    task = SimpleNamespace(args=CHANGE, check_mode=check, diff=False, async_val=0, action="guard", environment=[])
    module = guard.ActionModule(task, connection, SimpleNamespace(), None, None, None)
    monkeypatch.setattr(ActionBase, "run", lambda *_: {})
    monkeypatch.setattr(module, "_holdfast", host)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setattr(time, "monotonic", lambda: float(len(host.asked)))
    found: dict[str, Any] = module.run(None, {"inventory_hostname": "web"})
    return found


def test_new_connection_confirms(monkeypatch: pytest.MonkeyPatch) -> None:
    host, connection = Host([ARMED, {"unreachable": True}, {"state": "confirmed"}]), Connection()
    assert play(monkeypatch, host, connection) == {"diff": [], "changed": True}
    assert host.asked == [["apply", "firewall"], *[["confirm", "firewall", "a"]] * 2]
    assert connection.resets == 2


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([{"state": "restored"}], "the host took it back by itself and is as it was"),
        ([{"state": "restoring"}, {"state": "restored"}], "the host took it back by itself and is as it was"),
        ([{"state": "restoring"}], "in which something fails: `journalctl --unit holdfast-guard-firewall` there says what"),
        ([{"unreachable": True}], "it has not come back since either: look at its console"),
    ],
)
def test_change_that_nobody_confirmed(answers: list[dict[str, Any]], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    result = play(monkeypatch, Host([ARMED, *answers]), Connection())
    assert result["failed"]
    assert result["msg"].startswith("The new firewall kept new connections from web for 60 s, so ")
    assert said in result["msg"]


def test_local_connection_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a connection nobody can confirm: a change is refused, and what is in force already is not."""
    host = Host([{"state": "differs", "difference": []}])
    result = play(monkeypatch, host, Connection("local"))
    assert result["failed"]
    assert not result["changed"]
    assert "Nothing of firewall was changed on web" in result["msg"]
    assert "ansible_connection is local: run from another machine, over ssh" in result["msg"]
    assert host.asked == [["apply", "firewall", "--check"]]
    assert play(monkeypatch, host, Connection("local"), check=True) == {"diff": [], "changed": True}
    unchanged = Host([{"state": "unchanged", "difference": []}])
    assert play(monkeypatch, unchanged, Connection("local")) == {"diff": [], "changed": False}
