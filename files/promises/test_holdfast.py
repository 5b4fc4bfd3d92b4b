"""What the role holdfast promises of every host."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import PurePath

from testinfra.host import Host

UNITS = "/etc/systemd/system"
MAX_EXPOSURE = 3.0
# What serves: where one of them is, a role has confined it.
SERVING = "app@* caddy.service object-store.service object-store-proxy.service pgbouncer.service postgresql@* valkey-server.service"
# A unit that can't be confined so far says in its own file how far, and the comment above says why.
EXCEPTION = re.compile(r"^# \S.*\nX-MaxExposure=([\d.]+)$", re.MULTILINE)


def _services(host: Host) -> dict[str, str]:
    """Return the text that Holdfast wrote for each service: a unit of its own, or drop-ins for somebody else's."""
    marked = host.run(f"grep --recursive --files-with-matches '^# Ansible managed' {UNITS}").stdout.split()
    texts: dict[str, str] = defaultdict(str)
    for path in map(PurePath, marked):
        name = path.parent.name.removesuffix(".d") if path.suffix == ".conf" else path.name
        if not name.endswith(".service"):
            continue
        instances = [name]
        if "@." in name:
            listed = host.check_output("systemctl list-units --all --plain --no-legend %s", name.replace("@.", "@*."))
            instances = [line.split()[0] for line in listed.splitlines()] or [name.replace("@.", "@instance.")]
        for instance in instances:
            texts[instance] += host.file(str(path)).content_string
    return texts


def test_program(host: Host) -> None:
    """The host's programs run with nothing but Debian's own Python, and only root can replace them."""
    program = host.file("/usr/local/bin/holdfast")
    assert (program.user, program.group, program.mode) == ("root", "root", 0o755)
    assert "usage: holdfast" in host.check_output("holdfast --help")


def test_units_are_confined(host: Host) -> None:
    """Every service that Holdfast wrote or changed is confined (`systemd-analyze security` at most 3.0), or says how far and why."""
    services = _services(host)
    assert services, "no service in /etc/systemd/system says in its first lines that Ansible manages it"
    listed = host.check_output(f"systemctl list-units --all --plain --no-legend {SERVING}").splitlines()
    # What another unit only names is listed as not found.
    open_ones = {line.split()[0] for line in listed if line.split()[1] == "loaded"} - services.keys()
    assert not open_ones, f"no file of Holdfast's confines {', '.join(sorted(open_ones))}"
    for unit, text in services.items():
        said = host.check_output("timeout 30 systemd-analyze security --no-pager %s", unit).splitlines()[-1]
        exception = EXCEPTION.search(text)
        limit = float(exception[1]) if exception else MAX_EXPOSURE
        assert float(said.split(": ")[1].split()[0]) <= limit, f"{said} (at most {limit})"
