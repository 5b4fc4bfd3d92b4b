"""The alerts of the role pgbackrest, judged by promtool: each fires when its fault is there, and none when all is well."""

from __future__ import annotations

from rules import judge
from testinfra.host import Host


def test_alerts(host: Host, host_name: str) -> None:
    """Each alert fires when its fault is there, in words that name the host and the way out, and none fires when all is well."""
    judge(host, host_name, "pgbackrest")
