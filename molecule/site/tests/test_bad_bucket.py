"""A bucket that can't be used is refused before the host is touched; asked of a real one, the site's own."""

from __future__ import annotations

import pytest
from testinfra.host import Host

from tools import secrets
from tools.playbook import play_on

ENDPOINT = "https://172.30.0.1:8333"


def _preflight(host_name: str, bucket: str, secret_key: str) -> tuple[int, str]:
    """Run the site's preflight with an outside bucket."""
    given = {
        "app_bucket_endpoint_url": ENDPOINT,
        "app_bucket_name": bucket,
        "app_bucket_access_key": "smart-audit-app",
        "app_bucket_secret_key": secret_key,
        "app_bucket_ca_file": "/etc/object-store/ca.crt",
    }
    done = play_on(host_name, "site.yml", "--tags", "preflight", **given)
    return done.returncode, done.stdout


def test_good_bucket(host: Host, host_name: str) -> None:
    """A bucket that can be written passes, and no probe is left in it."""
    code, said = _preflight(host_name, "documents", secrets.read("demo")["object_store_app_secret_key"])
    assert code == 0 and "changed=0" in said, said
    assert host.service("object-store.service").is_running


@pytest.mark.parametrize(
    ("bucket", "key", "words"),
    [
        pytest.param("documents", "w" * 32, "SignatureDoesNotMatch", id="wrong key"),
        pytest.param("somebody-elses", "", "somebody-elses", id="another bucket"),
    ],
)
def test_bad_bucket(host: Host, host_name: str, bucket: str, key: str, words: str) -> None:
    """A bucket that can't be written is refused in a sentence that names it, and nothing is changed."""
    code, said = _preflight(host_name, bucket, key or secrets.read("demo")["object_store_app_secret_key"])
    assert code != 0 and "changed=0" in said, said
    assert "Nothing was changed" in said and "app_bucket_name" in said and words in said, said
    assert key not in said or not key
    assert host.service("app@blue.service").is_running
