"""Over a real ssh connection from this machine: who gets in, and that nobody can lock himself out."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from tools import admin
from tools import host as test_host
from tools.playbook import inventory
from tools.playbook import play as run_playbook
from tools.shell import run

ROLLBACK_SECONDS = 15
# A bad change is taken back after its time; TCP tries a dropped connection again after 1, 3, 7, 15 and 31 seconds.
PATIENCE_SECONDS = 60
SSH_OPTIONS = (
    "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5",
    "-o", "IdentitiesOnly=yes", "-o", "LogLevel=ERROR",
)  # fmt: skip
Play = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def address(host_name: str) -> str:
    """Return the host's address."""
    return test_host.address(host_name)


@pytest.fixture(scope="module")
def other_key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the key of somebody else."""
    path = tmp_path_factory.mktemp("keys") / "other_ed25519"
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "other", "-f", path])
    return path


def ssh(address: str, user: str, key: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command over a connection of its own."""
    return subprocess.run(
        ["ssh", *SSH_OPTIONS, "-i", str(key), f"{user}@{address}", *words],
        capture_output=True, text=True, check=False, timeout=60, stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.fixture(scope="module")
def play(address: str, tmp_path_factory: pytest.TempPathFactory) -> Play:
    """Run the scenario's playbook over ssh, as the admin of the demo's inventory, with other inputs."""
    values = {
        "ansible_host": address,
        "ansible_user": admin.NAME,
        "ansible_become": True,
        "ansible_ssh_private_key_file": str(admin.KEY),
        "ansible_ssh_common_args": " ".join(SSH_OPTIONS),
    }
    source = inventory(tmp_path_factory.mktemp("inventory"), {"over-ssh": values})

    def call(**inputs: Any) -> subprocess.CompletedProcess[str]:
        seconds = {"access_rollback_seconds": ROLLBACK_SECONDS, "firewall_rollback_seconds": ROLLBACK_SECONDS}
        return run_playbook(source, "molecule/access/converge.yml", inputs=seconds | inputs, timeout_seconds=300)

    return call


@pytest.fixture
def good_state(play: Play) -> Iterator[None]:
    """Bring the host back to what the inventory says, after a test."""
    yield
    done = play()
    assert done.returncode == 0, done.stdout


def admins(*entries: tuple[str, Path]) -> list[dict[str, Any]]:
    """Write the input that names the admins."""
    return [{"name": name, "keys": [key.with_suffix(".pub").read_text().strip()]} for name, key in entries]


def test_admin_gets_in_and_may_sudo(address: str) -> None:
    """An admin logs in with the key, and becomes root."""
    assert ssh(address, admin.NAME, admin.KEY, "sudo id --user --name").stdout.strip() == "root"


def test_others_do_not_get_in(address: str, other_key: Path) -> None:
    """Neither another key nor root gets in."""
    assert "Permission denied (publickey)" in ssh(address, admin.NAME, other_key, "true").stderr
    assert "Permission denied (publickey)" in ssh(address, "root", admin.KEY, "true").stderr


def test_nothing_is_forwarded(address: str) -> None:
    """A connection opens no other one for its client."""
    done = subprocess.run(
        ["ssh", *SSH_OPTIONS, "-i", admin.KEY, "-W", "127.0.0.1:22", f"{admin.NAME}@{address}"],
        capture_output=True, text=True, check=False, timeout=30, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode != 0
    assert "SSH-2.0" not in done.stdout


def test_second_run_over_ssh_changes_nothing(play: Play) -> None:
    """What was brought up over one connection is the same over another."""
    done = play()
    assert done.returncode == 0, done.stdout
    assert "changed=0" in done.stdout, done.stdout


def test_admin_who_left_the_inventory_is_out(host: Host, play: Play, address: str, other_key: Path) -> None:
    """A second admin gets in while the inventory names him, and not a run later; nor does a key that somebody has put beside."""
    done = play(access_admins=admins((admin.NAME, admin.KEY), ("other", other_key)))
    assert done.returncode == 0, done.stdout
    assert ssh(address, "other", other_key, "sudo id --user --name").stdout.strip() == "root"
    host.check_output("cp /etc/ssh/authorized_keys/other /etc/ssh/authorized_keys/intruder")
    host.check_output("cat /etc/ssh/authorized_keys/other >> /etc/ssh/authorized_keys/admin")
    assert ssh(address, admin.NAME, other_key, "true").returncode == 0

    done = play()
    assert done.returncode == 0, done.stdout
    assert "Permission denied" in ssh(address, "other", other_key, "true").stderr
    assert "Permission denied" in ssh(address, admin.NAME, other_key, "true").stderr
    assert host.check_output("ls /etc/ssh/authorized_keys") == admin.NAME
    assert "not allowed to run sudo" in host.check_output("sudo --list --other-user=other")


def test_inventory_without_the_one_who_runs_it_is_refused(host: Host, play: Play, other_key: Path) -> None:
    """An inventory that would lock out the very user that Ansible logs in as is refused before anything is changed."""
    done = play(access_admins=admins(("other", other_key)))
    assert done.returncode != 0
    assert "access_admins lacks admin, as whom Ansible logs in" in done.stdout
    assert "changed=0" in done.stdout
    assert host.check_output("ls /etc/ssh/authorized_keys") == admin.NAME


def is_taken_back(done: subprocess.CompletedProcess[str], name: str, address: str) -> None:
    """Say that a run failed, told why in one sentence, and that the way in is open again."""
    assert done.returncode != 0
    told = [line for line in done.stdout.splitlines() if f"The new {name} kept new connections" in line and line.startswith("fatal")]
    assert len(told) == 1, done.stdout
    assert "the host took it back by itself" in told[0]
    assert f"correct the inputs of the role {name}" in told[0]
    deadline = time.monotonic() + PATIENCE_SECONDS
    while ssh(address, admin.NAME, admin.KEY, "true").returncode:
        assert time.monotonic() < deadline


def test_firewall_without_ssh_is_taken_back(host: Host, play: Play, address: str) -> None:
    """A firewall that drops ssh is taken back by the host, in time, and the run says so."""
    before = host.check_output("nft --stateless --terse list table inet holdfast")
    begun = time.monotonic()
    done = play(firewall_services=[{"protocol": "tcp", "port": 443}])
    is_taken_back(done, "firewall", address)
    assert time.monotonic() - begun < ROLLBACK_SECONDS + PATIENCE_SECONDS
    assert host.check_output("nft --stateless --terse list table inet holdfast") == before
    assert not host.file("/var/lib/holdfast/guard/firewall.json").exists


def test_keys_that_nobody_has_are_taken_back(host: Host, play: Play, address: str, other_key: Path) -> None:
    """An inventory with a key that the owner lacks is taken back."""
    before = host.check_output("cat /etc/ssh/authorized_keys/admin")
    is_taken_back(play(access_admins=admins((admin.NAME, other_key))), "access", address)
    assert host.check_output("cat /etc/ssh/authorized_keys/admin") == before


def test_good_change_stays(host: Host, play: Play, good_state: None) -> None:
    """A change that a new connection has confirmed outlives the timer."""
    done = play(firewall_extra_services=[{"name": "metrics", "protocol": "tcp", "port": 9443, "sources": ["192.0.2.0/24"]}])
    assert done.returncode == 0, done.stdout
    assert "holdfast-guard" not in host.check_output("systemctl list-timers --all --no-legend")
    time.sleep(ROLLBACK_SECONDS + 2)
    assert "ip saddr 192.0.2.0/24 tcp dport 9443" in host.check_output("nft list table inet holdfast")


def test_bad_file_never_lands(host: Host, play: Play, address: str) -> None:
    """A ruleset that nft refuses changes nothing, and the run says why."""
    before = host.check_output("cat /etc/holdfast/firewall.nft")
    done = play(firewall_extra_rules=["tcp dport 1234 perhaps"])
    assert done.returncode != 0
    assert "was not changed, because nft refuses its new content" in done.stdout
    assert host.check_output("cat /etc/holdfast/firewall.nft") == before


def test_unconfirmed_change_does_not_outlive_a_reboot(host: Host, host_name: str) -> None:
    """A change that nobody confirmed before the host went down is gone when it is back."""
    asked = {
        "seconds": 600, "folders": [], "apply": [["true"]], "retire": [], "check": [],
        "files": [{"path": "/etc/holdfast/probe", "content": "new"}],
    }  # fmt: skip
    host.check_output("echo old > /etc/holdfast/probe")
    host.check_output(f"echo '{json.dumps(asked)}' | holdfast guard apply probe")
    assert host.check_output("cat /etc/holdfast/probe") == "new"
    test_host.reboot(host_name)
    assert host.check_output("cat /etc/holdfast/probe") == "old"
    assert "probe" not in host.check_output("ls /etc/systemd/system /var/lib/holdfast/guard/*.json 2>/dev/null || true")
    assert "chain outside" in host.check_output("nft list table inet holdfast")
