"""`holdfast COMMAND`: dispatch to the module of that name."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys

from holdfast.failure import Failure

COMMANDS = ("app", "archive", "backup", "drill", "extract", "guard", "idle", "integrity", "offsite", "rebuild", "restore")


def main() -> int:
    """Parse the command line and run the command; a failure is one sentence on standard error and exit code 1."""
    parser = argparse.ArgumentParser(prog="holdfast", description="The programs that a Holdfast host runs.")
    commands = parser.add_subparsers(dest="command", required=True)
    # The archive's guard starts twice a minute: compiling what other commands consist of took two thirds of its time.
    for name in [name for name in COMMANDS if name in sys.argv[1:2]] or COMMANDS:
        importlib.import_module(f"holdfast.{name}").add_parser(commands)
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
