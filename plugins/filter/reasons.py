"""Tell which exceptions of an inventory come without a reason."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

# Two words at least: a mark or a single word explains nothing.
_WORDS = re.compile(r"\w{3}.*\s.*\w{2}")


def unexplained(exceptions: Mapping[str, Any]) -> list[str]:
    """Return the names of those whose reason is no text of words, sorted."""
    return sorted(name for name, reason in exceptions.items() if not (isinstance(reason, str) and _WORDS.search(reason)))


class FilterModule:
    """Filters that Ansible finds."""

    def filters(self) -> dict[str, Callable[..., list[str]]]:
        """Return the filters by name."""
        return {"unexplained": unexplained}
