"""`holdfast extract`: one database or one table out of the past, into a file or a new database; the live one is not touched."""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import time
from datetime import UTC, datetime
from pathlib import Path

from holdfast import postgres, recovery, scratch
from holdfast.failure import Failure
from holdfast.recovery import Target
from holdfast.server import Server

FOLDER = Path("/var/lib/postgresql/extract")
SCRATCH = FOLDER / "scratch"
DUMP_SECONDS = 24 * 3600
SPARE_MB = 1024
NAME = re.compile(r"^[a-z_][a-z0-9_]{0,62}$")
TABLES = """
SELECT coalesce(json_agg(format('%I.%I', n.nspname, c.relname) ORDER BY n.nspname, c.relname), '[]')
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
"""
EXISTS = "SELECT 1 FROM pg_database WHERE datname = :'into'"
COUNT = "SELECT count(*) FROM :full"
# What a table alone can't have in a database of its own.
FOREIGN = re.compile(r" (FK CONSTRAINT|TRIGGER|POLICY|PUBLICATION TABLE) ")

log = logging.getLogger("holdfast.extract")


def _program(name: str, *words: str) -> str:
    done = postgres.as_postgres([str(recovery.BIN / name), *words], timeout_seconds=DUMP_SECONDS)
    if done.returncode:
        raise Failure(f"{name} refused: {' '.join(done.stderr.split()) or 'it gave no reason'}")
    return done.stdout


def _refuse_name(into: str) -> None:
    if not NAME.match(into):
        raise Failure(f"'{into}' is no name of a new database: write lower-case letters, digits and underscores, 63 at most.")
    if postgres.psql(postgres.variables(into=into) + EXISTS):
        raise Failure(f"The database '{into}' exists, and nothing is ever extracted over one: write a name that is free.")


def _qualified(server: Server, database: str, table: str) -> str:
    """Return a table's full name in the copy.

    Raises:
        Failure: there is none.
    """
    known: list[str] = json.loads(server.ask(TABLES, database))
    full = table if "." in table else f"public.{table}"
    if full not in known:
        raise Failure(f"The database {database} had no table {full} then: it had {', '.join(known) or 'none'}.")
    return full


def _dump(server: Server, database: str, table: str) -> Path:
    name = f"{database}{f'.{table}' if table else ''}-{datetime.now(UTC).strftime('%Y%m%dT%H%M%SZ')}.dump"
    path = FOLDER / name.replace("/", "_").replace('"', "")
    # A dump of a table alone lacks the extensions whose types it has.
    chosen = [f"--table={table}", "--extension=*"] if table else []
    _program("pg_dump", "--host", str(server.socket), "--format=custom", f"--file={path}", *chosen, database)
    return path


def _load(path: Path, into: str, *, table: bool) -> None:
    """Load a dump into a database that is made for it.

    Raises:
        Failure: it does not go in; the database is removed again.
    """
    postgres.psql(f'CREATE DATABASE "{into}" TEMPLATE template0')
    postgres.psql(f'REVOKE ALL ON DATABASE "{into}" FROM PUBLIC')
    contents = _program("pg_restore", "--list", str(path)).splitlines()
    chosen = path.with_suffix(".list")
    chosen.write_text("".join(f"{line}\n" for line in contents if not (table and FOREIGN.search(line))), encoding="utf-8")
    try:
        _program("pg_restore", "--dbname", into, "--exit-on-error", f"--use-list={chosen}", str(path))
    except Failure as failure:
        postgres.psql(f'DROP DATABASE "{into}"')
        raise Failure(f"{str(failure).rstrip('.')}: the dump {path} is there all the same, load what you need of it.") from failure
    finally:
        chosen.unlink()


def run(text: str, database: str, table: str = "", into: str = "", *, spare_mb: int = SPARE_MB) -> list[str]:
    """Extract, and say in sentences what came of it.

    Args:
        text: the target, as for a restore.
        database: the database that is wanted.
        table: only this table of it, with its schema where that is not public.
        into: a new database that it is loaded into as well.
        spare_mb: what has to stay free on the disk.

    Raises:
        Failure: there is no such thing, or no room for it.
    """
    if into:
        _refuse_name(into)
    archives = recovery.archives()
    choice = recovery.find(Target.parse(text, time.time()), archives)
    if database not in choice.databases:
        raise Failure(f"The backup {choice.backup.label} has no database '{database}': it has {', '.join(choice.databases) or 'none'}.")
    # The live database goes first.
    os.nice(10)
    recovery.refuse_gap(choice, archives, recovery.unarchived())
    recovery.reach(choice)
    FOLDER.mkdir(mode=0o700, parents=True, exist_ok=True)
    postgres.give(FOLDER)
    log.info("restore the backup %s into a copy", choice.backup.label)
    with scratch.alone(SCRATCH), scratch.copy(SCRATCH, choice, spare_mb=spare_mb) as copy:
        log.info("dump what is wanted")
        full = _qualified(copy.server, database, table) if table else ""
        rows = copy.server.ask(postgres.variables(full=full) + COUNT, database) if full else ""
        path = _dump(copy.server, database, full)
    what = f"The table {full} of {database}, {rows} rows," if full else f"The database {database}"
    said = [f"{what} as of {choice.target} is in {path}."]
    if into:
        log.info("load it into %s", into)
        _load(path, into, table=bool(table))
        said.append(
            f"It is in the new database {into} too; `runuser -u postgres -- dropdb {into}` removes that when you have what you need."
        )
    return said


def clean() -> None:
    """Remove the copy that an extract left behind which was killed.

    Raises:
        Failure: it is another one's, which is under way.
    """
    if FOLDER.is_dir():
        with scratch.alone(SCRATCH):
            scratch.remove(SCRATCH)


def _call(given: argparse.Namespace) -> None:
    if given.clean:
        clean()
        return
    print("\n".join(run(given.target, given.database, given.table, given.into, spare_mb=given.spare_mb)))


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `extract` to the command line."""
    parser = commands.add_parser("extract", help="get one database or one table out of the past, beside the live one")
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument("database", nargs="?")
    wanted.add_argument("--clean", action="store_true", help="only remove the copy of one that was killed (ExecStopPost=)")
    parser.add_argument("--table", default="", help="only this table, with its schema where that is not public")
    parser.add_argument("--target", default=recovery.LATEST, help=recovery.FORMS)
    parser.add_argument("--into", default="", metavar="NAME", help="load it into a new database of this name as well")
    parser.add_argument(
        "--spare-mb", type=int, default=SPARE_MB, metavar="MB", help="what has to stay free on the disk (default %(default)s)"
    )
    parser.set_defaults(call=_call)
