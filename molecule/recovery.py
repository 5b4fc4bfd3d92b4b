"""What is left when a host is lost: the page that the owner has kept, a fresh clone, and the bucket."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tools import bench_rebuild, bucket, secrets
from tools.playbook import CONTAINER, inventory, play
from tools.shell import ROOT, run

INVENTORY = "production"
# What molecule tells Ansible, and whoever tests tells our tools, is not in the shell of a person who rebuilds.
OURS = ("ANSIBLE_", "MOLECULE_", "HOLDFAST_", "PYTEST_")
COMMAND_SECONDS = 1200


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


def owner(folder: Path, host_name: str) -> Path:
    """Make the checkout of a test host's owner, whose inventory is called as a production host's is."""
    checkout = clone(folder)
    shutil.rmtree(checkout / "inventories" / INVENTORY)
    inventory(checkout / "inventories" / INVENTORY, {host_name: CONTAINER})
    shutil.copy2(secrets.password_file(), checkout / ".vault-password")
    # The page names the commit.
    (checkout / ".git").write_text(f"gitdir: {run(['git', 'rev-parse', '--absolute-git-dir']).stdout}")
    with_cache(checkout)
    return checkout


def with_cache(checkout: Path) -> Path:
    """Let a checkout have the packages that this controller has built or fetched before."""
    (checkout / ".cache").symlink_to(ROOT / ".cache")
    return checkout


def type_in(checkout: Path, command: str, host_name: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Type a command of a page in a checkout, in a person's shell; only the test hosts' bucket has another name from here."""
    unset = [f"--unset={name}" for name in os.environ if name.startswith(OURS)]
    told = [f"ENDPOINT={endpoint(host_name)}", "NO_COLOR=1", "ANSIBLE_NOCOLOR=1"]
    return run(
        ["env", *unset, *told, *shlex.split(command), *words], cwd=checkout, check=False, timeout_seconds=COMMAND_SECONDS
    )  # fmt: skip


def note(what: str, figure: object) -> None:
    """Leave a figure to the benchmark that runs the scenario, and show it to whoever reads the log."""
    print(f"{what}: {figure}")
    if path := os.environ.get(bench_rebuild.FIGURES):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(f"{what}\t{figure}\n")
