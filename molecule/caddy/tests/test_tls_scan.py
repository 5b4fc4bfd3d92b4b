"""What an independent scanner on a second host, nmap, says of the TLS that Caddy speaks."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from testinfra.host import Host

from tools import host as test_host
from tools.shell import run

# What an agreement on a key that nobody can repeat later begins with; all suites of TLS 1.3 are so.
FORWARD = ("TLS_ECDHE_", "TLS_DHE_", "TLS_AKE_")
BAD_PORT = 4443


@dataclass(frozen=True)
class Suite:
    """One suite that a server takes, with the grade that nmap gives it."""

    version: str
    name: str
    grade: str


def faults(suites: list[Suite]) -> list[str]:
    """Return one sentence for each suite that should not be there."""
    found = [f"{suite.version} is spoken." for suite in suites if suite.version not in ("TLSv1.2", "TLSv1.3")]
    found += [f"{suite.name} of {suite.version} has the grade {suite.grade}." for suite in suites if suite.grade != "A"]
    found += [f"{suite.name} keeps no secret once the key is known." for suite in suites if not suite.name.startswith(FORWARD)]
    return found


@dataclass(frozen=True)
class Scanner:
    """The second host."""

    name: str

    def scan(self, address: str, port: int = 443) -> list[Suite]:
        """Ask a server, by the name that it has a certificate for, for every suite that it takes."""
        said = run(
            ["docker", "exec", self.name, "nmap", "-Pn", "-n", f"-p{port}", "--script=ssl-enum-ciphers",
             "--script-args=tls.servername=localhost", "-oX", "-", address],
            timeout_seconds=180,
        ).stdout  # fmt: skip
        found = []
        for version in ET.fromstring(said).iterfind(".//script[@id='ssl-enum-ciphers']/table"):  # noqa: S314  # nmap wrote it
            for suite in version.iterfind("table[@key='ciphers']/table"):
                parts = {part.get("key"): part.text or "" for part in suite.iterfind("elem")}
                found.append(Suite(version.get("key", ""), parts["name"], parts["strength"]))
        return found


@pytest.fixture(scope="module")
def scanner(host_name: str) -> Iterator[Scanner]:
    """Bring a second host up, on the same network, with nmap."""
    name = f"{host_name}-scanner"
    test_host.down(name)
    test_host.up(name)
    install = "export DEBIAN_FRONTEND=noninteractive; apt-get update --quiet && apt-get install --yes --quiet --no-install-recommends nmap"
    run(["docker", "exec", name, "sh", "-c", install], timeout_seconds=300)
    yield Scanner(name)
    test_host.down(name)


def test_only_good_suites(scanner: Scanner, host_name: str) -> None:
    """Only TLS 1.2 and 1.3 are spoken, and every suite is forward secret and of the best grade."""
    suites = scanner.scan(test_host.address(host_name))
    assert {suite.version for suite in suites} == {"TLSv1.2", "TLSv1.3"}, suites
    assert faults(suites) == []


def test_scanner_sees_a_bad_server(host: Host, scanner: Scanner, host_name: str) -> None:
    """The same scan of a server with an old suite says what is wrong with it."""
    files = "-keyout /srv/bad.key -out /srv/bad.crt"
    host.check_output(f"openssl req -x509 -newkey rsa:2048 -noenc {files} -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost")
    host.check_output(
        f"systemd-run --collect --unit=molecule-bad-tls openssl s_server -quiet -accept {BAD_PORT} -key /srv/bad.key -cert /srv/bad.crt "
        "-tls1_2 -cipher AES128-SHA:@SECLEVEL=0"
    )
    try:
        said = faults(scanner.scan(test_host.address(host_name), BAD_PORT))
        assert "TLS_RSA_WITH_AES_128_CBC_SHA keeps no secret once the key is known." in said
    finally:
        host.run("systemctl stop molecule-bad-tls.service; rm /srv/bad.key /srv/bad.crt")
