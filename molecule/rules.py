"""What the scenarios of roles with alert rules share: promtool judges the rules on the scenario's host."""

from __future__ import annotations

from testinfra.host import Host

from tools.shell import ROOT, run

FOLDER = "/var/tmp/rules"  # of the test's host


def judge(host: Host, host_name: str, role: str) -> None:
    """Hold a role's rules against the series in its scenario's tests/rules*.test.yml."""
    rules = ROOT / "roles" / role / "files" / f"{role}.rules.yml"
    series = sorted((ROOT / "molecule" / role / "tests").glob("rules*.test.yml"))
    host.check_output(f"rm -rf {FOLDER}; mkdir {FOLDER}")
    for path in (rules, *series):
        run(["docker", "cp", path, f"{host_name}:{FOLDER}/{path.name}"])
    host.check_output("DEBIAN_FRONTEND=noninteractive timeout 240 apt-get install --yes --quiet --no-install-recommends promtool")
    done = host.run(f"cd {FOLDER} && promtool check rules {rules.name} && promtool test rules {' '.join(path.name for path in series)}")
    assert done.rc == 0, done.stdout + done.stderr
