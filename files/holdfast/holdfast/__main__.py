"""`holdfast COMMAND`: dispatch to the module of that name."""

from __future__ import annotations

import argparse
import logging
import os
import sys

from holdfast import app, archive, backup, drill, extract, guard, idle, integrity, offsite, rebuild, restore
from holdfast.failure import Failure


def main() -> int:
    """Parse the command line and run the command; a failure is one sentence on standard error and exit code 1."""
    parser = argparse.ArgumentParser(prog="holdfast", description="The programs that a Holdfast host runs.")
    commands = parser.add_subparsers(dest="command", required=True)
    app.add_parser(commands)
    archive.add_parser(commands)
    backup.add_parser(commands)
    drill.add_parser(commands)
    extract.add_parser(commands)
    guard.add_parser(commands)
    idle.add_parser(commands)
    integrity.add_parser(commands)
    offsite.add_parser(commands)
    rebuild.add_parser(commands)
    restore.add_parser(commands)
    given = parser.parse_args()
    # journald adds the time, and reads the level from the prefix.
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    # Whatever umask a person or a unit has: the server reads what root writes, and sshd as well; secrets lie in files of their own mode.
    os.umask(0o022)
    try:
        given.call(given)
    except Failure as failure:
        print(f"holdfast: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
