"""What an independent auditor on another machine, ssh-audit, says of sshd."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from testinfra.host import Host

from tools import host as test_host
from tools.shell import VENV_BIN, run

KINDS = ("kex", "key", "enc", "mac")
GOOD, WARNING, FAILURE = 0, 2, 3


@dataclass(frozen=True)
class Audit:
    """What the auditor said: its exit code, the algorithms of each kind, and one sentence for each finding."""

    code: int
    offered: dict[str, list[str]]
    findings: list[str]


def audit(address: str) -> Audit:
    """Ask an sshd for all that it offers, and how many connections it lets one address make."""
    done = run([VENV_BIN / "ssh-audit", "--json", address], timeout_seconds=60, check=False)
    assert done.returncode in (GOOD, WARNING, FAILURE), done.stdout
    said = json.loads(done.stdout)
    findings = [
        f"{kind} {each['algorithm']}: {note}"
        for kind in KINDS
        for each in said[kind]
        for level in ("fail", "warn")
        for note in each["notes"].get(level, [])
    ]
    return Audit(done.returncode, {kind: [each["algorithm"] for each in said[kind]] for kind in KINDS}, findings + said["additional_notes"])


@pytest.fixture
def unknown_here(host: Host) -> Iterator[None]:
    """Let sshd forget who has knocked too often: earlier tests, and the auditor itself."""
    host.check_output("systemctl restart ssh.service")
    yield
    host.check_output("systemctl restart ssh.service")


@pytest.fixture
def bare_address(host_name: str) -> Iterator[str]:
    """Bring a second host up, with Debian's own sshd, and return its address."""
    name = f"{host_name}-bare"
    test_host.down(name)
    test_host.up(name)
    yield test_host.address(name)
    test_host.down(name)


def test_auditor_finds_nothing(host_name: str, unknown_here: None) -> None:
    """Of all that sshd offers, the auditor warns of nothing."""
    said = audit(test_host.address(host_name))
    assert all(said.offered.values()), said
    assert said.findings == []
    assert said.code == GOOD


def test_auditor_sees_a_bad_sshd(bare_address: str) -> None:
    """The same audit of a host that the role has not seen says what is wrong with it."""
    said = audit(bare_address)
    assert "mac hmac-sha1: using broken SHA-1 hash algorithm" in said.findings
    assert any(finding.startswith("kex ecdh-sha2-nistp256: ") for finding in said.findings)
    assert said.code == FAILURE
