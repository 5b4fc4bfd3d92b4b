"""The alerts of the role restore_drill, judged by promtool: each fires when its fault is there, and none when all is well."""

from __future__ import annotations

from rules import judge
from testinfra.host import Host


def test_alerts(host: Host, host_name: str) -> None:
    """The rules alarm for a drill that failed, for silence, for a host that never held one, and for a loss; and for nothing else."""
    judge(host, host_name, "restore_drill")
