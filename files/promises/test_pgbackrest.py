"""What the role pgbackrest promises of every host."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from testinfra.host import Host

TIMERS = ("full", "diff", "incr", "verify")
LOSS_SECONDS = 15
# The longest time without a backup of any kind by the schedule of the defaults, with its random delay and time to make it.
BACKUP_AGE_SECONDS = 26 * 3600


def _ask(host: Host, query: str) -> str:
    """Ask the server as its superuser."""
    psql = "psql --no-psqlrc --quiet --tuples-only --no-align --set ON_ERROR_STOP=1"
    return host.check_output(f"timeout 30 runuser -u postgres -- {psql} --dbname postgres --command %s", query)


def _info(host: Host) -> dict[str, Any]:
    found: list[dict[str, Any]] = json.loads(
        host.check_output("timeout 120 runuser -u postgres -- pgbackrest --stanza=main --output=json info")
    )
    return found[0]


@pytest.fixture(scope="module", name="stanza")
def _stanza(host: Host) -> dict[str, Any]:
    """Return what the repositories hold."""
    return _info(host)


def test_archiving(host: Host) -> None:
    """What is written leaves the host within 15 seconds, and the last attempt to archive did not fail."""
    assert _ask(host, "SHOW archive_mode") == "on"
    assert 0 < int(_ask(host, "SELECT setting FROM pg_settings WHERE name = 'archive_timeout'")) < LOSS_SECONDS
    waiting = "SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready' AND modification < now() - interval '1 minute'"
    assert _ask(host, waiting) == "0"
    assert _ask(host, "SELECT coalesce(last_failed_time <= last_archived_time, true) FROM pg_stat_archiver") == "t"


def test_every_repository_is_good(stanza: dict[str, Any]) -> None:
    """Every repository answers, and holds the past of this database."""
    assert [each for each in stanza["repo"] if each["status"]["code"] != 0] == []


def test_every_repository_is_encrypted(stanza: dict[str, Any]) -> None:
    """Every repository is encrypted with AES-256 before anything leaves the host."""
    assert {each["cipher"] for each in stanza["repo"]} == {"aes-256-cbc"}


def test_recent_backup(stanza: dict[str, Any]) -> None:
    """Every repository has a full backup, and its newest backup is not older than a day."""
    for repository in stanza["repo"]:
        good = [each for each in stanza["backup"] if each["database"]["repo-key"] == repository["key"] and not each["error"]]
        assert any(each["type"] == "full" for each in good)
        assert max(each["timestamp"]["stop"] for each in good) > time.time() - BACKUP_AGE_SECONDS


def test_can_be_rolled_forward(host: Host) -> None:
    """The newest segment of WAL that was archived is in every repository."""
    newest = _ask(host, r"SELECT coalesce(max(name), '') FROM pg_ls_archive_statusdir() WHERE name ~ '^[0-9A-F]{24}\.done$'").removesuffix(
        ".done"
    )
    # Asked after that: a host that writes archives one every few seconds.
    for archive in _info(host)["archive"]:
        assert archive["max"] >= newest


def test_secrets_are_kept(host: Host) -> None:
    """Only root can change, and only the server's user can read, the passphrase and the keys of the buckets."""
    file = host.file("/etc/pgbackrest/pgbackrest.conf")
    assert (file.user, file.group, file.mode) == ("root", "postgres", 0o640)


@pytest.mark.parametrize("kind", TIMERS)
def test_on_timer(host: Host, kind: str) -> None:
    """Full, differential and incremental backups, and the proof of all, have a timer that makes up for what was missed while off."""
    assert host.service("holdfast-backups.target").is_enabled
    timer = f"holdfast-backup@{kind}.timer"
    told = host.check_output(f"systemctl show --property ActiveState,Persistent,NextElapseUSecRealtime {timer}")
    values = dict(line.split("=", 1) for line in told.splitlines())
    assert values["ActiveState"] == "active"
    assert values["Persistent"] == "yes"
    assert values["NextElapseUSecRealtime"]


@pytest.mark.parametrize("unit", ["holdfast-archive.timer", "holdfast-archive-gap.path"])
def test_guard_is_on(host: Host, unit: str) -> None:
    """What measures the archive, and what has a backup made where WAL is missing, wait for their moment."""
    assert host.check_output(f"systemctl is-active {unit}") == "active"


def test_success_is_measured(host: Host) -> None:
    """The last backup of each kind that was made says so in the metrics, and none has failed."""
    text = host.check_output("cat /var/lib/prometheus/node-exporter/holdfast_backup_*.prom")
    samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    succeeded = {name: float(value) for name, value in samples.items() if name.startswith("holdfast_backup_success")}
    assert succeeded and set(succeeded.values()) == {1}
    full = float(samples['holdfast_backup_last_success_timestamp_seconds{type="full"}'])
    assert full > time.time() - 8 * 24 * 3600


def test_archive_is_guarded(host: Host) -> None:
    """Twice a minute it is measured whether what is written reaches every repository, and it does."""
    text = host.check_output("cat /var/lib/prometheus/node-exporter/holdfast_archive.prom")
    samples = {name: float(value) for name, value in (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))}
    assert samples["holdfast_archive_guard_last_success_timestamp_seconds"] > time.time() - 120
    assert samples["holdfast_archive_healthy"] == 1
    assert samples["holdfast_archive_gap"] == 0
