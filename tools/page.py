"""The commands that a page of the documentation tells a person to type, so that tests run the very same."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

BLOCK = re.compile(r"^[ ]*```sh\n(.*?)^[ ]*```$", re.MULTILINE | re.DOTALL)
CONTINUED = re.compile(r"\\\n\s*")


def commands(page: Path, section: str) -> list[str]:
    """Return the commands of a page's section, one a line.

    Args:
        page: the page.
        section: heading of the second level.
    """
    text = page.read_text(encoding="utf-8")
    parts = re.split(r"^## (.*)$", text, flags=re.MULTILINE)
    body = dict(zip(parts[1::2], parts[2::2], strict=True))[section]
    blocks = [CONTINUED.sub("", textwrap.dedent(block)) for block in BLOCK.findall(body)]
    return [line for block in blocks for line in block.splitlines() if line]
