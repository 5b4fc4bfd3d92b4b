"""The role app under faults, with a probe for an application."""

from __future__ import annotations

import json

from testinfra.host import Host

from tools.application import wait_until

SOCKET = "/srv/app/live/sockets/web-1.sock"


def _answers(host: Host, path: str = "/readyz") -> bool:
    asked = f"curl --silent --max-time 3 --output /dev/null --write-out %{{http_code}} --unix-socket {SOCKET} http://localhost{path}"
    return host.run(asked).stdout == "200"


def _container(host: Host, service: str) -> str:
    return host.check_output(f"docker ps --all --quiet --filter label=com.docker.compose.service={service}")


def _started(host: Host, service: str) -> str:
    return host.check_output(f"docker inspect --format {{{{.State.StartedAt}}}} {_container(host, service)}")


def test_only_named_secrets(host: Host) -> None:
    """A service sees the secrets that the inventory names for it, as files, and no other."""
    assert host.run(f"docker exec {_container(host, 'worker-1')} test -e /run/secrets/word").rc != 0
    answer = json.loads(host.check_output(f"curl --silent --max-time 5 --unix-socket {SOCKET} http://localhost/"))
    assert answer["secret"] == "a-secret-of-the-probe"
    assert answer["secret"] not in json.dumps(answer["environment"])
    assert answer["environment"]["GREETING"] == "hello"


def test_killed_container_comes_back(host: Host) -> None:
    """A container that is killed is brought back, and its neighbours are left alone."""
    neighbour = _started(host, "web-2")
    host.check_output(f"docker kill {_container(host, 'web-1')}")
    wait_until(lambda: _answers(host), "the return of a killed container")
    assert _started(host, "web-2") == neighbour


def test_sick_container_is_restarted(host: Host) -> None:
    """A container that runs and turns unhealthy is restarted."""
    # Docker forgives failures of a container that was never healthy since its start.
    health = f"docker inspect --format {{{{.State.Health.Status}}}} {_container(host, 'web-1')}"
    wait_until(lambda: host.check_output(health) == "healthy", "a healthy container")
    before = _started(host, "web-1")
    assert _answers(host, "/sicken")
    wait_until(lambda: _started(host, "web-1") != before and _answers(host), "the restart of an unhealthy container")


def test_killed_supervisor(host: Host) -> None:
    """When the supervising process is killed, systemd starts it again and the containers run on."""
    before = _started(host, "web-1")
    asked = "systemctl show --property MainPID --value app@blue.service"
    killed = host.check_output(asked)
    host.check_output(f"kill -KILL {killed}")
    wait_until(lambda: host.check_output(asked) not in {"0", killed}, "another supervisor")
    wait_until(lambda: host.service("app@blue.service").is_running, "the supervisor's return")
    assert _started(host, "web-1") == before


def test_docker_restart(host: Host) -> None:
    """A restart of Docker leaves the containers running and the application answering."""
    before = _started(host, "web-1")
    host.check_output("timeout 60 systemctl restart docker.service")
    wait_until(lambda: _answers(host), "an answer after Docker's restart")
    assert _started(host, "web-1") == before
    assert host.service("app@blue.service").is_running
    host.check_output(f"docker kill {_container(host, 'web-1')}")
    wait_until(lambda: _answers(host), "the return of a container killed after Docker's restart")


def test_stop_and_start(host: Host) -> None:
    """Stopping the unit stops every container, with time to end, and starting it brings all of them back."""
    host.check_output("timeout 120 systemctl stop app@blue.service")
    assert host.check_output("docker ps --quiet --filter label=com.docker.compose.project=app-blue") == ""
    host.check_output("timeout 120 systemctl start app@blue.service")
    assert _answers(host)
