"""The role caddy with real backends, under faults, and with a real ACME authority."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import promises
import pytest
from testinfra.host import Host

from tools.playbook import play_on

SITE = "https://localhost"
TRUST = "--cacert /var/lib/caddy/.local/share/caddy/pki/authorities/local/root.crt"
CURL = f"timeout 40 curl --silent --max-time 30 {TRUST}"
HEADERS = f"{CURL} --dump-header - --output /dev/null"
CADDYFILE = "/etc/caddy/Caddyfile"
HALF_A_YEAR_SECONDS = 180 * 24 * 3600
CODE = f"{CURL} --output /dev/null --write-out '%{{http_code}}'"


def _headers(host: Host, arguments: str) -> dict[str, str]:
    lines = host.check_output(f"{HEADERS} {arguments}").strip().splitlines()
    return {"status": lines[0].split()[1]} | {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}


def _echo(host: Host, arguments: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(host.check_output(f"{CURL} {arguments}"))
    return content


def _play(host: Host, playbook: str, **variables: Any) -> subprocess.CompletedProcess[str]:
    """Run one of this scenario's playbooks against the host."""
    return play_on(str(host.backend.name), f"molecule/caddy/{playbook}", **variables)


def test_forwarded_headers_are_caddys(host: Host) -> None:
    """The backend gets the client's real address and scheme, whatever the client claims."""
    claims = "--header 'X-Forwarded-For: 6.6.6.6' --header 'X-Forwarded-Proto: http' --header 'X-Forwarded-Host: evil.test'"
    headers = _echo(host, f"{claims} {SITE}/api/echo")["headers"]
    assert headers["X-Forwarded-For"] == "127.0.0.1"
    assert headers["X-Forwarded-Proto"] == "https"
    assert headers["X-Forwarded-Host"] == "localhost"
    assert headers["Host"] == "localhost"


def test_paths_reach_backend_unchanged(host: Host) -> None:
    """What is below the backend's path goes there as it is; what only looks like it does not."""
    assert _echo(host, f"'{SITE}/api/a/b?c=d&e=%20'")["path"] == "/api/a/b?c=d&e=%20"
    assert _echo(host, f"{SITE}/api")["path"] == "/api"
    assert "molecule</title>" in host.check_output(f"{CURL} {SITE}/apiary")


def test_single_page(host: Host) -> None:
    """The single page answers for its own paths; a missing file is 404, and a hidden one too."""
    assert "molecule</title>" in host.check_output(f"{CURL} {SITE}/documents/7")
    assert host.check_output(f"{CODE} {SITE}/missing.js") == "404"
    assert host.check_output(f"{CODE} {SITE}/.hidden") == "404"
    assert host.check_output(f"{CODE} --path-as-is {SITE}/../../../etc/passwd.txt") == "404"


def test_caching(host: Host) -> None:
    """A page is asked for anew each time, cheaply; what never changes is kept for a year; an error is not kept."""
    page = _headers(host, f"{SITE}/")
    assert page["cache-control"] == "no-cache"
    again = _headers(host, f"--header 'If-None-Match: {page['etag']}' {SITE}/")
    assert again["status"] == "304"
    assert _headers(host, f"{SITE}/assets/app.0123abcd.js")["cache-control"] == "public, max-age=31536000, immutable"
    assert _headers(host, f"{SITE}/missing.js")["cache-control"] == "no-store"


@pytest.mark.parametrize("encoding", ["zstd", "gzip"])
def test_compression(host: Host, encoding: str) -> None:
    """Text is compressed, and is the same afterwards."""
    assert _headers(host, f"--header 'Accept-Encoding: {encoding}' {SITE}/app.js")["content-encoding"] == encoding
    host.check_output(f"{CURL} --compressed {SITE}/app.js | cmp - /srv/app/live/frontend/app.js")


def test_http3(host: Host) -> None:
    """HTTP/3 is spoken and offered."""
    assert "h3" in _headers(host, f"{SITE}/")["alt-svc"]
    assert host.check_output(f"{CODE} --http3-only {SITE}/") == "200"


@pytest.mark.parametrize("more", ["", "--header 'Transfer-Encoding: chunked'", "--http1.1"])
def test_large_body_is_refused(host: Host, more: str) -> None:
    """A body over the limit is answered with 413, as problem details; one below it gets through."""
    host.check_output("head -c 1100000 /dev/zero > /tmp/large; head -c 900000 /dev/zero > /tmp/small")
    said = host.check_output(f"{CURL} {more} --data-binary @/tmp/large --write-out ' %{{http_code}} %{{content_type}}' {SITE}/api/up")
    body, code, kind = said.rsplit(" ", 2)
    assert (code, kind) == ("413", "application/problem+json")
    assert json.loads(body)["status"] == 413
    assert _echo(host, f"{more} --data-binary @/tmp/small {SITE}/api/up")["length"] == 900000


def test_slow_headers_are_cut_off(host: Host) -> None:
    """A client that does not end its headers is cut off."""
    slow = (
        "import socket,ssl,time; c=ssl.create_default_context(); c.check_hostname=False; c.verify_mode=ssl.CERT_NONE; "
        "s=c.wrap_socket(socket.create_connection(('localhost',443)),server_hostname='localhost'); s.settimeout(15); t=time.time(); "
        "s.send(b'GET / HTTP/1.1\\r\\nHost: localhost\\r\\n'); print(len(s.recv(100)), time.time()-t)"
    )
    length, seconds = host.check_output(f'timeout 30 python3 -c "{slow}"').split()
    assert int(length) == 0
    assert float(seconds) < 5


def test_slow_backend_is_given_up(host: Host) -> None:
    """A backend that does not begin to answer in time is given up with 504, as problem details."""
    said = host.check_output(f"{CURL} --write-out ' %{{http_code}} %{{content_type}}' '{SITE}/api/slow?wait=8'")
    body, code, kind = said.rsplit(" ", 2)
    assert (code, kind) == ("504", "application/problem+json")
    assert json.loads(body)["status"] == 504


def test_one_dead_backend_is_not_noticed(host: Host) -> None:
    """While one of two backends is dead, nobody sees an error."""
    host.check_output("systemctl kill --signal=STOP blue-2.service; rm /srv/app/blue/sockets/backend-2.sock")
    codes = host.check_output(f"{CURL} --output /dev/null --write-out '%{{http_code}} ' '{SITE}/api/[1-100]'").split()
    assert codes == ["200"] * 100
    host.check_output("systemctl kill --signal=KILL blue-2.service")


def test_all_backends_dead(host: Host) -> None:
    """While all backends are away, the answer is 502 or 503 as problem details after the time to wait; the page is still served."""
    host.check_output("mv /srv/app/blue/sockets /srv/app/blue/away")
    try:
        started = time.monotonic()
        body, code, kind = host.check_output(f"{CURL} --write-out ' %{{http_code}} %{{content_type}}' {SITE}/api/x").rsplit(" ", 2)
        assert code in ("502", "503")
        assert kind == "application/problem+json"
        assert json.loads(body)["status"] == int(code)
        assert time.monotonic() - started < 6
        assert host.check_output(f"{CODE} {SITE}/") == "200"
    finally:
        host.check_output("mv /srv/app/blue/away /srv/app/blue/sockets")
    assert host.check_output(f"{CODE} {SITE}/api/x") == "200"


def test_switch_loses_nothing(host: Host) -> None:
    """A rename of the live symlink moves all requests to the other colour, and none fails."""
    load = f"{CURL} --parallel --parallel-max 20 --output /dev/null --write-out '%{{http_code}} ' '{SITE}/api/[1-2000]' > /tmp/codes"
    host.check_output(
        f"""systemctl stop blue-2.service 2>/dev/null; systemctl reset-failed blue-2.service 2>/dev/null
        systemd-run --quiet --unit=blue-2 python3 /opt/molecule/backend.py blue /srv/app/blue/sockets/backend-2.sock || exit 1
        sleep 1
        ({load}) & load=$!
        for colour in green blue green blue green blue green; do
            sleep 0.2; ln -sfn $colour /srv/app/next; mv -T /srv/app/next /srv/app/live
        done
        wait $load"""
    )
    try:
        codes = host.check_output("cat /tmp/codes").split()
        assert len(codes) == 2000
        assert set(codes) == {"200"}
        assert _echo(host, f"{SITE}/api/x")["colour"] == "green"
    finally:
        host.check_output("ln -sfn blue /srv/app/next; mv -T /srv/app/next /srv/app/live")


def test_reload_keeps_connections(host: Host) -> None:
    """A reload lets a request that is under way come to its end, and serves new ones at once."""
    host.check_output(
        f"""({CURL} '{SITE}/api/stream?pause=0.3' > /tmp/stream) & stream=$!
        for n in 1 2 3; do sleep 0.5; timeout 20 systemctl reload caddy.service; test $({CODE} {SITE}/api/x) = 200; done
        wait $stream"""
    )
    assert host.check_output("cat /tmp/stream").split() == [str(number) for number in range(10)]


def test_kill_is_survived(host: Host) -> None:
    """Caddy comes back by itself after a kill, again and again, with the same certificate authority."""
    before = host.check_output("sha256sum /var/lib/caddy/.local/share/caddy/pki/authorities/local/root.crt")
    for _ in range(6):
        host.check_output("systemctl kill --signal=KILL caddy.service; sleep 1.5")
    assert host.check_output(f"{CODE} --retry 5 --retry-connrefused {SITE}/") == "200"
    assert host.check_output("sha256sum /var/lib/caddy/.local/share/caddy/pki/authorities/local/root.crt") == before


def test_bad_caddyfile_never_lands(host: Host) -> None:
    """A Caddyfile that Caddy refuses does not replace the one that works."""
    before = host.check_output("sha256sum /etc/caddy/Caddyfile")
    done = _play(host, "acme.yml", caddy_acme_ca_file="/opt/molecule/no-such-file.crt")
    assert done.returncode != 0
    assert "failed to validate" in done.stdout
    assert host.check_output("sha256sum /etc/caddy/Caddyfile") == before
    assert host.check_output(f"{CODE} {SITE}/") == "200"


def test_defaults(host: Host) -> None:
    """Unless the inventory says otherwise, HTTPS is remembered for half a year, pages run nothing foreign, and figures are private."""
    headers = _headers(host, f"{SITE}/")
    assert int(headers["strict-transport-security"].removeprefix("max-age=")) >= HALF_A_YEAR_SECONDS
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    for path in ("/metrics", "/healthz", "/readyz"):
        assert host.check_output(f"{CODE} {SITE}{path}") == "404", path


@pytest.fixture
def lenient(host: Host) -> Iterator[None]:
    """Let the role serve somebody else's frontend for the first time, and go back afterwards."""
    inputs: dict[str, Any] = {"caddy_domain": "localhost", "caddy_tls": "internal"}
    policy = "default-src 'self'; style-src 'self' 'unsafe-inline'"
    done = _play(
        host, "converge.yml", caddy_hsts_seconds=300, caddy_content_security_policy=policy, caddy_private_paths=[], **inputs
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    yield
    done = _play(host, "converge.yml", **inputs)
    assert done.returncode == 0, done.stdout[-3000:]


def _broken(host: Host) -> set[str]:
    """Return which of the promises do not hold that depend on the inventory."""
    names = ("test_https_is_remembered", "test_security_headers", "test_private_paths")
    said = promises.broken(host, "caddy", *names)
    broken = {name for name in names if re.search(rf"^FAILED .*::{name}\b", said, re.MULTILINE)}
    assert bool(said) == bool(broken), said
    return broken


def test_inventory_decides(host: Host, lenient: None) -> None:
    """The promises hold with weaker values of the inventory's, and are broken by a server that does not serve these."""
    assert _broken(host) == set()
    # What is written and not in force: the running server still has the weaker values.
    host.check_output(f"cp {CADDYFILE} /tmp/Caddyfile")
    try:
        host.check_output(
            f"sed --in-place 's/max-age=300/max-age=600/; s/ .unsafe-inline.//; s|@backend path|@private path /metrics\\n&|' {CADDYFILE}"
        )
        assert _broken(host) == {"test_https_is_remembered", "test_security_headers", "test_private_paths"}
    finally:
        host.check_output(f"mv /tmp/Caddyfile {CADDYFILE}")


@pytest.fixture
def acme(host: Host) -> Iterator[str]:
    """Let the role ask the ACME authority on the host, and go back afterwards."""
    host.check_output("grep --quiet app.holdfast.test /etc/hosts || echo 127.0.0.1 app.holdfast.test >> /etc/hosts")
    done = _play(host, "acme.yml")
    assert done.returncode == 0, done.stdout[-3000:]
    yield "app.holdfast.test"
    done = _play(host, "converge.yml", caddy_domain="localhost", caddy_tls="internal")
    assert done.returncode == 0, done.stdout[-3000:]


def test_acme(host: Host, acme: str) -> None:
    """Caddy gets its certificate from an ACME authority by itself, a short-lived one, and serves it."""
    host.check_output("timeout 20 curl --silent --max-time 10 --insecure --fail https://localhost:15000/roots/0 > /tmp/pebble-root.pem")
    asked = f"timeout 10 openssl s_client -connect 127.0.0.1:443 -servername {acme} </dev/null 2>/dev/null | openssl x509 -noout -issuer"
    deadline = time.monotonic() + 60
    while "Pebble Intermediate CA" not in host.run(asked).stdout:
        assert time.monotonic() < deadline, host.check_output("journalctl --unit caddy.service --lines 20 --output cat")
        time.sleep(1)
    said = host.check_output(
        f"timeout 20 curl --silent --max-time 10 --cacert /tmp/pebble-root.pem --output /dev/null --write-out '%{{http_code}}' https://{acme}/"
    )
    assert said == "200"
    ten_days = 10 * 24 * 3600
    assert host.run(f"{asked.replace('-noout -issuer', f'-noout -checkend {ten_days}')}").rc == 1
