"""`smart-audit migrate`: bring the schema up to date as its owner, and make sure that the first user can log in."""

import logging

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text

from smart_audit.database import Database
from smart_audit.migrations import revisions
from smart_audit.passwords import hash_password, verify_password
from smart_audit.settings import MigrateSettings

log = logging.getLogger(__name__)

# Any constant does; it only has to be the same in every copy of this program that may migrate at the same time.
_LOCK = 7_265_616_475


def alembic_config() -> Config:
    """Return Alembic's configuration, without a file."""
    config = Config()
    config.set_main_option("script_location", "smart_audit:migrations")
    return config


def _ensure_user(connection: Connection, username: str, password: str) -> str:
    """Create the user, or give it `password` if it had another; return which of the three happened."""
    stored = connection.execute(text("SELECT password_hash FROM users WHERE username = :name"), {"name": username}).scalar()
    if stored is None:
        connection.execute(
            text("INSERT INTO users (username, password_hash) VALUES (:name, :hash)"),
            {"name": username, "hash": hash_password(password)},
        )
        return "created"
    if verify_password(password, stored):
        return "unchanged"
    connection.execute(
        text("UPDATE users SET password_hash = :hash WHERE username = :name"),
        {"name": username, "hash": hash_password(password)},
    )
    # A password is rotated because the old one may be known: whoever used it is logged out.
    connection.execute(text("DELETE FROM sessions WHERE user_id = (SELECT id FROM users WHERE username = :name)"), {"name": username})
    return "password changed"


def migrate(settings: MigrateSettings) -> None:
    """Migrate to the newest revision and ensure the first user; safe to run at any time and by several at once.

    Raises:
        Unavailable: the database does not answer.
    """
    database = Database(settings.database_url, 1, "smart-audit-migrate")

    def run(connection: Connection) -> None:
        # This connection is direct, not pooled by transaction, so that a lock of the session is possible. It is needed:
        # two hosts or an impatient person may start this twice.
        connection.execute(text("SET lock_timeout = '60s'"))
        connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": _LOCK})
        # Waiting long for a table's lock would queue every reader behind us; failing and being run again is better.
        connection.execute(text("SET lock_timeout = '10s'"))
        connection.commit()
        config = alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        user = _ensure_user(connection, settings.admin_username, settings.admin_password)
        connection.commit()
        log.info("migrated", extra={"fields": {"revision": revisions()[-1], "user": user}})

    try:
        database.session(run)
    finally:
        database.close()
