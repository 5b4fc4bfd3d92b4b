"""An inventory as one archive, byte for byte the same from the same files: what a host keeps a copy of, off the host."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from tools.shell import CACHE, Failure

NAME = "inventory.tar"
FOLDERS = ("group_vars", "host_vars")
VAULT, HEADER = "vault.yml", b"$ANSIBLE_VAULT"


def files(folder: Path) -> dict[str, bytes]:
    """Read what belongs to an inventory, by its path in it; links are followed.

    Raises:
        Failure: it is none, or its vault is not encrypted.
    """
    listed = [path for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
    for name in FOLDERS:
        listed += [path for path in (folder / name).rglob("*") if path.is_file()]
    found = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(listed)}
    if not found:
        raise Failure(f"{folder} is no inventory: name the folder that has hosts.yml with offsite_inventory_path.")
    for name, content in found.items():
        if Path(name).name == VAULT and not content.startswith(HEADER):
            raise Failure(f"{folder / name} is not encrypted, so no copy of it is made: run `ansible-vault encrypt {folder / name}`.")
    return found


def archive(folder: str) -> None:
    """Write an inventory's archive into the cache, and print its path."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in files(Path(folder)).items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o600
            tar.addfile(entry, io.BytesIO(content))
    # Runs side by side may archive different inventories.
    target = CACHE / "inventory" / Path(folder).resolve().as_posix().strip("/").replace("/", "-") / NAME
    target.parent.mkdir(parents=True, exist_ok=True)
    if not (target.exists() and target.read_bytes() == buffer.getvalue()):
        target.write_bytes(buffer.getvalue())
    print(target)
