"""`python3 -m tools COMMAND`: what the Makefile calls."""

from __future__ import annotations

import argparse
import importlib
import sys

from tools.shell import Failure, fail

# command → module, function, names of its arguments, help. A module is loaded only when it is called: the first commands run before
# anything is installed.
COMMANDS: dict[str, tuple[str, str, tuple[str, ...], str]] = {
    "venv": ("tools.venv", "ensure", (), "make the virtual environment from requirements.txt"),
    "engine": ("tools.engine", "ensure", (), "install and start the container engine"),
    "host-up": ("tools.host", "up", ("name",), "bring a test host up"),
    "host-down": ("tools.host", "down", ("name",), "remove a test host"),
    "host-reboot": ("tools.host", "reboot", ("name",), "restart a test host and wait until it is up"),
    "vm-up": ("tools.vm", "up", (), "bring the virtual machine up"),
    "vm-keep": ("tools.vm", "keep", (), "switch the virtual machine off, and begin from its disk from now on"),
    "vm-test": ("tools.vm_test", "main", ("disk",), "the site on a real virtual machine, from a disk that is bare or kept"),
    "vm-down": ("tools.vm", "down", (), "end the virtual machine"),
    "bucket-up": ("tools.bucket", "up", ("host_name",), "bring up the bucket that a test host keeps its past in"),
    "bucket-down": ("tools.bucket", "down", ("host_name",), "remove the bucket of a test host with all that it keeps"),
    "registry-up": ("tools.registry", "ensure", (), "bring the registry up, with the reference application's images"),
    "push-probe": ("tools.registry", "push_probe", (), "bring the registry up with the probe of the role app's scenario"),
    "secrets": ("tools.secrets", "ensure", ("inventory",), "write a random value for every secret that an inventory lacks"),
    "inventory-archive": ("tools.inventory", "archive", ("folder",), "pack an inventory into .cache, and print where it lies"),
    "recovery-kit": ("tools.recovery", "write", ("inventory",), "write what the owner of an inventory keeps off the host"),
    "recovery-kit-check": ("tools.recovery", "check", ("kit", "endpoint"), "prove that a recovery kit opens its bucket"),
    "recover": ("tools.recovery", "recover", ("kit", "endpoint"), "bring the inventory back with a recovery kit"),
    "pack": ("tools.pack", "pack", (), "pack the host's programs into .cache/holdfast.pyz"),
    "demo-up": ("tools.demo", "up", (), "the whole application on this machine"),
    "demo-info": ("tools.demo", "info", (), "where the demo is and how to log in, as JSON"),
    "demo-shell": ("tools.demo", "shell", (), "a shell on the demo's host"),
    "demo-down": ("tools.demo", "down", (), "take the demo away"),
    "molecule": ("tools.suite", "scenario", ("name",), "run one Molecule scenario"),
    "test": ("tools.suite", "everything", (), "everything that CI runs"),
    "bench": ("tools.bench", "main", (), "measure and record"),
    "lint": ("tools.lint", "main", (), "linters and conventions"),
}


def main() -> None:
    """Parse the command line, call the program, and say whether it changed anything where it knows."""
    parser = argparse.ArgumentParser(prog="python3 -m tools", description=__doc__)
    subparsers = parser.add_subparsers(dest="command", required=True)
    for command, (_, _, arguments, text) in COMMANDS.items():
        subparser = subparsers.add_parser(command, help=text)
        for argument in arguments:
            subparser.add_argument(argument)
    given = vars(parser.parse_args())
    module, function, arguments, _ = COMMANDS[given["command"]]
    try:
        answer = getattr(importlib.import_module(module), function)(*(given[argument] for argument in arguments))
    except Failure as failure:
        fail(str(failure))
    except KeyboardInterrupt:
        fail("Interrupted.")
    if isinstance(answer, bool):
        print("changed" if answer else "unchanged")
    elif isinstance(answer, int):
        sys.exit(answer)


if __name__ == "__main__":
    main()
