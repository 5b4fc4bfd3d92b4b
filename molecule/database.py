"""What the scenarios of the databases share: run the scenario's playbook again with other inputs, and speak SQL as a role."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

from testinfra.host import Host

from tools import secrets
from tools.shell import ROOT, VENV_BIN, run

DEMO = "demo"
DATABASE = "smart_audit"


def password(role: str) -> str:
    """Return the password that the demo's vault has for a role."""
    return secrets.read(DEMO)[f"postgresql_{role}_password"]


def ask(host: Host, query: str, database: str = DATABASE) -> str:
    """Ask the server as its superuser."""
    psql = "psql --no-psqlrc --quiet --tuples-only --no-align --set ON_ERROR_STOP=1"
    return host.check_output(f"timeout 120 runuser -u postgres -- {psql} --dbname %s --command %s", database, query)


def login(role: str, *, secret: str | None = None, folder: str = "/run/postgresql", port: int = 5432, database: str = DATABASE) -> str:
    """Return the beginning of a command line that runs psql as one of the application's roles."""
    name = role if role == "monitoring" else f"{DATABASE}_{role}"
    given = password(role) if secret is None else secret
    psql = "psql --no-psqlrc --quiet --tuples-only --no-align --set ON_ERROR_STOP=1"
    return f"PGPASSWORD={given} timeout 60 {psql} --host {folder} --port {port} --username {name} --dbname {database}"


def converge(host: Host, scenario: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a scenario's playbook on its host again, with further arguments, and return what it printed."""
    name = host.backend.name
    with tempfile.TemporaryDirectory() as folder:
        inventory = Path(folder)
        (inventory / "group_vars").symlink_to(ROOT / "inventories" / DEMO / "group_vars")
        hosts = {"object_store": {"hosts": {name: {"ansible_connection": "community.docker.docker"}}}}
        (inventory / "hosts.json").write_text(json.dumps({"all": {"children": hosts}}), encoding="utf-8")
        playbook = ROOT / "molecule" / scenario / "converge.yml"
        environment = {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
        return run(
            [VENV_BIN / "ansible-playbook", "-i", inventory, playbook, *arguments], env=environment, check=False, timeout_seconds=400
        )
