"""Write each role's README.md from its argument specs, the repository's table of promises, and the table of hardening controls."""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tools import controls
from tools.shell import ROOT

BEGIN = "<!-- promises:begin -->"
END = "<!-- promises:end -->"
CONTROLS_BEGIN = "<!-- controls:begin -->"
CONTROLS_END = "<!-- controls:end -->"
HEAD = "<!-- `make readme` writes this file from meta/argument_specs.yml, tasks/main.yml and the role's promises: edit those. -->"
# Ansible's markup in descriptions: C(code), V(value), O(option), I(italics), B(bold).
MARKUP = re.compile(r"\b([CVOIB])\(([^()]*)\)")
LONGEST_DEFAULT = 60


@dataclass(frozen=True)
class Promise:
    """One promise: the test function that holds it, and the sentence."""

    role: str
    function: str
    sentence: str


def promises(root: Path, role: str) -> list[Promise]:
    """Return the promises of a role, in the order of its file; none where it has no file."""
    path = root / "files" / "promises" / f"test_{role}.py"
    if not path.exists():
        return []
    found = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            sentence = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
            found.append(Promise(role, node.name, sentence))
    return found


def specs(root: Path, role: str) -> dict[str, Any]:
    """Return the main entry point of a role's argument specs."""
    path = root / "roles" / role / "meta" / "argument_specs.yml"
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))["argument_specs"]["main"]
    return found


def roles(root: Path) -> list[str]:
    """Return the names of the roles that have argument specs."""
    return sorted(path.parent.parent.name for path in (root / "roles").glob("*/meta/argument_specs.yml"))


def sections(root: Path, role: str) -> list[str]:
    """Return the tags that a role's tasks/main.yml gives its imports."""
    tasks = yaml.safe_load((root / "roles" / role / "tasks" / "main.yml").read_text(encoding="utf-8")) or []
    named = [tag for task in tasks for tag in task.get("tags", []) if tag.startswith(f"{role}:")]
    return list(dict.fromkeys(named))


def _markdown(text: str) -> str:
    plain = MARKUP.sub(lambda found: {"I": "*{}*", "B": "**{}**"}.get(found[1], "`{}`").format(found[2]), " ".join(text.split()))
    return plain.replace("|", "\\|")


def _paragraphs(value: str | list[str]) -> list[str]:
    return [_markdown(item) for item in ([value] if isinstance(value, str) else value)]


def _default(option: dict[str, Any]) -> str:
    if option.get("required"):
        return "**required**"
    if "default" not in option:
        return "none"
    shown = json.dumps(option["default"], ensure_ascii=False)
    if len(shown) > LONGEST_DEFAULT:
        return "see [defaults](defaults/main.yml)"
    return f"`{shown.replace('|', chr(92) + '|')}`"


def _rows(options: dict[str, Any], parent: str = "") -> Iterator[str]:
    for name, option in options.items():
        kind = option.get("type", "str")
        shown = f"{kind} of {option['elements']}" if "elements" in option else kind
        if "choices" in option:
            shown += ": " + ", ".join(f"`{choice}`" for choice in option["choices"])
        told = " ".join(_paragraphs(option.get("description", "")))
        secret = " Secret." if option.get("no_log") else ""
        yield f"| `{parent}{name}` | {shown} | {_default(option)} | {told}{secret} |"
        inner = f"{parent}{name}[]." if kind == "list" else f"{parent}{name}."
        yield from _rows(option.get("options") or {}, inner)


def role_readme(root: Path, role: str) -> str:
    """Return the README.md of a role."""
    main = specs(root, role)
    lines = [HEAD, f"# {role}", "", f"{_markdown(main['short_description']).rstrip('.')}.", ""]
    lines += [f"- {paragraph}" for paragraph in _paragraphs(main.get("description", []))]
    lines += ["", "## Inputs", ""]
    if options := main.get("options"):
        lines += ["| name | type | default | what it is |", "|---|---|---|---|", *_rows(options)]
    else:
        lines.append("None.")
    lines += ["", "## Promises", ""]
    if held := promises(root, role):
        test = f"../../files/promises/test_{role}.py"
        lines += [f"Each is a test in [`test_{role}.py`]({test}), safe on a production host, and fails when the promise is broken.", ""]
        lines += [f"- {_markdown(promise.sentence)} (`{promise.function}`)" for promise in held]
    else:
        lines.append("It leaves nothing on the host; [the tests of bad input](../../tests/test_bad_input.py) hold it to what it refuses.")
    named = [role, *sections(root, role)]
    lines += ["", "## Tags", "", ", ".join(f"`{tag}`" for tag in named) + ". Each is safe alone on a converged host."]
    lines += ["", "## Test", "", "```sh", f"make test-role ROLE={role}", "```", ""]
    return "\n".join(lines)


def promise_table(root: Path) -> str:
    """Return the table promise → role → test of all roles."""
    lines = ["| promise | role | test |", "|---|---|---|"]
    for role in roles(root):
        for promise in promises(root, role):
            test = f"files/promises/test_{role}.py"
            lines.append(f"| {_markdown(promise.sentence)} | [{role}](roles/{role}/README.md) | [`{promise.function}`]({test}) |")
    return "\n".join(lines)


def with_table(text: str, table: str, markers: tuple[str, str]) -> str:
    """Return a text whose part between the markers is the table.

    Raises:
        ValueError: a marker is missing, or they are the wrong way round.
    """
    begin, end = text.find(markers[0]), text.find(markers[1])
    if begin < 0 or end < begin:
        raise ValueError(f"it needs the lines {markers[0]} and {markers[1]}, in this order")
    return f"{text[: begin + len(markers[0])]}\n{table}\n{text[end:]}"


def wanted(root: Path) -> tuple[dict[Path, str], list[str]]:
    """Return what each generated file should hold, and a sentence for each that can't be generated."""
    files = {root / "roles" / role / "README.md": role_readme(root, role) for role in roles(root)}
    pages = [("README.md", promise_table, (BEGIN, END))]
    if controls.registry(root):
        pages.append(("docs/hardening.md", controls.table, (CONTROLS_BEGIN, CONTROLS_END)))
    faults = []
    for name, table, markers in pages:
        page = root / name
        try:
            files[page] = with_table(page.read_text(encoding="utf-8"), table(root), markers)
        except FileNotFoundError:
            faults.append(f"{name} is missing: write it, with the lines {' and '.join(markers)} where its table goes.")
        except ValueError as error:
            faults.append(f"{name} can't take its table: {error}.")
    return files, faults


def stale(root: Path) -> list[str]:
    """Return one sentence for each generated file that is not what it should be."""
    files, faults = wanted(root)
    old = [path for path, text in files.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    return [f"{path.relative_to(root)} is stale: run `make readme` and commit it." for path in old] + faults


def write(root: Path) -> tuple[list[Path], list[str]]:
    """Write what is stale; return the files written, and a sentence for each that can't be generated."""
    files, faults = wanted(root)
    written = []
    for path, text in files.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            written.append(path)
    return written, faults


def main(words: list[str] | None = None, root: Path = ROOT) -> int:
    """Write the files, or with --check name the stale ones; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.readme", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, fail when a file is stale")
    if parser.parse_args(words).check:
        faults = stale(root)
    else:
        written, faults = write(root)
        for path in written:
            print(f"wrote {path.relative_to(root)}")
    for fault in faults:
        print(f"holdfast: {fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
