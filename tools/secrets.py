"""Write a random value for every secret that an inventory needs and does not have yet."""

from __future__ import annotations

import functools
import os
import secrets
import string
from pathlib import Path
from typing import Any

import yaml

from tools import admin
from tools.shell import ROOT, VENV_BIN, Failure, run, say

# 32 characters of this alphabet are 190 bits; letters and digits alone need no quoting in URLs, SQL or shells.
ALPHABET = string.ascii_letters + string.digits
LENGTH = 32
HEADER = "$ANSIBLE_VAULT"


class _Tolerant(yaml.SafeLoader):
    """Reads inventories whose values carry tags such as !vault."""


_Tolerant.add_multi_constructor("!", lambda loader, suffix, node: f"!{suffix}")


def random_value() -> str:
    """Make one secret."""
    return "".join(secrets.choice(ALPHABET) for _ in range(LENGTH))


def password_file() -> Path:
    """Say where the vault password lies."""
    return Path(os.environ.get("HOLDFAST_VAULT_PASSWORD_FILE", ROOT / ".vault-password"))


def _folder(inventory: str) -> Path:
    folder = ROOT / "inventories" / inventory / "group_vars" / "all"
    if not folder.is_dir():
        known = ", ".join(sorted(path.name for path in (ROOT / "inventories").iterdir() if path.is_dir()))
        raise Failure(f"There is no inventory '{inventory}': INVENTORY is one of {known}.")
    return folder


def _needed() -> dict[str, str]:
    """Name every secret that the roles require, with its description."""
    found: dict[str, str] = {}
    for path in sorted((ROOT / "roles").glob("*/meta/argument_specs.yml")):
        specs: dict[str, Any] = yaml.safe_load(path.read_text())["argument_specs"]
        for name, option in (specs["main"].get("options") or {}).items():
            if option.get("no_log") and option.get("required"):
                found[name] = str(option["description"])
    return found


def read(inventory: str) -> dict[str, str]:
    """Return what the inventory's vault holds; nothing where there is none.

    Raises:
        Failure: the vault can't be decrypted.
    """
    vault = _folder(inventory) / "vault.yml"
    if not vault.exists():
        return {}
    return dict(_view(vault, vault.read_text()))


@functools.cache
def _view(vault: Path, text: str) -> dict[str, str]:
    """Decrypt a vault, once for each text it has: tests ask hundreds of times, and each start of ansible-vault takes a second."""
    if text.startswith(HEADER):
        text = run([VENV_BIN / "ansible-vault", "view", vault]).stdout
    return yaml.safe_load(text) or {}


def ensure(inventory: str) -> bool:
    """Add what is missing to the inventory's encrypted vault.yml; what it holds already is never changed.

    Args:
        inventory: name of a folder below inventories/.

    Returns:
        Whether a secret was added.

    Raises:
        Failure: no such inventory, or a vault that can't be decrypted.
    """
    folder = _folder(inventory)
    key = password_file()
    if not key.exists():
        if (folder / "vault.yml").exists():
            raise Failure(
                f"{folder / 'vault.yml'} is there but {key} is not: put the vault password back, "
                "or name it with HOLDFAST_VAULT_PASSWORD_FILE."
            )
        key.touch(mode=0o600)
        key.write_text(random_value() + "\n")
        say(f"Wrote a new vault password to {key}. Keep a copy off this machine: without it the secrets are lost.")
    plain: dict[str, Any] = {}
    for path in sorted(folder.glob("*.yml")):
        if path.name != "vault.yml":
            plain |= yaml.load(path.read_text(), Loader=_Tolerant) or {}  # noqa: S506 - a SafeLoader that ignores tags
    # Nobody logs in to the demo's host over ssh, but the roles ask for somebody who could.
    named = inventory == "demo" and admin.ensure()
    held = read(inventory)
    missing = [name for name in _needed() if name not in plain and name not in held]
    if not missing:
        say(f"inventories/{inventory} has every secret that the roles need.")
        return named
    held |= {name: random_value() for name in missing}
    text = "---\n" + "".join(
        f"{name}: {held[name]}\n" if held[name].isalnum() else yaml.safe_dump({name: held[name]}) for name in sorted(held)
    )
    vault = folder / "vault.yml"
    # Encrypted on standard output and moved into place: the plain text never lies on a disk, and a failure leaves the old file.
    encrypted = run([VENV_BIN / "ansible-vault", "encrypt", "--output", "-", "-"], stdin=text).stdout
    fresh = vault.with_suffix(".new")
    fresh.write_text(encrypted[encrypted.index(HEADER) :])
    fresh.chmod(0o600)
    fresh.replace(vault)
    say(f"Wrote {len(missing)} secrets to {vault.relative_to(ROOT)}: {', '.join(missing)}.")
    return True
