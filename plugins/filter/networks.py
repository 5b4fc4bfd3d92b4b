"""Tell what is an address or a range of them, and which ranges share some."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Any

# Python reads netmasks and zones as well, which nft does not.
_NOTATION = re.compile(r"[0-9A-Fa-f.:]+(/[0-9]{1,3})?")


def _is_network(value: str) -> bool:
    try:
        ipaddress.ip_network(value, strict=False)
    except ValueError:
        return False
    return bool(_NOTATION.fullmatch(value))


def not_networks(values: list[str]) -> list[str]:
    """Return those that are neither an address nor a range in CIDR notation."""
    return [value for value in values if not _is_network(value)]


def networks_overlap(one: str, other: str) -> bool:
    """Say whether two ranges share an address; what is no range shares none."""
    if not_networks([one, other]):
        return False
    return ipaddress.ip_network(one, strict=False).overlaps(ipaddress.ip_network(other, strict=False))


class FilterModule:
    """Filters that Ansible finds."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"networks_overlap": networks_overlap, "not_networks": not_networks}
