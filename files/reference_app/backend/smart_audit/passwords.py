"""Password hashes by scrypt out of the standard library, with the parameters stored beside each hash."""

import base64
import hashlib
import hmac
import secrets
import threading

# One of the equivalent settings of OWASP's password storage cheat sheet: 16 MiB and about a quarter of a second.
_LOG2_N, _R, _P = 14, 8, 5
_MAXIMUM_MEMORY_BYTES = 64 * 1024 * 1024
# A burst of logins must not multiply those 16 MiB in a container of a small limit.
_one_at_a_time = threading.Semaphore(2)


def _derive(password: str, salt: bytes, log2_n: int, r: int, p: int) -> bytes:
    with _one_at_a_time:
        return hashlib.scrypt(password.encode(), salt=salt, n=1 << log2_n, r=r, p=p, maxmem=_MAXIMUM_MEMORY_BYTES, dklen=32)


def hash_password(password: str) -> str:
    """Return `scrypt$<log2 n>$<r>$<p>$<salt>$<hash>`, salt and hash in base64."""
    salt = secrets.token_bytes(16)
    digest = _derive(password, salt, _LOG2_N, _R, _P)
    encoded = (base64.b64encode(part).decode() for part in (salt, digest))
    return "$".join(("scrypt", str(_LOG2_N), str(_R), str(_P), *encoded))


def verify_password(password: str, stored: str | None) -> bool:
    """Return whether `password` is the one that `stored` was made from.

    With `stored` None (no such user) the same time is spent, so that an answer's delay does not tell which users exist.
    """
    if stored is None:
        _derive(password, b"\0" * 16, _LOG2_N, _R, _P)
        return False
    scheme, log2_n, r, p, salt, digest = stored.split("$")
    if scheme != "scrypt":
        raise ValueError(f"unknown password scheme {scheme!r}")
    derived = _derive(password, base64.b64decode(salt), int(log2_n), int(r), int(p))
    return hmac.compare_digest(derived, base64.b64decode(digest))
