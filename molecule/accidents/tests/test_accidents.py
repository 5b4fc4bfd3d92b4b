"""Accidents, each under a client that notes every row that the server acknowledged to it: none of these rows is ever missing.

A bucket that is away, a backup that is cut short and two at once are in the scenario pgbackrest; damaged repositories in restore_drill.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import past
import pytest
from database import DATABASE, ask
from testinfra.host import Host

from tools import host as test_host
from tools.application import wait_until
from tools.page import commands, mentioned
from tools.playbook import play_on
from tools.shell import ROOT, run
from tools.writer import Writer

UNIT = "postgresql@17-main.service"
DATA = "/var/lib/postgresql/17/main"
DRILL = "holdfast-drill.service"
SCRATCH = "/var/lib/postgresql/drill/scratch"
ENVIRONMENT = "/etc/postgresql/17/main/environment"
PAGE = ROOT / "docs" / "recovery.md"
WHEN = "2026-11-23 10:15:00+00"
HELD = "SELECT id FROM written"
HOUR_SECONDS = 3600
LOSS_SECONDS = 15
RED_SECONDS = 120


@pytest.fixture(name="writer")
def _writer(host_name: str) -> Iterator[Writer]:
    """Write meanwhile."""
    with Writer(host_name) as writer:
        yield writer


def _nothing_is_lost(host: Host, writer: Writer) -> None:
    """Go on for a moment, and look for every row that was acknowledged."""
    writer.wait(200)
    writer.stop()
    assert not writer.missing(ask(host, HELD))


def _healthy(host: Host) -> bool:
    return past.metric(host, "archive", "holdfast_archive_healthy") == 1


def _restarts(host: Host) -> int:
    return int(host.check_output(f"systemctl show --property=NRestarts --value {UNIT}"))


def test_server_is_killed(host: Host, writer: Writer) -> None:
    """Every process of the server is killed at once: it is back within seconds."""
    host.check_output(f"systemctl kill --signal=KILL {UNIT}")
    assert writer.wait(1) < 30
    _nothing_is_lost(host, writer)


def test_host_is_killed(host: Host, host_name: str, writer: Writer) -> None:
    """The host ends without a word, as when its power goes, and is switched on again: everything is back by itself."""
    run(["docker", "kill", host_name])
    assert writer.silent_seconds() < 30
    time.sleep(2)
    run(["docker", "start", host_name])
    test_host.wait_booted(host_name)
    _nothing_is_lost(host, writer)
    wait_until(lambda: _healthy(host), "a green archive")


@contextmanager
def _small_disk(host: Host, path: str) -> Iterator[None]:
    """Have a folder of the server lie on a disk of its own with little room."""
    host.check_output(f"timeout 90 systemctl stop {UNIT}")
    size = int(host.check_output(f"du --summarize --block-size=1M {path} | cut --fields=1")) + 150
    copy = f"mkdir {path} && mount -t tmpfs -o size={size}m tmpfs {path} && chown postgres: {path} && chmod 0700 {path}"
    host.check_output(f"mv {path} {path}.aside && {copy} && cp --archive {path}.aside/. {path}/ && systemctl start {UNIT}")
    try:
        yield
    finally:
        host.run(f"timeout 90 systemctl stop {UNIT}")
        back = f"mkdir {path}.back && cp --archive {path}/. {path}.back/ && umount {path} && rmdir {path} && mv {path}.back {path}"
        host.check_output(f"{back} && chown postgres: {path} && chmod 0700 {path} && rm -rf {path}.aside && systemctl start {UNIT}")


@pytest.mark.parametrize("path", [pytest.param(f"{DATA}/pg_wal", id="pg_wal"), pytest.param(DATA, id="data directory")])
def test_disk_is_full(host: Host, host_name: str, path: str) -> None:
    """A disk is full for most of a minute: nothing is acknowledged then, and once there is room, all goes on without anybody's hand."""
    with _small_disk(host, path), Writer(host_name) as writer:
        host.check_output(f"fallocate --length $(($(df --output=avail --block-size=1 {path} | tail -n 1) - 4194304)) {path}/filler")
        # What is left in segments that are there already goes faster this way.
        fill = "for _ in {1..60}; do timeout 20 runuser -u postgres -- psql -qXAtc 'SELECT pg_switch_wal()' || exit 0; sleep 0.3; done"
        host.check_output("exec timeout 300 bash -c %s", fill)
        wait_until(lambda: writer.silent_seconds() > 5, "a server without room")
        before = _restarts(host)
        time.sleep(40)
        assert writer.silent_seconds() > 30
        print(f"{_restarts(host) - before} starts were tried meanwhile")
        host.check_output(f"rm {path}/filler")
        back = writer.wait(1, 60)
        print(f"writes were acknowledged {back:.0f} s after there was room")
        _nothing_is_lost(host, writer)


@pytest.fixture(name="clock")
def _clock(host: Host) -> Iterator[str]:
    """Have the database, its archiver, its guard and its backups read a clock of their own; name the file that says how wrong it goes.

    The test machine's clock is everybody's and stays right: systemd and its timers do not see the jump.
    """
    host.check_output("DEBIAN_FRONTEND=noninteractive timeout 240 apt-get install --yes --quiet --no-install-recommends libfaketime")
    wrong = "/etc/wrong-clock"
    settings = {
        "LD_PRELOAD": host.check_output("ls /usr/lib/*/faketime/libfaketime.so.1"), "FAKETIME_TIMESTAMP_FILE": wrong,
        "FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1", "NO_FAKE_STAT": "1",
    }  # fmt: skip
    text = "\n".join(f"{name} = '{value}'" for name, value in settings.items())
    drop_in = "[Service]\n" + "\n".join(f"Environment={name}={value}" for name, value in settings.items())
    units = "holdfast-archive.service holdfast-backup@.service"
    for unit in units.split():
        host.check_output(f"mkdir -p /etc/systemd/system/{unit}.d; printf '%%s\\n' %s > /etc/systemd/system/{unit}.d/clock.conf", drop_in)
    host.check_output(f"cp {ENVIRONMENT} {ENVIRONMENT}.before; echo +0 > {wrong}; printf '%%s\\n' %s >> {ENVIRONMENT}", text)
    host.check_output(f"systemctl daemon-reload && timeout 90 systemctl restart {UNIT}")
    yield wrong
    host.check_output(f"mv {ENVIRONMENT}.before {ENVIRONMENT}; rm /etc/systemd/system/holdfast-*.service.d/clock.conf")
    host.check_output(f"systemctl daemon-reload && timeout 90 systemctl restart {UNIT}")


def _set_wrong(host: Host, clock: str, seconds: int) -> None:
    # At once: who finds the file empty ends.
    host.check_output(f"echo +{seconds} > {clock}.new && mv {clock}.new {clock}")


def test_clock_jumps(host: Host, host_name: str, clock: str, writer: Writer) -> None:
    """The clock jumps an hour ahead: the bucket refuses the host, which says so and keeps all; with the clock right again it drains."""
    wait_until(lambda: _healthy(host), "a green archive to begin with")
    _set_wrong(host, clock, HOUR_SECONDS)
    assert abs(float(ask(host, "SELECT extract(epoch FROM clock_timestamp())")) - time.time() - HOUR_SECONDS) < 10
    wait_until(lambda: not _healthy(host), "a red archive", RED_SECONDS)
    assert "RequestTimeTooSkewed" in host.check_output(
        "journalctl --sync; journalctl --unit holdfast-archive.service --since=-60s --output=cat"
    )
    assert host.run("timeout 120 systemctl start holdfast-backup@incr.service").rc != 0
    writer.wait(200)
    _set_wrong(host, clock, 0)
    wait_until(lambda: _healthy(host), "a green archive by itself")
    # Until the hour is over archive_timeout ends nothing; the archive's guard does.
    past.wait_archived(host, past.written(host), 180)
    for command in commands(PAGE, "What comes back by itself"):
        past.follow(host, host_name, command)
    _nothing_is_lost(host, writer)


def test_table_is_dropped(host: Host, host_name: str, writer: Writer) -> None:
    """A table is dropped by mistake: the database comes back as of the second before, with all that was acknowledged until then."""
    writer.wait(200)
    before = "to_char(clock_timestamp() - interval '1 s', 'YYYY-MM-DD HH24:MI:SS.US+00')"
    # The name of the moment is in nobody's way: the table goes right after it.
    dropped = ask(host, f"SELECT {before}; DROP TABLE written")
    writer.stop()
    _, restore = commands(PAGE, "Restore to a point in time")
    past.follow(host, host_name, restore.replace(WHEN, dropped), restore_confirm=DATABASE)
    moment = float(ask(host, f"SELECT extract(epoch FROM '{dropped}'::timestamptz)"))
    missing = writer.missing(ask(host, HELD))
    assert not [number for number, at in missing.items() if at < moment]
    assert len(missing) < 200
    host.check_output("holdfast restore clean")


def test_page_is_damaged(host: Host, host_name: str, writer: Writer) -> None:
    """A page changes on the disk: the server refuses to read it, backup and drill turn red, and an older backup brings all rows back."""
    good = {each["label"] for each in past.stanza(host)["backup"] if each["type"] == "full" and not each["error"]}
    writer.wait(500)
    host.check_output("timeout 120 systemctl start holdfast-backup@incr.service")
    writer.wait(200)
    writer.stop()
    ask(host, "CHECKPOINT")
    file = ask(host, "SELECT pg_relation_filepath('written')")
    host.check_output(f"timeout 90 systemctl stop {UNIT}")
    host.check_output(f"dd if=/dev/urandom of={DATA}/{file} bs=1 seek=12000 count=64 conv=notrunc status=none && systemctl start {UNIT}")
    select = f"timeout 60 runuser -u postgres -- psql -qXAtd {DATABASE} -c 'SELECT count(body) FROM written'"
    assert "invalid page in block 1" in host.run(select).stderr
    assert host.run("timeout 120 systemctl start holdfast-drill.service").rc != 0
    assert "invalid page" in host.check_output("holdfast drill report")
    for said in ("holdfast backup full", "holdfast backup verify", "systemctl start holdfast-drill.service; holdfast drill report"):
        assert "pages whose checksums are wrong" in host.run(f"timeout 120 {said} 2>&1").stdout
    for command in commands(PAGE, "A page is damaged"):
        past.follow(host, host_name, command, restore_confirm=DATABASE)
    assert not writer.missing(ask(host, HELD))
    assert "passed" in host.check_output("holdfast drill report")
    # The page's last command made another full backup, and with it what retention lets go has expired: none of this week.
    assert good <= {each["label"] for each in past.stanza(host)["backup"]}
    host.check_output("holdfast restore clean")


def test_restore_during_a_drill(host: Host, writer: Writer) -> None:
    """A restore ends the drill that is held, whose copy is gone before the disk is looked at; what the last drill proved stays said."""
    writer.wait(200)
    writer.stop()
    before = host.check_output("holdfast drill report"), past.metric(host, "drill", "holdfast_drill_last_run_timestamp_seconds")
    host.check_output(f"systemctl start --no-block {DRILL}")
    host.check_output(f"timeout 120 sh -c 'until test -e {SCRATCH}; do sleep 0.1; done'")
    # It does not come to its end by itself meanwhile.
    host.check_output(f"systemctl kill --kill-whom=main --signal=STOP {DRILL}")
    said = host.check_output(f"timeout 300 holdfast restore run latest --confirm {DATABASE}")
    assert "A restore drill is held, and is ended" in said
    assert host.run(f"systemctl is-active {DRILL}").stdout.strip() in {"failed", "inactive"} and not host.file(SCRATCH).exists
    assert (host.check_output("holdfast drill report"), past.metric(host, "drill", "holdfast_drill_last_run_timestamp_seconds")) == before
    assert not writer.missing(ask(host, HELD))
    host.check_output(f"systemctl reset-failed {DRILL}; holdfast restore clean")


def test_advice_of_the_drill(host: Host, host_name: str) -> None:
    """Every command that the page answers a red drill with does its work on a sound host."""
    for command in mentioned(PAGE, "What the drill says"):
        if command.startswith("systemctl status "):
            # 3: a unit of these has done its work and is not running.
            assert host.run(command).rc in {0, 3}
        else:
            past.follow(host, host_name, command)


def test_host_is_lost(host: Host, host_name: str, writer: Writer) -> None:
    """The host is gone with its disk: a new one gets out of the bucket all but the last 15 seconds of writes at most."""
    writer.wait(1500)
    test_host.down(host_name)
    writer.stop()
    test_host.up(host_name)
    for playbook in ("molecule/accidents/prepare.yml", "molecule/accidents/converge.yml"):
        done = play_on(host_name, playbook, pgbackrest_adopt=True)
        assert done.returncode == 0, done.stdout
    # What is about to be replaced is worth no backup.
    assert host.run("systemctl is-active holdfast-backups.target").stdout.strip() == "inactive"
    host.check_output("timeout 120 holdfast restore run latest --new-host")
    missing, loss = writer.loss(ask(host, HELD))
    print(f"{missing} of {len(writer.acknowledged())} acknowledged rows are missing: {loss:.1f} s of writes")
    assert loss <= LOSS_SECONDS
