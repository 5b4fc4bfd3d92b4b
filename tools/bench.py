"""`make bench`: measure a first run, a run that changes nothing, memory and requests, and record them in docs/benchmarks.md."""

from __future__ import annotations

import datetime as dt
import os
import platform
import re
import ssl
import time
from pathlib import Path
from typing import NamedTuple

from tools import bench_backup, bench_confinement, bench_loss, bench_rebuild, bucket, demo, engine, host, packages, registry, secrets
from tools.application import Application
from tools.playbook import CONTAINER, inventory, play
from tools.shell import CACHE, ROOT, Failure, run, step

NAME = "holdfast-bench"
REPORT = ROOT / "docs" / "benchmarks.md"
CONNECTIONS, SECONDS = 50, 10
UPLOADS = 20
# Goals of the first issue, for the table's last column.
GOALS = {"container": "45 s", "local": "12 s", "memory": "500 MB"}
# Proportional set size: shared pages (Postgres' buffers, libraries) are counted once, split between those who share them.
MEMORY = r"""
import pathlib, re, collections
sums = collections.Counter()
for process in pathlib.Path('/proc').glob('[0-9]*'):
    try:
        group = (process / 'cgroup').read_text().strip().rsplit('::', 1)[-1]
        pss = re.search(r'^Pss:\s+(\d+)', (process / 'smaps_rollup').read_text(), re.M)
        command = (process / 'cmdline').read_bytes().split(b'\0')
    except OSError:
        continue
    if not pss:
        continue
    unit = re.findall(r'([\w@.\\-]+\.(?:service|scope))', group)
    name = unit[-1] if unit else ('init' if process.name == '1' else 'other')
    if name.startswith('docker-') or '/docker/' in group:
        words = [word.decode() for word in command if word]
        name = 'container: ' + (words[-1] if words else '?')
    sums[name] += int(pss.group(1))
for name, kib in sums.most_common():
    print(f'{name}\t{kib / 1024:.1f}')
"""
PREPARE_LOCAL = """
set -e
export DEBIAN_FRONTEND=noninteractive
apt-get install -y -qq --no-install-recommends ansible-core python3-psycopg2 >/dev/null
"""


class Run(NamedTuple):
    """A run of the site's playbook: its time, how many tasks there were and how many of them changed something, time by role, output."""

    seconds: float
    tasks: int
    changed: int
    roles: dict[str, float]
    said: str


def _play(source: Path) -> Run:
    """Run the site's playbook."""
    begun = time.monotonic()
    said = play(source, "site.yml").stdout
    return _parse(time.monotonic() - begun, said)


def _parse(seconds: float, said: str) -> Run:
    recap = re.search(r"ok=(\d+)\s+changed=(\d+)", said)
    if not recap:
        raise Failure(f"The playbook gave no recap:\n{said[-2000:]}")
    roles = {name: float(each) for name, each in re.findall(r"^(\w+) -+ ([\d.]+)s$", said, re.MULTILINE) if name != "total"}
    return Run(seconds, int(recap[1]), int(recap[2]), roles, said)


def _local() -> Run:
    """Run the playbook on the host itself, with Debian's ansible-core of the same version and this checkout's collections."""
    run(["docker", "exec", "--interactive", NAME, "bash", "-s"], stdin=PREPARE_LOCAL, timeout_seconds=600)
    run(["docker", "exec", NAME, "mkdir", "-p", "/root/holdfast/inventories/bench", "/root/.ansible/collections"])
    listed = run(["git", "ls-files"]).stdout.splitlines()
    archive = CACHE / "bench" / "tree.tar"
    run(["tar", "-cf", archive, *(name for name in listed if (ROOT / name).exists()), ".cache/artifacts", ".cache/holdfast.pyz"])
    collections = next((ROOT / ".venv" / "lib").glob("python3*/site-packages/ansible_collections"))
    used = ["ansible/posix", "community/crypto", "community/general", "community/library_inventory_filtering_v1"]
    content = CACHE / "bench" / "collections.tar"
    run(["tar", "-C", collections.parent, "-cf", content, *(f"ansible_collections/{name}" for name in used)])
    for path, target in ((archive, "/root/holdfast"), (content, "/root/.ansible/collections")):
        run(["docker", "cp", path, f"{NAME}:/root/{path.name}"], timeout_seconds=120)
        run(["docker", "exec", NAME, "tar", "-C", target, "-xf", f"/root/{path.name}"], timeout_seconds=120)
    source = inventory(CACHE / "bench" / "local", {NAME: {"ansible_connection": "local"}})
    run(["docker", "cp", source / "hosts.json", f"{NAME}:/root/holdfast/inventories/bench/hosts.json"])
    run(["docker", "cp", f"{ROOT / 'inventories' / 'demo' / 'group_vars'}", f"{NAME}:/root/holdfast/inventories/bench/"])
    run(["docker", "exec", "--interactive", NAME, "sh", "-c", "umask 077; cat > /root/holdfast/.vault-password"],
              stdin=secrets.password_file().read_text())  # fmt: skip
    words = ["docker", "exec", "--workdir", "/root/holdfast", NAME, "ansible-playbook", "-i", "inventories/bench", "site.yml"]
    said, begun = "", 0.0
    for _ in range(2):  # the second has Python's compiled files
        begun = time.monotonic()
        said = run(words, timeout_seconds=900).stdout
    return _parse(time.monotonic() - begun, said)


def load(url: str, cookie: str, connections: int = CONNECTIONS, seconds: int = SECONDS) -> dict[str, str]:
    """Ask one address for some seconds over kept connections; return requests per second, p50, p99 and errors."""
    said = run(
        ["wrk", "--threads", "2", "--connections", str(connections), "--duration", f"{seconds}s", "--latency", "--timeout", "30s",
         "--header", f"Cookie: {cookie}", url],
        timeout_seconds=seconds + 60,
    ).stdout  # fmt: skip
    # wrk puts a blank behind a unit of one letter.
    found = dict(re.findall(r"^\s+(50%|99%)\s+(\S+) *$", said, re.MULTILINE))
    rate = re.search(r"Requests/sec:\s+([\d.]+)", said)
    wrong = re.search(r"Non-2xx or 3xx responses: (\d+)", said)
    return {
        "rate": rate[1] if rate else "?",
        "p50": found.get("50%", "?"),
        "p99": found.get("99%", "?"),
        "errors": wrong[1] if wrong else "0",
    }


def main() -> None:
    """Measure everything on a host of its own, and write the report."""
    engine.ensure()
    registry.ensure()
    packages.install("wrk", programs=True)
    host.down(NAME)
    bucket.down(NAME)
    try:
        bucket.up(NAME)
        with step("Boot a bare host"):
            host.up(NAME, publish=("127.0.0.1::443",))
        source = inventory(CACHE / "bench" / "inventory", {NAME: CONTAINER})
        with step("First run"):
            first = _play(source)
        with step("Run that changes nothing"):
            again = _play(source)
        time.sleep(10)
        memory = run(["docker", "exec", "--interactive", NAME, "python3", "-"], stdin=MEMORY).stdout
        with step("Requests"):
            requests = _requests()
        with step("Requests without the firewall"):
            client, base = _log_in()
            confinement = bench_confinement.added(again.roles, again.said)
            confinement += bench_confinement.firewall(NAME, lambda: load(f"{base}/api/session", client.cookie))
        with step("Backups"):
            backups = bench_backup.measure(NAME, _p99)
        with step("Destroyed hosts"):
            backups += bench_loss.measure(NAME, CACHE / "bench" / "loss")
        with step("The same run on the host itself"):
            local = _local()
    finally:
        host.down(NAME)
        bucket.down(NAME)
    with step("Rebuild a lost host"):
        backups += bench_rebuild.measure(CACHE / "bench")
    text = _report(first, again, local, memory, requests, [*confinement, "", *backups])
    REPORT.write_text(text)
    print(text)


def _log_in() -> tuple[Application, str]:
    """Log in to the application; return it, and the site's address for wrk."""
    authority = run(["docker", "exec", NAME, "cat", demo.CADDY_ROOT]).stdout
    client = Application(host.address(NAME), ssl.create_default_context(cadata=authority), secrets.read("demo")["app_admin_password"])
    client.login()
    port = run(["docker", "port", NAME, "443"]).stdout.splitlines()[0].rsplit(":", 1)[1]
    return client, f"https://localhost:{port}"


def _p99() -> float:
    """Return the slowest hundredth of the requests for the list of documents, in milliseconds."""
    client, base = _log_in()
    return bench_confinement.milliseconds(load(f"{base}/api/documents", client.cookie)["p99"])


def _requests() -> dict[str, dict[str, str]]:
    client, base = _log_in()
    texts = [f"Finding {number}: voucher {number * 7919} was paid twice in week {number % 52}. " * 30 for number in range(UPLOADS)]
    documents = [client.upload(text) for text in texts]
    client.wait_done(*documents)
    paths = {
        "static page": "/",
        "session": "/api/session",
        "list of documents": "/api/documents",
        "vector search": "/api/search?q=voucher+paid+twice&limit=5",
    }
    return {name: load(base + path, client.cookie) for name, path in paths.items()}


def _report(
    first: Run,
    again: Run,
    local: Run,
    memory: str,
    requests: dict[str, dict[str, str]],
    more: list[str],
) -> str:
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench`; every figure was measured in one run on one machine.",
        "",
        f"- date: {dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M} UTC",
        f"- machine: {os.cpu_count()} cores, {_memory_mb()} MB of memory, Linux {platform.release()}",
        f"- load average at the end: {os.getloadavg()[0]:.1f}",
        f"- commit: {run(['git', 'rev-parse', '--short', 'HEAD']).stdout.strip()}",
        "",
        "## Runs of `site.yml`",
        "",
        "| run | seconds | tasks | changed | goal |",
        "|---|---|---|---|---|",
        f"| first, bare host, container connection | {first.seconds:.1f} | {first.tasks} | {first.changed} | |",
        f"| nothing to change, container connection | {again.seconds:.1f} | {again.tasks} | {again.changed} | {GOALS['container']} |",
        f"| nothing to change, on the host itself | {local.seconds:.1f} | {local.tasks} | {local.changed} | {GOALS['local']} |",
        "",
        "Seconds per role:",
        "",
        "| role | first | nothing to change | on the host itself |",
        "|---|---|---|---|",
    ]
    for role, seconds in first.roles.items():
        lines.append(f"| {role} | {seconds:.1f} | {again.roles.get(role, 0):.1f} | {local.roles.get(role, 0):.1f} |")
    rows = [line.split("\t") for line in memory.splitlines()]
    containers = sum(float(size) for name, size in rows if name.startswith(("container", "app@")))
    total = sum(float(size) for _, size in rows)
    lines += [
        "",
        "## Memory when idle",
        "",
        "Proportional set size by unit: pages that processes share are split between them.",
        "",
        "| unit | MB |",
        "|---|---|",
        *(f"| {name} | {size} |" for name, size in rows if float(size) >= 1),
        f"| **platform without the application** (goal: {GOALS['memory']}) | **{total - containers:.0f}** |",
        f"| application | {containers:.0f} |",
        "",
        "## Requests through Caddy, over TLS",
        "",
        f"`wrk`, {CONNECTIONS} kept connections, {SECONDS} s each, on the same two cores as the host; {UPLOADS} documents stored.",
        "",
        "| what | requests per second | p50 | p99 | errors |",
        "|---|---|---|---|---|",
        *(f"| {name} | {row['rate']} | {row['p50']} | {row['p99']} | {row['errors']} |" for name, row in requests.items()),
        "",
        *more,
    ]
    return "\n".join(lines)


def _memory_mb() -> int:
    return int(re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())[1]) // 1024  # type: ignore[index]  # Linux always has it
