"""docs/recovery.md as a person follows it: the commands are read from the page."""

from __future__ import annotations

import time

import past
from database import DATABASE, ask
from testinfra.host import Host

from tools.page import commands, mentioned
from tools.shell import ROOT

PAGE = ROOT / "docs" / "recovery.md"
COUNT = "SELECT count(*) FROM documents"
WHEN = "2026-11-23 10:15:00+00"


def _moment(host: Host) -> str:
    """Return a moment whose second before and after nothing is written in."""
    time.sleep(1.1)
    moment = host.check_output("date --utc '+%Y-%m-%d %H:%M:%S+00'")
    time.sleep(1.1)
    return str(moment)


def _documents(host: Host) -> str:
    rows = "INSERT INTO documents SELECT i, md5(i::text) FROM generate_series(1, 50) i"
    ask(host, f"DROP TABLE IF EXISTS documents; CREATE TABLE documents (id int PRIMARY KEY, body text); {rows}")
    return _moment(host)


def test_point_in_time(host: Host, host_name: str) -> None:
    """The section about a point in time brings back what somebody deleted, takes that back, and does it again."""
    moment = _documents(host)
    ask(host, "DELETE FROM documents")
    plan, restore = commands(PAGE, "Restore to a point in time")
    listed, point, status, clean, undo = mentioned(PAGE, "Restore to a point in time")
    assert past.stanza(host)["backup"][-1]["label"] in past.follow(host, host_name, listed)
    past.follow(host, host_name, point)
    assert "LOST" in past.follow(host, host_name, plan.replace(WHEN, moment))
    past.follow(host, host_name, restore.replace(WHEN, moment), restore_confirm=DATABASE)
    assert ask(host, COUNT) == "50"
    assert "kept" in past.follow(host, host_name, status)
    past.follow(host, host_name, undo)
    assert ask(host, COUNT) == "0"
    past.follow(host, host_name, restore.replace(WHEN, moment), restore_confirm=DATABASE)
    past.follow(host, host_name, clean)
    assert ask(host, COUNT) == "50"


def test_one_table(host: Host, host_name: str) -> None:
    """The section about one table brings its missing rows back, and keeps those that were written since."""
    moment = _documents(host)
    ask(host, "DELETE FROM documents WHERE id > 10; INSERT INTO documents VALUES (51, 'written since')")
    for command in commands(PAGE, "One table back"):
        past.follow(host, host_name, command.replace(WHEN, moment))
    assert ask(host, "SELECT count(*), max(body) FILTER (WHERE id = 51) FROM documents") == "51|written since"
