"""Bad input is refused before the host is touched: one sentence with the variable, the value and the way out, exit code not 0.

The real site.yml runs its preflight with the demo's inventory and one bad value a case. Cases that don't get into each other's way share a
host of the inventory, and all of its hosts stand for the same container: one run of ansible-playbook tries all cases, and each is judged by
its own sentence.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools import engine, host
from tools.playbook import CONTAINER, quick
from tools.shell import ROOT, VENV_BIN, run

HOST = "holdfast-badinput"
OLD_HOST = "holdfast-badinput-old"
DIGEST = "sha256:" + "0" * 64
KEY = f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI{'x' * 43} somebody"
COPIES = {"endpoint": "127.0.0.1:9", "bucket": "backups", "access_key": "k", "ca": "", "path": "/pgbackrest"}
MINE = "b52d8c0e4f7a4c1f9a6d3e2b1c0f9e8d"


@dataclass(frozen=True)
class Case:
    """One bad input: who refuses it, the words that the sentence must hold, and what it sets or leaves out."""

    name: str
    by: str
    said: tuple[str, ...]
    sets: dict[str, Any] = field(default_factory=dict)
    lacks: str = ""
    on: str = HOST

    @property
    def given(self) -> dict[str, Any]:
        """Return what it makes of the inventory."""
        return {**self.sets, **({self.lacks: None} if self.lacks else {})}


def service(**parts: Any) -> dict[str, Any]:
    """Describe the inputs of an application with one service that differs from a good one."""
    return {"app_services": [{"name": "backend", "image": "backend", "command": ["serve"], "health_path": "/readyz", **parts}]}


def admins(**parts: Any) -> dict[str, Any]:
    """Describe one admin that differs from a good one."""
    return {"access_admins": [{"name": "admin", "keys": [KEY], **parts}]}


def security_key(application: str) -> str:
    """Make a public key as a security key has it: each part comes after its length."""
    parts = (b"sk-ssh-ed25519@openssh.com", b"x" * 32, application.encode())
    blob = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return f"sk-ssh-ed25519@openssh.com {base64.b64encode(blob).decode()}"


SECURITY_KEY = security_key("ssh:")
LONG_KEY = security_key("ssh:holdfast")


def waives(**reasons: object) -> dict[str, Any]:
    """Describe waivers: control → reason."""
    return {"hardening_waivers": reasons}


def repository(**parts: Any) -> dict[str, Any]:
    """Describe one repository of backups, in a bucket that nobody serves, that differs from a good one."""
    good = {"type": "s3", "path": "/pgbackrest", "bucket": "backups", "endpoint": "127.0.0.1:9", "region": "us-east-1", "access_key": "k"}
    return {"pgbackrest_repositories": [{**good, "secret_key": MINE, **parts}]}


# Nothing of it is right, and each fault is told.
BAD_REPOSITORY = repository(path="backups/", endpoint="https://x.test", bucket="", secret_key="", retention_days=0, min_full_backups=0)

BAD_RULES = {
    "firewall_extra_rules": [
        'tpc dport 22 accept comment "tcp dport"',
        "dport 22 accept",
        "tcp dport 70000 accept",
        "tcp dport { ssh, 1-65536 } accept",
        "udp sport != 0 accept",
        "tcp dport -1 accept",
        "ip protocol tpc accept",
        "ip protocol 300 accept",
        "meta l4proto { tcp, upd } accept",
        'iif "eth1" tcp dport 9100 accept',
        "ip saddr { 192.0.2.1, door.office.test } accept",
    ]
}


CASES = [
    Case("missing variable", "inventory", ("postgresql_database", "is missing", "write it in the inventory"), lacks="postgresql_database"),
    Case("missing secret", "inventory", ("postgresql_app_password", "is missing", "make secrets"), lacks="postgresql_app_password"),
    Case("null value", "inventory", ("caddy_domain", "is missing", "write it in the inventory"), {"caddy_domain": None}),
    Case("placeholder", "inventory", ("caddy_domain", "'app.example.com'", "write your own value"), {"caddy_domain": "app.example.com"}),
    Case(
        "placeholder inside",
        "inventory",
        ("app_environment", "'https://x.example.org'", "write your own"),
        {"app_environment": {"A": "https://x.example.org"}},
    ),
    Case("unknown near miss", "inventory", ("postgresql_memroy_mb", "did you mean postgresql_memory_mb?"), {"postgresql_memroy_mb": 512}),
    Case("unknown key", "inventory", ("zookeeper_quorum", "no role has such an input", "take it out"), {"zookeeper_quorum": 3}),
    Case("wrong type number", "inventory", ("postgresql_max_connections", "'many'", "int"), {"postgresql_max_connections": "many"}),
    Case("wrong type list", "inventory", ("base_ntp_servers", "{'a': 1}", "list"), {"base_ntp_servers": {"a": 1}}),
    Case("wrong type yes or no", "inventory", ("base_reboot_automatically", "'perhaps'", "bool"), {"base_reboot_automatically": "perhaps"}),
    Case("wrong choice", "inventory", ("caddy_tls", "'selfsigned'", "internal"), {"caddy_tls": "selfsigned"}),
    Case("undefined reference", "inventory with facts", ("base_timezone", "no_such_variable"), {"base_timezone": "{{ no_such_variable }}"}),
    Case(
        "upgrades amid a backup",
        "base",
        ("base_uninterrupted_units is [holdfast-drill.service]", "write holdfast-backup@*.service there too"),
        {"base_uninterrupted_units": ["holdfast-drill.service"]},
    ),
    Case("nothing uninterrupted", "base", ("base_uninterrupted_units is []", "holdfast-backup@*"), {"base_uninterrupted_units": []}),
    Case("locale without UTF-8", "base", ("base_locale is 'C'", "such as C.UTF-8"), {"base_locale": "C"}),
    Case("port 0", "object_store", ("object_store_port is 0", "write a port from 1"), {"object_store_port": 0}),
    Case(
        "port too high", "caddy", ("caddy_public_https_port is 70000", "write a port from 1 to 65535"), {"caddy_public_https_port": 70000}
    ),
    Case(
        "the host in a container",
        "app",
        ("mount /etc/, /run/docker.sock", "write the file"),
        service(mounts=["/etc/", "/run/docker.sock", "/run/x"]),
    ),
    Case("replicas 0", "app", ("app_services", "replicas 0", "write 1 to 64"), service(replicas=0)),
    Case(
        "more memory than the host has",
        "postgresql",
        ("postgresql_memory_mb is 9999999", "MB in all", "write at most"),
        {"postgresql_memory_mb": 9999999},
    ),
    Case("services larger than the host", "app", ("app_services", "memory_mb 9999999", "write less"), service(memory_mb=9999999)),
    Case("too little memory", "preflight", ("preflight_memory_mb", "9999999", "give it more memory"), {"preflight_memory_mb": 9999999}),
    Case("too little disk", "preflight", ("preflight_disk_mb", "99999999", "make room"), {"preflight_disk_mb": 99999999}),
    Case(
        "image without digest",
        "app",
        ("app_images", "r.test/backend:1.0", "host/name@sha256"),
        {"app_images": {"backend": "r.test/backend:1.0", "frontend": f"r.test/frontend@{DIGEST}"}},
    ),
    Case("profile with a blank", "caddy", ("caddy_acme_profile", "'short lived'", "write one name"), {"caddy_acme_profile": "short lived"}),
    Case("HTTPS that nobody remembers", "caddy", ("caddy_hsts_seconds is 0", "such as 300"), {"caddy_hsts_seconds": 0}),
    Case(
        "policy without a word",
        "caddy",
        ("caddy_content_security_policy is empty", "write directives"),
        {"caddy_content_security_policy": " "},
    ),
    Case("domain that is no name", "caddy", ("caddy_domain", "'https://my app/'", "write a name"), {"caddy_domain": "https://my app/"}),
    Case(
        "two services on one port",
        "object_store",
        ("object_store_port is 9333", "listens on", "write another port"),
        {"object_store_port": 9333},
    ),
    Case(
        "two services of one name", "app", ("app_services", "backend", "give each its own"), {"app_services": service()["app_services"] * 2}
    ),
    Case("empty secret", "inventory", ("postgresql_app_password", "0 characters", "make secrets"), {"postgresql_app_password": ""}),
    Case(
        "short secret", "inventory", ("app_session_secret", "5 characters", "at least 16", "make secrets"), {"app_session_secret": "q7x2z"}
    ),
    Case(
        "placeholder in a secret",
        "inventory",
        ("app_session_secret", "a placeholder", "own value"),
        {"app_session_secret": "change-me-" + "CHANGE_ME" * 3},
    ),
    Case(
        "bucket that can't be reached",
        "bucket",
        ("app_bucket_endpoint_url", "https://127.0.0.1:9", "correct the endpoint"),
        {
            "app_bucket_endpoint_url": "https://127.0.0.1:9",
            "app_bucket_name": "nobody",
            "app_bucket_access_key": "k",
            "app_bucket_secret_key": MINE,
        },
    ),
    Case("no admin", "access", ("access_admins is empty", "write a name"), {"access_admins": []}),
    Case("admin without a key", "access", ("access_admins", "admin no key", "public key"), admins(keys=[])),
    Case("key that is no list", "inventory", ("access_admins.keys is 'ssh-ed25519", "write a list"), admins(keys=KEY)),
    Case("malformed key", "access", ("access_admins", "'ssh-ed25519 AAAA'", "ssh-keygen"), admins(keys=["ssh-ed25519 AAAA"])),
    Case("security key cut short", "access", ("access_admins", "'sk-ssh-ed25519", "ssh-keygen"), admins(keys=[SECURITY_KEY[:-4]])),
    Case("security key that lacks a letter", "access", ("access_admins", "'sk-ssh-ed25519", "ssh-keygen"), admins(keys=[LONG_KEY[:-1]])),
    Case("key of an old kind", "access", ("access_admins", "'ssh-rsa", "ed25519"), admins(keys=["ssh-rsa AAAAB3NzaC1yc2E somebody"])),
    Case("admin named root", "access", ("access_admins names root", "user of its own"), admins(name="root")),
    Case(
        "admins named as services",
        "access",
        ("access_admins names postgres, systemd-network, www-data,", "user of its own"),
        {"access_admins": [{"name": name, "keys": [KEY]} for name in ("postgres", "www-data", "systemd-network")]},
    ),
    Case("admin with a bad name", "access", ("access_admins", "'A B'", "lower-case"), admins(name="A B")),
    Case("rollback at once", "access", ("access_rollback_seconds is 1", "write 10 to 3600"), {"access_rollback_seconds": 1}),
    Case(
        "unknown protocol",
        "inventory",
        ("firewall_extra_services", "sctp", "tcp, udp"),
        {"firewall_extra_services": [{"protocol": "sctp", "port": 22}]},
    ),
    Case(
        "port out of range",
        "firewall",
        ("firewall_extra_services", "70000", "write a port from 1 to 65535"),
        {"firewall_extra_services": [{"protocol": "tcp", "port": 70000}]},
    ),
    Case(
        "rule with an unknown protocol", "firewall", ("firewall_extra_rules", "'tpc dport', 'dport'", "write tcp, udp or sctp"), BAD_RULES
    ),
    Case("rule with a port out of range", "firewall", ("firewall_extra_rules", "0, -1, 70000, 65536", "from 1 to 65535"), BAD_RULES),
    Case(
        "rules that are no list",
        "inventory",
        ("firewall_extra_rules is 'tcp dport 70000", "write a list"),
        {"firewall_extra_rules": "tcp dport 70000 accept"},
    ),
    Case("rule with the number of an interface", "firewall", ("firewall_extra_rules has iif,", "write iifname"), BAD_RULES),
    Case("rule with the name of a host", "firewall", ("firewall_extra_rules", "'door.office.test'", "write its address"), BAD_RULES),
    Case(
        "rule with a misspelt protocol", "firewall", ("firewall_extra_rules", "'tpc', '300', 'upd'", "or the protocol's number"), BAD_RULES
    ),
    Case(
        "source that is no address",
        "firewall",
        ("firewall_services", "'300.1.1.1', ':::::', '1:2'", "write an address"),
        {"firewall_services": [{"protocol": "tcp", "port": 22, "sources": ["300.1.1.1", ":::::", "1:2", "fd00::/8"]}]},
    ),
    Case(
        "service whose name is no comment",
        "firewall",
        ("firewall_extra_services", r'"the \"door\"", "two\nlines", "xxx', "write one line"),
        {
            "firewall_extra_services": [
                {"name": name, "protocol": "tcp", "port": len(name)} for name in ('the "door"', "two\nlines", "x" * 128)
            ]
        },
    ),
    Case(
        "networks of containers that share addresses",
        "docker",
        ("docker_network_pool 172.30.128.0/17 overlaps docker_bridge_address 172.30.200.1/24", "write two ranges"),
        {"docker_bridge_address": "172.30.200.1/24", "docker_network_pool": "172.30.128.0/17"},
    ),
    Case(
        "unknown control",
        "hardening",
        ("HF-KERNEL-99", "is unknown", "docs/hardening.md"),
        waives(**{"HF-KERNEL-99": "It does not matter here."}),
    ),
    Case("waiver without a reason", "hardening", ("waives HF-NET-04", "without a reason", "write why"), waives(**{"HF-NET-04": " "})),
    Case(
        "waivers whose reason is no text of one line",
        "hardening",
        ("gives HF-NET-04, HF-NET-05 a reason", "no text of one line", "write one line"),
        waives(**{"HF-NET-04": "It does not matter here.\nnet.ipv4.ip_forward = 1", "HF-NET-05": ["Not", "here"]}),
    ),
    Case(
        "waiver of another role's control",
        "hardening",
        ("HF-SSH-01", "role access", "inputs"),
        waives(**{"HF-SSH-01": "We like passwords here."}),
    ),
    Case(
        "privileged files without a full path",
        "hardening",
        ("hardening_privileged_files names /bin/x, /usr/../x, usr/bin/x,", "no full path", "/usr/bin/mtr-packet"),
        {"hardening_privileged_files": dict.fromkeys(("/bin/x", "/usr/../x", "usr/bin/x"), "It is needed here.")},
    ),
    Case(
        "privileged files without a reason",
        "hardening",
        ("hardening_privileged_files names /usr/bin/x, /usr/bin/y without a reason", "write why"),
        {"hardening_privileged_files": {"/usr/bin/x": " ", "/usr/bin/y": None}},
    ),
    Case(
        "containers without a profile of their own",
        "hardening",
        ("hardening_app_apparmor_profile is '',", "HF-MAC-02 is in force", "write holdfast-app as its profile in app.yml"),
        {"app_apparmor_profile": ""},
    ),
    Case(
        "profile that nobody brings",
        "hardening",
        ("hardening_app_apparmor_profile is holdfast-app", "waives HF-MAC-02", "write '' as its profile"),
        {"app_apparmor_profile": "holdfast-app", **waives(**{"HF-MAC-02": "It does not matter here."})},
    ),
    Case(
        "shell that ends at once",
        "hardening",
        ("hardening_idle_shell_seconds is 5", "write 60 to 3600"),
        {"hardening_idle_shell_seconds": 5},
    ),
    Case(
        "shell that nobody ends",
        "hardening",
        ("hardening_idle_shell_seconds is 86400", "write 60 to 3600"),
        {"hardening_idle_shell_seconds": 86400},
    ),
    Case("banner without a word", "hardening", ('hardening_banner is " \\n"', "write a text"), {"hardening_banner": " \n"}),
    Case("banner that tells the system", "hardening", ("hardening_banner", "without the word Debian"), {"hardening_banner": "Debian 13"}),
    Case("banner that asks for the system", "hardening", ("hardening_banner", "without a backslash"), {"hardening_banner": "Private \\n"}),
    Case(
        "watched path that is relative",
        "integrity",
        ("srv/app in integrity_further_paths", "begins with /"),
        {"integrity_further_paths": ["srv/app"]},
    ),
    Case(
        "watched path that ends in a slash",
        "integrity",
        ("/srv/app/ in integrity_further_paths", "without a / at its end"),
        {"integrity_further_paths": ["/srv/app/"]},
    ),
    Case(
        "everything left out by asterisks",
        "integrity",
        ("leaves out /*, /et*, /etc/*, /usr*, /var/lib, a whole part of the system", "write which files"),
        {"integrity_left_out": dict.fromkeys(("/etc/*", "/usr*", "/et*", "/*", "/var/lib"), "It changes so very often.")},
    ),
    Case(
        "left out without a reason",
        "integrity",
        ("leaves out /etc/hosts without a reason", "write why"),
        {"integrity_left_out": {"/etc/hosts": ""}},
    ),
    Case(
        "everything left out",
        "integrity",
        ("leaves out /etc, a whole part of the system", "write which files"),
        {"integrity_left_out": {"/etc": "It changes so very often."}},
    ),
    Case("no repository", "pgbackrest", ("pgbackrest_repositories is empty", "write at least one"), {"pgbackrest_repositories": []}),
    Case("repository without a bucket", "pgbackrest", ("pgbackrest_repositories has the bucket ''", "write a name"), BAD_REPOSITORY),
    Case("repository without a key", "pgbackrest", ("pgbackrest_repositories", "access_key and secret_key"), BAD_REPOSITORY),
    Case("endpoint with a scheme", "pgbackrest", ("pgbackrest_repositories", "'https://x.test'", "a host name"), BAD_REPOSITORY),
    Case("path that is relative", "pgbackrest", ("pgbackrest_repositories", "'backups/'", "a full path"), BAD_REPOSITORY),
    Case("retention of 0 days", "pgbackrest", ("retention_days of 0", "write 1 or more"), BAD_REPOSITORY),
    Case("no full backup kept", "pgbackrest", ("min_full_backups of 0", "write 1 or more"), BAD_REPOSITORY),
    Case(
        "one repository twice",
        "pgbackrest",
        ("pgbackrest_repositories names one place twice (/srv/backups, /srv/backups)", "write each repository once"),
        {"pgbackrest_repositories": [{"type": "posix", "path": "/srv/backups"}, {"type": "posix", "path": "/srv/backups/"}]},
    ),
    Case(
        "repository over the system",
        "pgbackrest",
        (
            "pgbackrest_repositories has the path '/', '/srv', '/etc/pgbackrest', '/var/lib/', '/var/lib/postgresql/17/main/backups' on",
            "write a folder of its own",
        ),
        {
            "pgbackrest_repositories": [
                {"type": "posix", "path": path}
                for path in ("/", "/srv", "/etc/pgbackrest", "/var/lib/", "/var/lib/postgresql/17/main/backups", "/var/lib/pgbackrest")
            ]
        },
    ),
    Case("unknown type of repository", "inventory", ("pgbackrest_repositories", "gcs", "posix"), repository(type="gcs")),
    Case(
        "schedule that systemd can't read",
        "pgbackrest",
        ("pgbackrest_full_schedule is 'now and then'", "systemd can't read", "write times such as"),
        {"pgbackrest_full_schedule": "now and then"},
    ),
    Case(
        "schedule that never comes",
        "pgbackrest",
        ("pgbackrest_full_schedule is '2020-01-01 01:00:00'", "never comes again", "write times such as"),
        {"pgbackrest_full_schedule": "2020-01-01 01:00:00"},
    ),
    Case(
        "queue that fills the disk", "pgbackrest", ("pgbackrest_archive_queue_mb is 99999999",), {"pgbackrest_archive_queue_mb": 99999999}
    ),
    Case(
        "archived once a day", "pgbackrest", ("pgbackrest_archive_timeout_seconds is 86400",), {"pgbackrest_archive_timeout_seconds": 86400}
    ),
    Case(
        "repository that can't be reached",
        "pgbackrest repository",
        ("pgbackrest_repositories has 'backups:/pgbackrest'", "https://127.0.0.1:9", "correct the endpoint"),
        repository(),
    ),
    Case("dumps never", "offsite", ("offsite_dumps_schedule", "'whenever'", "systemd says"), {"offsite_dumps_schedule": "whenever"}),
    Case(
        "copies on no day of the year",
        "offsite",
        ("offsite_files_schedule is '*-02-30 01:00:00'", "never comes again"),
        {"offsite_files_schedule": "*-02-30 01:00:00"},
    ),
    Case("copies kept for no day", "offsite", ("offsite_retention_days is 0", "write 1 or more"), {"offsite_retention_days": 0}),
    Case("folder of no bucket", "offsite", ("offsite_path is 'offsite'", "such as /offsite"), {"offsite_path": "offsite"}),
    Case("bucket without TLS", "offsite", ("offsite_endpoint is 'http://s3.test'", "TLS only"), {"offsite_endpoint": "http://s3.test"}),
    Case("copies to a bucket of no name", "offsite", ("offsite_bucket is 'My_Bucket'", "lower-case"), {"offsite_bucket": "My_Bucket"}),
    Case("copies before their time", "offsite", ("offsite_random_delay_seconds is -1", "0 or more"), {"offsite_random_delay_seconds": -1}),
    Case("documents of no service", "offsite", ("offsite_documents_bucket", "write both"), {"offsite_documents_endpoint": ""}),
    Case(
        "documents without their key",
        "offsite",
        ("offsite_documents_bucket is 'documents' without its key", "offsite_documents_access_key"),
        {"offsite_documents_access_key": ""},
    ),
    Case(
        "documents copied onto themselves",
        "offsite",
        ("the bucket that it is copied to", "another bucket"),
        {"offsite_endpoint": "172.30.0.1:8333", "offsite_bucket": "documents"},
    ),
    Case(
        "drill that systemd can't schedule",
        "restore_drill",
        ("restore_drill_schedule is 'each night'", "systemd can't read it", "write a time such as"),
        {"restore_drill_schedule": "each night"},
    ),
    Case(
        "drill that never comes",
        "restore_drill",
        ("restore_drill_schedule is '2020-01-01 04:00:00'", "never comes again", "write a time such as"),
        {"restore_drill_schedule": "2020-01-01 04:00:00"},
    ),
    Case(
        "drill that compares nothing", "restore_drill", ("restore_drill_sample_mb is 0", "write 1 or more"), {"restore_drill_sample_mb": 0}
    ),
    Case("drill that fills the disk", "restore_drill", ("restore_drill_spare_mb is 0", "100 or more"), {"restore_drill_spare_mb": 0}),
    Case(
        "drill with the host's memory",
        "restore_drill",
        ("restore_drill_memory_mb is 9999999", "write at most"),
        {"restore_drill_memory_mb": 9999999},
    ),
    Case("drill without a processor", "restore_drill", ("restore_drill_cpu_percent is 1", "write 10 to"), {"restore_drill_cpu_percent": 1}),
    Case("host that is not Debian 13", "system", ("Debian 12", "Debian 13 only", "install the machine anew"), on=OLD_HOST),
]
LEGAL_RULES = [
    "tcp dport { ssh, 8000-8100 } ip saddr 10.0.0.0/8 accept",
    'th sport 1-65535 th dport != 99 counter accept comment "not dport 70000"',
    "ip saddr . tcp dport { 192.0.2.7 . 22, 10.0.0.1 . 80 } accept",
    "sctp dport vmap { 22: accept, 1024-2048: drop }",
    "meta l4proto { tcp, udp } th dport >= 70 accept",
    "tcp dport 22 ct count over 70000 drop",
    'iifname "eth1" fib daddr . iif type local tcp dport 9100 accept',
    "ip6 saddr fd00::/8 meta l4proto 47 accept",
]
GOOD = Case(
    "good",
    "nobody",
    (),
    {
        **admins(keys=[KEY, SECURITY_KEY, f"{LONG_KEY} somebody"]),
        "base_locale": "ca_ES.UTF-8@valencia",
        "caddy_content_security_policy": "default-src 'self' 'unsafe-inline'",
        "caddy_hsts_seconds": 300,
        "caddy_private_paths": [],
        "firewall_extra_rules": LEGAL_RULES,
        "hardening_privileged_files": {"/usr/bin/mtr-packet": "Admins look for lost packets."},
        "hardening_waivers": {
            "HF-MAC-02": "The inventory takes the profile away with it.",
            "HF-NET-04": "It doesn't matter here: é, # and 'quotes'.",
        },
        "integrity_left_out": {"/etc/*.cache": "It changes so very often.", "/usr/*/__pycache__/*": "Python writes it when it likes."},
    },
)


@dataclass(frozen=True)
class Outcome:
    """What one run said: by host the task that failed and its result, and the counts of each host; and the container's files."""

    code: int
    failed: dict[str, dict[str, Any]]
    stats: dict[str, dict[str, int]]
    changed_files: set[str]


def pack(cases: list[Case]) -> dict[str, list[Case]]:
    """Put cases together on hosts: those that the same role refuses, on the same machine, with different variables or the same values."""
    hosts: dict[str, list[Case]] = {}
    for case in cases:
        for held in hosts.values():
            taken = {name: value for other in held for name, value in other.given.items()}
            if (held[0].by, held[0].on) == (case.by, case.on) and all(
                taken.get(name, value) == value for name, value in case.given.items()
            ):
                held.append(case)
                break
        else:
            hosts[f"case-{len(hosts)}"] = [case]
    return hosts


PACKED = pack([*CASES, GOOD])


def inputs(inventory: str) -> dict[str, Any]:
    """Read an inventory's values, without what programs write into it."""
    found: dict[str, Any] = {}
    for path in sorted((ROOT / "inventories" / inventory / "group_vars" / "all").glob("*.yml")):
        if path.name not in ("vault.yml", "images.yml", "admins.yml", "bucket.yml"):
            found |= yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    return found


def secrets() -> dict[str, str]:
    """Make a value for every secret that the roles require; no two are the same."""
    found: dict[str, str] = {}
    for path in sorted((ROOT / "roles").glob("*/meta/argument_specs.yml")):
        options = yaml.safe_load(path.read_text(encoding="utf-8"))["argument_specs"]["main"].get("options") or {}
        found |= {name: f"{name[::-1]}{MINE}"[:40] for name, option in options.items() if option.get("no_log") and option.get("required")}
    return found


def write_inventory(folder: Path, base: dict[str, Any], packed: dict[str, list[Case]]) -> Path:
    """Write an inventory: what any case lacks is set for each other host instead of for all."""
    lacking = {case.lacks for cases in packed.values() for case in cases if case.lacks}
    hosts = {}
    for name, cases in packed.items():
        lacks = {case.lacks for case in cases}
        hosts[name] = {**CONTAINER, "ansible_host": cases[0].on}
        hosts[name] |= {each: base[each] for each in lacking - lacks}
        for case in cases:
            hosts[name] |= case.sets
    groups = {"all": {"hosts": hosts}, "object_store": {"hosts": dict.fromkeys(hosts)}}
    (folder / "group_vars" / "all").mkdir(parents=True)
    (folder / "hosts.yml").write_text(yaml.safe_dump(groups), encoding="utf-8")
    kept = {name: value for name, value in base.items() if name not in lacking}
    (folder / "group_vars" / "all" / "inputs.yml").write_text(yaml.safe_dump(kept), encoding="utf-8")
    return folder


def play(inventory: Path) -> Outcome:
    """Run the preflight of site.yml against an inventory."""
    before = files_changed()
    done = subprocess.run(
        [VENV_BIN / "ansible-playbook", "-i", inventory, "site.yml", "--tags", "preflight"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
        env={
            **os.environ,
            **quick(),
            "PATH": f"{VENV_BIN}:{os.environ['PATH']}",
            "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
            # The hosts here are cases: the fault of one must not end the others.
            "ANSIBLE_ANY_ERRORS_FATAL": "false",
            "ANSIBLE_FORKS": "4",
            "ANSIBLE_LOCALHOST_WARNING": "false",
            "ANSIBLE_DEPRECATION_WARNINGS": "false",
        },
    )
    start = done.stdout.find("{\n")
    assert start >= 0, done.stdout + done.stderr
    told, _ = json.JSONDecoder().raw_decode(done.stdout[start:])
    failed = {
        name: result
        for each in told["plays"]
        for task in each["tasks"]
        for name, result in task["hosts"].items()
        if result.get("failed") or result.get("unreachable")
    }
    return Outcome(done.returncode, failed, told["stats"], files_changed() - before)


def files_changed() -> set[str]:
    """Name the container's files that differ from its image, but for what a login, apt's cache and a running system leave."""
    listed = run(["docker", "diff", HOST]).stdout.splitlines()
    passing = ("/root", "/tmp", "/run", "/var/log", "/var/lib/systemd", "/var/cache/apt", "/var/tmp")
    return {line[2:] for line in listed if not line[2:].startswith(passing) and "__pycache__" not in line}


@pytest.fixture(scope="module")
def machine() -> Iterator[None]:
    """Bring up a bare host, and one that runs Debian 12 as far as it tells."""
    engine.ensure()
    host.down(HOST)
    host.down(OLD_HOST)
    try:
        host.up(HOST)
        # It only has to be asked: no service runs in it.
        run(["docker", "run", "--detach", "--name", OLD_HOST, "--label", host.LABEL, host.make_host_image(), "sleep", "infinity"])
        rename = "sed -i 's/trixie/bookworm/g; s/13/12/g' /usr/lib/os-release; echo 12.11 > /etc/debian_version"
        run(["docker", "exec", OLD_HOST, "sh", "-c", rename])
        yield
    finally:
        host.down(HOST)
        host.down(OLD_HOST)


@pytest.fixture(scope="module")
def base() -> dict[str, Any]:
    """The demo's inventory with secrets; nobody asks its registry or the bucket of its copies, and backups go to a folder."""
    images = {name: f"r.test/{name}@{DIGEST}" for name in ("backend", "frontend")}
    backups = {"pgbackrest_repositories": [{"type": "posix", "path": "/srv/backups"}], "__offsite_repository": COPIES}
    return {**inputs("demo"), **backups, "app_images": images, "access_admins": [{"name": "admin", "keys": [KEY]}], **secrets()}


@pytest.fixture(scope="module")
def outcome(machine: None, base: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Run all cases, and a good one beside them."""
    folder = tmp_path_factory.mktemp("demo") / "inventory"
    try:
        return play(write_inventory(folder, base, PACKED))
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_refused_in_one_sentence(case: Case, outcome: Outcome) -> None:
    name = next(name for name, cases in PACKED.items() if case in cases)
    assert name in outcome.failed, "it was accepted"
    message = str(outcome.failed[name]["msg"])
    faults = outcome.failed[name].get("faults", [message])
    matching = [fault for fault in faults if all(words in fault for words in case.said)]
    assert len(matching) == 1, message
    assert "Nothing was changed on" in message, message
    assert not any(secret in message for secret in (MINE, "q7x2z", "CHANGE_ME")), "the message shows a secret"


@pytest.mark.parametrize("name", PACKED)
def test_one_sentence_a_fault(name: str, outcome: Outcome) -> None:
    faults = outcome.failed.get(name, {}).get("faults")
    assert faults is None or len(faults) == len(PACKED[name]), faults


def test_exit_code_is_not_0(outcome: Outcome) -> None:
    assert outcome.code != 0


def test_good_inventory_is_accepted(outcome: Outcome) -> None:
    name = next(name for name, cases in PACKED.items() if GOOD in cases)
    assert name not in outcome.failed, outcome.failed[name]["msg"]


def test_nothing_was_changed(outcome: Outcome) -> None:
    assert {name: counts["changed"] for name, counts in outcome.stats.items() if counts["changed"]} == {}
    assert outcome.changed_files == set()


def test_every_placeholder_of_the_worked_example_is_refused(machine: None, tmp_path: Path) -> None:
    """The production inventory as it is checked in names each value that a person has to write, all at once."""
    example = {**inputs("production"), **secrets()}
    result = play(write_inventory(tmp_path / "inventory", example, {"example": [Case("as it is", "nobody", (), {})]})).failed["example"]
    held = {name for name, value in inputs("production").items() if "example." in json.dumps(value) and not name.startswith("__")}
    assert held, "the worked example holds no placeholder"
    named = {name for name in held if any(str(fault).startswith(f"{name} still holds the placeholder") for fault in result["faults"])}
    assert named == held
