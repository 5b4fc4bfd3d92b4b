"""What only a machine of its own kernel shows: who is killed when memory ends, who answers outside, a reboot, and a power cut."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import statistics
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from database import ask
from testinfra.host import Host

from tools import bench, bench_confinement, demo, lynis, packages, secrets, vm
from tools.application import Application, wait_until
from tools.writer import Writer

Note = Callable[[str, object], None]

POSTMASTER = "head --lines=1 /var/lib/postgresql/17/main/postmaster.pid"
OOM_KILLS = "sed --quiet 's/^oom_kill //p' /sys/fs/cgroup$(cut --delimiter=: --fields=3 /proc/%s/cgroup)/memory.events"
EATER = "held = []\nwhile True: held.append(b'x' * (16 << 20))"
PUBLISHED, LISTENING = 9999, 7777
SERVER = "python3 -m http.server --directory /srv"
PORTS = sorted({*vm.OPEN_PORTS, 21, 25, 53, 111, 2019, 2375, 3100, 5432, 6379, 6432, LISTENING, 8080, 8333, 9000, 9090, 9100, PUBLISHED})
# A packet that is dropped is answered by nothing, ever; an emulated machine takes its time for everything else.
SILENT_SECONDS = 15
BACK_SECONDS = 400
ROWS = 500
ROUNDS, ROUND_SECONDS, CONNECTIONS = 5, 12, 4
AUDIT_RATIO = 1.25


@pytest.fixture(scope="module")
def machine() -> vm.Machine:
    """Find the machine that runs."""
    found = vm.running()
    assert found, "no virtual machine runs: `python3 -m tools vm-up` starts one"
    return found


@pytest.fixture(scope="module")
def application(host: Host, machine: vm.Machine) -> Application:
    """Reach the application from outside of the machine, logged in, trusting only the machine's own authority."""
    context = ssl.create_default_context(cadata=host.check_output(f"cat {demo.CADDY_ROOT}"))
    client = Application("127.0.0.1", context, secrets.read("demo")["app_admin_password"], port=machine.forward(443))
    client.login()
    return client


def _containers(host: Host, service: str) -> list[str]:
    return host.check_output(f"docker ps --quiet --filter label=com.docker.compose.service={service}").split()


def _healthy(host: Host) -> bool:
    states = host.check_output("docker ps --filter label=com.docker.compose.service --format '{{.Status}}'").splitlines()
    return bool(states) and all("(healthy)" in state for state in states)


def test_container_over_its_memory_is_killed(host: Host) -> None:
    """A container of the application that takes more memory than it may is stopped by the kernel; the database goes on unharmed."""
    postmaster = host.check_output(POSTMASTER)
    worker = _containers(host, "worker-1")[0]
    limit, number = host.check_output(f"docker inspect --format '{{{{.HostConfig.Memory}}}} {{{{.State.Pid}}}}' {worker}").split()
    assert int(limit) == 256 << 20
    before = int(host.check_output(OOM_KILLS, number))
    done = host.run("timeout 120 docker exec %s python3 -c %s", worker, EATER)
    assert done.rc == 137, done.stdout + done.stderr
    # The process that ate was the one that went, in this container's own group.
    assert int(host.check_output(OOM_KILLS, number)) > before
    assert host.check_output(POSTMASTER) == postmaster
    assert ask(host, "SELECT 1") == "1"


def test_host_out_of_memory_keeps_the_database(host: Host, application: Application) -> None:
    """A process without a limit eats the machine's whole memory: it is killed, the database and the application's containers are not."""
    postmaster = host.check_output(POSTMASTER)
    running = host.check_output("docker ps --quiet --no-trunc | sort")
    done = host.run("timeout 280 systemd-run --wait --collect --quiet --unit=molecule-eater python3 -c %s", EATER)
    assert done.rc != 0
    assert "molecule-eater.service" in host.check_output("journalctl --boot --dmesg --grep='oom-kill:' --output=cat | tail --lines=1")
    assert host.check_output(POSTMASTER) == postmaster
    assert host.check_output("docker ps --quiet --no-trunc | sort") == running
    assert ask(host, "SELECT 1") == "1"
    wait_until(application.answers, "an answer after the machine had no memory")


def _answers(address: tuple[str, int]) -> bool:
    """Say whether anything answers: words, or a refusal. QEMU accepts each that it forwards itself, before it asks the machine."""
    try:
        with socket.create_connection(address, timeout=SILENT_SECONDS) as channel:
            channel.sendall(b"GET / HTTP/1.0\r\n\r\n")
            channel.recv(1)
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


def _scan(machine: vm.Machine, card: str) -> dict[str, set[int]]:
    """Return the ports of the machine that answer somebody outside, by family of addresses."""
    doors = {"IPv4": [("127.0.0.1", machine.forward(port)) for port in PORTS], "IPv6": [(card, port) for port in PORTS]}
    with ThreadPoolExecutor(len(PORTS)) as pool:
        return {
            family: {port for port, answer in zip(PORTS, pool.map(_answers, each), strict=True) if answer} for family, each in doors.items()
        }


@pytest.fixture(name="open_doors")
def _open_doors(host: Host) -> Iterator[None]:
    """Publish a container's port on every address, and have a process listen on every address."""
    image = host.check_output(f"docker inspect --format '{{{{.Image}}}}' {_containers(host, 'worker-1')[0]}")
    serve = f"docker run --detach --name molecule-open --publish 0.0.0.0:{PUBLISHED}:8000 --entrypoint /usr/bin/env {image} {SERVER} 8000"
    host.check_output(serve)
    host.check_output(f"systemd-run --collect --unit=molecule-open {SERVER} {LISTENING}")
    # On the machine itself both are open.
    address = json.loads(host.check_output("ip -json route get 192.0.2.1"))[0]["prefsrc"]
    knock = f"timeout 10 bash -c 'echo > /dev/tcp/{address}/{PUBLISHED} && echo > /dev/tcp/{address}/{LISTENING}'"
    wait_until(lambda: host.run(knock).rc == 0, "the opening of two ports")
    yield
    host.run("docker rm --force molecule-open; systemctl stop molecule-open.service")


def test_closed_outside(host: Host, machine: vm.Machine, open_doors: None, record_property: Note) -> None:
    """Outside of the machine only 22, 80 and 443 answer, over IPv4 and IPv6, whatever listens and whatever a container publishes."""
    closed = {family: set(vm.OPEN_PORTS) for family in ("IPv4", "IPv6")}
    with machine.cable() as card:
        found = _scan(machine, card)
        for family, ports in found.items():
            record_property(f"ports that answer over {family}, of {len(PORTS)}", " ".join(map(str, sorted(ports))))
        assert found == closed
        # Without our table the same scan gets an answer of every port, so it sees what it should.
        host.check_output("nft delete table inet holdfast")
        try:
            assert _scan(machine, card) == {family: set(PORTS) for family in closed}
        finally:
            host.check_output("timeout 60 systemctl reload-or-restart holdfast-firewall.service")
        assert _scan(machine, card) == closed


def test_lynis(host: Host, machine: vm.Machine, record_property: Note) -> None:
    """Lynis finds the machine hardened, and has no warning and no suggestion that we have no answer to."""
    found = lynis.scan(machine)
    lynis.write(found)
    # It keeps an emulated machine so busy that health checks come too late, and their containers are started anew.
    wait_until(lambda: _healthy(host), "healthy containers", BACK_SECONDS)
    record_property("hardening index of Lynis", found.index)
    assert found.index >= lynis.LEAST
    assert not lynis.unanswered(found)


def test_cost_of_audit(host: Host, machine: vm.Machine, application: Application, record_property: Note) -> None:
    """The audit's rules cost the application's slowest hundredth of answers less than a quarter."""
    packages.install("wrk", programs=True)
    url = f"https://localhost:{machine.forward(443)}/api/documents"
    rules = host.check_output("auditctl -l")
    slowest: dict[str, list[float]] = {"rules": [], "no rules": []}
    try:
        bench.load(url, application.cookie, CONNECTIONS, ROUND_SECONDS)
        for number in range(2 * ROUNDS):
            # Whatever drifts meanwhile drifts for both.
            kind = ("rules", "no rules")[(number + number // 2) % 2]
            host.check_output("augenrules --load" if kind == "rules" else "auditctl -D")
            figures = bench.load(url, application.cookie, CONNECTIONS, ROUND_SECONDS)
            assert figures["errors"] == "0"
            slowest[kind].append(bench_confinement.milliseconds(figures["p99"]))
    finally:
        host.check_output("augenrules --load")
    assert host.check_output("auditctl -l") == rules
    middle = {kind: statistics.median(values) for kind, values in slowest.items()}
    for kind, values in slowest.items():
        record_property(f"p99 with {kind}, ms", f"{middle[kind]:.0f} (rounds: {' '.join(f'{value:.0f}' for value in values)})")
    ratio = middle["rules"] / middle["no rules"]
    record_property("p99 with audit rules ÷ without", f"{ratio:.2f}")
    assert ratio < AUDIT_RATIO


def _logs_in(application: Application) -> bool:
    try:
        application.login()
    except (AssertionError, OSError, http.client.HTTPException):
        return False
    return application.answers()


def _wait_back(application: Application, begun: float) -> float:
    """Wait until a person may use the application again, and return the seconds since then."""
    wait_until(lambda: _logs_in(application), "a login over TLS", BACK_SECONDS)
    return time.monotonic() - begun


def _all_runs(host: Host) -> None:
    """Wait until everything that starts at boot has, and see that no unit failed."""
    state = host.run("timeout 240 systemctl is-system-running --wait").stdout.strip()
    assert state == "running", host.check_output("systemctl list-units --failed --plain --no-legend")


def test_reboot(host: Host, machine: vm.Machine, application: Application, record_property: Note) -> None:
    """After a reboot by command everything answers again by itself."""
    before = machine.boot_id()
    begun = time.monotonic()
    machine.ssh("systemctl reboot", check=False)
    machine.wait(not_boot=before)
    record_property("reboot, until the application answers, s", f"{_wait_back(application, begun):.0f}")
    _all_runs(host)
    assert ask(host, "SELECT 1") == "1"


def test_power_cut(host: Host, machine: vm.Machine, application: Application, record_property: Note) -> None:
    """The power goes while rows are written: every row that was acknowledged is there after the next start, and every accepted document."""
    words = " ".join(f"zq{uuid.uuid4().hex[:10]}" for _ in range(12))
    with Writer([*machine.ssh_words(), "sudo", "--non-interactive"]) as writer:
        writer.wait(ROWS)
        document = application.upload(words)
        # Rows were acknowledged up to the very cut.
        writer.wait(1)
        machine.cut_power()
        writer.stop()
    begun = time.monotonic()
    machine.power_on()
    machine.wait()
    record_property("power on after a cut, until the application answers, s", f"{_wait_back(application, begun):.0f}")
    record_property("rows acknowledged before the cut", len(writer.acknowledged()))
    missing = writer.missing(ask(host, "SELECT id FROM written"))
    record_property("acknowledged rows that are missing", len(missing))
    assert not missing
    application.wait_done(document, patience_seconds=BACK_SECONDS)
    assert application.search(words)[0]["document_id"] == document
    ask(host, "DROP TABLE written")
    _all_runs(host)
