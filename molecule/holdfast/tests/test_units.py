"""The promise that units are confined, seen to fail."""

from __future__ import annotations

from collections.abc import Iterator

import promises
import pytest
from testinfra.host import Host

FOLDER = "/etc/systemd/system/molecule-loose.service.d"
REASON = "# It runs what nobody knows."


@pytest.fixture
def unit(host: Host) -> Iterator[str]:
    """Have a service of somebody else's that nothing confines."""
    path = FOLDER.removesuffix(".d")
    host.check_output(f"printf '[Service]\\nExecStart=/bin/true\\n' > {path} && mkdir {FOLDER}")
    yield path
    host.check_output(f"rm -rf {path} {FOLDER} && systemctl daemon-reload")


def _promise(host: Host, *drop_in: str) -> str:
    """Write the service's drop-in, and return what the promise says then; nothing when it holds."""
    for line in drop_in:
        host.check_output(f"echo %s >> {FOLDER}/holdfast.conf", line)
    host.check_output("systemctl daemon-reload")
    return promises.broken(host, "holdfast", "test_units_are_confined")


def test_loose_unit(host: Host, unit: str) -> None:
    """A service that Holdfast changes and leaves loose breaks the promise; somebody else's does not."""
    assert _promise(host, "[Service]", "Restart=no") == ""
    assert f"{unit.rsplit('/', 1)[1]}: 9" in _promise(host, "# Ansible managed")


def test_exception(host: Host, unit: str) -> None:
    """An exception counts with a reason above it, and up to its figure."""
    assert unit
    assert "at most 3.0" in _promise(host, "# Ansible managed", "[Service]", "X-MaxExposure=9.9")
    assert "at most 9.0" in _promise(host, REASON, "X-MaxExposure=9.0")
    host.check_output(f"sed --in-place s/=9.0/=9.9/ {FOLDER}/holdfast.conf")
    assert _promise(host) == ""


def test_no_unit(host: Host) -> None:
    """Where none of Holdfast's services is found, the promise is broken."""
    mark, other = "# Ansible managed", "# Managed"
    marked = " ".join(host.check_output("grep --recursive --files-with-matches %s /etc/systemd/system", f"^{mark}").split())
    host.check_output(f"sed --in-place 's/^{mark}/{other}/' {marked}")
    try:
        assert "no service in /etc/systemd/system" in _promise(host)
    finally:
        host.check_output(f"sed --in-place 's/^{other}/{mark}/' {marked} && systemctl daemon-reload")
    assert _promise(host) == ""
