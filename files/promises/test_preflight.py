"""What the role preflight promises of every host."""

from __future__ import annotations

from testinfra.host import Host


def test_system(host: Host) -> None:
    """The host is a Debian 13, the only system that the roles are tested on."""
    assert host.system_info.distribution == "debian"
    assert host.system_info.release.split(".")[0] == "13"
