"""What the role valkey promises of every host. The host knows no password, so these ask as a stranger does."""

from __future__ import annotations

import re

import pytest
from testinfra.host import Host

SOCKET = "/run/valkey/valkey.sock"
ASK = f"timeout 5 valkey-cli -s {SOCKET}"


@pytest.fixture(scope="module")
def process(host: Host) -> str:
    """Return the process id of the server that answers."""
    assert "NOAUTH" in host.run(f"{ASK} ping").stdout
    return host.check_output("systemctl show --property MainPID --value valkey-server.service").strip()


def test_answers(host: Host) -> None:
    """Valkey answers on its unix socket, and starts at boot."""
    assert "NOAUTH" in host.run(f"{ASK} ping").stdout
    assert host.service("valkey-server.service").is_enabled


def test_strangers_are_refused(host: Host) -> None:
    """Nobody gets in without a user's password, and the default user has none."""
    for words in ("get x", "set x y", "config get maxmemory", "acl list"):
        assert "NOAUTH" in host.run(f"{ASK} {words}").stdout, words
    for user, password in (("default", "''"), ("default", "default"), ("app", "app"), ("monitoring", "monitoring")):
        assert "WRONGPASS" in host.run(f"{ASK} auth {user} {password}").stdout, user


def test_no_port(host: Host, process: str) -> None:
    """Valkey listens on no port; it has no network at all."""
    assert "valkey" not in host.check_output("ss --listening --tcp --udp --numeric --processes")
    assert host.check_output(f"readlink /proc/{process}/ns/net") != host.check_output("readlink /proc/1/ns/net")


def test_passwords_are_hashed(host: Host, process: str) -> None:
    """The users' file holds no password, only hashes, and only the service reads it."""
    assert process
    users = host.file("/etc/valkey/users.acl")
    assert users.mode == 0o640
    assert (users.user, users.group) == ("root", "valkey")
    lines = users.content_string.splitlines()
    assert re.fullmatch(r"user default off .*-@all", lines[0])
    assert len(lines) > 1
    for line in lines[1:]:
        assert re.fullmatch(r"user \S+ on #[0-9a-f]{64} .*", line)
        assert " >" not in line
        assert "nopass" not in line


def test_writes_reach_disk(host: Host, process: str) -> None:
    """The append-only file is on and open in the running server."""
    opened = host.check_output(f"ls -l /proc/{process}/fd")
    assert re.search(r"/var/lib/valkey/appendonlydir/\S+\.incr\.aof$", opened, re.MULTILINE)


def test_folder_survives_restarts(host: Host, process: str) -> None:
    """The socket's folder keeps its inode through restarts, and containers may look into it."""
    assert process
    assert host.check_output("systemctl show --property RuntimeDirectoryPreserve --value valkey-server.service").strip() == "yes"
    assert host.file("/run/valkey").mode == 0o755


def test_not_root(host: Host, process: str) -> None:
    """The server is not root and has no capability."""
    status = host.check_output(f"cat /proc/{process}/status")
    assert not re.search(r"^Uid:\t0\b", status, re.MULTILINE)
    assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)
