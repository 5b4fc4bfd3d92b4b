"""The commands that a page of the documentation tells a person to type, so that tests run the very same."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

BLOCK = re.compile(r"^[ ]*```sh\n(.*?)^[ ]*```$", re.MULTILINE | re.DOTALL)
# What stands in a sentence or a table; other words in backticks are names.
MENTIONED = re.compile(r"`((?:holdfast|systemctl|ansible-playbook|runuser|make) [^`]+)`")
CONTINUED = re.compile(r"\\\n\s*")


def sections(page: Path) -> dict[str, str]:
    """Return a page's text by its headings of the second level."""
    parts = re.split(r"^## (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def commands(page: Path, section: str) -> list[str]:
    """Return the commands of the blocks in a page's section, one a line.

    Args:
        page: the page.
        section: heading of the second level.
    """
    blocks = [CONTINUED.sub("", textwrap.dedent(block)) for block in BLOCK.findall(sections(page)[section])]
    return [line for block in blocks for line in block.splitlines() if line]


def mentioned(page: Path, section: str) -> list[str]:
    """Return the commands that a section names in its sentences and tables, each once, in their order."""
    found = MENTIONED.findall(BLOCK.sub("", sections(page)[section]))
    return list(dict.fromkeys(" ".join(each.split()) for each in found))
