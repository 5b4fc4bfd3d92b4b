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
from tools.application import wait_until
from tools.playbook import inventory, play_on
from tools.playbook import play as run_playbook
from tools.shell import run

ROLLBACK_SECONDS = 15
# A bad change is taken back after its time; TCP tries a dropped connection again after 1, 3, 7, 15 and 31 seconds.
PATIENCE_SECONDS = 60
# Its program's start, on a busy machine.
REACTION_SECONDS = 10
SSH_OPTIONS = (
    "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5",
    "-o", "IdentitiesOnly=yes", "-o", "LogLevel=ERROR",
)  # fmt: skip
# sshd's main file as Debian has it.
DEBIANS = "/usr/share/openssh/sshd_config"
PASSWORD = "vK7#tremolo-Wick91x"
# What a provider's image or program may leave of sshd.
WRITE_BLOCK = f"printf 'Match User {admin.NAME}\\n\\tAuthorizedKeysFile .ssh/authorized_keys\\n' > /etc/ssh/sshd_config.d/50-provider.conf"
FOREIGN = {
    "block beside the policy": f"cp {DEBIANS} /etc/ssh/sshd_config && {WRITE_BLOCK}",
    "main file that reads no other": f"sed '/^Include/d' {DEBIANS} > /etc/ssh/sshd_config",
    "option of its start": "echo SSHD_OPTS=-oAuthorizedKeysFile=.ssh/authorized_keys > /etc/default/ssh",
}
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
def good_state(host_name: str) -> Iterator[None]:
    """Bring the host back to what the inventory says, after a test."""
    yield
    done = play_on(host_name, "molecule/access/converge.yml")
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
    """A second admin gets in while the inventory names him, and not a run later, nor by what others put beside: a key, a file, sudo."""
    done = play(access_admins=admins((admin.NAME, admin.KEY), ("other", other_key)))
    assert done.returncode == 0, done.stdout
    assert ssh(address, "other", other_key, "sudo id --user --name").stdout.strip() == "root"
    host.check_output("cp /etc/ssh/authorized_keys/other /etc/ssh/authorized_keys/intruder")
    host.check_output("cat /etc/ssh/authorized_keys/other >> /etc/ssh/authorized_keys/admin")
    # As a provider's image has it.
    host.check_output("echo 'other ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/90-cloud-init-users && usermod --append --groups sudo other")
    assert ssh(address, admin.NAME, other_key, "true").returncode == 0
    # Who owns it writes more keys into it.
    host.check_output(f"chown {admin.NAME} /etc/ssh/authorized_keys /etc/ssh/authorized_keys/{admin.NAME}")

    done = play()
    assert done.returncode == 0, done.stdout
    assert "Permission denied" in ssh(address, "other", other_key, "true").stderr
    assert "Permission denied" in ssh(address, admin.NAME, other_key, "true").stderr
    assert host.check_output("ls /etc/ssh/authorized_keys") == admin.NAME
    assert host.check_output("find /etc/ssh/authorized_keys -not -user root") == ""
    assert host.check_output("ls /etc/sudoers.d") == "README\nholdfast"
    assert "not allowed to run sudo" in host.check_output("sudo --list --other-user=other")


@pytest.fixture
def own_folder(host: Host, other_key: Path) -> Iterator[None]:
    """Put the admin's key and another one where sshd looks for keys unless it is told otherwise."""
    keys = "".join(path.with_suffix(".pub").read_text() for path in (admin.KEY, other_key))
    host.check_output(f"install -d -o {admin.NAME} -m 0700 ~{admin.NAME}/.ssh && echo '{keys}' > ~{admin.NAME}/.ssh/authorized_keys")
    yield
    host.check_output(f"rm -r ~{admin.NAME}/.ssh")


def test_file_beside_the_policy_is_not_read(host: Host, address: str, own_folder: None, other_key: Path) -> None:
    """What somebody puts into sshd's folder lets no other key in, even before a run removes it."""
    # A reload closes the port for a moment, and is over before that is open again.
    host.check_output(f"{WRITE_BLOCK} && systemctl restart ssh.service")
    assert "Permission denied" in ssh(address, admin.NAME, other_key, "true").stderr
    host.check_output("rm /etc/ssh/sshd_config.d/50-provider.conf")


@pytest.mark.parametrize("files", FOREIGN.values(), ids=FOREIGN)
def test_foreign_files_of_sshd_are_out(host: Host, play: Play, address: str, own_folder: None, other_key: Path, files: str) -> None:
    """Where another file of sshd lets another key in, a run takes the file out, and the key."""
    host.check_output(f"{files} && systemctl restart ssh.service")
    assert ssh(address, admin.NAME, other_key, "true").returncode == 0
    # Who owns it writes more keys into it.
    host.check_output(f"chown {admin.NAME} /etc/ssh/authorized_keys /etc/ssh/authorized_keys/{admin.NAME}")

    done = play()
    assert done.returncode == 0, done.stdout
    assert "Permission denied" in ssh(address, admin.NAME, other_key, "true").stderr
    assert ssh(address, admin.NAME, admin.KEY, "true").returncode == 0
    assert host.check_output("ls /etc/ssh/sshd_config.d") == "00-holdfast.conf"


def test_inventory_without_the_one_who_runs_it_is_refused(host: Host, play: Play, other_key: Path) -> None:
    """An inventory that would lock out the very user that Ansible logs in as is refused before anything is changed."""
    done = play(access_admins=admins(("other", other_key)))
    assert done.returncode != 0
    assert "access_admins lacks admin, as whom Ansible logs in" in done.stdout
    assert "changed=0" in done.stdout
    assert host.check_output("ls /etc/ssh/authorized_keys") == admin.NAME


@pytest.fixture
def newcomer(host: Host, host_name: str, other_key: Path) -> Iterator[dict[str, str]]:
    """Make the host one that the role has not seen, whose only user becomes root by password; return how Ansible logs in."""
    public = other_key.with_suffix(".pub").read_text().strip()
    # Without PAM, as upstream has it, sshd lets nobody in whose password is locked.
    host.check_output(
        "rm -r /etc/ssh/authorized_keys /etc/ssh/sshd_config.d/00-holdfast.conf /etc/sudoers.d/holdfast"
        f" && sed 's/^UsePAM .*/UsePAM no/' {DEBIANS} > /etc/ssh/sshd_config && systemctl reload ssh"
    )
    assert "usepam no" in host.check_output("/usr/sbin/sshd -T").splitlines()
    host.check_output(f"useradd --create-home --shell /bin/bash newcomer && echo 'newcomer:{PASSWORD}' | chpasswd")
    # As on a hardened host.
    host.check_output("sed --in-place '1i umask 027' ~newcomer/.bashrc")
    host.check_output(f"install -d -o newcomer -m 0700 ~newcomer/.ssh && echo '{public}' > ~newcomer/.ssh/authorized_keys")
    host.check_output("echo 'newcomer ALL=(ALL:ALL) ALL' > /etc/sudoers.d/provider && chmod 0440 /etc/sudoers.d/provider")
    yield {"ansible_user": "newcomer", "ansible_ssh_private_key_file": str(other_key), "ansible_become_password": PASSWORD}
    host.check_output("rm --force /etc/sudoers.d/provider && userdel --force --remove newcomer 2>/dev/null")
    done = play_on(host_name, "molecule/access/converge.yml")
    assert done.returncode == 0, done.stdout


def test_root_who_runs_it_is_told_the_way(host: Host, play: Play, newcomer: dict[str, str]) -> None:
    """Who logs in as root, as many providers have it, is told to make a user first, before anything is changed."""
    host.check_output("install -D -m 0600 ~newcomer/.ssh/authorized_keys /root/.ssh/authorized_keys")
    done = play(**newcomer | {"ansible_user": "root"})
    host.check_output("rm --recursive /root/.ssh")
    assert done.returncode != 0
    assert "ansible_user is root" in done.stdout
    assert "access_admins lacks" not in done.stdout
    assert "changed=0" in done.stdout


def test_password_for_sudo_is_locked_last(
    host: Host, play: Play, newcomer: dict[str, str], address: str, other_key: Path, tmp_path: Path
) -> None:
    """Who becomes root by password goes through the first run, and has none after it; where the run is taken back, it still works."""
    lost = tmp_path / "lost_ed25519"
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", lost])
    done = play(**newcomer, access_admins=admins(("newcomer", lost)))
    assert done.returncode != 0
    assert "The new access kept new connections" in done.stdout
    sudo = f"echo '{PASSWORD}' | sudo --reset-timestamp --stdin id --user --name"
    assert ssh(address, "newcomer", other_key, sudo).stdout.strip() == "root"

    done = play(**newcomer, access_admins=admins(("newcomer", other_key)))
    assert done.returncode == 0, done.stdout
    assert str(host.user("newcomer").password).startswith("!")
    assert ssh(address, "newcomer", other_key, "sudo id --user --name").stdout.strip() == "root"


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
    done = play(firewall_services=[{"protocol": "tcp", "port": 443}])
    is_taken_back(done, "firewall", address)
    # How long the run itself takes is the controller's affair.
    journal = host.check_output("journalctl --sync; journalctl --output=short-unix --unit 'holdfast-guard-firewall.*'").splitlines()
    armed, begun = (
        max(float(line.split()[0]) for line in journal if words in line)
        for words in ("Started holdfast-guard-firewall.timer", "nobody confirmed")
    )
    assert 0 < begun - armed < ROLLBACK_SECONDS + REACTION_SECONDS
    assert host.check_output("nft --stateless --terse list table inet holdfast") == before
    assert not host.file("/var/lib/holdfast/guard/firewall.json").exists


def test_first_firewall_leaves_what_was_there(host: Host, play: Play, address: str, good_state: None) -> None:
    """Where the very first firewall of a host is taken back, nothing of it is left, and Debian's own is what it was."""
    host.check_output(
        "systemctl disable --now holdfast-firewall.service && systemctl unmask nftables.service && systemctl enable nftables.service && "
        "rm /etc/holdfast/firewall*.nft /etc/systemd/system/holdfast-firewall.service && nft delete table inet holdfast"
    )
    is_taken_back(play(firewall_services=[{"protocol": "tcp", "port": 443}]), "firewall", address)
    assert host.check_output("systemctl is-enabled nftables.service") == "enabled"
    assert "holdfast" not in host.check_output("nft list tables")
    assert host.check_output("find /etc/holdfast /etc/systemd/system -name '*firewall*'") == ""
    assert host.run("systemctl is-active holdfast-firewall.service").rc != 0


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
    assert "was not changed, because `unshare --net nft --check --file %s` refuses its new content" in done.stdout
    assert host.check_output("cat /etc/holdfast/firewall.nft") == before


def test_what_can_not_be_taken_back_is_tried_again(host: Host) -> None:
    """What fails while a change is taken back keeps nothing else from it and is tried again; nobody can confirm the change meanwhile."""
    asked = {
        "seconds": 5, "folders": [], "retire": [], "check": [], "files": [{"path": "/etc/holdfast/probe", "content": "new"}],
        # The first time this works, and takes away what it works by.
        "apply": [["rm", "/run/probe-works"], ["touch", "/run/probe-tried"]],
    }  # fmt: skip
    host.check_output("echo old > /etc/holdfast/probe && touch /run/probe-works")
    applied = host.check_output(f"echo '{json.dumps(asked)}' | holdfast guard apply probe && rm /run/probe-tried")
    wait_until(lambda: host.file("/run/probe-tried").exists, "the change to be taken back", PATIENCE_SECONDS)
    assert host.check_output("cat /etc/holdfast/probe") == "old"
    confirmed = host.check_output(f"holdfast guard confirm probe {json.loads(applied)['token']}")
    assert json.loads(confirmed) == {"state": "restoring"}
    host.check_output("touch /run/probe-works")
    wait_until(lambda: not host.file("/var/lib/holdfast/guard/probe.json").exists, "the change to be taken back wholly", PATIENCE_SECONDS)
    timers = "systemctl list-timers --all --no-legend"
    wait_until(lambda: "holdfast-guard" not in host.check_output(timers), "the timer to go", PATIENCE_SECONDS)
    host.check_output("rm /etc/holdfast/probe")


def test_unconfirmed_change_does_not_outlive_a_reboot(host: Host, host_name: str) -> None:
    """A change that nobody confirmed before the host went down is gone when it is back, and a unit that it masked has started."""
    unit = "/etc/systemd/system/probe.service"
    asked = {
        "seconds": 600, "folders": [], "apply": [["true"]], "retire": [], "check": [],
        "files": [{"path": "/etc/holdfast/probe", "content": "new"}, {"path": unit, "link": "/dev/null"}],
    }  # fmt: skip
    service = (
        "[Unit]\nDefaultDependencies=no\n[Service]\nType=oneshot\nExecStart=touch /run/probe-started\n[Install]\nWantedBy=sysinit.target"
    )
    host.check_output(f"echo old > /etc/holdfast/probe && echo '{service}' > {unit} && systemctl enable probe.service")
    host.check_output(f"echo '{json.dumps(asked)}' | holdfast guard apply probe")
    assert host.check_output("cat /etc/holdfast/probe") == "new"
    assert host.check_output("systemctl is-enabled probe.service || true") == "masked"
    test_host.reboot(host_name)
    assert host.check_output("cat /etc/holdfast/probe") == "old"
    assert host.check_output(f"cat {unit}") == service
    wait_until(lambda: host.file("/run/probe-started").exists, "the unit that was masked", PATIENCE_SECONDS)
    left = host.check_output("find /etc/systemd/system /var/lib/holdfast/guard -name '*guard*' -o -name '*.json'")
    assert left == "/var/lib/holdfast/guard"
    assert "chain outside" in host.check_output("nft list table inet holdfast")
