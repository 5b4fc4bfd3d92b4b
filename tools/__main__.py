"""`python3 -m tools COMMAND`: what the Makefile calls."""

from __future__ import annotations

import argparse

from tools import demo, engine, host, registry, secrets, venv
from tools.shell import Failure, fail


def main() -> None:
    """Parse the command line and call the program."""
    parser = argparse.ArgumentParser(prog="python3 -m tools", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("venv", help="make the virtual environment from requirements.txt").set_defaults(call=lambda _: venv.ensure())
    commands.add_parser("engine", help="install and start the container engine").set_defaults(call=lambda _: engine.ensure())
    for name, function, text in (("host-up", host.up, "bring a test host up"), ("host-down", host.down, "remove a test host")):
        command = commands.add_parser(name, help=text)
        command.add_argument("name")
        command.set_defaults(call=lambda given, function=function: print("changed" if function(given.name) else "unchanged"))
    commands.add_parser("registry-up", help="bring the demo's registry up, with the application's images").set_defaults(
        call=lambda _: print("changed" if registry.ensure() else "unchanged")
    )
    command = commands.add_parser("secrets", help="write a random value for every secret that an inventory lacks")
    command.add_argument("inventory")
    command.set_defaults(call=lambda given: secrets.ensure(given.inventory))
    for name in ("up", "down", "info", "shell"):
        function = getattr(demo, name)
        commands.add_parser(f"demo-{name}", help=(function.__doc__ or "").splitlines()[0]).set_defaults(call=lambda _, function=function: function())
    given = parser.parse_args()
    try:
        given.call(given)
    except Failure as failure:
        fail(str(failure))


if __name__ == "__main__":
    main()
