"""No generated secret shows where somebody who may not could read it: asked after a run of the whole site at its most talkative."""

from __future__ import annotations

import base64
import shlex
import urllib.parse
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from testinfra.host import Host

from tools import secrets
from tools.playbook import CONTAINER, inventory, play
from tools.shell import run

# On the host, for root alone: what is searched for is in no command line.
PATTERNS = "/root/molecule-patterns"
GREP = "grep --text --only-matching --fixed-strings --no-messages"
# Place → command whose output has no secret. Where it has the name of the file too, that is before the match.
PLACES = {
    "the journal": f"journalctl --sync; journalctl --all --output verbose | {GREP} --file {PATTERNS} | sort --unique",
    "docker inspect": f"docker inspect $(docker ps --all --quiet; docker image ls --quiet) | {GREP} --file {PATTERNS} | sort --unique",
    "a process": f"{GREP} --with-filename --file {PATTERNS} /proc/[0-9]*/cmdline /proc/[0-9]*/environ",
    # Whoever has no rights at all reads what everybody may, in the memory that is shared as files too.
    "a file": f"runuser --user nobody -- {GREP} --recursive --devices=skip --file - "
    "$(find / -mindepth 1 -maxdepth 1 ! -name proc ! -name sys ! -name dev) /dev/shm /dev/mqueue "
    f"< {PATTERNS}",
}  # fmt: skip


def forms(secret: str) -> set[str]:
    """Return how a text may hold a secret: as it is, in a URL, and in base64, alone or after others (`user:secret`)."""
    found = {secret, urllib.parse.quote(secret, safe="")}
    for before in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            text = encode(b"-" * before + secret.encode()).decode().rstrip("=")
            # What shares its bytes with a neighbour is left out.
            found.add(text[(0, 2, 3)[before] : len(text) - len(text) % 4])
    return found


def shown(text: str, hidden: Mapping[str, str]) -> set[str]:
    """Return the names of the secrets that a text shows."""
    return {name for name, secret in hidden.items() if any(form in text for form in forms(secret))}


def leaks(host_name: str, hidden: Mapping[str, str]) -> list[str]:
    """Search the host for secrets; return one sentence for each hit, which does not repeat it."""
    patterns = "\n".join(sorted({form for secret in hidden.values() for form in forms(secret)}))
    run(["docker", "exec", "-i", host_name, "sh", "-c", f"umask 077; cat > {PATTERNS}"], stdin=patterns)
    found = []
    try:
        for place, command in PLACES.items():
            said = run(["docker", "exec", host_name, "bash", "-c", command], check=False, timeout_seconds=400).stdout
            for line in said.splitlines():
                where, _, _ = line.rpartition(":")
                found += [f"{name} is in {place} {where}".strip() + "." for name in shown(line, hidden)]
    finally:
        run(["docker", "exec", host_name, "rm", "-f", PATTERNS])
    return sorted(set(found))


@pytest.fixture(scope="module")
def generated() -> dict[str, str]:
    """Return every secret that `make secrets` wrote."""
    found = {name: value for name, value in secrets.read("demo").items() if len(value) >= secrets.LENGTH}
    assert len(found) > 10
    return found


@pytest.fixture
def planted(host: Host) -> Iterator[dict[str, str]]:
    """Put one secret where each search looks."""
    places = ("file", "memory", "command", "environment", "journal", "url", "header")
    hidden = {f"planted_{place}": f"{uuid.uuid4().hex}/+{place}" for place in places}
    # The host's own shell must not be what is found.
    host.check_output(f"echo {shlex.quote(hidden['planted_file'])} > /srv/planted && chmod 0644 /srv/planted")
    host.check_output(f"echo {shlex.quote(hidden['planted_memory'])} > /dev/shm/planted && chmod 0644 /dev/shm/planted")
    host.check_output(f"echo {urllib.parse.quote(hidden['planted_url'], safe='')} > /srv/planted-url")
    header = base64.b64encode(b"me:" + hidden["planted_header"].encode()).decode()
    host.check_output(f"echo {header} > /srv/planted-header")
    host.check_output(f"logger {shlex.quote(hidden['planted_journal'])}")
    host.check_output(
        f"systemd-run --quiet --collect --unit molecule-planted --setenv X={shlex.quote(hidden['planted_environment'])} "
        f"sh -c 'sleep 600; : {hidden['planted_command']}'"
    )
    yield hidden
    host.run("systemctl stop molecule-planted.service; rm -f /srv/planted /dev/shm/planted /srv/planted-url /srv/planted-header")


def test_search_finds_what_is_there(host_name: str, planted: dict[str, str]) -> None:
    """The search sees a secret in a file, in shared memory, in both parts of a process, in the journal, in a URL and in a header."""
    said = leaks(host_name, planted)
    for name in planted:
        assert [line for line in said if line.startswith(f"{name} is in")], f"{name}: {said}"
    assert "planted_file is in a file /srv/planted." in said
    assert not any(secret in " ".join(said) for secret in planted.values())


def test_no_secret_is_shown(host: Host, host_name: str, generated: dict[str, str], tmp_path: Path) -> None:
    """A run of the whole site at -vvv --diff, which writes each file that holds a secret, shows none, and none is where others read."""
    patterns = "\n".join(generated.values())
    # On the host: a blank line more makes the run compare the file, and write it.
    lengthen = f"grep -rlF -f {PATTERNS} /etc | while read -r file; do stat -c '%n %s' $file; echo >> $file; done"
    run(["docker", "exec", "-i", host_name, "sh", "-c", f"umask 077; cat > {PATTERNS}"], stdin=patterns)
    files = dict(line.split() for line in host.check_output(f"{lengthen}; rm {PATTERNS}").splitlines())
    assert files
    done = play(inventory(tmp_path, {host_name: CONTAINER}), "site.yml", "-vvv", "--diff")
    assert done.returncode == 0, done.stdout[-3000:]
    assert files == dict(line.split() for line in host.check_output(f"stat -c '%n %s' {' '.join(files)}").splitlines())
    assert "invocation" in done.stdout
    assert shown(done.stdout, generated) == set()
    assert leaks(host_name, generated) == []
