"""The role pgbackrest with a bucket that is away, a queue that overflows, a second repository, and repositories that it must not touch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import past
import pytest
import yaml
from database import ask
from testinfra.host import Host

from tools.application import wait_until
from tools.playbook import play_on
from tools.shell import ROOT
from tools.writer import Writer

PLAYBOOK = "molecule/pgbackrest/converge.yml"
RED_SECONDS = 120
SECOND = "/srv/second"
DATA = "/var/lib/postgresql/17/main"
LOSS_SECONDS = 15
AWAY_SECONDS = 300
# What the server keeps for its own start, and what the queue may hold.
WAL_BYTES = (2048 + 1024) * 2**20
HELD = "SELECT id FROM written"
OTHER = "/var/lib/postgresql/other"
# Nobody can delete what a run before has put there.
OTHER_PATH = f"/other-{time.time_ns()}"


def _repository(**parts: Any) -> dict[str, Any]:
    """Return the demo's repository, with some parts of it different."""
    text = (ROOT / "inventories" / "demo" / "group_vars" / "all" / "pgbackrest.yml").read_text(encoding="utf-8")
    return {**yaml.safe_load(text)["pgbackrest_repositories"][0], **parts}


def _converge(host_name: str, **inputs: Any) -> None:
    done = play_on(host_name, PLAYBOOK, "--tags", "preflight,pgbackrest", **inputs)
    assert done.returncode == 0, done.stdout


@pytest.fixture
def converged_again(host: Host, host_name: str) -> Iterator[None]:
    """Put the scenario's own inputs in force again after a test."""
    yield
    _converge(host_name)
    host.check_output(f"rm -rf {SECOND}")


def _healthy(host: Host) -> bool:
    return past.metric(host, "archive", "holdfast_archive_healthy") == 1


def _gap(host: Host) -> float:
    return past.metric(host, "archive", "holdfast_archive_gap")


def test_bucket_away_under_load(host: Host, host_name: str) -> None:
    """A bucket is away for five minutes: the archive is red within two, no write stops, pg_wal is bounded; then all drains."""
    wait_until(lambda: _healthy(host), "a green archive to begin with")
    with Writer(host_name) as writer:
        with past.bucket_away(host_name):
            begun = time.monotonic()
            red = wait_until(lambda: not _healthy(host), "a red archive", RED_SECONDS)
            time.sleep(AWAY_SECONDS - (time.monotonic() - begun))
            writer.wait(100)
            assert past.metric(host, "archive", "holdfast_archive_ready_segments") > 0
            assert past.metric(host, "archive", "holdfast_wal_size_bytes") < WAL_BYTES
        green = wait_until(lambda: _healthy(host), "a green archive by itself", 180)
    print(f"red after {red:.0f} s, green {green:.0f} s after the bucket's return, {len(writer.acknowledged())} rows acknowledged")
    past.archived(host)
    assert not writer.missing(past.restored(host, HELD))


def test_queue_overflow(host: Host, host_name: str, converged_again: None) -> None:
    """A bucket that is away for long never fills the disk: WAL is let go, and a backup closes the gap as soon as there is a way."""
    _converge(host_name, pgbackrest_archive_queue_mb=64)
    waiting = "SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name ~ '^[0-9A-F]{24}\\.ready$'"
    with Writer(host_name) as writer:
        with past.bucket_away(host_name):
            for _ in range(12):
                ask(host, "SELECT pg_switch_wal()")
                writer.wait(1)
            wait_until(lambda: int(ask(host, waiting)) <= 4, "a queue that was let go", 300)
        red = wait_until(lambda: _gap(host) == 1, "a gap that was found", 180)
        green = wait_until(lambda: _gap(host) == 0, "a backup that closes the gap", 240)
    print(f"gap found {red:.0f} s after the bucket's return, closed {green:.0f} s later")
    past.archived(host)
    assert not writer.missing(past.restored(host, HELD))


def test_archived_in_time_after_a_restart(host: Host) -> None:
    """What is written after a restart of the server leaves the host as soon as at any other time."""
    host.check_output("timeout 90 systemctl restart postgresql@17-main.service")
    past.wait_archived(host, past.written(host), LOSS_SECONDS)


def _only_in_second(host: Host) -> None:
    """Have the second repository get a segment that the first lacks."""
    ask(host, "ALTER SYSTEM SET archive_command = 'false'")
    ask(host, "SELECT pg_reload_conf()")
    wait_until(lambda: host.run("pgrep --full '[p]gbackrest .*archive-push'").rc == 1, "the end of the last try", 300)
    ask(host, "SELECT pg_current_xact_id()")
    segment = ask(host, "SELECT pg_walfile_name(pg_switch_wal() - 1)")
    # While the bucket is away the server gets it there, too, but minutes late: here a configuration that knows no other place pushes it.
    alone = "/tmp/second.conf"
    push = f"pgbackrest --config={alone} --stanza=main --no-archive-async archive-push {DATA}/pg_wal/{segment}"
    host.check_output(
        f"install --owner=postgres --mode=0600 /dev/null {alone} && "
        f"sed --expression '/^repo1-/d' --expression 's/^repo2-/repo1-/' /etc/pgbackrest/pgbackrest.conf > {alone} && "
        f"timeout 120 runuser -u postgres -- {push}; "
        f"pushed=$?; rm {alone}; exit $pushed"
    )


def test_second_repository(host: Host, host_name: str, converged_again: None) -> None:
    """A second repository is one entry more: it begins with a backup, gets every write, and brings all back while the first is behind."""
    _converge(host_name, pgbackrest_repositories=[_repository(), {"type": "posix", "path": SECOND}])
    assert {each["key"]: each["status"]["code"] for each in past.stanza(host)["repo"]} == {1: 0, 2: 0}
    with Writer(host_name) as writer:
        writer.wait(300)
    past.archived(host)
    try:
        with past.bucket_away(host_name):
            assert not writer.missing(past.restored(host, HELD, "--repo=2"))
        _only_in_second(host)
        # `latest` would be refused for what was written since.
        moment = host.check_output("date --utc '+%Y-%m-%d %H:%M:%S+00'")
        assert "of repository 2, which ended at" in host.check_output("timeout 300 holdfast restore plan %s", moment)
    finally:
        ask(host, "ALTER SYSTEM RESET archive_command")
        ask(host, "SELECT pg_reload_conf()")
    past.archived(host)
    assert host.run(f"grep --recursive --text --quiet BEGIN {SECOND}").rc == 1, "it is not encrypted"


@pytest.fixture(scope="module")
def other_database(host: Host) -> Iterator[None]:
    """Have another cluster's past in another folder of the bucket."""
    run = "timeout 120 runuser -u postgres --"
    host.check_output(f"rm -rf {OTHER}; {run} /usr/lib/postgresql/17/bin/initdb --pgdata={OTHER} >/dev/null")
    host.check_output(f"{run} pgbackrest --stanza=main --pg1-path={OTHER} --repo1-path={OTHER_PATH} --no-online stanza-create")
    yield
    host.check_output(f"rm -rf {OTHER}")


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        pytest.param(
            {"pgbackrest_cipher_passphrase": "x" * 40}, "another passphrase than pgbackrest_cipher_passphrase", id="wrong passphrase"
        ),
        pytest.param({"pgbackrest_repositories": [_repository(secret_key="w" * 40)]}, "SignatureDoesNotMatch", id="wrong key"),
        pytest.param({"pgbackrest_repositories": [_repository(bucket="nobody")]}, "bucket nobody", id="missing bucket"),
        pytest.param({"pgbackrest_repositories": [_repository(ca="")]}, "failed the TLS check", id="unknown authority"),
        pytest.param(
            {"pgbackrest_repositories": [_repository(path=OTHER_PATH)]}, "holds the past of another database", id="another database"
        ),
    ],
)
def test_repository_refused(host: Host, host_name: str, other_database: None, inputs: dict[str, Any], words: str) -> None:
    """A repository that can't be used, or that holds the past of another database, is refused before the host is touched."""
    config = host.check_output("sha256sum /etc/pgbackrest/pgbackrest.conf")
    done = play_on(host_name, PLAYBOOK, "--tags", "preflight,pgbackrest", **inputs)
    said = " ".join(done.stdout.split())
    assert done.returncode != 0 and "changed=0" in said, said
    assert "Nothing was changed" in said and "pgbackrest_repositories has" in said and words in said, said
    assert "w" * 40 not in said and "x" * 40 not in said
    assert host.check_output("sha256sum /etc/pgbackrest/pgbackrest.conf") == config


@pytest.mark.parametrize(
    "command",
    [
        "pkill --signal KILL --full -- '[p]gbackrest .*--type=full'",
        "systemctl kill --kill-whom=main --signal=KILL holdfast-backup@full.service",
    ],
)
def test_interrupted_backup(host: Host, command: str) -> None:
    """A backup that is killed halfway, or its unit, says so in its metrics, harms none that is there, and the next one succeeds."""
    held = [each["label"] for each in past.stanza(host)["backup"]]
    kill = f"for _ in {{1..400}}; do pgrep --full -- '[p]gbackrest .*--type=full' && {command} && exit; sleep 0.05; done; exit 1"
    host.check_output("systemctl start --no-block holdfast-backup@full.service; exec timeout 60 bash -c %s", kill)
    wait_until(
        lambda: host.run("systemctl is-active holdfast-backup@full.service").stdout.strip() not in {"activating", "deactivating"},
        "the end of the backup",
        60,
    )
    assert past.metric(host, "backup_full", 'holdfast_backup_success{type="full"}') == 0
    assert set(held) <= {each["label"] for each in past.stanza(host)["backup"]}
    host.check_output("timeout 300 systemctl start holdfast-backup@full.service")
    assert past.metric(host, "backup_full", 'holdfast_backup_success{type="full"}') == 1


def test_one_backup_at_a_time(host: Host) -> None:
    """Two backups that begin at once are made one after the other, and both succeed."""
    # None of the schedule's own comes between.
    host.check_output("systemctl stop holdfast-backups.target")
    count = len(past.stanza(host)["backup"])
    done = host.run(
        "timeout 300 systemctl start holdfast-backup@diff.service & timeout 300 systemctl start holdfast-backup@incr.service && wait $!"
    )
    made = len(past.stanza(host)["backup"]) - count
    host.check_output("systemctl start holdfast-backups.target")
    assert done.rc == 0, done.stderr
    assert made == 2


def test_stopped_timers_come_back(host: Host, host_name: str) -> None:
    """A timer of the backups, or what waits for a gap in the archive, that somebody has stopped runs again after a run of the role."""
    units = "holdfast-backup@full.timer holdfast-archive.timer holdfast-archive-gap.path"
    host.check_output(f"systemctl stop {units}")
    assert host.run(f"systemctl is-active {units}").stdout.split() == ["inactive"] * 3
    done = play_on(host_name, PLAYBOOK, "--tags", "preflight,pgbackrest:service")
    assert done.returncode == 0 and "changed=1" in done.stdout, done.stdout
    assert host.check_output(f"systemctl is-active {units}").split() == ["active"] * 3


def test_backup_by_hand(host: Host, host_name: str) -> None:
    """playbooks/backup.yml makes a backup now, of the kind that is asked for."""
    held = {each["label"] for each in past.stanza(host)["backup"]}
    done = play_on(host_name, "playbooks/backup.yml", pgbackrest_backup="diff")
    assert done.returncode == 0, done.stdout
    # The schedule may have made one, too, which is no diff but at one in the night.
    assert "diff" in [each["type"] for each in past.stanza(host)["backup"] if each["label"] not in held]
