"""The demo's admin: a key pair of this machine's own, whose public half the demo's inventory gets."""

from __future__ import annotations

import json

from tools.shell import CACHE, ROOT, run

NAME = "admin"
KEY = CACHE / "demo" / "admin_ed25519"
ADMINS_FILE = ROOT / "inventories" / "demo" / "group_vars" / "all" / "admins.yml"


def ensure() -> bool:
    """Make the key where it is missing, and write its public half into the demo's inventory.

    Returns:
        Whether anything was written.
    """
    if not KEY.exists():
        KEY.parent.mkdir(parents=True, exist_ok=True)
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "holdfast-demo", "-f", KEY])
    public = KEY.with_suffix(".pub").read_text().strip()
    # JSON is YAML.
    content = json.dumps({"access_admins": [{"name": NAME, "keys": [public]}]})
    text = f"---\n# Written by `make demo`; the private key is in .cache/demo.\n{content}\n"
    if ADMINS_FILE.exists() and ADMINS_FILE.read_text() == text:
        return False
    ADMINS_FILE.write_text(text)
    return True


def remove() -> None:
    """Remove the key, and what the inventory got."""
    for path in (KEY, KEY.with_suffix(".pub"), ADMINS_FILE):
        path.unlink(missing_ok=True)
