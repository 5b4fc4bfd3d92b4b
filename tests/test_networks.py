"""What is an address or a range, and which ranges share some."""

from __future__ import annotations

import pytest

from plugins.filter.networks import networks_overlap, not_networks


@pytest.mark.parametrize(
    "value", ["192.0.2.1", "10.0.0.0/8", "10.1.2.3/8", "0.0.0.0/0", "::", "2001:DB8::/32", "fd00::1/128", "::ffff:192.0.2.1"]
)
def test_network(value: str) -> None:
    assert not_networks([value]) == []


@pytest.mark.parametrize(
    "value",
    [
        "", "300.1.1.1", "10.0.0.0/33", "10.0.0", "10.0.0.0/255.0.0.0", "10.0.0.1/", "192.0.2.1 ", "192.0.2.1\n", "office",
        ":::::", "1:2", "fd00::/129", "fd00::1::2", "fe80::1%eth0",
    ],
)  # fmt: skip
def test_no_network(value: str) -> None:
    assert not_networks(["192.0.2.1", value]) == [value]


@pytest.mark.parametrize(("one", "other"), [("172.30.200.1/24", "172.30.128.0/17"), ("172.30.0.1/16", "172.30.128.0/17")])
def test_overlap(one: str, other: str) -> None:
    assert networks_overlap(one, other)
    assert networks_overlap(other, one)


@pytest.mark.parametrize(("one", "other"), [("172.30.0.1/24", "172.30.128.0/17"), ("10.0.0.1/24", "fd00::/64"), ("many", "10.0.0.0/8")])
def test_apart(one: str, other: str) -> None:
    assert not networks_overlap(one, other)
    assert not networks_overlap(other, one)
