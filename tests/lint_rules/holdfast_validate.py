"""Rule holdfast-validate."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from holdfast_house import HouseRule, arguments, module

if TYPE_CHECKING:
    from ansiblelint.file_utils import Lintable
    from ansiblelint.utils import Task

# Files whose program can check a copy that lies somewhere else under another name. What is not here is checked by its handler or unit:
# systemd-analyze, for one, refuses a unit without its suffix, and Ansible's copy has none.
CHECKERS = {
    r"/sudoers(\.d/|$)": "visudo -cf %s",
    r"/sshd_config$": "sshd -t -f %s",
    r"nftables?(\.conf|/.*\.nft)$": "nft -c -f %s",
    r"/Caddyfile$": "caddy validate --adapter caddyfile --config %s",
    r"/docker/daemon\.json$": "dockerd --validate --config-file %s",
    r"/apt/apt\.conf\.d/": "apt-config -c %s dump",
    r"/compose\.ya?ml$": "docker compose -f %s config --quiet",
    r"/prometheus\.ya?ml$": "promtool check config %s",
    r"/prometheus/.*rules.*\.ya?ml$": "promtool check rules %s",
    r"/alertmanager\.ya?ml$": "amtool check-config %s",
    r"/loki\.ya?ml$": "loki -verify-config -config.file=%s",
    r"/syslog-ng\.conf$": "syslog-ng --syntax-only --cfgfile=%s",
    r"\.json$": "python3 -m json.tool %s",
}


class Validate(HouseRule):
    """Validate a file before it lands."""

    id = "holdfast-validate"
    description = "A file whose program can check it has `validate`, so that a bad file never lands."
    tags = ["idempotency"]

    def fault(self, task: Task, file: Lintable) -> str:
        """Refuse known files without `validate`."""
        given = arguments(task)
        if module(task) not in ("template", "copy", "lineinfile", "blockinfile", "replace") or "validate" in given:
            return ""
        target = str(given.get("dest") or given.get("path") or "")
        checker = next((command for pattern, command in CHECKERS.items() if re.search(pattern, target)), "")
        return f"{target} can be checked before it lands: add `validate: {checker}`." if checker else ""
