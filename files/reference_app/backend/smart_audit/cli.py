"""The command line: `smart-audit serve | worker | migrate | healthcheck`."""

import argparse
import sys
from collections.abc import Sequence

from smart_audit import __version__

# sysexits.h: something is wrong with the configuration, and starting again will not help.
EXIT_CONFIGURATION = 78


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="smart-audit", description="Upload documents, ask questions, read the passages.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve", help="answer HTTP on the unix socket that UDS_PATH names")
    commands.add_parser("worker", help="process documents")
    commands.add_parser("migrate", help="bring the database schema up to date and ensure the first user")
    health = commands.add_parser("healthcheck", help="tell whether this container is alive: exit status 0 or 1")
    health.add_argument("--ready", action="store_true", help="ask whether it can answer requests, not only whether it lives")
    return parser


def _run(arguments: argparse.Namespace) -> int:
    # Each command imports what it needs: the health check runs every few seconds and must not load a web framework.
    from smart_audit.settings import Environment

    env = Environment()
    if arguments.command == "healthcheck":
        from smart_audit import heartbeat

        complaint = heartbeat.check(env.text("UDS_PATH", "/run/app/backend-1.sock", ""), arguments.ready)
        if complaint:
            print(f"smart-audit: {complaint}", file=sys.stderr)
        return 1 if complaint else 0

    from smart_audit import logs

    if arguments.command == "serve":
        from smart_audit.settings import ServeSettings

        serve_settings = ServeSettings.read(env)
        logs.configure(serve_settings.log_level)
        from smart_audit.serve import serve

        return serve(serve_settings)
    if arguments.command == "worker":
        from smart_audit.settings import WorkerSettings

        worker_settings = WorkerSettings.read(env)
        logs.configure(worker_settings.log_level)
        from smart_audit.worker import work

        return work(worker_settings)

    from smart_audit.settings import MigrateSettings

    migrate_settings = MigrateSettings.read(env)
    logs.configure(migrate_settings.log_level)
    from sqlalchemy.exc import DBAPIError

    from smart_audit.errors import Unavailable
    from smart_audit.migrate import migrate

    try:
        migrate(migrate_settings)
    except Unavailable as error:
        print(f"smart-audit: {error}", file=sys.stderr)
        return 1
    except DBAPIError as error:
        print(f"smart-audit: the migration was undone: {str(error.orig).splitlines()[0]}\n{error.statement}", file=sys.stderr)
        return 1
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status (78 for a wrong setting, with one sentence on standard error)."""
    arguments = _parser().parse_args(argv)
    from smart_audit.settings import SettingsError

    try:
        return _run(arguments)
    except SettingsError as error:
        print(f"smart-audit: {error}", file=sys.stderr)
        return EXIT_CONFIGURATION
