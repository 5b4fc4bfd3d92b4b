"""The recovery kit as a person types it, and the inventory as an archive."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from tools import inventory
from tools.recovery import Kit
from tools.shell import VENV_BIN, Failure, run

PAGE = """
key = {key}

host = production
inventory = production
commit = 0123456789abcdef
endpoint = s3.test
region = eu-central-1
bucket = backups
path = /offsite
repository =

-----BEGIN CERTIFICATE-----
AAAA
-----END CERTIFICATE-----

{envelope}

1. Get a machine
"""
KEY = "k" * 32


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """Write a page whose envelope opens with its key."""
    (tmp_path / "key").write_text(KEY)
    words: list[str | Path] = [VENV_BIN / "ansible-vault", "encrypt", "--vault-password-file", tmp_path / "key", "--output", "-", "-"]
    (tmp_path / "ansible.cfg").touch()
    sealed = run(words, stdin='{"access_key": "a"}', cwd=tmp_path, env={"ANSIBLE_CONFIG": str(tmp_path / "ansible.cfg")}).stdout
    path = tmp_path / "kit.txt"
    path.write_text(PAGE.format(key=KEY, envelope=sealed[sealed.index("$ANSIBLE") :]))
    return path


def test_typed_page(page: Path) -> None:
    """A page opens however it was indented, and whatever line ends the person's editor writes."""
    text = page.read_text()
    for typed in (text, text.replace("\n", "\r\n"), "\n".join(f"   {line}  " for line in text.splitlines())):
        page.write_text(typed, newline="")
        kit = Kit.read(page)
        assert kit.values["key"] == KEY
        assert kit.values["repository"] == ""
        assert kit.authority.splitlines() == ["-----BEGIN CERTIFICATE-----", "AAAA", "-----END CERTIFICATE-----"]
        assert kit.decrypt(kit.envelope) == '{"access_key": "a"}'


def test_wrong_key(page: Path) -> None:
    """A key with one wrong letter is told as such."""
    page.write_text(page.read_text().replace(KEY, "l" + KEY[1:]))
    kit = Kit.read(page)
    with pytest.raises(Failure, match="does not open the envelope"):
        kit.decrypt(kit.envelope)


def test_no_page() -> None:
    """A page that is not there is told with the way to one."""
    with pytest.raises(Failure, match="make recovery-kit"):
        Kit.read(Path())


def test_inventory_archive(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """An inventory is packed with what its links point at, into the same bytes; one without encryption is refused."""
    monkeypatch.setattr(inventory, "CACHE", tmp_path / "cache")
    real, folder = tmp_path / "real", tmp_path / "lost"
    (real / "all").mkdir(parents=True)
    folder.mkdir()
    (folder / "hosts.yml").write_text("all: {}")
    (folder / "group_vars").symlink_to(real)
    (real / "all" / "vault.yml").write_text("$ANSIBLE_VAULT;1.1;AES256\n00")
    inventory.archive(str(folder))
    first = Path(capsys.readouterr().out.strip())
    content = first.read_bytes()
    inventory.archive(str(folder))
    assert first.read_bytes() == content
    with tarfile.open(first) as archive:
        assert sorted(archive.getnames()) == ["group_vars/all/vault.yml", "hosts.yml"]
    (real / "all" / "vault.yml").write_text("secret: plain")
    with pytest.raises(Failure, match="is not encrypted"):
        inventory.archive(str(folder))
    with pytest.raises(Failure, match="is no inventory"):
        inventory.archive(str(tmp_path / "nowhere"))
