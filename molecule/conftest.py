"""What the scenarios' own tests share."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

import pytest
from testinfra.host import Host

from tools import demo, secrets
from tools import host as test_host
from tools.application import Application


@pytest.fixture(scope="module")
def host_name(host: Host) -> str:
    """Name the container that carries the host."""
    return str(host.backend.name)


@pytest.fixture(scope="module")
def application(host: Host, host_name: str) -> Iterator[Application]:
    """Reach the application on the host's address, logged in, trusting only the host's own authority."""
    context = ssl.create_default_context(cadata=host.check_output(f"cat {demo.CADDY_ROOT}"))
    client = Application(test_host.address(host_name), context, secrets.read("demo")["app_admin_password"])
    client.login()
    yield client
    client.call("POST", "/api/logout")
