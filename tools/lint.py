"""`make lint`: linters, types, generated files and the conventions of this repository, each with its time."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from tools.shell import ROOT, VENV_BIN, Failure, fail, run, say

AT_A_TIME = 2
CHECK_SECONDS = 300
# Folders of Python that is ours; each promise file and each scenario's test is a program of its own, not part of a package.
TYPED = ("tools", "tests", "files/holdfast")
# Debian's packages are pinned by the suite and its snapshot of the day, not by a version that vanishes from the mirror (DL3008), and the
# base image is an argument, which hadolint can't see through (DL3006).
HADOLINT = ("--failure-threshold", "info", "--ignore", "DL3006", "--ignore", "DL3008")


@dataclass(frozen=True)
class Check:
    """One linter: its name, its commands, and what they find in the environment."""

    name: str
    commands: list[list[str | Path]]
    environment: dict[str, str] = field(default_factory=dict)


def shell_scripts(root: Path = ROOT) -> list[Path]:
    """Return every tracked file that a shell runs: by its name, or by its first line."""
    found = []
    for path in _tracked(root):
        if path.suffix in (".sh", ".bash"):
            found.append(path)
        elif path.suffix in ("", ".j2") and not path.is_relative_to(root / "tests" / "fixtures"):
            with path.open("rb") as file:
                first = file.readline(80).decode("utf-8", "replace")
            # A template is no script before it is rendered; roles keep what shellcheck should read in files/.
            if first.startswith("#!") and first.rstrip().endswith(("sh", "bash", "dash")) and path.suffix != ".j2":
                found.append(path)
    return found


def _tracked(root: Path) -> list[Path]:
    listed = run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=root).stdout
    return [root / name for name in sorted(set(listed.split("\0"))) if name and (root / name).is_file()]


def _typed(root: Path) -> list[Check]:
    """Return mypy's runs: the programs, and the tests of all scenarios, which find their helpers beside them."""
    names = [name for name in TYPED if any((root / name).rglob("*.py"))]
    alone = [path for folder in ("plugins", "files/promises") for path in sorted((root / folder).rglob("*.py"))]
    found = [Check("mypy", [["mypy", *names, *alone]])]
    if scenarios := sorted((root / "molecule").rglob("*.py")):
        folders = dict.fromkeys(str(path.parent) for path in scenarios)
        # What a host answers comes through testinfra, which has no types.
        found.append(Check("mypy molecule", [["mypy", "--no-warn-return-any", *scenarios]], {"MYPYPATH": ":".join(folders)}))
    return found


def checks(root: Path = ROOT) -> list[Check]:
    """Return all checks, the slowest first."""
    scripts: list[str | Path] = [*shell_scripts(root)]
    dockerfiles: list[str | Path] = [*sorted((root / "files" / "reference_app").glob("*/Dockerfile"))]
    found = [
        Check("ansible-lint", [["ansible-lint", "--offline", "--nocolor", "-q", "-f", "pep8"]]),
        *_typed(root),
        Check("conventions", [["pytest", "-q", "--no-header", "--tb=short", "tests/test_conventions.py", "tests/test_lint_rules.py"]]),
        Check("yamllint", [["yamllint", "--strict", "."]]),
        Check("ruff check", [["ruff", "check", "--quiet", "--output-format", "concise"]]),
        Check("ruff format", [["ruff", "format", "--check", "--output-format", "concise"]]),
        Check("README of each role", [["python", "-m", "tools.readme", "--check"]]),
    ]
    if scripts:
        found.append(Check("shellcheck", [["shellcheck", "--severity=style", "--format=gcc", *scripts]]))
    if dockerfiles:
        found.append(Check("hadolint", [["hadolint", "--no-color", *HADOLINT, *dockerfiles]]))
    return found


def perform(check: Check, root: Path = ROOT) -> tuple[str, float]:
    """Run a check; return what it printed when it failed, and its seconds."""
    begun = time.monotonic()
    path = f"{VENV_BIN}:{os.environ.get('PATH', '')}"
    faults = []
    for command in check.commands:
        program = VENV_BIN / str(command[0])
        if not program.exists():
            raise Failure(f"{command[0]} is missing in .venv: run `make venv`.")
        done = run(
            [program, *command[1:]],
            cwd=root,
            env={"PATH": path, "NO_COLOR": "1", **check.environment},
            timeout_seconds=CHECK_SECONDS,
            check=False,
        )
        if done.returncode:
            faults.append(done.stdout.strip() or f"exit code {done.returncode}")
    return "\n".join(faults), time.monotonic() - begun


def main() -> None:
    """Run every check, also after one has failed; end with exit code 1 when any has."""
    failed = []
    begun = time.monotonic()
    found = checks()
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        futures = {pool.submit(perform, check): check for check in found}
        for future in as_completed(futures):
            check = futures[future]
            faults, seconds = future.result()
            say(f"{check.name}: {'failed' if faults else 'clean'} in {seconds:.1f} s")
            if faults:
                failed.append(check.name)
                print(faults.replace(f"{ROOT}/", ""), flush=True)
    if failed:
        fail(f"{', '.join(failed)} found what is listed above.")
    say(f"Nothing to mend: {len(found)} checks in {time.monotonic() - begun:.1f} s")


if __name__ == "__main__":
    try:
        main()
    except Failure as failure:
        fail(str(failure))
