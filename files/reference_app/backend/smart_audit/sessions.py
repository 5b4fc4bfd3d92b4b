"""Sessions: kept in Postgres, so that logging out ends one for good; the cookie holds nothing but a random token."""

import hashlib
import hmac
import secrets
from dataclasses import dataclass

from sqlalchemy import Connection, text

# The prefix makes browsers insist on Secure, Path=/ and no Domain.
COOKIE = "__Host-session"


@dataclass(frozen=True)
class User:
    """Somebody who is logged in."""

    user_id: int
    username: str


class Sessions:
    """Opens, checks and ends sessions.

    Only a keyed hash of each token is stored: who reads the table cannot log in with what it holds.
    """

    def __init__(self, secret: str, hours: int) -> None:
        self._secret = secret.encode()
        self.seconds = hours * 3600

    def _hash(self, token: str) -> bytes:
        return hmac.new(self._secret, token.encode(), hashlib.sha256).digest()

    def open(self, connection: Connection, user_id: int) -> str:
        """Return the token of a new session of that user."""
        token = secrets.token_urlsafe(32)
        connection.execute(
            text("INSERT INTO sessions (token_hash, user_id, expires_at) VALUES (:hash, :user, now() + make_interval(secs => :seconds))"),
            {"hash": self._hash(token), "user": user_id, "seconds": self.seconds},
        )
        return token

    def check(self, connection: Connection, token: str) -> User | None:
        """Return whose session this is, by one query; None if there is none or it has expired."""
        row = connection.execute(
            text(
                "SELECT users.id, users.username FROM sessions JOIN users ON users.id = sessions.user_id"
                " WHERE token_hash = :hash AND expires_at > now()"
            ),
            {"hash": self._hash(token)},
        ).one_or_none()
        return User(row.id, row.username) if row else None

    def end(self, connection: Connection, token: str) -> None:
        """End the session; it is no error if there is none."""
        connection.execute(text("DELETE FROM sessions WHERE token_hash = :hash"), {"hash": self._hash(token)})


def find_user(connection: Connection, username: str) -> tuple[int, str] | None:
    """Return the id and the password hash of that user, if there is one."""
    row = connection.execute(text("SELECT id, password_hash FROM users WHERE username = :name"), {"name": username}).one_or_none()
    return (row.id, row.password_hash) if row else None


def delete_expired(connection: Connection) -> None:
    """Remove sessions that have expired."""
    connection.execute(text("DELETE FROM sessions WHERE expires_at < now()"))
