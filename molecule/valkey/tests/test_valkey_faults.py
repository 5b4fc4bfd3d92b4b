"""The role valkey under faults: killed, full, asked for what is not allowed."""

from __future__ import annotations

import time

import pytest
from testinfra.host import Host

ASK = "timeout 20 valkey-cli -s /run/valkey/valkey.sock --no-auth-warning"
APP = f"{ASK} --user app --pass known-to-the-tests-of-valkey-app"
MONITORING = f"{ASK} --user monitoring --pass known-to-the-tests-of-monitoring"
PATIENCE_SECONDS = 20


def _wait(host: Host) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while host.run(f"{APP} ping").stdout.strip() != "PONG":
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.fixture(autouse=True)
def _empty(host: Host) -> None:
    """Empty the server the way the role describes it, for nobody may flush it."""
    host.check_output("systemctl stop valkey-server.service")
    host.check_output("rm --recursive --force /var/lib/valkey/appendonlydir")
    host.check_output("systemctl start valkey-server.service")
    _wait(host)


def test_app_works(host: Host) -> None:
    """The application reads, writes, queues with streams and runs scripts."""
    assert host.check_output(f"{APP} set key value").strip() == "OK"
    assert host.check_output(f"{APP} get key").strip() == "value"
    assert host.check_output(f"{APP} xadd queue '*' job 1").strip()
    assert host.check_output(f"{APP} xgroup create queue workers 0").strip() == "OK"
    assert "job" in host.check_output(f"{APP} xreadgroup group workers one count 1 streams queue '>'")
    assert host.check_output(f"{APP} eval 'return 7' 0").strip() == "7"


@pytest.mark.parametrize(
    "words",
    [
        "flushall", "flushdb", "keys '*'", "config get maxmemory", "config set maxmemory 0", "acl list", "shutdown nosave",
        "monitor", "replicaof 127.0.0.1 1", "client list", "module list", "save",
    ],
)  # fmt: skip
def test_app_may_not_administer(host: Host, words: str) -> None:
    """The application can't flush, list all keys, or administer."""
    assert "NOPERM" in host.run(f"{APP} {words}").stdout


def test_monitoring_sees_figures_only(host: Host) -> None:
    """Monitoring reads figures and sizes, and neither data nor writes."""
    host.check_output(f"{APP} set key value")
    host.check_output(f"{APP} xadd queue '*' job 1")
    assert "used_memory:" in host.check_output(f"{MONITORING} info memory")
    assert host.check_output(f"{MONITORING} xlen queue").strip() == "1"
    refused = ("get key", "set key other", "xrange queue - +", "xinfo stream queue", "config set maxmemory 0", "client kill type normal")
    for words in refused:
        assert "NOPERM" in host.run(f"{MONITORING} {words}").stdout, words


def test_policy_in_force(host: Host) -> None:
    """The running server has the memory bound, the policy and the file's sync that the role promises."""
    said = host.check_output(f"{MONITORING} config get maxmemory maxmemory-policy appendonly appendfsync").split()
    settings = dict(zip(said[::2], said[1::2], strict=True))
    assert settings == {"maxmemory": str(16 << 20), "maxmemory-policy": "volatile-lru", "appendonly": "yes", "appendfsync": "everysec"}


def test_kill_loses_nothing(host: Host) -> None:
    """What was acknowledged before a kill -9 is there after it, unless the disk was busy in the two seconds before."""
    lines = "\\n".join(f"SET key:{number} {number}\\nXADD queue * job {number}" for number in range(500))
    host.check_output(f"printf '{lines}\\n' | {APP} > /tmp/acknowledged; test $(wc --lines < /tmp/acknowledged) -ge 1000")
    deadline = time.monotonic() + 2 + PATIENCE_SECONDS
    while "aof_buffer_length:0" not in host.check_output(f"{MONITORING} info persistence").split():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    host.check_output("systemctl kill --signal=KILL valkey-server.service")
    time.sleep(0.5)
    _wait(host)
    assert host.check_output(f"{APP} dbsize").strip() == "501"
    assert host.check_output(f"{APP} xlen queue").strip() == "500"
    assert host.check_output(f"{APP} get key:499").strip() == "499"


def test_full_memory_spares_queue(host: Host) -> None:
    """When memory is full, the cache goes, the queue stays, and what can't be kept is refused loudly."""
    queued = "\\n".join(f"XADD queue * job {number}" for number in range(1000))
    host.check_output(f"printf '{queued}\\n' | {APP} > /dev/null")
    # 24 MB of cache into 16 MB.
    host.check_output(f"""head -c 1000 /dev/zero | tr '\\0' x > /tmp/value; v=$(cat /tmp/value)
        for n in $(seq 24000); do echo "SET cache:$n $v EX 3600"; done | {APP} > /tmp/said""")
    assert host.run("grep --quiet OOM /tmp/said").rc == 1
    evicted = next(line for line in host.check_output(f"{MONITORING} info stats").splitlines() if line.startswith("evicted_keys:"))
    assert int(evicted.split(":")[1]) > 1000
    assert host.check_output(f"{APP} xlen queue").strip() == "1000"
    # Now with data that has no time to live: it may push all the cache out, but then it is refused.
    host.check_output(f"""v=$(cat /tmp/value)
        for n in $(seq 24000); do echo "SET kept:$n $v"; done | {APP} > /tmp/said""")
    accepted = int(host.check_output("grep --count '^OK' /tmp/said"))
    assert host.run("grep --quiet '^OOM' /tmp/said").rc == 0
    # The connection that filled it is gone, and the bytes of its buffers are free again: a small job might fit, this one can't.
    assert "OOM" in host.run(f"head --bytes 4M /dev/zero | {APP} -x xadd queue '*' job").stdout
    assert host.check_output(f"{APP} xlen queue").strip() == "1000"
    assert host.check_output(f"{APP} dbsize").strip() == str(accepted + 1)


def test_folder_inode_survives(host: Host) -> None:
    """A restart and a kill leave the socket's folder the very same, so a container that mounted it finds the new socket."""
    before = host.check_output("stat --format %i /run/valkey")
    host.check_output("timeout 60 systemctl restart valkey-server.service")
    _wait(host)
    assert host.check_output("stat --format %i /run/valkey") == before
    host.check_output("systemctl kill --signal=KILL valkey-server.service")
    time.sleep(0.5)
    _wait(host)
    assert host.check_output("stat --format %i /run/valkey") == before
