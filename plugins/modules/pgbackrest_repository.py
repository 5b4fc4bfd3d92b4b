#!/usr/bin/python
"""Look into pgBackRest's repositories before anything is changed: can they be used, and whose past do they hold?"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.s3 import Refused, Service

DOCUMENTATION = r"""
---
module: pgbackrest_repository
short_description: Look into pgBackRest's repositories before anything is changed
description:
  - Reads each repository's C(archive.info), with neither pgBackRest nor a server on the host, and compares the system identifier in it with
    the host's cluster.
  - Where a bucket holds nothing yet, a probe object is put, read back and deleted, once; a check mode run only reads.
  - What is wrong does not fail the task; it is told in C(faults), one sentence each.
options:
  repositories:
    description: Repositories, as the role pgbackrest takes them.
    type: list
    elements: dict
    required: true
  passphrase:
    description: Passphrase that they are encrypted with.
    type: str
    required: true
  stanza:
    description: Stanza to look for.
    type: str
    default: main
  data:
    description: Data directory of the host's cluster, which may be missing.
    type: path
    required: true
  adopt:
    description:
      - Whether the past of another database is welcome, because it is about to be restored.
      - Then it is only read, and one repository at least has to hold a backup; a warning names one that does not answer.
    type: bool
    default: false
  timeout_seconds:
    description: Time in seconds for one request.
    type: int
    default: 10
author: Holdfast
"""

EXAMPLES = r"""
- name: Look into the repositories
  pgbackrest_repository:
    repositories: "{{ pgbackrest_repositories }}"
    passphrase: "{{ pgbackrest_cipher_passphrase }}"
    data: /var/lib/postgresql/17/main
"""

RETURN = r"""
faults:
  description: What is wrong with them.
  type: list
  elements: str
  returned: always
"""

CONTROL_DATA = "/usr/lib/postgresql/17/bin/pg_controldata"
# The identifier of the stanza's newest cluster; an upgrade adds one.
IDENTIFIER = re.compile(rb"^\[db\]$.*?^db-system-id=(\d+)$", re.MULTILINE | re.DOTALL)
# A line in the section of the backups that are there.
BACKUP = re.compile(rb"^\[backup:current\]\n\d{8}-\d{6}F", re.MULTILINE)
COMMAND_SECONDS = 30


class _OtherPassphrase(Refused):
    """A repository that answers, and that no waiting will open."""


def _cluster(data: str) -> str:
    """Return the system identifier of the host's cluster; empty where there is none.

    Raises:
        Refused: there is one, and it can't be told.
    """
    if not Path(data, "PG_VERSION").exists() or not Path(CONTROL_DATA).exists():
        return ""
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run([CONTROL_DATA, data], check=False, capture_output=True, text=True, timeout=COMMAND_SECONDS, env=environment)
    if found := re.search(r"^Database system identifier: +(\d+)$", done.stdout, re.MULTILINE):
        return found[1]
    why = (done.stderr.strip().splitlines() or ["it names none"])[-1]
    raise Refused(
        f"{data} does not say which database it holds ({why}), as a restore leaves it that was cut short: `holdfast restore status` on the "
        "host says how to go on."
    )


def _decrypted(content: bytes, passphrase: str) -> bytes:
    """Decrypt a small file of a repository: nothing where the passphrase is another."""
    command = ["openssl", "enc", "-d", "-aes-256-cbc", "-md", "sha1", "-pass", "env:HOLDFAST_PASSPHRASE"]
    environment = {**os.environ, "HOLDFAST_PASSPHRASE": passphrase}
    done = subprocess.run(command, check=False, input=content, capture_output=True, timeout=COMMAND_SECONDS, env=environment)
    return done.stdout if done.returncode == 0 else b""


def _read_folder(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise Refused(f"{path} can't be read ({error.strerror}): write the path of a folder.") from error


def _read_bucket(repository: dict[str, Any], key: str, timeout_seconds: int, *, write: bool) -> bytes:
    service = Service(
        endpoint=f"https://{repository['endpoint']}",
        region=repository["region"],
        access_key=repository["access_key"],
        secret_key=repository["secret_key"],
        ca_file="",
        ca=repository.get("ca") or "",
        path_style=repository.get("uri_style", "path") == "path",
        timeout_seconds=timeout_seconds,
    )
    bucket = repository["bucket"]
    answer = service.ask("GET", bucket, key)
    if answer.status == 200:
        return bytes(answer.body)
    if answer.status != 404 or answer.code == "NoSuchBucket":
        raise service.refusal("read an object in", bucket, answer)
    service.probe(bucket, repository["path"].strip("/"), write=write)
    return b""


def _read(repository: dict[str, Any], name: str, timeout_seconds: int, *, write: bool) -> bytes:
    """Read a file of a repository; nothing where there is none."""
    path = f"{repository['path'].rstrip('/')}/{name}"
    if repository["type"] == "posix":
        return _read_folder(Path(path))
    return _read_bucket(repository, path.lstrip("/"), timeout_seconds, write=write)


def _look(repository: dict[str, Any], given: dict[str, Any], cluster: str, *, write: bool) -> str:
    """Look into one repository, and say why nothing can be restored from it; nothing where something can.

    Raises:
        Refused: it can't be used, or not by this database.
    """
    seconds = given["timeout_seconds"]
    content = _read(repository, f"archive/{given['stanza']}/archive.info", seconds, write=write)
    if not content:
        return "is empty: nothing was ever kept there, or it is another bucket or path than the lost host's"
    found = IDENTIFIER.search(_decrypted(content, given["passphrase"]))
    if not found:
        raise _OtherPassphrase(
            "it is encrypted with another passphrase than pgbackrest_cipher_passphrase: put the one back that it was written with, "
            "or write another path."
        )
    held = found[1].decode()
    if held != cluster and not given["adopt"]:
        own = f"this host's is {cluster}" if cluster else "this host has none"
        raise Refused(
            f"it holds the past of another database (system identifier {held}, {own}): `ansible-playbook playbooks/rebuild.yml` brings "
            "that database back, or write another path."
        )
    if not given["adopt"]:
        return ""
    listed = _decrypted(_read(repository, f"backup/{given['stanza']}/backup.info", seconds, write=False), given["passphrase"])
    return "" if BACKUP.search(listed) else "holds no backup: WAL alone brings nothing back"


def main() -> None:
    """Do what the task asks for."""
    module = AnsibleModule(
        argument_spec={
            # A name in a sentence would be hidden with the secrets beside it: the task itself is not logged.
            "repositories": {"type": "list", "elements": "dict", "required": True, "no_log": False},
            "passphrase": {"type": "str", "required": True, "no_log": True},
            "stanza": {"type": "str", "default": "main"},
            "data": {"type": "path", "required": True},
            "adopt": {"type": "bool", "default": False},
            "timeout_seconds": {"type": "int", "default": 10},
        },
        supports_check_mode=True,
    )
    given = module.params
    try:
        # What is about to be replaced may be half a database.
        cluster = "" if given["adopt"] else _cluster(given["data"])
    except Refused as error:
        module.exit_json(changed=False, faults=[str(error)])
        return
    faults, without, away = [], [], {}
    for repository in given["repositories"]:
        where = f"{repository['bucket']}:{repository['path']}" if repository["type"] == "s3" else repository["path"]
        try:
            # What is about to be restored from is only read.
            if lacks := _look(repository, given, cluster, write=not (module.check_mode or given["adopt"])):
                without.append(f"'{where}' {lacks}")
        except Refused as error:
            if given["adopt"] and not isinstance(error, _OtherPassphrase):
                # One of them may be lost with the host.
                away[where] = f"can't be used: {error}".rstrip(".")
            else:
                faults.append(f"pgbackrest_repositories has '{where}', and it can't be used: {error}")
    without += [f"'{where}' {said}" for where, said in away.items()]
    if given["adopt"] and not faults and len(without) == len(given["repositories"]):
        faults.append(f"pgbackrest_repositories has nothing to bring back: {'; '.join(without)}.")
    elif not faults:
        for where, said in away.items():
            module.warn(f"pgbackrest_repositories has '{where}', which {said}. What only it holds is not brought back.")
    module.exit_json(changed=False, faults=faults)


if __name__ == "__main__":
    main()
