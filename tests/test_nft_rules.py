"""What is found in rules in nft's notation, and which rules are let pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from plugins.filter import nft_rules

CHECKS = (
    nft_rules.nft_portless,
    nft_rules.nft_bad_ports,
    nft_rules.nft_unknown_protocols,
    nft_rules.nft_host_names,
    nft_rules.nft_interface_indexes,
)


@pytest.mark.parametrize(
    ("check", "rule", "found"),
    [
        (nft_rules.nft_portless, 'tpc dport 22 accept comment "tcp dport"', ["tpc dport"]),
        (nft_rules.nft_portless, "dport 22 accept", ["dport"]),
        (nft_rules.nft_bad_ports, "tcp dport 70000 accept", ["70000"]),
        (nft_rules.nft_bad_ports, "tcp dport { ssh, 1-65536 } accept", ["65536"]),
        (nft_rules.nft_bad_ports, "udp sport != 0 accept", ["0"]),
        (nft_rules.nft_bad_ports, "tcp dport vmap { 22: accept, 70000 : drop }", ["70000"]),
        (nft_rules.nft_bad_ports, "tcp dport -1 accept", ["-1"]),
        (nft_rules.nft_unknown_protocols, "ip protocol tpc accept", ["tpc"]),
        (nft_rules.nft_unknown_protocols, "ip protocol { 47, 255, 256 } accept", ["256"]),
        (nft_rules.nft_unknown_protocols, "meta l4proto { tcp, upd } accept", ["upd"]),
        (nft_rules.nft_unknown_protocols, "meta l4proto != upd accept", ["upd"]),
        (nft_rules.nft_unknown_protocols, "ip6 nexthdr tpc accept", ["tpc"]),
        (nft_rules.nft_unknown_protocols, "ip6 nexthdr vmap { tcp : accept, ospf : drop }", ["ospf"]),
        (nft_rules.nft_host_names, "ip saddr office.example.org tcp dport 22 accept", ["office.example.org"]),
        (nft_rules.nft_host_names, "ip6 daddr != { fd00::1, office, feed::1 } drop", ["office"]),
        (nft_rules.nft_host_names, "ip saddr vmap { 192.0.2.1 : accept, office : drop }", ["office"]),
        (nft_rules.nft_interface_indexes, 'iif "eth1" tcp dport 9100 accept', ["iif"]),
        (nft_rules.nft_interface_indexes, "meta iif { eth0, eth1 } meta oif != eth2 accept", ["iif", "oif"]),
        (nft_rules.nft_interface_indexes, 'fib daddr oif "eth1" accept', ["oif"]),
    ],
)
def test_found(check: Callable[[list[str]], list[str]], rule: str, found: list[str]) -> None:
    assert check(["tcp dport 22 accept", rule]) == found
    assert [other.__name__ for other in CHECKS if other is not check and other([rule])] == []


@pytest.mark.parametrize(
    "rule",
    [
        "tcp dport { ssh, 8000-8100 } ip saddr 10.0.0.0/8 accept",
        'th sport 1-65535 th dport != 99 counter accept comment "not dport 70000, not iif, not ip saddr office"',
        "ip saddr . tcp dport { 192.0.2.7 . 22, 10.0.0.1 . 80 } accept",
        "sctp dport vmap { 22: accept, 1024-2048: drop }",
        "meta l4proto { tcp, udp } th dport >= 70 accept",
        "meta l4proto . th dport { tcp . 53, udp . 53 } accept",
        "meta l4proto { icmp, 47, 0x59 } accept",
        "ip protocol @tunnels accept",
        "tcp dport 22 ct count over 70000 drop",
        'iifname "eth1" oifname != { "eth2", "br-*" } iiftype ether accept',
        "fib daddr . iif type local tcp dport 9100 accept",
        "fib saddr . iif oif missing drop",
        "ip saddr @office accept",
        "ip6 saddr fd00::/8 ip6 daddr { fd00::1-fd00::9 } accept",
        "ether saddr aa:bb:cc:dd:ee:ff ip saddr & 255.255.0.0 == 10.1.0.0 accept",
        "update @seen { ip saddr limit rate over 3/minute } drop",
        "ip saddr . ip daddr vmap { 192.0.2.1 . 192.0.2.2 : accept }",
    ],
)
def test_let_pass(rule: str) -> None:
    assert [check.__name__ for check in CHECKS if check([rule])] == []


@pytest.mark.parametrize("text", ["", "Büro: 'ssh'", "x" * 127])
def test_comment(text: str) -> None:
    assert nft_rules.nft_bad_comments([text]) == []


@pytest.mark.parametrize("text", ["x" * 128, "é" * 64, 'a"b', "a\n"])
def test_no_comment(text: str) -> None:
    assert nft_rules.nft_bad_comments(["ssh", text]) == [text]
