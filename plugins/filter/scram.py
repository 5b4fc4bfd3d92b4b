"""Make PostgreSQL's verifier of a password, so that the password itself never leaves the controller."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable

from ansible.errors import AnsibleFilterError

ITERATIONS = 4096  # PostgreSQL's own default, and what a pooler expects when it passes a login through
SALT_BYTES = 16


def _derive(password: str, salt: bytes, iterations: int) -> bytes:
    return hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)


def encode(password: str, salt: bytes, iterations: int = ITERATIONS) -> str:
    """Return the verifier of RFC 5803 in PostgreSQL's notation (RFC 7677 for SHA-256)."""
    salted = _derive(password, salt, iterations)
    stored_key = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    shown_salt, shown_stored, shown_server = (base64.b64encode(part).decode() for part in (salt, stored_key, server_key))
    return f"SCRAM-SHA-256${iterations}:{shown_salt}${shown_stored}:{shown_server}"


def scram_verifier(password: str, role: str) -> str:
    """Return the verifier of a role's password, the same one each time.

    A random salt would make every run a change. This salt is derived from the password and the role, at the price of one full iteration:
    it differs between roles and installations, and tells who sees it no more than the verifier does.
    """
    if not password:
        raise AnsibleFilterError(f"The password of {role} is empty: let `make secrets` write it.")
    if not password.isascii() or not password.isprintable():
        raise AnsibleFilterError(f"The password of {role} has characters outside printable ASCII, which clients encode in different ways.")
    salt = _derive(password, b"holdfast scram salt " + role.encode(), ITERATIONS)[:SALT_BYTES]
    return encode(password, salt)


class FilterModule:
    """Filters that Ansible finds."""

    def filters(self) -> dict[str, Callable[..., str]]:
        """Return the filters by name."""
        return {"scram_verifier": scram_verifier}
