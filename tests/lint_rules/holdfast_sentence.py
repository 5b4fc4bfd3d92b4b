"""Rule holdfast-sentence."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from holdfast_house import HouseRule

if TYPE_CHECKING:
    from ansiblelint.file_utils import Lintable
    from ansiblelint.utils import Task

# Imperatives that end like a participle or a third person.
IMPERATIVES = frozenset(
    {"Bring", "Ping", "Address", "Pass", "Process", "Compress", "Bless", "Focus", "Press", "Suppress", "Embed", "Feed", "Seed"}
)
NOUNS = frozenset({"Installation", "Configuration", "Setup", "Creation", "Deployment", "Startup", "The", "A", "An", "Task", "Step"})


class Sentence(HouseRule):
    """Write task names as imperative sentences."""

    id = "holdfast-sentence"
    description = (
        "A task's name says what to do, as to a person: 'Write the configuration', not 'Writing', 'Writes', 'Configuration of' nor "
        "'| write config'. No period at its end, one line."
    )
    tags = ["formatting"]

    def fault(self, task: Task, file: Lintable) -> str:
        """Refuse names that are no imperative, or end with a period."""
        name = task.name or ""
        first = name.split(" ")[0] if name else ""
        if not name:
            return ""  # name[missing] says so
        if name.rstrip() != name or name.endswith((".", "!", ":", "…")):
            return f"Take the '{name[-1]}' from the end of '{name}'."
        if "|" in name or re.match(r"\w+:\s", name):
            return f"Take the prefix from '{name}': Ansible prints the role beside each task."
        if first in NOUNS or (first not in IMPERATIVES and re.search(r"(ing|[^s]s|ed)$", first)):
            return f"Begin '{name}' with an imperative, such as 'Write' or 'Start'."
        return ""
