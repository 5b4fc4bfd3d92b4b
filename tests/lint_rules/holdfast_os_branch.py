"""Rule holdfast-os-branch."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from holdfast_house import HouseRule, conditions, role

if TYPE_CHECKING:
    from ansiblelint.file_utils import Lintable
    from ansiblelint.utils import Task

SYSTEM = re.compile(r"ansible_facts(\.|\[.)(os_family|distribution\w*|lsb|pkg_mgr)\b|ansible_(os_family|distribution\w*|pkg_mgr)\b")


class OsBranch(HouseRule):
    """Ask nowhere which system the host runs."""

    id = "holdfast-os-branch"
    description = "Hosts are Debian 13, asserted once, in the role preflight: no task of another role asks for the system."

    def fault(self, task: Task, file: Lintable) -> str:
        """Refuse conditions on the system."""
        if role(file) == "preflight" or not any(SYSTEM.search(item) for item in conditions(task.get("when"))):
            return ""
        return "Take the branch out: preflight has refused every system but Debian 13."
