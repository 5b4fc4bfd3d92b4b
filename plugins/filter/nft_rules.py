"""Find in rules in nft's notation what nft refuses only on the host, after other roles have changed it, or not before its next boot.

It is no parser of nft: what it does not know it lets pass, and `nft --check` judges it before a ruleset lands.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

PORT_PROTOCOLS = ("tcp", "udp", "udplite", "sctp", "dccp", "th")
# Those that nft knows by itself; of others it asks /etc/protocols, which a small host lacks.
PROTOCOLS = ("tcp", "udp", "udplite", "sctp", "dccp", "icmp", "icmpv6", "igmp", "gre", "esp", "ah", "comp")
HIGHEST_PORT = 65535
HIGHEST_PROTOCOL = 255
COMMENT_BYTES = 127
# What may follow an address that is not compared: the key of a meter, or a part of it.
NO_NAMES = ("and", "counter", "ct", "expires", "limit", "lshift", "or", "quota", "rshift", "timeout", "xor")
_OPERATOR = r"\s+(?:[!=<>]+\s*|(?:eq|ne|lt|gt|le|ge|map|set|vmap)\s+)?"


def _bare(rules: list[str]) -> Iterator[str]:
    """Leave out what is in quotes, and which parts of a packet are looked up in the routes: `fib saddr . iif oif missing`."""
    for rule in rules:
        yield re.sub(r"\bfib\s+\w+(\s*\.\s*\w+)*", "", re.sub(r'"[^"]*"', "", rule))


def _values(rules: list[str], expression: str) -> Iterator[str]:
    """Return what an expression is compared with, one by one; in a map each key is there with its value."""
    for rule in _bare(rules):
        for found in re.findall(rf"(?<![\w-])(?:{expression}){_OPERATOR}(\{{[^}}]*\}}|[^\s{{}}]+)", rule):
            yield from (each.strip() for each in found.strip("{}").split(","))


def nft_portless(rules: list[str]) -> list[str]:
    """Return each `dport` and `sport` whose protocol has no ports, or that has no protocol at all."""
    left = (re.sub(rf"\b({'|'.join(PORT_PROTOCOLS)})\s+[ds]port\b", "", rule) for rule in _bare(rules))
    return [found for rule in left for found in re.findall(r"(?:\S+\s+)?(?<![\w-])[ds]port(?![\w-])", rule)]


def nft_bad_ports(rules: list[str]) -> list[str]:
    """Return the numbers that are no port; a range may begin with 0."""
    ports = [value.split(":")[0].strip() for value in _values(rules, "[ds]port")]
    numbers = [port for port in ports if re.fullmatch(r"\d+(\s*-\s*\d+)?", port)]
    return [port for port in ports if port == "0" or re.fullmatch(r"-\d+", port)] + [
        number for port in numbers for number in re.findall(r"\d+", port) if int(number) > HIGHEST_PORT
    ]


def nft_unknown_protocols(rules: list[str]) -> list[str]:
    """Return the names of protocols that nft does not know, and the numbers that are none."""
    names = [value.split(":")[0].strip() for value in _values(rules, r"ip\s+protocol|l4proto|nexthdr")]
    return [
        name
        for name in names
        if (re.fullmatch(r"[A-Za-z][\w-]*", name) and name not in (*PROTOCOLS, *NO_NAMES))
        or (re.fullmatch(r"-?\d+", name) and not 0 <= int(name) <= HIGHEST_PROTOCOL)
    ]


def nft_bad_comments(texts: list[str]) -> list[str]:
    """Return what can't be a comment; nft knows no way to write a quotation mark in it."""
    return [text for text in texts if '"' in text or not text.isprintable() or len(text.encode()) > COMMENT_BYTES]


def nft_host_names(rules: list[str]) -> list[str]:
    """Return the names of hosts that stand for addresses."""
    words = [value.split()[0] for value in _values(rules, "[ds]addr") if value]
    return [word for word in words if re.fullmatch(r"[A-Za-z][\w.-]*", word) and word not in NO_NAMES]


def nft_interface_indexes(rules: list[str]) -> list[str]:
    """Return each `iif` and `oif`: nft turns the name beside it into the number of an interface, which has to be there."""
    return [found for rule in _bare(rules) for found in re.findall(r"(?<![\w-])(?:iif|oif(?!\s+(?:exists|missing)\b))(?![\w-])", rule)]


class FilterModule:
    """Filters that Ansible finds."""

    def filters(self) -> dict[str, Callable[..., list[str]]]:
        """Return the filters by name."""
        return {
            "nft_bad_comments": nft_bad_comments,
            "nft_bad_ports": nft_bad_ports,
            "nft_host_names": nft_host_names,
            "nft_interface_indexes": nft_interface_indexes,
            "nft_portless": nft_portless,
            "nft_unknown_protocols": nft_unknown_protocols,
        }
