"""What the role restore promises of every host."""

from __future__ import annotations

from testinfra.host import Host


def test_no_restore_is_half_done(host: Host) -> None:
    """A restore that was begun was finished or taken back, and its server takes writes."""
    said = host.check_output("holdfast restore status")
    assert "is not finished" not in said, said
    assert host.check_output("timeout 30 runuser -u postgres -- psql -XAtc 'SELECT pg_is_in_recovery()'") == "f"


def test_something_can_be_restored(host: Host) -> None:
    """The repositories open with the host's keys and hold a backup to go back to."""
    assert " ended " in host.check_output("timeout 300 holdfast restore list")


def test_a_plan_touches_nothing(host: Host) -> None:
    """A plan says what a restore would do and lose, and leaves the running server alone."""
    begun = host.check_output("systemctl show --property=ActiveEnterTimestampMonotonic --value postgresql@17-main.service")
    said = host.check_output("timeout 300 holdfast restore plan latest")
    assert "LOST:" in said and "is kept until" in said
    assert host.check_output("systemctl show --property=ActiveEnterTimestampMonotonic --value postgresql@17-main.service") == begun
