"""Each check of docker-bench is a control's matter, or docs/hardening.md says why it is nobody's."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tools import controls
from tools.shell import ROOT

# Of the CIS Docker Benchmark 1.6.0: part → how many checks it has.
CHECKS = {"1.1": 18, "1.2": 2, "2": 18, "3": 24, "4": 12, "5": 32, "6": 2, "7": 9}
NUMBER = r"\d+\.[\d.]*\d"


def _listed(text: str) -> Iterator[str]:
    """Return the numbers in `(CIS Docker 3.9 to 3.14, 5.1)`, wherever it stands in the column of what is asked."""
    for line in text.splitlines():
        for group in re.findall(r"\(CIS Docker ([^)]*)\)", line.split(" | ")[0]):
            for first, last in re.findall(rf"({NUMBER})(?: to ({NUMBER}))?", group):
                part, _, begin = first.rpartition(".")
                end = (last or first).rpartition(".")[2]
                yield from (f"{part}.{number}" for number in range(int(begin), int(end) + 1))


def test_docker_bench_is_answered() -> None:
    """Every check has one answer, and no number is made up."""
    carried = {number for control in controls.registry(ROOT).values() for number in control.sources.get("docker", [])}
    left_out = list(_listed((ROOT / "docs" / "hardening.md").read_text()))
    assert len(left_out) == len(set(left_out)) and not carried & set(left_out)
    assert carried | set(left_out) == {f"{part}.{number}" for part, count in CHECKS.items() for number in range(1, count + 1)}


def test_ranges_are_read() -> None:
    """A range is each of its numbers; what stands in the column of reasons is no answer."""
    assert list(_listed("| files (CIS Docker 3.9 to 3.11, 5.1), a map (CIS Docker 2.9) | not (CIS Docker 7.1) |")) == [
        "3.9", "3.10", "3.11", "5.1", "2.9",
    ]  # fmt: skip
