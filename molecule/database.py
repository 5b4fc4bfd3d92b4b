"""What the scenarios of the databases share: run the scenario's playbook again with other inputs, and speak SQL as a role."""

from __future__ import annotations

import subprocess

from testinfra.host import Host

from tools import secrets
from tools.playbook import play_on

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
    return play_on(str(host.backend.name), f"molecule/{scenario}/converge.yml", *arguments)
