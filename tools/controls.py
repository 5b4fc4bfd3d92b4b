"""The hardening controls: what roles/hardening/files/controls.yml, the tags of tasks and the marks of promises say about each."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

REGISTRY = "controls.yml"
SOURCES = {"cis": "CIS", "anssi": "ANSSI", "devsec": "dev-sec", "docker": "CIS Docker"}


@dataclass(frozen=True)
class Control:
    """One control.

    Attributes:
        id: what an auditor looks for.
        sentence: what holds.
        role: the role whose tasks carry it.
        sources: name of a benchmark → numbers in it.
    """

    id: str
    sentence: str
    role: str
    sources: dict[str, list[str]]


def registry(root: Path) -> dict[str, Control]:
    """Return all controls by their IDs, in the order of the registry; none where there is no registry."""
    content: dict[str, dict[str, Any]] = {}
    for path in (root / "roles").glob(f"*/files/{REGISTRY}"):
        content |= yaml.safe_load(path.read_text(encoding="utf-8"))
    return {
        name: Control(name, each["control"], each["role"], {key: [str(number) for number in each[key]] for key in SOURCES if key in each})
        for name, each in content.items()
    }


def promised(root: Path) -> Iterator[tuple[str, Path, str]]:
    """Return each mark of a promise: the control's ID, the file, the function."""
    for path in sorted((root / "files" / "promises").glob("test_*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.FunctionDef):
                continue
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.control":
                    yield str(ast.literal_eval(mark.args[0])), path, node.name


def waivers(root: Path) -> dict[str, list[str]]:
    """Return what the inventories waive, wherever they do: ID → a line for each inventory, group or host, with the reason.

    Raises:
        ValueError: waivers are no dictionary that can be read without a run.
    """
    found: dict[str, list[str]] = {}
    for path in sorted((root / "inventories").rglob("*.yml")):
        if path.name == "vault.yml":
            continue
        where = path.relative_to(root / "inventories")
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506  # a subclass of the safe loader
        for given in _given(content):
            if not isinstance(given, dict):
                # What a person wrote is at fault, not a type of ours.
                raise ValueError(f"hardening_waivers in inventories/{where} is no dictionary of control and reason")  # noqa: TRY004
            for name, reason in given.items():
                found.setdefault(name, []).append(f"{where.parts[0]}: {reason}")
    return found


def _given(content: object) -> Iterator[object]:
    """Return each value of hardening_waivers, in a file of variables or beside a host in hosts.yml."""
    if isinstance(content, dict):
        for name, value in content.items():
            if name == "hardening_waivers":
                yield value
            else:
                yield from _given(value)


class _Loader(yaml.SafeLoader):
    pass


_Loader.add_multi_constructor("!", lambda loader, suffix, node: None)


def table(root: Path) -> str:
    """Return docs/hardening.md's table of all controls."""
    tests = {name: (path.relative_to(root), function) for name, path, function in promised(root)}
    waived = waivers(root)
    lines = ["| ID | control | source | role | promise | waived |", "|---|---|---|---|---|---|"]
    for control in registry(root).values():
        sources = "; ".join(f"{SOURCES[key]} {', '.join(numbers)}" for key, numbers in control.sources.items()) or "ours"
        path, function = tests.get(control.id, (Path(), ""))
        role, test = f"[{control.role}](../roles/{control.role}/README.md)", f"[`{function}`](../{path})"
        without = "; ".join(waived.get(control.id, ["no"]))
        lines.append(f"| {control.id} | {control.sentence} | {sources} | {role} | {test} | {without} |")
    return "\n".join(lines)
