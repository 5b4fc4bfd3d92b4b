"""What an intruder or an accident would try on a hardened host; each test leaves the host as it was."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import promises
import pytest
from testinfra.host import Host

from tools import host as test_host
from tools.playbook import CONTAINER, inventory, play, play_on
from tools.shell import ROOT, VENV_BIN

USER = "somebody"
STRONG = "vK7#tremolo-Wick91x"
WEAK = ("short1!A", "Password12345678!", "somebody-somebody", "aaaaaaaaBBBBBB1!")
TRIES = 5
HELPER = "/usr/local/bin/helper"


@pytest.fixture
def user(host: Host) -> Iterator[str]:
    """Add a user with a strong password, and take the user away again."""
    host.check_output(f"useradd --create-home --shell /bin/bash {USER}")
    host.check_output(f"echo {USER}:{shlex.quote(STRONG)} | chpasswd")
    yield USER
    host.check_output(f"faillock --user {USER} --reset; userdel --remove {USER} 2>/dev/null")


def log_in(host: Host, password: str) -> bool:
    """Say whether PAM takes the user's password."""
    # `su` asks root for no password, and is nobody else's here: so PAM is asked as the console's login asks it.
    program = (
        "import ctypes, ctypes.util, sys\n"
        "pam = ctypes.CDLL('libpam.so.0'); libc = ctypes.CDLL('libc.so.6')\n"
        "class Response(ctypes.Structure): _fields_ = [('text', ctypes.c_void_p), ('code', ctypes.c_int)]\n"
        "libc.calloc.restype = libc.strdup.restype = ctypes.c_void_p\n"
        "libc.strdup.argtypes = [ctypes.c_char_p]\n"
        "Talk = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)\n"
        "def talk(count, asked, answers, data):\n"
        "    found = libc.calloc(count, ctypes.sizeof(Response))\n"
        "    ctypes.cast(found, ctypes.POINTER(Response))[0].text = libc.strdup(sys.argv[2].encode())\n"
        "    answers[0] = found\n"
        "    return 0\n"
        "class Conversation(ctypes.Structure): _fields_ = [('talk', Talk), ('data', ctypes.c_void_p)]\n"
        "handle = ctypes.c_void_p(); conversation = Conversation(Talk(talk), None)\n"
        "pam.pam_start(b'login', sys.argv[1].encode(), ctypes.byref(conversation), ctypes.byref(handle))\n"
        "code = pam.pam_authenticate(handle, 0) or pam.pam_acct_mgmt(handle, 0)\n"
        "pam.pam_end(handle, code)\n"
        "sys.exit(code != 0)\n"
    )
    return int(host.run(f"timeout 30 python3 -c {shlex.quote(program)} {USER} {shlex.quote(password)}").rc) == 0


@pytest.mark.parametrize("password", WEAK)
def test_weak_password_is_refused(host: Host, user: str, password: str) -> None:
    """PAM refuses a weak password, even from root, and the old one stays."""
    before = host.user(user).password
    done = host.run(f"printf '{password}\\n{password}\\n' | passwd {user}")
    assert done.rc != 0
    assert "BAD PASSWORD" in done.stderr
    assert host.user(user).password == before


def test_strong_password_is_taken_and_stored_slowly(host: Host, user: str) -> None:
    """PAM takes a strong password, and stores it by yescrypt at a higher cost than the library's."""
    done = host.run(f"printf 'zB4=lantern.Mosaic77\\nzB4=lantern.Mosaic77\\n' | passwd {user}")
    assert done.rc == 0, done.stderr
    # j9T is cost 5, Debian's own; each step of the middle letter is twice the work.
    found = re.match(r"\$y\$j(.)T\$", str(host.user(user).password))
    assert found
    assert found[1] > "9"


def test_guessing_locks_out(host: Host, user: str) -> None:
    """After five wrong passwords the right one is refused too, until the time is over or an admin resets it."""
    assert log_in(host, STRONG)
    for _ in range(TRIES):
        assert not log_in(host, "wrong")
    assert not log_in(host, STRONG)
    host.check_output(f"faillock --user {user} --reset")
    assert log_in(host, STRONG)


@pytest.mark.parametrize("folder", ["/tmp", "/var/tmp", "/dev/shm"])
def test_nothing_runs_from_a_temporary_folder(host: Host, folder: str) -> None:
    """A program that somebody has put into a temporary folder does not start, not even for root."""
    host.check_output(f"cp /usr/bin/true {folder}/program")
    done = host.run(f"{folder}/program")
    host.check_output(f"rm {folder}/program")
    assert done.rc == 126
    assert "Permission denied" in done.stderr


def test_packages_ask_their_questions_all_the_same(host: Host) -> None:
    """A package whose questions are asked by a program of its own still installs."""
    # debconf unpacks that program, and starts it, before the package is installed.
    done = host.run("apt-get install --yes --no-install-recommends apt-utils >/dev/null && DEBIAN_FRONTEND=noninteractive timeout 300 "
                    "apt-get install --yes --reinstall tzdata")  # fmt: skip
    assert done.rc == 0
    assert "Permission denied" not in done.stdout + done.stderr
    assert "Preconfiguring packages" in done.stdout


def test_run_makes_up_for_one_that_was_ended(host: Host, host_name: str, tmp_path: Path) -> None:
    """What a run left out that ended before its handlers, and a file that somebody else got hold of, the next one puts right."""
    host.check_output("pam-auth-update --package --disable holdfast-faillock holdfast-faillock-first")
    assert "pam_faillock" not in host.file("/etc/pam.d/common-auth").content_string
    host.check_output("chown nobody /etc/login.defs")
    done = play(inventory(tmp_path, {host_name: CONTAINER}), "molecule/hardening/converge.yml", "--tags", "HF-AUTH-02,HF-AUTH-03")
    assert done.returncode == 0, done.stdout
    assert "pam_faillock" in host.file("/etc/pam.d/common-auth").content_string
    assert host.file("/etc/login.defs").user == "root"


def test_no_core_dump(host: Host) -> None:
    """Neither a service nor a person's shell that crashes leaves a core dump."""
    before = host.check_output("cat /proc/sys/kernel/core_pattern")
    host.check_output("mkdir --mode=1777 /srv/crash")
    host.run("timeout 30 systemd-run --quiet --wait --property WorkingDirectory=/srv/crash sh -c 'kill -SEGV $$'")
    host.run("runuser --login --shell /bin/bash nobody --command \"cd /srv/crash; ulimit -c unlimited; sh -c 'kill -SEGV \\$\\$'\"")
    found = host.check_output("find /srv/crash /var/lib/systemd/coredump /var/crash -type f 2>/dev/null || true")
    host.check_output("rm --recursive /srv/crash")
    assert found == "", before


def test_setuid_bit_stays_gone(host: Host) -> None:
    """A package that is installed again brings no setuid bit back."""
    host.check_output("timeout 300 apt-get install --yes --reinstall passwd mount")
    assert host.check_output("find /usr/bin -perm /6000 -name 'ch*' -o -perm /6000 -name '*mount' -o -perm /6000 -name passwd") == ""
    assert host.file("/usr/bin/chfn").mode == 0o755


def test_named_program_has_rights(host: Host, host_name: str) -> None:
    """A program with more rights than its caller breaks the promise, unless the inventory names it; what is named keeps its bit."""
    # An effective CAP_NET_RAW, as setcap writes it, which is not on the host.
    capability = "struct.pack('<5I', 0x02000001, 1 << 13, 0, 0, 0)"
    host.check_output(f"install --mode=2755 /usr/bin/true {HELPER}")
    host.check_output(f"python3 -c \"import os, struct; os.setxattr('{HELPER}', 'security.capability', {capability})\"")
    try:
        assert promises.broken(host, "hardening", "test_privileged_programs")
        named = dict.fromkeys((HELPER, "/usr/bin/chfn"), "A test of it.")
        done = play_on(host_name, "molecule/hardening/converge.yml", "--tags", "hardening:configure", hardening_privileged_files=named)
        assert done.returncode == 0, done.stdout
        assert promises.broken(host, "hardening", "test_privileged_programs") == ""
        assert "/usr/bin/chfn\n" not in host.check_output("dpkg-statoverride --list") + "\n"
    finally:
        host.check_output(f"rm {HELPER}")
        done = play_on(host_name, "molecule/hardening/converge.yml", "--tags", "hardening:configure")
        assert done.returncode == 0, done.stdout
    assert "/usr/bin/chfn\n" in host.check_output("dpkg-statoverride --list") + "\n"


def test_only_root_has_jobs(host: Host) -> None:
    """Where cron is installed, nobody but root uses it, and its program has gained no rights."""
    host.check_output("timeout 300 apt-get install --yes --no-install-recommends cron")
    try:
        assert host.run("crontab -l").stderr.startswith("no crontab for root")
        assert host.run("runuser --user nobody -- crontab -l").rc != 0
        assert host.file("/usr/bin/crontab").mode == 0o755
        assert host.file("/etc/cron.d").mode == 0o700
    finally:
        host.check_output("timeout 300 apt-get purge --yes cron cron-daemon-common")


def key_file(host_name: str) -> Path:
    """Return the file in which the controller keeps the key that verifies the host's journal."""
    # Molecule's inventory is a folder of its own.
    files = sorted(
        Path.home().glob(f".ansible/tmp/molecule.*.hardening/inventory/{host_name}.journal-key.txt"), key=lambda path: path.stat().st_mtime
    )
    assert files, "the key of the journal is not on the controller"
    return files[-1]


def key_in(file: Path) -> str:
    """Return the key that a file keeps, encrypted."""
    assert file.read_text().startswith("$ANSIBLE_VAULT;")
    shown = subprocess.run([VENV_BIN / "ansible-vault", "view", file], cwd=ROOT, capture_output=True, text=True, check=True)
    return shown.stdout.strip()


def test_changed_journal_is_found(host: Host, host_name: str) -> None:
    """The controller's key verifies the journal, and tells when a line of it was changed."""
    key = key_in(key_file(host_name))
    host.check_output("logger the-intruder-was-here && journalctl --sync && journalctl --rotate")
    folder = host.check_output("ls -d /var/log/journal/*")
    whole = host.run(f"journalctl --verify --verify-key={key} --directory={folder}")
    assert whole.rc == 0, whole.stderr
    # A copy of the host's journal, in which one word is another.
    host.check_output(f"rm --recursive --force /srv/journal && cp --recursive {folder} /srv/journal")
    newest = host.check_output("grep --recursive --files-with-matches --binary-files=text the-intruder-was-here /srv/journal").splitlines()[
        0
    ]
    host.check_output(f"sed --in-place s/the-intruder-was-here/the-neighbour-was-here/ {newest}")
    changed = host.run(f"journalctl --verify --verify-key={key} --directory=/srv/journal")
    host.check_output("rm --recursive /srv/journal")
    assert changed.rc != 0
    assert f"FAIL: {newest}" in changed.stderr


def test_seal_without_its_key_is_none(host: Host, host_name: str, tmp_path: Path) -> None:
    """Where the controller can't keep the key, the host keeps no seal; the next run makes both, and the key verifies what comes then."""
    source = inventory(tmp_path, {host_name: CONTAINER})
    file = tmp_path / f"{host_name}.journal-key.txt"
    host.check_output("rm /var/log/journal/*/fss")
    file.mkdir()
    done = play(source, "molecule/hardening/converge.yml", "--tags", "hardening:service")
    assert done.returncode != 0
    assert f"not be kept in {file}" in " ".join(done.stdout.split())
    assert host.run("ls /var/log/journal/*/fss").rc != 0
    file.rmdir()
    for changed in (True, False):
        done = play(source, "molecule/hardening/converge.yml", "--tags", "hardening:service")
        assert done.returncode == 0, done.stdout
        assert ("changed=0" not in done.stdout) == changed, done.stdout
    # The scenario's own controller has it from now on.
    shutil.copy(file, key_file(host_name))
    # What the lost key sealed goes, so that the new one verifies all there is.
    host.check_output("journalctl --rotate --vacuum-files=1 && logger sealed-anew && journalctl --sync && journalctl --rotate")
    newest = host.check_output("grep --files-with-matches --binary-files=text sealed-anew /var/log/journal/*/*.journal").splitlines()[-1]
    done = host.run(f"journalctl --verify --verify-key={key_in(file)} --file={newest}")
    assert done.rc == 0, done.stderr
    assert "Validated from" in done.stdout + done.stderr


def test_reboot_waits_for_a_backup(host: Host, host_name: str) -> None:
    """A reboot that an upgrade has asked for begins only after the backup that runs has ended."""
    host.check_output("printf '[Service]\\nType=oneshot\\nExecStart=sleep 600\\n' > /run/systemd/system/holdfast-backup@.service")
    host.check_output("systemctl daemon-reload && systemctl start --no-block holdfast-backup@try.service && touch /run/reboot-required")
    host.check_output("systemctl start --no-block holdfast-reboot.service && sleep 8")
    assert host.check_output("systemctl is-active holdfast-reboot.service || true") == "activating"
    assert "waiting for holdfast-backup@try.service" in host.check_output("journalctl --unit holdfast-reboot.service --boot --output cat")
    host.run("systemctl stop holdfast-backup@try.service")
    # A host that is a container ends with its reboot, and is started again from outside.
    deadline = time.monotonic() + 120
    while test_host.running(host_name):
        assert time.monotonic() < deadline, "it did not reboot"
        time.sleep(1)
    test_host.up(host_name)
    assert not host.file("/run/reboot-required").exists
    assert {"noexec", "nosuid", "nodev"} <= set(host.check_output("findmnt --noheadings --output OPTIONS --mountpoint /var/tmp").split(","))
