"""Our ansible-lint rules find exactly what their fixtures mark as refused: each rule can fail, and lets the good tasks pass."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
RULES = ROOT / "tests" / "lint_rules"
FIXTURES = ROOT / "tests" / "fixtures" / "lint_rules" / "roles"
NAMES = sorted(path.stem.removeprefix("holdfast_") for path in RULES.glob("holdfast_*.py") if path.stem != "holdfast_house")
MARK = "# refused"

Place = tuple[str, int]


@pytest.fixture(scope="module")
def found() -> dict[str, set[Place]]:
    """Run ansible-lint once, with our rules only, over all fixtures: rule → places."""
    command = [str(Path(sys.executable).parent / "ansible-lint"), "--offline", "--nocolor", "-qq", "-f", "json"]
    done = subprocess.run(
        [*command, "-c", "/dev/null", "-r", RULES, FIXTURES], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    places: dict[str, set[Place]] = {}
    for match in json.loads(done.stdout):
        position = match["location"]
        line = position["lines"]["begin"] if "lines" in position else position["positions"]["begin"]["line"]
        places.setdefault(match["check_name"], set()).add((position["path"], line))
    return places


def tasks(folder: Path) -> tuple[set[Place], set[Place]]:
    """Return the places of all tasks below a folder, refused and allowed ones."""
    refused: set[Place] = set()
    allowed: set[Place] = set()
    for path in sorted(folder.rglob("*.yml")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if re.match(r"- name: ", line):
                (refused if line.endswith(MARK) else allowed).add((str(path.relative_to(ROOT)), number))
    return refused, allowed


@pytest.mark.parametrize("name", NAMES)
def test_rule_refuses_what_its_fixture_marks(name: str, found: dict[str, set[Place]]) -> None:
    refused, allowed = tasks(FIXTURES / name)
    assert refused, "the fixture has no bad task"
    assert allowed, "the fixture has no good task"
    own = {place for place in found.get(f"holdfast-{name.replace('_', '-')}", set()) if f"/roles/{name}/" in place[0]}
    assert own == refused


@pytest.mark.parametrize("name", NAMES)
def test_rule_is_enabled_and_explained(name: str) -> None:
    rule = f"holdfast-{name.replace('_', '-')}"
    assert rule in yaml.safe_load((ROOT / ".ansible-lint").read_text(encoding="utf-8"))["enable_list"]
    assert f"`{rule}`" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), "list the rule in CONTRIBUTING.md"
