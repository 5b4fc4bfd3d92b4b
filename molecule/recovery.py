"""What is left when a host is lost: the page that the owner has kept, a fresh clone, and the bucket."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tools import bucket
from tools.playbook import play
from tools.shell import ROOT, run


def endpoint(host_name: str) -> str:
    """Return where this machine reaches a host's bucket, whose name only the test hosts know."""
    published = run(["docker", "port", bucket.name_of(host_name), str(bucket.PORT)]).stdout.splitlines()[0]
    return f"localhost:{published.rsplit(':', 1)[1]}"


def clone(folder: Path) -> Path:
    """Make a fresh clone: what git tracks, without an inventory's secrets and without the vault password."""
    names = run(["git", "ls-files", "--cached", "--others", "--exclude-standard"]).stdout.splitlines()
    for name in names:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (folder / ".venv").symlink_to(ROOT / ".venv")
    assert not (folder / ".vault-password").exists()
    assert not list(folder.glob("inventories/*/group_vars/all/vault.yml"))
    return folder


def kit(source: Path, page: Path, **inputs: Any) -> Path:
    """Write the kit of an inventory's host into a file of ours."""
    done = play(source, "playbooks/recovery_kit.yml", inputs={**inputs, "__offsite_kit": str(page)})
    assert done.returncode == 0, done.stdout[-3000:]
    return page
