"""The alerts of the role integrity, judged by promtool: each fires when its fault is there, and none when all is well."""

from __future__ import annotations

from rules import judge
from testinfra.host import Host


def test_alerts(host: Host, host_name: str) -> None:
    """The rules alarm for a changed file, for silence, and for a host without a baseline; and for nothing else."""
    judge(host, host_name, "integrity")
