"""What the role access promises of every host."""

from __future__ import annotations

import re

import pytest
from testinfra.host import Host

KEYS = "/etc/ssh/authorized_keys"
READ = ("/etc/ssh/sshd_config", "/etc/ssh/sshd_config.d")
POLICY = f"{READ[1]}/00-holdfast.conf"


@pytest.fixture(scope="module")
def settings(host: Host) -> dict[str, list[str]]:
    """Ask sshd what it makes of all of its files: setting → its words."""
    found: dict[str, list[str]] = {}
    for line in host.check_output("/usr/sbin/sshd -T").splitlines():
        name, *words = line.split()
        found.setdefault(name, []).extend(words)
    return found


def knock(host: Host, user: str, port: str) -> str:
    """Connect to the sshd that runs, offer no key, and return what was said."""
    options = "-o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o PubkeyAuthentication=no -o ConnectTimeout=5"
    # As a question: over ssh, testinfra would take ssh's own 255 for a lost connection.
    done = host.run(f"timeout 20 ssh -vv {options} -p {port} {user}@127.0.0.1 true; test $? -eq 255")
    assert done.rc == 0, f"{user} got in: {done.stdout}{done.stderr}"
    return str(done.stderr)


@pytest.fixture(scope="module")
def answer(host: Host, settings: dict[str, list[str]]) -> str:
    """Knock at the running sshd as an admin."""
    return knock(host, settings["allowusers"][0], settings["port"][0])


def offered(answer: str, what: str) -> set[str]:
    """Return the algorithms of a kind that the running sshd offers."""
    server = answer.split("peer server KEXINIT proposal", maxsplit=1)[1]
    found = re.search(rf"^debug2: {what}: (\S+)", server, re.MULTILINE)
    assert found, answer
    return set(found[1].split(","))


@pytest.mark.control("HF-SSH-01")
def test_keys_only(host: Host, settings: dict[str, list[str]], answer: str) -> None:
    """The running sshd accepts keys, and offers no other way in, to an admin no more than to a stranger."""
    assert "Permission denied (publickey)." in answer
    assert "Permission denied (publickey)." in knock(host, "nobody", settings["port"][0])


@pytest.mark.control("HF-SSH-02")
def test_no_root(host: Host, settings: dict[str, list[str]]) -> None:
    """Root does not log in, whatever key it has."""
    assert settings["permitrootlogin"] == ["no"]
    assert "root" not in settings["allowusers"]
    assert "Permission denied" in knock(host, "root", settings["port"][0])


@pytest.mark.control("HF-SSH-03")
def test_admins_only(host: Host, settings: dict[str, list[str]]) -> None:
    """Those who may log in are those who have keys, all of which lie where only root can write."""
    assert settings["authorizedkeysfile"] == [f"{KEYS}/%u"]
    assert settings["authorizedkeyscommand"] == settings["trustedusercakeys"] == ["none"]
    listed = host.check_output(f"find {KEYS} -printf '%P %U %m\\n'").splitlines()
    assert sorted(line.split()[0] for line in listed if not line.startswith(" ")) == sorted(settings["allowusers"])
    assert {line.rsplit(" ", maxsplit=2)[1] for line in listed} == {"0"}
    assert {line.rsplit(" ", maxsplit=1)[1] for line in listed} <= {"755", "644"}


def test_no_password(host: Host, settings: dict[str, list[str]]) -> None:
    """An admin has no password, so none can be guessed, on the console neither; and sshd lets such an account in."""
    assert settings["usepam"] == ["yes"]
    for name in settings["allowusers"]:
        assert str(host.user(name).password).startswith(("!", "*"))


def test_no_exceptions(host: Host, settings: dict[str, list[str]]) -> None:
    """What sshd asks of one it asks of everybody: no other file, no block in a file and no option of its start says otherwise."""
    users = " ".join(["root", *settings["allowusers"]])
    # Without -C, sshd passes by what its files say of some users only.
    differing = host.check_output(
        f"policy=$(/usr/sbin/sshd -T); for user in {users}; do"
        ' test "$policy" = "$(/usr/sbin/sshd -T -C user=$user,host=promise,addr=192.0.2.1)" || echo "$user"; done'
    )
    assert differing == ""
    # A block may be of an address, too; and a file may bring in another.
    found = host.check_output(
        "grep --recursive --no-filename --ignore-case --extended-regexp '^[[:space:]\"]*(match|include)' %s %s", *READ
    )
    assert found.splitlines() == [f"Include {POLICY}"]
    assert host.check_output(f"find {READ[1]} -mindepth 1") == POLICY
    # Options win over files.
    started = host.check_output("tr '\\0' ' ' < /proc/$(systemctl show --value --property=MainPID ssh.service)/cmdline")
    assert started.startswith("sshd: /usr/sbin/sshd -D [listener]"), started


@pytest.mark.control("HF-SSH-04")
def test_modern_algorithms(answer: str) -> None:
    """The running sshd agrees on keys with hybrid post-quantum exchanges only, and offers no SHA-1, no CBC and no NIST curve."""
    exchanges = {name for name in offered(answer, "KEX algorithms") if not name.startswith(("ext-info", "kex-strict"))}
    assert exchanges
    assert all(re.match("(mlkem768|sntrup761)x25519-", name) for name in exchanges)
    assert offered(answer, "host key algorithms") == {"ssh-ed25519"}
    assert all(re.search("-gcm@|-ctr$", name) for name in offered(answer, "ciphers stoc"))
    assert all("-etm@" in name for name in offered(answer, "MACs stoc"))


@pytest.mark.control("HF-SSH-05")
def test_no_forwarding(settings: dict[str, list[str]], answer: str) -> None:
    """An ssh connection forwards no port, no socket, no agent, no display and no tunnel."""
    assert answer
    assert settings["disableforwarding"] == ["yes"]
    assert {settings[name][0] for name in ("allowtcpforwarding", "allowagentforwarding", "x11forwarding", "permittunnel")} == {"no"}


@pytest.mark.control("HF-SSH-06")
def test_guessing_is_slow(settings: dict[str, list[str]], answer: str) -> None:
    """Whoever fails to log in is kept away for a while, by address, and has few tries."""
    assert answer
    assert any(word.startswith("authfail:") for word in settings["persourcepenalties"])
    assert int(settings["maxauthtries"][0]) <= 4
    assert settings["persourcemaxstartups"] != ["none"]


@pytest.mark.control("HF-SSH-07")
def test_banner(host: Host, settings: dict[str, list[str]], answer: str) -> None:
    """Who connects reads the banner, and not which system answers."""
    if settings["banner"] != ["none"]:
        assert host.check_output(f"head -n 1 {settings['banner'][0]}") in answer
    assert "Debian" not in re.search(r"remote software version (.*)", answer)[1]  # type: ignore[index]


@pytest.mark.control("HF-SUDO-01")
def test_sudo_is_for_admins_and_logged(host: Host, settings: dict[str, list[str]]) -> None:
    """Admins become root by sudo, no other account uses it, and each use of it is written down."""
    host.check_output("visudo --check")
    for name in settings["allowusers"]:
        assert "(ALL : ALL) NOPASSWD: ALL" in host.check_output(f"sudo --list --other-user={name}")
    listed = host.check_output("getent passwd | cut -d: -f1 | while read -r name; do sudo --list --other-user=$name </dev/null; done")
    allowed = set(re.findall(r"^User (\S+) may run the following", listed, re.MULTILINE))
    assert allowed == {"root", *settings["allowusers"]}
    host.check_output("sudo --user=nobody true promise")
    assert re.search(r"USER=nobody ; ?COMMAND=\S*true promise", host.check_output("tail --lines=20 /var/log/sudo.log"))
    assert host.file("/var/log/sudo.log").mode == 0o600


def test_starts_at_boot(host: Host, answer: str) -> None:
    """The way in is there from every boot on, and no change of it waits to be taken back."""
    assert answer
    assert host.service("ssh.service").is_enabled
    assert host.file("/var/lib/holdfast/guard").is_directory
    assert not host.file("/var/lib/holdfast/guard/access.json").exists
