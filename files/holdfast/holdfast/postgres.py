"""Ask the server and pgBackRest, as the system user postgres, whoever calls."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from holdfast.failure import Failure

SYSTEM_USER = "postgres"
STANZA = "main"
SOCKETS = "/run/postgresql"
DATA = Path("/var/lib/postgresql/17/main")
PSQL_SECONDS = 60
# Its own timeouts end an unreachable repository long before.
PGBACKREST_SECONDS = 600


class Identity(TypedDict, total=False):
    """Whom subprocess makes of a program."""

    user: int
    group: int
    extra_groups: list[int]


def identity() -> Identity:
    """Say how subprocess makes a program run as postgres: nothing to do where we are.

    Not by runuser: PAM opens a session, and refuses one in a unit that was made nice.

    Raises:
        Failure: the server is not installed.
    """
    try:
        found = pwd.getpwnam(SYSTEM_USER)
    except KeyError as error:
        raise Failure(f"The host has no user {SYSTEM_USER}: run `ansible-playbook site.yml --tags postgresql`.") from error
    if os.geteuid() == found.pw_uid:
        return {}
    return {"user": found.pw_uid, "group": found.pw_gid, "extra_groups": os.getgrouplist(SYSTEM_USER, found.pw_gid)}


def give(path: Path) -> None:
    """Give a path to postgres, where that is not who we are.

    Raises:
        Failure: the server is not installed.
    """
    if "user" in (who := identity()):
        os.chown(path, who["user"], who["group"])


def as_postgres(words: Sequence[str], *, timeout_seconds: float, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program as postgres, from root or from postgres itself, and return what it printed.

    Raises:
        Failure: it is missing, or had not ended in time.
    """
    try:
        return subprocess.run(
            words,
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            input=stdin or "",
            timeout=timeout_seconds,
            cwd="/",
            # What we read of it must not be translated.
            env={**os.environ, "LC_ALL": "C.UTF-8"},
            **identity(),
        )
    except FileNotFoundError as error:
        raise Failure(f"The program {words[0]} is not installed: run `ansible-playbook site.yml`.") from error
    except subprocess.TimeoutExpired as error:
        raise Failure(f"`{' '.join(words[:4])}` had not ended after {timeout_seconds:.0f} s.") from error


def psql(sql: str, *, database: str = "postgres", socket: str = SOCKETS, timeout_seconds: float = PSQL_SECONDS) -> str:
    """Ask a server as its superuser, and return the rows, unaligned, without a header.

    Raises:
        Failure: the server refused, or does not run.
    """
    words = ["psql", "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set", "ON_ERROR_STOP=1", "--host", socket]
    done = as_postgres([*words, "--dbname", database, "--file", "-"], timeout_seconds=timeout_seconds, stdin=sql)
    if done.returncode:
        raise Failure(f"PostgreSQL refused: {_last(done.stderr)}")
    return done.stdout.strip()


def variables(**values: str) -> str:
    """Return lines that set variables of psql, for the statements after them."""
    quoted = {name: value.replace("\\", "\\\\").replace("'", "''") for name, value in values.items()}
    return "".join(f"\\set {name} '{value}'\n" for name, value in quoted.items())


def pgbackrest(*words: str, timeout_seconds: float = PGBACKREST_SECONDS) -> str:
    """Run pgBackRest on the stanza, and return what it printed.

    Raises:
        Failure: it failed; the text is its own reason, on one line.
    """
    done = as_postgres(["pgbackrest", f"--stanza={STANZA}", *words], timeout_seconds=timeout_seconds)
    if done.returncode:
        raise Failure(f"pgBackRest refused: {reason(done.stdout + done.stderr)}")
    return done.stdout


def info(*options: str) -> dict[str, Any]:
    """Return what the repositories hold of the stanza (`pgbackrest info`).

    Raises:
        Failure: pgBackRest can't be asked.
    """
    found: list[dict[str, Any]] = json.loads(pgbackrest("info", "--output=json", *options), strict=False)
    return found[0] if found else {"backup": [], "archive": [], "repo": [], "db": []}


def reason(said: str) -> str:
    """Return the lines in which pgBackRest says what went wrong, as one."""
    lines = [line.strip() for line in said.splitlines()]
    start = next((number for number, line in enumerate(lines) if "ERROR:" in line), max(len(lines) - 1, 0))
    kept = [line for line in lines[start:] if line and " INFO: " not in line and not line.startswith("HINT:")]
    text = " ".join(kept) or "it gave no reason"
    return text.split("ERROR:", 1)[-1].strip()


def _last(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it gave no reason"
