"""What the role holdfast promises of every host."""

from __future__ import annotations

from testinfra.host import Host


def test_program(host: Host) -> None:
    """The host's programs run with nothing but Debian's own Python, and only root can replace them."""
    program = host.file("/usr/local/bin/holdfast")
    assert (program.user, program.group, program.mode) == ("root", "root", 0o755)
    assert "usage: holdfast" in host.check_output("holdfast --help")
