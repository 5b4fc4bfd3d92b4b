"""Which promises do not hold on a host: a control that its inventory waives, and what only a kernel of one's own can do.

Each such promise is reported as skipped, with the reason; none is left out silently.
"""

from __future__ import annotations

import json

import pytest
from testinfra.host import Host

RECORD = "/etc/holdfast/hardening.json"


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marks."""
    config.addinivalue_line("markers", "control(id): the hardening control that a promise tests")
    config.addinivalue_line("markers", "own_kernel: a container has its machine's kernel, so this is tried on a machine only")


@pytest.fixture(scope="module")
def waivers(host: Host) -> dict[str, str]:
    """Read which controls the host does without, and why."""
    found: dict[str, str] = json.loads(host.file(RECORD).content_string)["waivers"] if host.file(RECORD).exists else {}
    return found


@pytest.fixture(autouse=True)
def _applies(request: pytest.FixtureRequest, host: Host) -> None:
    if control := request.node.get_closest_marker("control"):
        waived: dict[str, str] = request.getfixturevalue("waivers")
        if control.args[0] in waived:
            pytest.skip(f"{control.args[0]} is waived: {waived[control.args[0]]}")
    if request.node.get_closest_marker("own_kernel") and host.run("systemd-detect-virt --container").rc == 0:
        pytest.skip("a container has its machine's kernel")
