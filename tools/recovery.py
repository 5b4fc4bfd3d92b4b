"""The recovery kit: write the page, prove that the page alone opens the bucket, and bring the inventory back with it.

What checks the page reads nothing else: no inventory, no vault password of this checkout.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tools import packages, secrets
from tools.shell import ROOT, VENV_BIN, Failure, run, say

PLAYBOOK = ROOT / "playbooks" / "recovery_kit.yml"
PROGRAMS = ROOT / "files" / "holdfast"
REQUIRED = ("key", "host", "inventory", "endpoint", "region", "bucket", "path")
VALUE = re.compile(r"^[ \t]*([a-z]+)[ \t]*=[ \t]*(\S*)[ \t]*$", re.MULTILINE)
AUTHORITY = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
ENVELOPE = re.compile(r"^\s*(\$ANSIBLE_VAULT;[\d.]+;AES256)\s*\n((?:\s*[0-9a-f]+\s*\n)+)", re.MULTILINE)
NAME = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Kit:
    """What is on the page.

    Attributes:
        values: the lines `name = value`.
        authority: the bucket's authority in PEM; nothing where it is one that everybody knows.
        envelope: the encrypted part.
    """

    values: dict[str, str]
    authority: str
    envelope: str

    @classmethod
    def read(cls, path: Path) -> Kit:
        """Read the page, which a person may have typed.

        Raises:
            Failure: there is none, or something is missing on it.
        """
        if not path.is_file():
            raise Failure(f"There is no kit '{path}': name the file with KIT=file; `make recovery-kit` writes one.")
        text = path.read_text(encoding="utf-8").replace("\r\n", "\n")
        values = dict(VALUE.findall(text))
        if missing := [name for name in REQUIRED if not values.get(name)]:
            raise Failure(f"{path} lacks {', '.join(missing)}: each stands on a line of its own, such as `bucket = backups`.")
        if not NAME.fullmatch(values["inventory"]) or values["inventory"].startswith("."):
            raise Failure(f"{path} says inventory = {values['inventory']}, which is no name of a folder: compare it with the page.")
        if not (envelope := ENVELOPE.search(text)):
            raise Failure(f"{path} lacks the envelope: the line $ANSIBLE_VAULT;1.1;AES256 and the lines of digits below it.")
        digits = "\n".join(line.strip() for line in envelope[2].splitlines())
        authority = AUTHORITY.search(text)
        lines = "\n".join(line.strip() for line in authority[0].splitlines()) if authority else ""
        return cls(values, lines, f"{envelope[1]}\n{digits}\n")

    def decrypt(self, text: str) -> str:
        """Open what the recovery key encrypted.

        Raises:
            Failure: it does not open.
        """
        with _memory() as folder:
            password = folder / "key"
            password.touch(mode=0o600)
            password.write_text(self.values["key"] + "\n")
            # This checkout's configuration and the environment would both name its vault password.
            empty = folder / "ansible.cfg"
            empty.touch()
            words = [VENV_BIN / "ansible-vault", "decrypt", "--vault-password-file", password, "--output", "-", "-"]
            ours = ("ANSIBLE_VAULT_PASSWORD_FILE", "ANSIBLE_VAULT_IDENTITY_LIST")
            environment = {name: value for name, value in os.environ.items() if name not in ours} | {"ANSIBLE_CONFIG": str(empty)}
            # stderr would say "Decryption successful" among the text.
            done = subprocess.run(
                [str(word) for word in words], check=False, input=text, capture_output=True, text=True, cwd=folder, timeout=60,
                env=environment,
            )  # fmt: skip
        if done.returncode:
            raise Failure("The recovery key does not open the envelope: compare both with the page, digit by digit.")
        return done.stdout

    @contextmanager
    def settings(self, endpoint: str = "") -> Iterator[Path]:
        """Write the settings of `holdfast offsite` where only we can read them, for as long as the context lasts.

        Yields:
            The file with the settings.
        """
        held: dict[str, str] = json.loads(self.decrypt(self.envelope))
        content = {
            "bucket": {
                "endpoint": endpoint or self.values["endpoint"],
                "region": self.values["region"],
                "bucket": self.values["bucket"],
                "access_key": held["access_key"],
                "secret_key": held["secret_key"],
                "ca": self.authority,
            },
            "path": self.values["path"],
            "passphrase": held["passphrase"],
            "repository_path": self.values.get("repository", ""),
            "repository_passphrase": held["repository_passphrase"],
        }
        with _memory() as folder:
            path = folder / "offsite.json"
            path.touch(mode=0o600)
            path.write_text(json.dumps(content))
            yield path


@contextmanager
def _memory() -> Iterator[Path]:
    """Have a folder of our own that lies in memory where there is such a place."""
    place = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=place if os.access(place, os.W_OK) else None, prefix="holdfast-kit-") as folder:
        yield Path(folder)


def _holdfast(settings: Path, *words: str | Path) -> str:
    """Run the host's own program here, with the settings of the kit."""
    done = run(
        ["python3", "-m", "holdfast", "offsite", "--settings", settings, *words],
        env={"PYTHONPATH": str(PROGRAMS), "PYTHONDONTWRITEBYTECODE": "1"},
        check=False,
    )
    if done.returncode:
        raise Failure(done.stdout.strip().removeprefix("holdfast: "))
    return done.stdout.strip()


def write(inventory: str) -> None:
    """Write the kit of each host of an inventory.

    Raises:
        Failure: there is no such inventory, or what the kit is made of is missing.
    """
    folder = ROOT / "inventories" / inventory
    if not (folder / "group_vars" / "all" / "vault.yml").exists():
        raise Failure(f"inventories/{inventory} has no vault.yml: run `make secrets INVENTORY={inventory}` first.")
    said = run([VENV_BIN / "ansible-playbook", "-i", folder, PLAYBOOK], env={"ANSIBLE_NOCOLOR": "1"}, check=False)
    if said.returncode:
        told = re.findall(r"Nothing was changed on .*", said.stdout) or said.stdout.strip().splitlines()[-15:]
        raise Failure("The recovery kit was not written. " + "\n".join(told))
    for path in sorted(ROOT.glob("recovery-kit-*.txt")):
        say(f"{path.relative_to(ROOT)}: print it, prove it with `make recovery-kit-check KIT={path.name}`, delete it.")


def check(kit: str, endpoint: str) -> None:
    """Prove that the page opens the bucket: list it over TLS, read the inventory, open its vault, read the database's backups.

    Args:
        kit: file with the page.
        endpoint: where the bucket is reached from here, if not where the page says.

    Raises:
        Failure: something does not open; the text says what, and what to compare.
    """
    packages.install("rclone", programs=True)
    page = Kit.read(Path(kit))
    with page.settings(endpoint) as settings, _memory() as folder:
        print("The recovery key opens the envelope.")
        print(_holdfast(settings, "check"))
        _holdfast(settings, "fetch", "inventory", folder)
        vaults = sorted(folder.rglob("vault.yml"))
        for vault in vaults:
            page.decrypt(vault.read_text())
        files = len([path for path in folder.rglob("*") if path.is_file()])
        print(f"The inventory is there: {files} files, of which {len(vaults)} vaults open with the recovery key.")
    print(
        f"The kit is good: with it, the repository at commit {page.values.get('commit', '?')[:12]} and the bucket, the host can be rebuilt."
    )


def recover(kit: str, endpoint: str) -> None:
    """Bring the inventory back into this checkout, and the vault password.

    Raises:
        Failure: something of it is here already and is another, or the bucket does not open.
    """
    packages.install("rclone", programs=True)
    page = Kit.read(Path(kit))
    name, key = page.values["inventory"], secrets.password_file()
    target = ROOT / "inventories" / name
    if key.exists() and key.read_text().strip() != page.values["key"]:
        raise Failure(f"{key} is another key than the kit's: move it away, or work in a fresh clone.")
    if (target / "group_vars" / "all" / "vault.yml").exists():
        raise Failure(f"inventories/{name} has a vault already, so nothing was brought back: work in a fresh clone, or move it away.")
    with page.settings(endpoint) as settings, _memory() as folder:
        _holdfast(settings, "fetch", "inventory", folder)
        # The repository's own example may be there; the lost host's inventory is the one that counts, and all that counts.
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(folder, target)
    if not key.exists():
        key.touch(mode=0o600)
        key.write_text(page.values["key"] + "\n")
    say(f"inventories/{name} and the vault password are back.")
    say(f"Write the new machine's address into inventories/{name}/hosts.yml, then:")
    say(f".venv/bin/ansible-playbook -i inventories/{name} playbooks/rebuild.yml")
