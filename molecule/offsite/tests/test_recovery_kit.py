"""The recovery kit on paper: with the page, the repository and the bucket, and nothing else, the inventory comes back."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import recovery
from testinfra.host import Host

from tools import secrets
from tools.playbook import inventory
from tools.shell import ROOT, run


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Have a fresh clone."""
    return recovery.clone(tmp_path_factory.mktemp("clone") / "holdfast")


@pytest.fixture(scope="module")
def kit(host: Host, host_name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a kit of the scenario's host, whose inventory is in the bucket."""
    host.check_output("timeout 300 holdfast offsite copy files")
    folder = tmp_path_factory.mktemp("kit")
    return recovery.kit(inventory(folder / "lost", {host_name: {}}), folder / "kit.txt")


def _call(clone: Path, command: str, page: Path, endpoint: str) -> subprocess.CompletedProcess[str]:
    return run(["python3", "-m", "tools", command, page, endpoint], cwd=clone, check=False, timeout_seconds=300)


def test_one_secret(kit: Path) -> None:
    """The page has one secret in the clear, the recovery key, and only its owner reads the file."""
    text = kit.read_text()
    assert kit.stat().st_mode & 0o777 == 0o600
    assert secrets.password_file().read_text().strip() in text
    assert not [name for name, value in secrets.read("demo").items() if value in text]
    assert len(text.splitlines()) <= 75, "more than a page"


def test_opens_the_bucket(clone: Path, kit: Path, host_name: str) -> None:
    """A clone without inventory and vault password opens the bucket with the page alone, and leaves nothing behind."""
    said = _call(clone, "recovery-kit-check", kit, recovery.endpoint(host_name))
    assert said.returncode == 0, said.stdout
    for words in ("opens the envelope", "answers over TLS", "1 vaults open with the recovery key", "The kit is good"):
        assert words in said.stdout, said.stdout
    assert secrets.password_file().read_text().strip() not in said.stdout
    assert not list(Path("/dev/shm").glob("holdfast-*"))


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        pytest.param("key = ", "key = x", "does not open the envelope", id="wrong key"),
        pytest.param("$ANSIBLE_VAULT", "$ANSIBLE_FAULT", "lacks the envelope", id="no envelope"),
        pytest.param("bucket = backups", "", "lacks bucket", id="no bucket"),
        pytest.param("bucket = backups", "bucket = another", "rclone", id="another bucket"),
        pytest.param("path = /offsite", "path = /elsewhere", "is empty", id="empty folder"),
        pytest.param("inventory = ", "inventory = ../", "no name of a folder", id="folder outside"),
    ],
)
def test_misread_page(clone: Path, kit: Path, host_name: str, tmp_path: Path, before: str, after: str, words: str) -> None:
    """A page that was misread is refused in a sentence that says what to compare."""
    page = tmp_path / "kit.txt"
    assert before in kit.read_text()
    page.write_text(kit.read_text().replace(before, after, 1))
    said = _call(clone, "recovery-kit-check", page, recovery.endpoint(host_name))
    assert said.returncode == 1
    assert words in said.stdout and "Traceback" not in said.stdout, said.stdout


def test_brings_the_inventory_back(clone: Path, kit: Path, host_name: str) -> None:
    """The inventory comes back with its vault, byte for byte, and never over another one."""
    name = next(line.split(" = ")[1] for line in kit.read_text().splitlines() if line.startswith("inventory = "))
    said = _call(clone, "recover", kit, recovery.endpoint(host_name))
    assert said.returncode == 0, said.stdout
    vault = "group_vars/all/vault.yml"
    assert (clone / "inventories" / name / vault).read_bytes() == (ROOT / "inventories" / "demo" / vault).read_bytes()
    assert (clone / ".vault-password").read_text().strip() == secrets.password_file().read_text().strip()
    again = _call(clone, "recover", kit, recovery.endpoint(host_name))
    assert again.returncode == 1
    assert "has a vault already" in again.stdout
