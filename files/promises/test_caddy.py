"""What the role caddy promises of every host. What is served, and how, is read from the running server."""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytest
from testinfra.host import Host

INTERNAL_ROOT = "/var/lib/caddy/.local/share/caddy/pki/authorities/local/root.crt"
STRANGER = "stranger.invalid"
# What the inventory has set is written here; whether it is so is asked of the running server.
CADDYFILE = "/etc/caddy/Caddyfile"


@dataclass(frozen=True)
class Site:
    """The one site that is served, seen from the host itself."""

    host: Host
    domain: str
    backend_path: str
    private_paths: list[str]
    trust: str

    def curl(self, arguments: str) -> tuple[int, str]:
        """Ask, with the site's name leading to this host; return curl's exit code and what it printed."""
        names = " ".join(f"--resolve {name}:{port}:127.0.0.1" for name in (self.domain, STRANGER) for port in (80, 443))
        done = self.host.run(f"timeout 30 curl --silent --max-time 20 {self.trust} {names} {arguments}")
        return done.rc, done.stdout

    def head(self, path: str) -> tuple[str, dict[str, str]]:
        """Get a path over HTTPS; return the status and the headers."""
        code, said = self.curl(f"--dump-header - --output /dev/null https://{self.domain}{path}")
        assert code == 0, f"no answer (curl: {code})"
        first, *lines = said.strip().splitlines()
        return first.split()[1], {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def wanted(site: Site, pattern: str) -> str:
    """Return what the inventory has set, by the one line of the Caddyfile that matches; nothing where there is none."""
    found = re.findall(rf"^\s*{pattern}$", site.host.file(CADDYFILE).content_string, re.MULTILINE)
    assert len(found) <= 1, found
    return str(found[0]).strip() if found else ""


def _routes(node: Any) -> list[dict[str, Any]]:
    """Find every route, however deep."""
    if isinstance(node, list):
        return [route for entry in node for route in _routes(entry)]
    if isinstance(node, dict):
        return ([node] if "handle" in node else []) + [route for value in node.values() for route in _routes(value)]
    return []


@pytest.fixture(scope="module")
def site(host: Host) -> Site:
    """Ask the running server, over its administration socket, what it serves."""
    said = host.check_output("timeout 10 curl --silent --max-time 5 --unix-socket /run/caddy/admin.sock http://localhost/config/")
    config = json.loads(said)
    servers = config["apps"]["http"]["servers"].values()
    server = next(entry for entry in servers if ":443" in entry["listen"])
    domain = server["routes"][0]["match"][0]["host"][0]
    paths: dict[str, list[str]] = {}
    for route in _routes(server["routes"]):
        matched = [path for match in route.get("match", []) for path in match.get("path", [])]
        text = json.dumps(route["handle"])
        for kind in ("reverse_proxy", '"error"'):
            if matched and kind in text:
                paths.setdefault(kind, matched)
    issuers = [issuer["module"] for policy in config["apps"]["tls"]["automation"]["policies"] for issuer in policy.get("issuers", [])]
    return Site(
        host, domain, paths["reverse_proxy"][0], paths.get('"error"', []), f"--cacert {INTERNAL_ROOT}" if "internal" in issuers else ""
    )


def test_serves_with_valid_certificate(site: Site) -> None:
    """The site answers over HTTPS, with a certificate for its name that a client accepts."""
    status, _ = site.head("/")
    assert status == "200"


def test_boot(host: Host) -> None:
    """Caddy runs, starts at boot, and is not root."""
    service = host.service("caddy.service")
    assert service.is_running
    assert service.is_enabled
    assert host.check_output("ps -o user= -C caddy").split() == ["caddy"]


ANSWERS = ("/", "{backend}/holdfast-probe", "/no-such-file.js")


@pytest.mark.control("HF-TLS-03")
def test_https_is_remembered(site: Site) -> None:
    """Every answer tells browsers to come over HTTPS only, for as long as the inventory says."""
    lifetime = wanted(site, r'Strict-Transport-Security "(max-age=[1-9]\d*)"')
    assert lifetime, "the inventory sets none"
    for path in ANSWERS:
        _, headers = site.head(path.format(backend=site.backend_path))
        assert headers["strict-transport-security"] == lifetime, path


@pytest.mark.control("HF-TLS-04")
def test_security_headers(site: Site) -> None:
    """Every answer, be it a page, the backend's or an error, carries the inventory's security headers and does not name its program."""
    policy = wanted(site, "Content-Security-Policy `(.+)`")
    assert policy, "the inventory sets none"
    for path in ANSWERS:
        _, headers = site.head(path.format(backend=site.backend_path))
        assert headers["x-content-type-options"] == "nosniff", path
        assert headers["x-frame-options"] == "DENY", path
        assert headers["referrer-policy"], path
        assert headers["permissions-policy"], path
        assert headers["content-security-policy"] == policy, path
        assert headers["cross-origin-opener-policy"] == "same-origin", path
        assert not {"server", "via", "x-powered-by"} & set(headers), path


def test_redirect(site: Site) -> None:
    """HTTP leads to HTTPS, for the known name."""
    code, said = site.curl(f"--output /dev/null --write-out '%{{http_code}} %{{redirect_url}}' 'http://{site.domain}/some/path?x=1'")
    assert code == 0
    assert re.fullmatch(rf"308 https://{re.escape(site.domain)}(:\d+)?/some/path\?x=1", said)


def test_unknown_names_are_refused(site: Site) -> None:
    """Another host name gets no answer over HTTP, no certificate over TLS, and 421 in a connection that was made for the known name."""
    assert site.head("/")[0] == "200"
    assert site.curl(f"http://{STRANGER}/") == (52, "")
    assert site.curl(f"--insecure https://{STRANGER}/") == (35, "")
    assert site.curl("--insecure https://127.0.0.1/") == (35, "")
    code, said = site.curl(f"--output /dev/null --write-out '%{{http_code}}' --header 'Host: {STRANGER}' https://{site.domain}/")
    assert (code, said) == (0, "421")
    code, said = site.curl(f"--dump-header - --header 'Host: {STRANGER}' https://{site.domain}/")
    assert code == 0 and "server:" not in said.lower()


def test_private_paths(site: Site) -> None:
    """What the inventory calls private, such as the backend's figures and probes, can't be reached from outside, however it is written."""
    assert sorted(site.private_paths) == sorted(wanted(site, "@private path (.+)").split())
    for path in site.private_paths:
        assert site.head(path)[0] == "404", path
        code, said = site.curl(
            f"--path-as-is --output /dev/null --write-out '%{{http_code}}' https://{site.domain}{site.backend_path}/..{path}"
        )
        assert (code, said) == (0, "404"), path


@pytest.mark.control("HF-TLS-01")
def test_old_tls_is_refused(site: Site) -> None:
    """TLS before 1.2 is refused, and in 1.2 each suite that would tell what was recorded once the key is known."""
    asked = f"timeout 20 openssl s_client -connect 127.0.0.1:443 -servername {site.domain}"
    assert site.host.run(f"{asked} -tls1_1 -cipher 'DEFAULT@SECLEVEL=0' </dev/null").rc != 0
    assert site.host.run(f"{asked} -tls1_2 </dev/null").rc == 0
    assert site.host.run(f"{asked} -tls1_2 -cipher 'kRSA:@SECLEVEL=0' </dev/null").rc != 0


@pytest.mark.control("HF-TLS-02")
def test_certificate_can_be_revoked(site: Site) -> None:
    """A stolen key is soon useless: the certificate lives for ten days at most, or its authority's word on revocation comes with it."""
    asked = f"timeout 20 openssl s_client -connect 127.0.0.1:443 -servername {site.domain} -status </dev/null 2>/dev/null"
    said = site.host.check_output(asked)
    dates = site.host.check_output(f"{asked} | openssl x509 -noout -startdate -enddate -dateopt iso_8601")
    begin, end = (datetime.fromisoformat(line.split("=")[1]) for line in dates.splitlines())
    assert end - begin <= timedelta(days=10) or "OCSP Response Status: successful" in said, f"{dates}, and no OCSP"


def test_doors(host: Host, site: Site) -> None:
    """Caddy listens on 80 and 443 only; its administration is on a unix socket that only it and root may use."""
    assert site.domain
    lines = host.check_output("ss --listening --tcp --udp --numeric --processes --no-header").splitlines()
    assert {line.split()[4].rsplit(":", 1)[1] for line in lines if '"caddy"' in line} == {"80", "443"}
    socket = host.file("/run/caddy/admin.sock")
    assert socket.is_socket
    assert socket.user == "caddy"
    assert socket.mode & 0o077 == 0


def test_log_holds_no_secret(site: Site) -> None:
    """Every request is in the journal, without cookies and credentials."""
    mark, secret = uuid.uuid4().hex, uuid.uuid4().hex
    code, _ = site.curl(
        f"--output /dev/null --header 'Cookie: session={secret}' --header 'Authorization: Bearer {secret}' https://{site.domain}/?{mark}"
    )
    assert code == 0
    site.host.check_output("journalctl --sync")
    logged = site.host.check_output("journalctl --unit caddy.service --since -2min --output cat")
    assert mark in logged
    assert secret not in logged


def test_storage_belongs_to_caddy(host: Host, site: Site) -> None:
    """Keys and certificates belong to Caddy, and nobody else reads them."""
    assert site.domain
    assert host.check_output("find /var/lib/caddy ! -user caddy") == ""
    assert host.file("/var/lib/caddy").mode & 0o027 == 0
