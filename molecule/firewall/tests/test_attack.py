"""What a second host on the same network, and a container, reach; over IPv4 and IPv6, and after every restart."""

from __future__ import annotations

import ipaddress
import json
import shlex
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from testinfra.host import Host

from tools import host as test_host
from tools.playbook import play_on
from tools.shell import run

IMAGE = "molecule/busybox"
# The first address of a network over IPv6 is every router's, so the host's.
ANYCAST = "fd00:c0:a::"
PUBLISHED, LISTENING, DECLARED = 9999, 7777, 8333
SERVICES = {22, 80, 443}
PORTS = sorted({*range(1, 1024), 2375, 5432, 6379, 6432, DECLARED, LISTENING, PUBLISHED, 9000, 9090})
ANSWER = "tables inet holdfast"
LOOP = f"while true; do echo {ANSWER} | busybox nc -l -p 80; done"
LISTEN = f"systemd-run --collect --unit=molecule-listener python3 /root/listener.py 80 443 {LISTENING} {DECLARED}"
# Listens on every address, over TCP and UDP, IPv4 and IPv6.
LISTENER = """
import asyncio, socket, sys
def tcp(reader, writer):
    writer.write(b"here\\n"); writer.close()
class Udp(asyncio.DatagramProtocol):
    def connection_made(self, transport): self.transport = transport
    def datagram_received(self, data, address): self.transport.sendto(b"here", address)
async def main():
    for port in map(int, sys.argv[1:]):
        await asyncio.start_server(tcp, None, port)
        for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            channel = socket.socket(family, socket.SOCK_DGRAM)
            if family == socket.AF_INET6: channel.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            channel.bind((address, port))
            await asyncio.get_running_loop().create_datagram_endpoint(Udp, sock=channel)
    await asyncio.Event().wait()
asyncio.run(main())
"""
# Says of each port whether it is open, refuses (which is an answer, too), or is silent.
SCANNER = """
import asyncio, json, sys
# All at once, the first would have waited for the last of them.
few = asyncio.Semaphore(800)
async def knock(address, port):
    async with few:
        return await knocked(address, port)
async def knocked(address, port):
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(address, port), 2)
        writer.close()
        return port, "open"
    except TimeoutError:
        return port, "silent"
    except ConnectionRefusedError:
        return port, "refused"
    except OSError as error:
        return port, str(error)
async def scan(address, ports):
    return address, dict(await asyncio.gather(*(knock(address, port) for port in ports)))
async def main(targets):
    print(json.dumps(dict(await asyncio.gather(*(scan(*item) for item in targets.items())))))
asyncio.run(main(json.loads(sys.argv[1])))
"""
UDP = """
import socket, sys
channel = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
channel.settimeout(2)
channel.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
channel.sendto(b"hello", (sys.argv[1], int(sys.argv[2])))
try:
    print(channel.recv(10).decode())
except TimeoutError:
    print("silent")
"""

PING = """
import random, socket, struct, sys
six = ":" in sys.argv[1]
family, protocol = (socket.AF_INET6, socket.IPPROTO_ICMPV6) if six else (socket.AF_INET, socket.IPPROTO_ICMP)
channel = socket.socket(family, socket.SOCK_RAW, protocol)
channel.settimeout(2)
channel.connect((sys.argv[1], 0))
# An echo request without data, and its sum, which of ICMPv6 the kernel writes. One of the same number would belong to the one before it.
number = random.randrange(0xF000)
channel.send(struct.pack("!BBHHH", 128, 0, 0, number, 1) if six else struct.pack("!BBHHH", 8, 0, 0xFFFF - 0x0800 - number - 1, number, 1))
try:
    # Neighbour discovery is read here as well; of IPv4 the header comes first.
    while channel.recv(100)[0 if six else 20] != (129 if six else 0):
        pass
    print("here")
except TimeoutError:
    print("silent")
"""


@dataclass(frozen=True)
class Attacker:
    """The second host."""

    name: str
    address: str

    def python(self, program: str, *words: str) -> str:
        """Run a program on it."""
        return run(["docker", "exec", "-i", self.name, "python3", "-", *words], stdin=program, timeout_seconds=60).stdout

    def goes_through(self, address: str) -> None:
        """Reach the containers' network by way of a host, whose card may be another one by now."""
        run(["docker", "exec", self.name, "ip", "route", "replace", "172.30.0.0/16", "via", address])
        run(["docker", "exec", self.name, "ip", "neighbour", "flush", "dev", "eth0"])

    def scan_all(self, targets: dict[str, list[int]]) -> dict[str, dict[str, set[int]]]:
        """Sort the ports of each address by how they answer; silent ones are left out."""
        found: dict[str, dict[str, set[int]]] = {}
        for address, ports in json.loads(self.python(SCANNER, json.dumps(targets))).items():
            sorted_ports: dict[str, set[int]] = found.setdefault(address, {})
            for port, answer in ports.items():
                if answer != "silent":
                    sorted_ports.setdefault(answer, set()).add(int(port))
        return found

    def scan(self, address: str, ports: list[int]) -> dict[str, set[int]]:
        """Do it for one address."""
        return self.scan_all({address: ports})[address]

    def udp(self, address: str, port: int) -> str:
        """Send a datagram and return what comes back."""
        return self.python(UDP, address, str(port)).strip()

    def ping(self, address: str) -> str:
        """Send an echo request and say whether it is answered."""
        return self.python(PING, address).strip()


@pytest.fixture(scope="module")
def attacker(host_name: str) -> Iterator[Attacker]:
    """Bring a second host up, on the same network, with a route to the containers through the host."""
    name = f"{host_name}-attacker"
    test_host.down(name)
    test_host.up(name)
    setup = (
        "sysctl --quiet --write net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.eth0.disable_ipv6=0; "
        "ip -6 address replace fd00:4657::2/64 dev eth0 nodad; "
        "ip -6 route replace fd00:c0::/32 via fd00:4657::1"
    )
    run(["docker", "exec", name, "sh", "-c", setup])
    attacker = Attacker(name, test_host.address(name))
    attacker.goes_through(test_host.address(host_name))
    yield attacker
    test_host.down(name)


@pytest.fixture(scope="module")
def targets(host_name: str) -> list[str]:
    """Name the host's addresses."""
    return [test_host.address(host_name), "fd00:4657::1"]


@pytest.fixture(scope="module")
def containers(host: Host) -> Iterator[dict[str, str]]:
    """Run two projects of containers, one of which publishes a port on every address, and a process that listens on every address."""
    host.check_output(
        "mkdir -p /tmp/image/bin && cp /bin/busybox /tmp/image/bin/ && ln -sf busybox /tmp/image/bin/sh "
        f"&& tar -C /tmp/image -c . | docker import - {IMAGE}"
    )
    host.check_output(f"cat > /root/listener.py <<'END'\n{LISTENER}\nEND")
    host.check_output(LISTEN)
    host.check_output(f"docker network create --ipv6 --subnet {ANYCAST}/64 one && docker network create two")
    found = {}
    for name, network, more in (
        ("one-server", "one", f"--publish {PUBLISHED}:80"), ("one-client", "one", ""), ("two-client", "two", ""), ("two-server", "two", ""),
    ):  # fmt: skip
        host.check_output(f"docker run --detach --init --name {name} --network {network} {more} {IMAGE} sh -c '{LOOP}'")
        found[name] = host.check_output(
            f"docker inspect --format '{{{{range .NetworkSettings.Networks}}}}{{{{.IPAddress}}}}{{{{end}}}}' {name}"
        )
    found["one-server-6"] = host.check_output(
        "docker inspect --format '{{range .NetworkSettings.Networks}}{{.GlobalIPv6Address}}{{end}}' one-server"
    )
    yield found
    host.run("docker rm --force one-server one-client two-client two-server; docker network rm one two")
    host.run("systemctl stop molecule-listener.service")


def converge(host_name: str, **inputs: Any) -> None:
    """Run the scenario's firewall again with other inputs."""
    given = {"firewall_container_services": [{"protocol": "tcp", "port": DECLARED, "address": "172.30.0.1"}], **inputs}
    done = play_on(host_name, "molecule/firewall/converge.yml", "--tags", "firewall", **given)
    assert done.returncode == 0, done.stdout


def gets(host: Host, container: str, address: str, port: int = 80) -> bool:
    """Say whether a container reads something from an address."""
    return host.run(f"docker exec {container} busybox timeout 3 busybox nc {address} {port} </dev/null").stdout.strip() != ""


def shouts(host: Host, container: str, address: str, port: int) -> str:
    """Send a datagram from a container's network, to a broadcast address too, and return what comes back."""
    process = host.check_output(f"docker inspect --format '{{{{.State.Pid}}}}' {container}")
    program = shlex.quote(UDP)
    return str(host.check_output(f"timeout 20 nsenter --net --target {process} python3 -c {program} {address} {port}"))


def reached(host: Host, pairs: list[tuple[str, str, int]]) -> set[tuple[str, str, int]]:
    """Return those of several attempts (container, address, port) that got through."""
    with ThreadPoolExecutor(len(pairs)) as pool:
        answers = pool.map(lambda pair: gets(host, *pair), pairs)
    return {pair for pair, answer in zip(pairs, answers, strict=True) if answer}


def is_closed(attacker: Attacker, targets: list[str], containers: dict[str, str]) -> None:
    """Attack everything there is."""
    hidden = [containers[name] for name in ("one-server", "two-server", "one-server-6")]
    gateways = ["172.30.0.1", "172.30.128.1"]
    found = attacker.scan_all(
        dict.fromkeys(targets, PORTS)
        | {key: [22, 80, PUBLISHED] for key in hidden}
        | {key: [LISTENING, DECLARED, PUBLISHED] for key in gateways}
    )
    assert found == {key: {"open": SERVICES} for key in targets} | {key: {} for key in [*hidden, *gateways]}
    for target in targets:
        assert attacker.udp(target, LISTENING) == "silent"
        # The demo has no HTTP/3.
        assert attacker.udp(target, 443) == "silent"
    with ThreadPoolExecutor(len(targets) + len(hidden)) as pool:
        pings = dict(zip([*targets, *hidden], pool.map(attacker.ping, [*targets, *hidden]), strict=True))
    assert pings == dict.fromkeys(targets, "here") | dict.fromkeys(hidden, "silent")


def test_closed_as_converged(attacker: Attacker, targets: list[str], containers: dict[str, str]) -> None:
    """Only 22, 80 and 443 answer, published ports and listening processes or not; no route leads to a container."""
    is_closed(attacker, targets, containers)


@pytest.mark.parametrize(
    "action",
    [
        "systemctl restart docker.service",
        "systemctl reload docker.service",
        "systemctl restart holdfast-firewall.service",
        "systemctl reload holdfast-firewall.service",
        "systemctl stop holdfast-firewall.service",
        "systemctl start holdfast-firewall.service",
    ],
)
def test_closed_after(host: Host, attacker: Attacker, targets: list[str], containers: dict[str, str], action: str) -> None:
    """It is so after each restart, reload and stop."""
    host.check_output(f"timeout 90 {action}")
    is_closed(attacker, targets, containers)
    assert "chain DOCKER" in host.check_output("nft list ruleset"), "Docker's own rules are gone"
    assert gets(host, "one-client", attacker.address, 22), "egress is gone"


def test_new_container_is_closed_too(host: Host, attacker: Attacker, targets: list[str], containers: dict[str, str]) -> None:
    """What is published later is as closed."""
    assert containers
    host.check_output(f"docker run --detach --init --name late --publish 9998:80 {IMAGE} sh -c '{LOOP}'")
    try:
        for target in targets:
            assert attacker.scan(target, [9998, PUBLISHED]) == {}
    finally:
        host.check_output("docker rm --force late")


def test_the_attack_works_without_the_table(host: Host, attacker: Attacker, targets: list[str], containers: dict[str, str]) -> None:
    """Without our table the same attacker gets to all of it, so these tests see what they should."""
    host.check_output("nft delete table inet holdfast")
    try:
        for target in targets:
            found = attacker.scan(target, [PUBLISHED, LISTENING, 9000])
            assert found == {"open": {PUBLISHED, LISTENING}, "refused": {9000}}, target
            assert attacker.udp(target, LISTENING) == "here"
        assert attacker.scan(containers["one-server"], [80]) == {"open": {80}}
        assert attacker.ping(containers["one-server"]) == "here"
        assert gets(host, "two-client", "172.30.0.1", LISTENING)
        assert shouts(host, "one-client", "255.255.255.255", LISTENING) == "here"
        assert shouts(host, "one-client", "ff02::1%eth0", LISTENING) == "here"
        assert shouts(host, "one-client", ANYCAST, LISTENING) == "here"
    finally:
        host.check_output("systemctl reload-or-restart holdfast-firewall.service")
    is_closed(attacker, targets, containers)


def test_containers_reach_their_own_network_and_the_outside(host: Host, attacker: Attacker, containers: dict[str, str]) -> None:
    """A container reaches another of its network by name and address, and the outside."""
    assert gets(host, "one-client", "one-server")
    assert gets(host, "one-client", containers["one-server"])
    assert gets(host, "two-client", containers["two-server"])
    assert gets(host, "two-client", attacker.address, 22)
    assert gets(host, "one-client", containers["one-server-6"])


def test_projects_are_apart(host: Host, containers: dict[str, str], targets: list[str]) -> None:
    """A container reaches no other project's container, neither directly nor by the port that it publishes."""
    ways = [(containers["one-server"], 80), (targets[0], PUBLISHED), ("172.30.0.1", PUBLISHED)]
    assert reached(host, [("two-client", *way) for way in ways]) == set()


def test_containers_reach_declared_services_only(host: Host, containers: dict[str, str], targets: list[str]) -> None:
    """A container reaches what is declared on the host, on that address, and nothing else of the host."""
    assert containers
    ways = [("172.30.0.1", LISTENING), ("172.30.0.1", 22), (targets[0], 22), (targets[0], 443), (targets[0], DECLARED)]
    for client in ("one-client", "two-client"):
        assert gets(host, client, "172.30.0.1", DECLARED)
        assert reached(host, [(client, *way) for way in ways]) == set()


def test_containers_reach_no_service_by_shouting(host: Host, containers: dict[str, str]) -> None:
    """A container reaches nothing of the host by broadcast, multicast or anycast either, over IPv4 and IPv6."""
    subnets = host.check_output("docker network inspect --format '{{range .IPAM.Config}}{{.Subnet}} {{end}}' one").split()
    subnet = next(each for each in subnets if ":" not in each)
    for address in (str(ipaddress.IPv4Network(subnet).broadcast_address), "255.255.255.255", "224.0.0.1", "ff02::1%eth0", ANYCAST):
        assert shouts(host, "one-client", address, LISTENING) == "silent", address
    assert gets(host, "one-client", containers["one-server-6"]), "neighbours are not discovered"


def test_http3_follows_the_proxy(host_name: str, attacker: Attacker, targets: list[str], containers: dict[str, str]) -> None:
    """UDP 443 is open where the proxy speaks HTTP/3, to whoever may reach https, and nowhere else."""
    assert containers
    ssh, office = {"protocol": "tcp", "port": 22}, {"protocol": "tcp", "port": 443, "sources": ["192.0.2.1"]}
    try:
        converge(host_name, caddy_http3=True)
        assert [attacker.udp(target, 443) for target in targets] == ["here", "here"]
        for more in ([], [office]):
            converge(host_name, caddy_http3=True, firewall_services=[ssh], firewall_extra_services=more)
            assert [attacker.udp(target, 443) for target in targets] == ["silent", "silent"]
    finally:
        converge(host_name)
    assert [attacker.udp(target, 443) for target in targets] == ["silent", "silent"]


def test_egress_can_be_limited(host: Host, host_name: str, attacker: Attacker, containers: dict[str, str]) -> None:
    """With an allow list containers reach nobody else outside, and their own network as before."""
    try:
        converge(host_name, firewall_restrict_egress=True)
        assert not gets(host, "one-client", attacker.address, 22)
        assert gets(host, "one-client", containers["one-server"])
        converge(host_name, firewall_restrict_egress=True, firewall_egress=[{"address": attacker.address, "protocol": "tcp", "port": 22}])
        assert gets(host, "one-client", attacker.address, 22)
    finally:
        converge(host_name)


def test_inventory_opens_more(host_name: str, attacker: Attacker, targets: list[str], containers: dict[str, str]) -> None:
    """An inventory opens a port to named sources, or by a rule of its own, without a template."""
    assert containers
    service = {"protocol": "tcp", "port": LISTENING}
    try:
        converge(host_name, firewall_extra_services=[service | {"sources": ["192.0.2.1"]}])
        assert attacker.scan(targets[0], [LISTENING]) == {}
        converge(host_name, firewall_extra_services=[service | {"sources": [f"{attacker.address}/32"]}])
        assert attacker.scan(targets[0], [LISTENING]) == {"open": {LISTENING}}
        assert attacker.scan(targets[1], [LISTENING]) == {}
        converge(host_name, firewall_extra_rules=[f"ip6 saddr fd00:4657::2 tcp dport {LISTENING} accept"])
        assert attacker.scan(targets[1], [LISTENING]) == {"open": {LISTENING}}
    finally:
        converge(host_name)
    assert attacker.scan(targets[1], [LISTENING]) == {}


def test_without_bridges_everything_is_outside(host: Host, host_name: str, containers: dict[str, str]) -> None:
    """Where the inventory names no bridge of containers, the ruleset loads, and a container is judged as anybody else."""
    try:
        converge(host_name, firewall_container_interfaces=[])
        assert not gets(host, "one-client", "172.30.0.1", DECLARED)
    finally:
        converge(host_name)
    assert gets(host, "one-client", "172.30.0.1", DECLARED)


def test_connection_rate(host: Host, host_name: str, attacker: Attacker, targets: list[str], containers: dict[str, str]) -> None:
    """One source opens no more connections to ssh, or to https, HTTP/3 too, at once than its burst, and may again after a while."""
    assert containers
    many = """
import socket, sys
count = 0
for _ in range(40):
    try:
        socket.create_connection((sys.argv[1], int(sys.argv[2])), 0.3).close()
        count += 1
    except TimeoutError:
        pass
print(count)
"""
    datagrams = """
import socket, sys
for _ in range(40):
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"new", (sys.argv[1], 443))
"""
    bounded = [{"protocol": "tcp", "port": port, "rate_per_minute": 30, "burst": 30} for port in (22, 443)]
    try:
        # https has more in the demo.
        converge(host_name, firewall_services=bounded, firewall_http3=True)
        for target in targets:
            for port in (22, 443):
                # One a two seconds comes on top.
                assert 28 <= int(attacker.python(many, target, str(port))) <= 38
        attacker.python(datagrams, next(target for target in targets if ":" not in target))
        dropped = host.check_output("nft list table inet holdfast | grep --only-matching '@rate4_udp_443 .* counter packets [0-9]*'")
        assert 8 <= int(dropped.rsplit(" ", 1)[1]) <= 12
        time.sleep(3)
        assert attacker.scan(targets[0], [22, 443]) == {"open": {22, 443}}
    finally:
        converge(host_name)


def test_other_firewall_is_refused(host: Host, host_name: str) -> None:
    """A host with another program that writes rules is refused before anything is changed, with the way out."""
    host.check_output("DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends netfilter-persistent")
    done = play_on(host_name, "molecule/firewall/converge.yml", "--tags", "firewall")
    host.check_output("apt-get purge --yes netfilter-persistent")
    assert done.returncode != 0
    assert "`apt-get purge netfilter-persistent`" in " ".join(done.stdout.split())
    assert "changed=0" in done.stdout


def test_drift_is_mended_by_a_run(host: Host, host_name: str) -> None:
    """A rule that somebody added by hand is gone after a run, although no file has changed."""
    host.check_output(f"nft insert rule inet holdfast outside tcp dport {LISTENING} accept")
    converge(host_name)
    assert str(LISTENING) not in host.check_output("nft list table inet holdfast")


def test_closed_where_the_ruleset_can_not_be_loaded(
    host: Host, host_name: str, attacker: Attacker, targets: list[str], containers: dict[str, str]
) -> None:
    """A ruleset that can't be loaded leaves the host closed but for its services, ssh among them, and a run mends it."""
    host.check_output("""sed --in-place '/comment "everything else"/i iif "gone0" accept' /etc/holdfast/firewall.nft""")
    host.check_output("nft delete table inet holdfast")
    try:
        assert host.run("timeout 90 systemctl restart holdfast-firewall.service").rc != 0
        is_closed(attacker, targets, containers)
        assert gets(host, "one-client", attacker.address, 22), "egress is gone"
    finally:
        converge(host_name)
    assert host.service("holdfast-firewall.service").is_running
    assert "gone0" not in host.check_output("cat /etc/holdfast/firewall.nft")


def test_closed_after_a_reboot(host: Host, host_name: str, attacker: Attacker, targets: list[str], containers: dict[str, str]) -> None:
    """It is so after the host has booted again."""
    test_host.reboot(host_name)
    # What the scenario prepared, and a container host forgets: its IPv6 address, from before Docker starts.
    host.check_output(
        "sysctl --quiet --write net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.eth0.disable_ipv6=0 && "
        "ip -6 address replace fd00:4657::1/64 dev eth0 nodad && timeout 60 systemctl restart docker.service"
    )
    host.check_output(f"{LISTEN} && docker start one-server two-server one-client two-client")
    # The engine may have given its address to another scenario's host meanwhile.
    address = test_host.address(host_name)
    attacker.goes_through(address)
    is_closed(attacker, [address, targets[1]], containers)
    assert gets(host, "one-client", "one-server")
