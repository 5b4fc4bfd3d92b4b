"""What the role hardening promises of every host, control by control."""

from __future__ import annotations

import json
import re
import shlex

import pytest
from testinfra.host import Host

RECORD = "/etc/holdfast/hardening.json"
AUDIT_RULES = "/etc/audit/rules.d/holdfast.rules"
# With more rights than their caller: sudo itself, the check of one's own password, and D-Bus's start of services for root.
CAPABLE = "import os, sys; print(*(name for name in sys.stdin.read().split('\\0') if name and 'security.capability' in os.listxattr(name)))"
# The compose projects that the role app makes, one a colour; others' containers are theirs to confine.
PROJECTS = ("app-blue", "app-green")
PRIVILEGED = {"/usr/bin/sudo", "/usr/sbin/unix_chkpwd", "/usr/lib/dbus-1.0/dbus-daemon-launch-helper"}


def holds(host: Host, **wanted: int | str) -> None:
    """Ask the kernel for settings; two underscores in a name stand for a dot, and `all__` for every interface as well."""
    for name, value in wanted.items():
        key = name.replace("__", ".")
        assert host.check_output(f"sysctl --values {key}") == str(value), key


def every_interface(host: Host, setting: str, value: int) -> None:
    """Ask the kernel for a setting of all interfaces, those to come among them."""
    family, name = setting.split(".")
    # A kernel that was told to do without IPv6 has none of its settings, and speaks none of it.
    if family == "ipv6" and not host.file("/proc/sys/net/ipv6/conf").exists:
        return
    listed = host.check_output(f"sysctl --all --pattern '^net[.]{family}[.]conf[.].*[.]{name}$'").splitlines()
    assert len(listed) >= 3, listed
    assert [line for line in listed if not line.endswith(f" = {value}")] == []


def mounted(host: Host, path: str) -> set[str]:
    """Return the options under which a folder is mounted, and nothing where it is no mount of its own."""
    return set(host.check_output(f"findmnt --noheadings --output OPTIONS --mountpoint {path}").split(","))


def as_nobody(host: Host, command: str) -> int:
    """Run a command as a user without any rights; return its exit code."""
    return int(host.run(f"runuser --user nobody -- {command}").rc)


@pytest.mark.control("HF-KERNEL-01")
@pytest.mark.own_kernel
def test_kernel_tells_nothing(host: Host) -> None:
    """HF-KERNEL-01: Addresses of the kernel, its log and its performance events are for root alone."""
    holds(host, kernel__kptr_restrict=2, kernel__dmesg_restrict=1, kernel__perf_event_paranoid=3)
    assert as_nobody(host, "dmesg") != 0


@pytest.mark.control("HF-KERNEL-02")
@pytest.mark.own_kernel
def test_ptrace(host: Host) -> None:
    """HF-KERNEL-02: Root alone looks into other processes."""
    holds(host, kernel__yama__ptrace_scope=2)


@pytest.mark.control("HF-KERNEL-03")
@pytest.mark.own_kernel
def test_less_of_the_kernel(host: Host) -> None:
    """HF-KERNEL-03: Ordinary users load no BPF program and make no user namespace, and nobody uses io_uring."""
    holds(host, kernel__io_uring_disabled=2, net__core__bpf_jit_harden=2)
    assert host.check_output("sysctl --values kernel.unprivileged_bpf_disabled") in ("1", "2")
    assert as_nobody(host, "unshare --user true") != 0


@pytest.mark.control("HF-KERNEL-04")
@pytest.mark.own_kernel
def test_memory_layout(host: Host) -> None:
    """HF-KERNEL-04: Programs get a random layout of their memory, and nothing at its beginning."""
    holds(host, kernel__randomize_va_space=2, vm__mmap_min_addr=65536)
    starts = {host.check_output("grep --max-count=1 stack /proc/self/maps") for _ in range(3)}
    assert len(starts) == 3


@pytest.mark.control("HF-KERNEL-05")
@pytest.mark.own_kernel
def test_kernel_stays(host: Host) -> None:
    """HF-KERNEL-05: Nobody replaces the running kernel, commands it from the keyboard, or makes it load line disciplines of terminals."""
    holds(host, dev__tty__ldisc_autoload=0, kernel__kexec_load_disabled=1, kernel__sysrq=0)


@pytest.mark.control("HF-KERNEL-06")
@pytest.mark.own_kernel
def test_shared_folders(host: Host) -> None:
    """HF-KERNEL-06: Links, pipes and files in folders that everybody may write to can't be turned against others."""
    holds(host, fs__protected_fifos=2, fs__protected_hardlinks=1, fs__protected_regular=2, fs__protected_symlinks=1)


@pytest.mark.control("HF-KERNEL-07")
@pytest.mark.own_kernel
def test_kernel_at_fault(host: Host) -> None:
    """HF-KERNEL-07: A kernel that has found itself at fault restarts, instead of going on."""
    holds(host, kernel__panic=10, kernel__panic_on_oops=1)


@pytest.mark.control("HF-NET-01")
def test_senders(host: Host) -> None:
    """HF-NET-01: A packet whose sender could not be reached where it came from is dropped."""
    every_interface(host, "ipv4.rp_filter", 1)


@pytest.mark.control("HF-NET-02")
def test_redirects(host: Host) -> None:
    """HF-NET-02: Nobody on the network redirects the host's routes, and the host redirects nobody's."""
    for name in ("ipv4.accept_redirects", "ipv4.secure_redirects", "ipv4.send_redirects", "ipv6.accept_redirects"):
        every_interface(host, name, 0)


@pytest.mark.control("HF-NET-03")
def test_source_routes(host: Host) -> None:
    """HF-NET-03: A packet does not choose its own route."""
    every_interface(host, "ipv4.accept_source_route", 0)
    every_interface(host, "ipv6.accept_source_route", 0)


@pytest.mark.control("HF-NET-04")
def test_martians(host: Host) -> None:
    """HF-NET-04: Packets with impossible addresses are in the log."""
    every_interface(host, "ipv4.log_martians", 1)


@pytest.mark.control("HF-NET-05")
def test_broadcasts(host: Host) -> None:
    """HF-NET-05: The host answers no broadcast, and bogus ICMP fills no log."""
    holds(host, net__ipv4__icmp_echo_ignore_broadcasts=1, net__ipv4__icmp_ignore_bogus_error_responses=1)


@pytest.mark.control("HF-NET-06")
def test_half_open_connections(host: Host) -> None:
    """HF-NET-06: A flood of half-open connections, or a stray reset, does not keep others out."""
    holds(host, net__ipv4__tcp_syncookies=1, net__ipv4__tcp_rfc1337=1)


def cannot_be_loaded(host: Host, modules: str) -> None:
    """Say that no module of a list is loaded, and that what would load it does nothing."""
    shown = set(host.check_output("modprobe --showconfig").splitlines())
    # A container shows its machine's modules, or none.
    machine = host.run("systemd-detect-virt --container").rc != 0
    loaded = {line.split()[0] for line in host.check_output("cat /proc/modules").splitlines()} if machine else set()
    for name in modules.split():
        assert {f"install {name} /bin/false", f"blacklist {name}"} <= shown, name
        assert name not in loaded, name


@pytest.mark.control("HF-MODULE-01")
def test_file_systems(host: Host) -> None:
    """HF-MODULE-01: File systems that a server never mounts can't be loaded."""
    cannot_be_loaded(host, "cramfs freevxfs hfs hfsplus jffs2 squashfs udf")


@pytest.mark.control("HF-MODULE-02")
def test_protocols(host: Host) -> None:
    """HF-MODULE-02: Network protocols that a server never speaks can't be loaded."""
    cannot_be_loaded(host, "appletalk atm ax25 can dccp n_hdlc netrom rds rose sctp tipc x25")


@pytest.mark.control("HF-MODULE-03")
def test_external_storage(host: Host) -> None:
    """HF-MODULE-03: Storage on USB, FireWire and Thunderbolt can't be attached."""
    cannot_be_loaded(host, "firewire_core firewire_ohci firewire_sbp2 thunderbolt uas usb_storage")


@pytest.mark.control("HF-MOUNT-01")
def test_tmp(host: Host) -> None:
    """HF-MOUNT-01: Nothing in /tmp is executed, gains rights, or is a device."""
    assert mounted(host, "/tmp") >= {"nodev", "noexec", "nosuid"}


@pytest.mark.control("HF-MOUNT-02")
def test_shared_memory(host: Host) -> None:
    """HF-MOUNT-02: Nothing in /dev/shm is executed, gains rights, or is a device."""
    assert mounted(host, "/dev/shm") >= {"nodev", "noexec", "nosuid"}


@pytest.mark.control("HF-MOUNT-03")
def test_var_tmp(host: Host) -> None:
    """HF-MOUNT-03: Nothing in /var/tmp is executed, gains rights, or is a device."""
    assert mounted(host, "/var/tmp") >= {"nodev", "noexec", "nosuid"}
    assert host.service("holdfast-mounts.service").is_enabled


@pytest.mark.control("HF-CORE-01")
def test_no_core_dumps(host: Host) -> None:
    """HF-CORE-01: No process, of a person or of a service, leaves its memory on the disk when it crashes."""
    assert host.check_output("systemctl show --property DefaultLimitCORE --value") == "0"
    assert host.check_output("systemctl show --property LimitCORE --value ssh.service") == "0"
    # A session of a user who may do nothing, as PAM opens it.
    assert host.check_output("runuser --login --shell /bin/bash nobody --command 'ulimit -H -c'") == "0"


@pytest.mark.control("HF-CORE-02")
@pytest.mark.own_kernel
def test_kernel_keeps_no_memory(host: Host) -> None:
    """HF-CORE-02: The kernel itself keeps no memory of a crashed process, above all not of one that gained rights."""
    holds(host, fs__suid_dumpable=0, kernel__core_pattern="|/bin/false")


@pytest.mark.control("HF-AUTH-01")
def test_password_quality(host: Host) -> None:
    """HF-AUTH-01: A weak password is refused, root's too."""
    for weak in ("Tr0ub4dor&3", "correcthorsebattery", "aaaaBBBB1111!!!!", "Password12345678!"):
        assert host.run(f"echo {shlex.quote(weak)} | pwscore").rc != 0, weak
    assert host.run("echo 'vK7#tremolo-Wick91x' | pwscore").rc == 0
    assert re.search(r"^password\s+requisite\s+pam_pwquality\.so", host.check_output("cat /etc/pam.d/common-password"), re.MULTILINE)


@pytest.mark.control("HF-AUTH-02")
def test_lock_out(host: Host) -> None:
    """HF-AUTH-02: Who guesses a password is locked out for a quarter of an hour."""
    stack = [line.split() for line in host.check_output("grep --invert-match '^#' /etc/pam.d/common-auth").splitlines() if line.strip()]
    modules = [[word for word in line if word.startswith("pam_") or word in ("preauth", "authfail")] for line in stack]
    assert modules.index(["pam_faillock.so", "preauth"]) < modules.index(["pam_unix.so"]) < modules.index(["pam_faillock.so", "authfail"])
    written = dict(re.findall(r"^(\w+) = (\d+)$", host.check_output("cat /etc/security/faillock.conf"), re.MULTILINE))
    assert int(written["deny"]) <= 5
    assert int(written["unlock_time"]) >= 900


@pytest.mark.control("HF-AUTH-03")
def test_password_hashes(host: Host) -> None:
    """HF-AUTH-03: Passwords are stored so that trying them is slow."""
    stored = [line.split(":")[1] for line in host.check_output("cat /etc/shadow").splitlines()]
    assert all(word[:1] in ("!", "*") or word.startswith("$y$") for word in stored)
    assert re.search(r"pam_unix\.so.*\byescrypt\b", host.check_output("cat /etc/pam.d/common-password"))
    # Each step takes twice the time; the library's own is 5.
    assert int(host.check_output("sed --quiet 's/^YESCRYPT_COST_FACTOR //p' /etc/login.defs")) >= 7


@pytest.mark.control("HF-AUTH-04")
def test_umask(host: Host) -> None:
    """HF-AUTH-04: What a person creates is closed to others, until that person opens it."""
    assert host.check_output("runuser --login --shell /bin/bash nobody --command umask") == "0027"


@pytest.mark.control("HF-AUTH-05")
def test_idle_shells(host: Host) -> None:
    """HF-AUTH-05: A shell that nobody uses ends."""
    assert 60 <= int(host.check_output("runuser --login --shell /bin/bash nobody --command 'echo $TMOUT'")) <= 3600


@pytest.mark.control("HF-BANNER-01")
def test_console_banner(host: Host) -> None:
    """HF-BANNER-01: Who logs in on the console is warned, and not told what system it is."""
    for path in ("/etc/issue", "/etc/issue.net"):
        shown = host.file(path).content_string
        assert shown.strip()
        assert not re.search(r"Debian|\\[a-zA-Z]", shown)
    assert "Debian" not in host.file("/etc/motd").content_string


@pytest.mark.control("HF-FILE-01")
def test_sensitive_files(host: Host) -> None:
    """HF-FILE-01: Files that decide who may do what are closed to those whom they do not concern."""
    closed = "/etc/shadow /etc/gshadow /etc/sudoers /etc/sudoers.d /etc/ssh/sshd_config /root /etc/cron.d /etc/cron.daily"
    for path in closed.split():
        if host.file(path).exists:
            assert as_nobody(host, f"test -r {path}") != 0, path
    assert host.check_output("find /etc /usr /boot -xdev -type f -perm /0022 ! -group root -o -xdev -type f -perm /0002") == ""


@pytest.mark.control("HF-FILE-02")
def test_privileged_programs(host: Host) -> None:
    """HF-FILE-02: Only sudo, unix_chkpwd, D-Bus's helper and named programs have more rights than their caller, after upgrades too."""
    named = set(json.loads(host.file(RECORD).content_string).get("privileged_files", {}))
    # What containers are made of lies apart, and they gain no privileges.
    everywhere = "find / -xdev -path /var/lib/docker -prune -o -path /var/lib/containerd -prune -o -type f"
    assert set(host.check_output(f"{everywhere} -perm /6000 -print").split()) <= PRIVILEGED | named
    # The kernel's own answer: setcap and getcap are not on every host.
    assert set(host.check_output(f"{everywhere} -perm /0111 -print0 | python3 -c %s", CAPABLE).split()) <= named
    if "/usr/bin/su" not in named:
        assert "0755 /usr/bin/su\n" in host.check_output("dpkg-statoverride --list").replace(" 755 ", " 0755 ") + "\n"


@pytest.mark.control("HF-CRON-01")
def test_jobs(host: Host) -> None:
    """HF-CRON-01: Only root has jobs with cron or at."""
    for name in ("cron", "at"):
        assert host.file(f"/etc/{name}.allow").content_string == "root\n"
    if host.exists("crontab"):
        assert as_nobody(host, "crontab -l") != 0


@pytest.mark.control("HF-MAC-01")
@pytest.mark.own_kernel
def test_apparmor(host: Host) -> None:
    """HF-MAC-01: AppArmor is in force."""
    status = json.loads(host.check_output("aa-status --json"))
    assert host.service("apparmor.service").is_running
    # Debian ships profiles that only complain, of programs that are not here: what counts is that none of them is what a process has.
    complaining = {name for name, running in status["processes"].items() for each in running if each["status"] == "complain"}
    assert complaining == set()
    assert "enforce" in status["profiles"].values()


@pytest.mark.control("HF-MAC-02")
@pytest.mark.own_kernel
def test_container_profile(host: Host) -> None:
    """HF-MAC-02: The application's containers are confined by a profile of their own, on top of the bounds that Docker sets."""
    assert json.loads(host.check_output("aa-status --json"))["profiles"]["holdfast-app"] == "enforce"
    if host.exists("docker"):
        # Two filters by label would ask for both at once.
        asked = "timeout 20 docker ps --quiet --filter label=com.docker.compose.project="
        names = [name for project in PROJECTS for name in host.check_output(asked + project).split()]
        assert names, "no container of the application runs"
        for name in names:
            number = host.check_output(f"docker inspect --format '{{{{.State.Pid}}}}' {name}")
            assert host.check_output(f"tr --delete '\\0' < /proc/{number}/attr/current") == "holdfast-app (enforce)"


@pytest.mark.control("HF-AUDIT-01")
@pytest.mark.own_kernel
def test_audit_runs(host: Host) -> None:
    """HF-AUDIT-01: The audit daemon runs from early boot on and bounds its log."""
    assert host.service("auditd.service").is_running
    assert host.service("auditd.service").is_enabled
    status = dict(line.split(maxsplit=1) for line in host.check_output("auditctl -s").splitlines() if " " in line)
    assert status["enabled"] in ("1", "2")
    assert status["lost"] == "0"
    written = dict(re.findall(r"^(\w+) = (\w+)$", host.check_output("cat /etc/audit/auditd.conf"), re.MULTILINE))
    assert written["max_log_file_action"].lower() == "rotate"
    assert int(written["max_log_file"]) * int(written["num_logs"]) <= 500


@pytest.mark.control("HF-AUDIT-02")
@pytest.mark.own_kernel
def test_audit_rules(host: Host) -> None:
    """HF-AUDIT-02: Changes of accounts, rights, the way in, the kernel, the clock and the audit are recorded, with who made them."""
    loaded = host.check_output("auditctl -l")
    watched, asked = (set(re.findall(r"-F (?:path|dir)=(\S+?)/? ", rules)) for rules in (loaded, host.file(AUDIT_RULES).content_string))
    # The kernel leaves out, without a word, what watches a folder that is missing at that moment.
    assert asked <= watched, asked - watched
    assert watched >= {f"/etc/{name}" for name in ("passwd", "shadow", "sudoers", "ssh", "systemd", "audit", "apparmor.d", "pam.d")}
    for call in ("init_module", "sethostname", "clock_settime", "ptrace"):
        assert re.search(rf"-S \S*\b{call}\b", loaded), call
    # A call of the older kind would pass all of these by.
    assert re.search(r"-F arch=b32 -S all -F auid>=1000\b.* -F key=abi32", loaded)
    # A rule on every start of a program, or on every open, would be paid by each request.
    assert not re.search(r"-S \S*\bexecve\b(?!.* -F path=)", loaded)


@pytest.mark.control("HF-AUDIT-03")
@pytest.mark.own_kernel
def test_audit_of_docker(host: Host) -> None:
    """HF-AUDIT-03: Changes by a person of what runs containers, and each use of its command by a person, are recorded."""
    loaded = [line for line in host.check_output("auditctl -l").splitlines() if "key=docker" in line]
    assert all(re.search(r"-F auid>=1000 -F auid!=(-1|unset)", line) for line in loaded)
    programs = ("/usr/sbin/dockerd", "/usr/sbin/runc", "/usr/bin/containerd", "/usr/bin/containerd-shim-runc-v2")
    for path in (*programs, "/var/lib/docker", "/etc/default/docker", "/etc/containerd", "/run/docker.sock"):
        assert any(re.search(rf"-F (path|dir)={path}/? -F perm=wa\b", line) for line in loaded), path
    assert any(re.search(r"-F path=/usr/bin/docker -F perm=x\b", line) for line in loaded)


@pytest.mark.control("HF-JOURNAL-01")
def test_journal_is_sealed(host: Host) -> None:
    """HF-JOURNAL-01: The journal is sealed every quarter of an hour, so that whoever breaks in can't rewrite what came before unnoticed."""
    machine = host.check_output("cat /etc/machine-id")
    header = host.check_output(f"journalctl --header --file=/var/log/journal/{machine}/system.journal")
    assert re.search(r"^Compatible [fF]lags:.*\bSEALED\b", header, re.MULTILINE), header
    assert host.file(f"/var/log/journal/{machine}/fss").mode & 0o007 == 0


@pytest.mark.control("HF-PATCH-01")
def test_replaced_libraries(host: Host) -> None:
    """HF-PATCH-01: A service that runs on a replaced library is restarted by the upgrade that replaced it; what must not be is named."""
    evaluated = 'our %nrconf; do "/etc/needrestart/needrestart.conf"; print join " ", $nrconf{restart}, keys %{$nrconf{override_rc}}'
    mode, *kept = host.check_output(f"perl -e {shlex.quote(evaluated)}").split()
    assert mode == "a"
    assert [word for word in kept if "postgresql" in word]


@pytest.mark.control("HF-PACKAGE-01")
def test_no_compiler(host: Host) -> None:
    """HF-PACKAGE-01: There is no compiler on the host."""
    assert host.run("command -v as cc c++ clang cpp g++ gcc ld tcc").stdout == ""
    assert host.check_output("find /usr/bin -name 'gcc*' -o -name 'x86_64-linux-gnu-*' -o -name 'clang*'") == ""


@pytest.mark.control("HF-PACKAGE-02")
def test_no_old_services(host: Host) -> None:
    """HF-PACKAGE-02: Services and clients of another time are not on the host."""
    names = "avahi-daemon cups ftp nfs-kernel-server nis rpcbind rsh-client rsh-server talk telnet telnetd tftpd-hpa vsftpd xinetd"
    for name in names.split():
        assert not host.package(name).is_installed, name
