#!/usr/bin/python
"""Give packaged files another mode that outlives the package's upgrades."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
---
module: dpkg_statoverride
short_description: Give packaged files another mode that outlives the package's upgrades
description:
  - A file that is not there yet gets its mode when its package brings it.
options:
  overrides:
    description: The files.
    type: list
    elements: dict
    required: true
    suboptions:
      path:
        description: Where it lies.
        type: path
        required: true
      mode:
        description: Permissions, in octal.
        type: str
        required: true
      group:
        description: Group; the owner is root.
        type: str
        default: root
      state:
        description: Whether the file has another mode than its package gives it, which holds again at the package's next upgrade.
        type: str
        choices: [present, absent]
        default: present
author: Holdfast
"""

EXAMPLES = r"""
- name: Take the setuid bit away
  dpkg_statoverride:
    overrides:
      - {path: /usr/bin/chfn, mode: "0755"}
"""

RETURN = r"""
paths:
  description: The files that were, or in check mode would be, changed.
  returned: always
  type: list
  elements: str
"""


def _known() -> dict[str, tuple[str, str, int]]:
    """Return dpkg's overrides: path → owner, group, mode."""
    listed = subprocess.run(["dpkg-statoverride", "--list"], check=False, capture_output=True, text=True).stdout
    words = [line.split(maxsplit=3) for line in listed.splitlines()]
    return {path: (owner, group, int(mode, 8)) for owner, group, mode, path in words}


def _differs(each: dict[str, Any], known: dict[str, tuple[str, str, int]]) -> bool:
    if each["state"] == "absent":
        return each["path"] in known
    path, mode = Path(each["path"]), int(each["mode"], 8)
    held = not path.exists() or (path.stat().st_mode & 0o7777, path.owner(), path.group()) == (mode, "root", each["group"])
    return not held or known.get(each["path"]) != ("root", each["group"], mode)


def main() -> None:
    """Compare, and tell dpkg."""
    one = {
        "path": {"type": "path", "required": True},
        "mode": {"type": "str", "required": True},
        "group": {"type": "str", "default": "root"},
        "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    }
    module = AnsibleModule({"overrides": {"type": "list", "elements": "dict", "required": True, "options": one}}, supports_check_mode=True)
    known = _known()
    differing = [each for each in module.params["overrides"] if _differs(each, known)]
    for each in differing if not module.check_mode else []:
        if each["state"] == "absent":
            command = ["dpkg-statoverride", "--remove", each["path"]]
        else:
            words = ["root", each["group"], each["mode"], each["path"]]
            command = ["dpkg-statoverride", "--force-statoverride-add", "--update", "--add", *words]
        module.run_command(command, check_rc=True)
    paths = [each["path"] for each in differing]
    diff = {"before": "", "after": "".join(f"{path}\n" for path in paths)}
    module.exit_json(changed=bool(differing), paths=paths, diff=diff)


if __name__ == "__main__":
    main()
