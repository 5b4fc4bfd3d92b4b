"""The rebuild that `make bench` measures: the scenario of a lost host, with a gigabyte in its database, whose figures it keeps."""

from __future__ import annotations

from pathlib import Path

from tools import suite
from tools.shell import Failure

SCENARIO = "disaster_recovery"
FILL_MB = 1000
GOAL_SECONDS = 300
# How the scenario's tests know how much data to write, and where figures go: a name, a tab and the figure a line.
FILL, FIGURES = "HOLDFAST_FILL_MB", "HOLDFAST_FIGURES"
WHOLE = "the command, from its start to its end, s"


def read(file: Path) -> dict[str, str]:
    """Read the figures that the scenario has left.

    Raises:
        Failure: the whole rebuild's seconds are not among them.
    """
    found = dict(line.split("\t", 1) for line in file.read_text(encoding="utf-8").splitlines())
    if WHOLE not in found:
        raise Failure(f"The scenario {SCENARIO} left no seconds of its rebuild, but {found}.")
    return found


def report(figures: dict[str, str]) -> list[str]:
    """Return the report's section."""
    rows = [f"| **{name}** | **{figure}** |" if name == WHOLE else f"| {name} | {figure} |" for name, figure in figures.items()]
    return [
        "## Rebuild of a lost host",
        "",
        f"The scenario `{SCENARIO}`: the host is destroyed while it is written to; a bare one, a clone, the kit and the bucket bring",
        f"it back. Goal: {GOAL_SECONDS} s with 1 GB, from the command to the application's answer.",
        "",
        "| what | figure |",
        "|---|---|",
        *rows,
        "",
    ]


def measure(folder: Path) -> list[str]:
    """Run the scenario, and return the report's section.

    Args:
        folder: where the figures are written.
    """
    file = folder / "rebuild.tsv"
    file.unlink(missing_ok=True)
    suite.scenario(SCENARIO, {FILL: str(FILL_MB), FIGURES: str(file)})
    return report(read(file))
