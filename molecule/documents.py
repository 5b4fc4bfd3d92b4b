"""The application's bucket of documents, asked on the host with the application's key."""

from __future__ import annotations

import json
import re

from testinfra.host import Host

SETTINGS = "/etc/holdfast-offsite.json"


def ask(host: Host, method: str, name: str = "", body: str = "") -> str:
    """Put, get or delete a document; without a name, the whole bucket is meant."""
    held = json.loads(host.check_output(f"cat {SETTINGS}"))["documents"]
    login = f'user = "{held["access_key"]}:{held["secret_key"]}"'
    sent = f"--data-binary {body!r}" if body else ""
    return host.check_output(
        f"printf '%s\\n' '{login}' | timeout 30 curl --silent --fail --config - --aws-sigv4 aws:amz:us-east-1:s3 --cacert {held['ca']} "
        f"--request {method} {sent} {held['endpoint']}/{held['bucket']}/{name}"
    )


def digests(host: Host) -> dict[str, str]:
    """Return each document's name and the digest of its content."""
    listed = ask(host, "GET")
    return dict(re.findall(r"<Key>(.*?)</Key>.*?<ETag>(.*?)</ETag>", listed, re.DOTALL))
