"""What the role disaster_recovery promises of every host."""

from __future__ import annotations

from testinfra.host import Host


def test_host_in_use_is_not_rebuilt(host: Host) -> None:
    """A host that is in use is never rebuilt over: it is refused in a sentence that says why."""
    said = host.run("timeout 60 holdfast rebuild look")
    assert said.rc == 1, said.stdout
    assert said.stderr.startswith("holdfast: The ") and "Traceback" not in said.stderr, said.stderr


def test_no_rebuild_is_half_done(host: Host) -> None:
    """A rebuild that was begun was finished: all is back, compared, and the application has answered."""
    assert "is not finished" not in host.check_output("timeout 60 holdfast rebuild report")
