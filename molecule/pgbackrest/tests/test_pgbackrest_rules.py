"""The alerts of the role pgbackrest, judged by promtool: each fires when its fault is there, and none when all is well."""

from __future__ import annotations

from pathlib import Path

from testinfra.host import Host

from tools.shell import ROOT, run

RULES = ROOT / "roles" / "pgbackrest" / "files" / "pgbackrest.rules.yml"
FOLDER = "/var/tmp/rules"  # of the test's host


def test_alerts(host: Host, host_name: str) -> None:
    """Each alert fires when its fault is there, in words that name the host and the way out, and none fires when all is well."""
    host.check_output(f"rm -rf {FOLDER}; mkdir {FOLDER}")
    for path in (RULES, Path(__file__).with_name("rules.test.yml")):
        run(["docker", "cp", path, f"{host_name}:{FOLDER}/{path.name}"])
    host.check_output("DEBIAN_FRONTEND=noninteractive timeout 240 apt-get install --yes --quiet --no-install-recommends promtool")
    done = host.run(f"cd {FOLDER} && promtool check rules pgbackrest.rules.yml && promtool test rules rules.test.yml")
    assert done.rc == 0, done.stdout + done.stderr
