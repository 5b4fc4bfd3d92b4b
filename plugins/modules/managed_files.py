#!/usr/bin/python
"""Write several whole files at once: a task a file would cost each run half a second a file."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
---
module: managed_files
short_description: Write several whole files at once
description:
  - Each file belongs to root, is replaced at once and as a whole, and lands only after its program has checked it.
  - Missing folders are made.
  - Nothing is written where any of the files is refused.
options:
  files:
    description: The files.
    type: list
    elements: dict
    required: true
    suboptions:
      path:
        description: Where it lies.
        type: path
        required: true
      content:
        description: The whole of it.
        type: str
        default: ""
      mode:
        description: Permissions, in octal.
        type: str
        default: "0644"
      state:
        description: Whether it is there.
        type: str
        choices: [present, absent]
        default: present
      validate:
        description: Command that refuses a bad copy of it, as a list of words; V(%s) stands for the copy, which has the file's own name.
        type: list
        elements: str
        default: []
author: Holdfast
"""

EXAMPLES = r"""
- name: Configure the accounts
  managed_files:
    files:
      - path: /etc/issue
        content: "Authorized use only.\n"
      - path: /etc/at.deny
        state: absent
"""

RETURN = r"""
paths:
  description: The files that were, or in check mode would be, changed.
  returned: always
  type: list
  elements: str
"""


# What a file is: its content, its mode, its user and its group.
File = tuple[str, int, int, int]
ROOT = (0, 0)


def _current(path: Path) -> File | None:
    """Return what a file is; nothing where it is missing."""
    try:
        status = path.stat()
        return path.read_text(encoding="utf-8", errors="replace"), status.st_mode & 0o7777, status.st_uid, status.st_gid
    except FileNotFoundError:
        return None


def _refused(wanted: dict[str, Any]) -> str:
    """Return what the file's program says against it; nothing where it accepts it."""
    with tempfile.TemporaryDirectory(dir="/run", prefix="holdfast-files-") as folder:
        copy = Path(folder) / Path(wanted["path"]).name
        copy.write_text(wanted["content"], encoding="utf-8")
        command = [word.replace("%s", str(copy)) for word in wanted["validate"]]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    return " ".join((done.stderr or done.stdout or "it gave no reason").split()) if done.returncode else ""


def _write(path: Path, content: str, mode: int) -> None:
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    # No program that reads a folder of drop-ins takes a file of such a name.
    fresh = path.with_name(f".{path.name}.holdfast~")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(content)
        os.fchmod(file.fileno(), mode)
        os.fchown(file.fileno(), *ROOT)
        os.fsync(file.fileno())
    fresh.replace(path)


def _wanted(each: dict[str, Any]) -> File | None:
    return (each["content"], int(each["mode"], 8), *ROOT) if each["state"] == "present" else None


def main() -> None:
    """Compare, check, write."""
    one = {
        "path": {"type": "path", "required": True},
        "content": {"type": "str", "default": ""},
        "mode": {"type": "str", "default": "0644"},
        "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        "validate": {"type": "list", "elements": "str", "default": []},
    }
    module = AnsibleModule({"files": {"type": "list", "elements": "dict", "required": True, "options": one}}, supports_check_mode=True)
    differing = [each for each in module.params["files"] if _current(Path(each["path"])) != _wanted(each)]
    difference = []
    for each in differing:
        before = _current(Path(each["path"]))
        path = each["path"]
        after = each["content"] if each["state"] == "present" else ""
        difference.append({"before_header": path, "after_header": path, "before": before[0] if before else "", "after": after})
        if each["state"] == "present" and each["validate"] and not module.check_mode and (said := _refused(each)):
            module.fail_json(msg=f"{path} was not changed, because {each['validate'][0]} refuses its new content: {said}")
    if not module.check_mode:
        for each in differing:
            if each["state"] == "present":
                _write(Path(each["path"]), each["content"], int(each["mode"], 8))
            else:
                Path(each["path"]).unlink()
    module.exit_json(changed=bool(differing), paths=[each["path"] for each in differing], diff=difference)


if __name__ == "__main__":
    main()
