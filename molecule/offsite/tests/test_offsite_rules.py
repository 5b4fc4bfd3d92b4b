"""The alerts of the role offsite, judged by promtool: each fires when its fault is there, and none when all is well."""

from __future__ import annotations

from rules import judge
from testinfra.host import Host


def test_alerts(host: Host, host_name: str) -> None:
    """The rules alarm for a copy that failed, for one that is old, and for a host that never copied a dump; and for nothing else."""
    judge(host, host_name, "offsite")
