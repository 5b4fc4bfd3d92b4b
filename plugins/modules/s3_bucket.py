#!/usr/bin/python
"""Make S3 buckets, or prove that a key can write to them, with nothing but Python's standard library."""

from __future__ import annotations

import time
import urllib.parse

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.s3 import Refused, Service, Unreachable

DOCUMENTATION = r"""
---
module: s3_bucket
short_description: Make S3 buckets, or prove that a key can write to them
description:
  - Speaks to any S3 endpoint (signature version 4) and needs nothing on the host but Python 3.
  - A failure is one sentence that says what was refused, by which endpoint, with which HTTP status and S3 error code, what kind of fault
    it is (name resolution, connection, TLS, credentials, permissions, bucket, region, clock) and the way out.
options:
  name:
    description: Names of the buckets.
    type: list
    elements: str
    required: true
  state:
    description:
      - With V(present), a bucket that is missing is made.
      - With V(writable), a probe object is put, read back and deleted, and nothing counts as changed. A check mode run writes nothing and
        only asks for an object that is not there, which finds everything but a missing right to write.
    type: str
    choices: [present, writable]
    default: present
  endpoint:
    description: Address of the service, such as V(https://s3.eu-central-1.amazonaws.com).
    type: str
    required: true
  region:
    description: Region that requests are signed for.
    type: str
    default: us-east-1
  access_key:
    description: Access key.
    type: str
    required: true
  secret_key:
    description: Secret key.
    type: str
    required: true
  ca_file:
    description: PEM file on the host with the authority that signed the endpoint's certificate; the system's authorities where empty.
    type: str
    default: ""
  path_style:
    description: Whether the bucket's name is in the path (V(true)) or in the host name.
    type: bool
    default: true
  timeout_seconds:
    description: Time in seconds for one request.
    type: int
    default: 10
  wait_seconds:
    description: Time in seconds to go on trying while the service takes no connection or says that it is not ready.
    type: int
    default: 0
author: Holdfast
"""

EXAMPLES = r"""
- name: Make the buckets
  s3_bucket:
    name: [documents]
    endpoint: https://172.30.0.1:8333
    ca_file: /etc/object-store/ca.crt
    access_key: admin
    secret_key: "{{ object_store_admin_secret_key }}"
    wait_seconds: 60

- name: Prove that the application can write
  s3_bucket:
    name: documents
    state: writable
    endpoint: https://s3.eu-central-1.amazonaws.com
    region: eu-central-1
    access_key: "{{ app_bucket_access_key }}"
    secret_key: "{{ app_bucket_secret_key }}"
"""

RETURN = r"""
made:
  description: Buckets that were made, or would be.
  type: list
  elements: str
  returned: when state is present
proven:
  description: Buckets for which the probe went through.
  type: list
  elements: str
  returned: when state is writable
"""

RETRY_SECONDS = 0.5


def _work(service: Service, names: list[str], state: str, *, check: bool) -> dict[str, object]:
    if state == "writable":
        for name in names:
            service.probe(name, write=not check)
        return {"changed": False, "proven": names}
    made = []
    for name in names:
        if not service.exists(name):
            if not check:
                service.make(name)
            made.append(name)
    return {"changed": bool(made), "made": made}


def main() -> None:
    """Do what the task asks for."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "list", "elements": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "writable"], "default": "present"},
            "endpoint": {"type": "str", "required": True},
            "region": {"type": "str", "default": "us-east-1"},
            "access_key": {"type": "str", "required": True, "no_log": False},
            "secret_key": {"type": "str", "required": True, "no_log": True},
            "ca_file": {"type": "str", "default": ""},
            "path_style": {"type": "bool", "default": True},
            "timeout_seconds": {"type": "int", "default": 10},
            "wait_seconds": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    given = module.params
    if urllib.parse.urlsplit(given["endpoint"]).scheme not in ("http", "https"):
        module.fail_json(msg=f"endpoint is '{given['endpoint']}': write an address that begins with https:// or http://.")
    fields = ("endpoint", "region", "access_key", "secret_key", "ca_file", "path_style", "timeout_seconds")
    service = Service(**{name: given[name] for name in fields})
    deadline = time.monotonic() + given["wait_seconds"]
    while True:
        try:
            module.exit_json(**_work(service, given["name"], given["state"], check=module.check_mode))
        except Unreachable as error:
            if time.monotonic() >= deadline:
                module.fail_json(msg=str(error))
            time.sleep(RETRY_SECONDS)
        except Refused as error:
            module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
