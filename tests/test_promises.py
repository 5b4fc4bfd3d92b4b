"""What promises make of a host that is not the demo's: each holds where nothing is wrong, and is broken where something is."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from files.promises import test_caddy, test_docker, test_hardening

WRITTEN = {"bip": "172.30.0.1/24", "default-address-pools": [{"base": "172.30.128.0/17", "size": 24}]}
DAEMON = {"DefaultAddressPools": [{"Base": "172.30.128.0/17", "Size": 24}]}
PROJECT = "label=com.docker.compose.project"


class Answers:
    """A host that answers commands: the first pattern that one matches decides, and no other command may be asked."""

    def __init__(self, answers: Mapping[str, str]) -> None:
        self.answers = answers

    def check_output(self, command: str, *arguments: str) -> str:
        """Answer a command."""
        asked = command % arguments if arguments else command
        return next(said for pattern, said in self.answers.items() if re.search(pattern, asked))

    def run(self, command: str) -> SimpleNamespace:
        """Answer a command that may fail, and did not."""
        return SimpleNamespace(rc=0, stdout=self.check_output(command))

    def exists(self, command: str) -> bool:
        """Say that a program is there."""
        return bool(command)

    def file(self, path: str) -> SimpleNamespace:
        """Give a file's text, which the path itself asks for."""
        return SimpleNamespace(exists=path in self.answers, content_string=self.answers.get(path, ""))


def docker_host(*subnets: str) -> Answers:
    """Describe a host whose live colour has a network with some addresses, beside what no promise may look at."""
    found = [{"Name": "app-blue_default", "IPAM": {"Config": [{"Subnet": subnet} for subnet in subnets]}}]
    return Answers(
        {
            "address show": "3: docker0 inet 172.30.0.1/24 scope global docker0",
            f"network ls .*{PROJECT}=app-blue$": "one",
            f"network ls .*{PROJECT}=app-green$": "",
            "network inspect one$": json.dumps(found),
        }
    )


def test_addresses_of_the_application() -> None:
    """A network may have IPv6 addresses as well; its IPv4 addresses are from the pool."""
    test_docker.test_addresses(docker_host("172.30.129.0/24", "fd00:5eed::/64"), DAEMON, WRITTEN)
    with pytest.raises(AssertionError):
        test_docker.test_addresses(docker_host("10.9.0.0/24", "fd00:5eed::/64"), DAEMON, WRITTEN)


def test_addresses_of_another_pool() -> None:
    """A daemon that cuts networks from other ranges breaks the promise before there is a network."""
    other = {"DefaultAddressPools": [{"Base": "10.0.0.0/8", "Size": 24}]}
    with pytest.raises(AssertionError):
        test_docker.test_addresses(docker_host(), other, WRITTEN)


def confined_host(blue: str, **others: Any) -> Answers:
    """Describe a host with a container of the application's, and one of somebody else's project, which Docker's own profile confines."""
    return Answers(
        {
            "aa-status": json.dumps({"profiles": {"holdfast-app": "enforce"}}),
            f"docker ps .*{PROJECT}=app-blue$": "mine",
            f"docker ps .*{PROJECT}=app-green$": "",
            f"docker ps .*{PROJECT}$": "mine\ntheirs",
            "docker inspect .* mine$": "7",
            "docker inspect .* theirs$": "8",
            "/proc/7/attr/current": blue,
            "/proc/8/attr/current": "docker-default (enforce)",
            **others,
        }
    )


def test_profile_of_the_application() -> None:
    """The profile of another application's containers is no matter of HF-MAC-02; that of the application's is."""
    test_hardening.test_container_profile(confined_host("holdfast-app (enforce)"))
    with pytest.raises(AssertionError):
        test_hardening.test_container_profile(confined_host("docker-default (enforce)"))


def test_application_that_does_not_run() -> None:
    """Where only others' containers run, HF-MAC-02 says that the application's do not."""
    answers = confined_host("").answers
    with pytest.raises(AssertionError):
        test_hardening.test_container_profile(Answers({f"docker ps .*{PROJECT}=app-blue$": "", **answers}))


def kernel(*families: str, redirects: int = 0) -> Answers:
    """Describe a host whose kernel speaks some families, with the settings of three interfaces."""
    names = ("all", "default", "eth0")
    asked = [(family, name) for family in ("ipv4", "ipv6") for name in ("accept_redirects", "secure_redirects", "send_redirects")]
    settings = {
        rf"{family}\[\.\]conf.*{name}": "\n".join(f"net.{family}.conf.{each}.{name} = {redirects}" for each in names if family in families)
        for family, name in asked
    }
    return Answers({**settings, **{f"/proc/sys/net/{family}/conf": "" for family in families}})


def test_kernel_without_ipv6() -> None:
    """A kernel that has no IPv6 redirects nothing by it; one that has is asked, and IPv4 is asked in any case."""
    test_hardening.test_redirects(kernel("ipv4"))
    test_hardening.test_redirects(kernel("ipv4", "ipv6"))
    for wrong in (kernel("ipv6"), kernel("ipv4", redirects=1)):
        with pytest.raises(AssertionError):
            test_hardening.test_redirects(wrong)
    with pytest.raises(AssertionError):
        test_hardening.every_interface(kernel("ipv6", redirects=1), "ipv6.accept_redirects", 0)


CADDYFILE = """\
\theader {
\t\tStrict-Transport-Security "max-age=300"
\t\tContent-Security-Policy `default-src 'self' 'unsafe-inline'`
\t}
"""
HEADERS = {
    "strict-transport-security": "max-age=300",
    "content-security-policy": "default-src 'self' 'unsafe-inline'",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=()",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


def site(written: str, *private: str, **changed: str) -> test_caddy.Site:
    """Describe a site whose Caddyfile says what is written, and whose answers carry HEADERS, changed in places."""
    told = "".join(f"{name}: {value}\r\n" for name, value in {**HEADERS, **changed}.items())
    answers = {test_caddy.CADDYFILE: written, "dump-header": f"HTTP/2 404\r\n{told}\r\n", "write-out": "404"}
    return test_caddy.Site(Answers(answers), "app.test", "/api", [*private], "")


def test_headers_of_the_inventory() -> None:
    """Weaker headers hold the promises where the inventory asks for them, and only these do."""
    test_caddy.test_https_is_remembered(site(CADDYFILE))
    test_caddy.test_security_headers(site(CADDYFILE))
    for value in ("max-age=200", "max-age=31536000"):
        with pytest.raises(AssertionError):
            test_caddy.test_https_is_remembered(site(CADDYFILE, **{"strict-transport-security": value}))
    for value in ("default-src 'self' 'unsafe-inline' *", ""):
        with pytest.raises(AssertionError):
            test_caddy.test_security_headers(site(CADDYFILE, **{"content-security-policy": value}))


@pytest.mark.parametrize("lifetime", ["", 'Strict-Transport-Security "max-age=0"'])
def test_headers_of_nobody(lifetime: str) -> None:
    """Where nothing is asked for, or that HTTPS be forgotten, no answer holds the promises."""
    with pytest.raises(AssertionError):
        test_caddy.test_https_is_remembered(site(lifetime, **{"strict-transport-security": "max-age=0"}))
    with pytest.raises(AssertionError):
        test_caddy.test_security_headers(site(lifetime, **{"content-security-policy": ""}))


def test_private_paths_of_the_inventory() -> None:
    """An inventory may call no path private; a running server that differs from it breaks the promise."""
    asked = "\t@private path /metrics /healthz\n"
    test_caddy.test_private_paths(site(CADDYFILE))
    test_caddy.test_private_paths(site(asked, "/healthz", "/metrics"))
    for written, private in ((asked, ()), (asked, ("/metrics",)), (CADDYFILE, ("/metrics",))):
        with pytest.raises(AssertionError):
            test_caddy.test_private_paths(site(written, *private))
