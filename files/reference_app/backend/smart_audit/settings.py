"""Settings: everything by environment variable, secrets by file.

Each subcommand reads only what it needs, so that the web process never holds the migration role's password.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

SECRETS_DIRECTORY = Path("/run/secrets")
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


class SettingsError(ValueError):
    """A setting is missing or wrong; the message is one sentence that names the variable and the way out."""


class Environment:
    """Reads typed values out of environment variables and the files that they name."""

    def __init__(self, values: Mapping[str, str] | None = None) -> None:
        self._values = os.environ if values is None else values

    def text(self, name: str, example: str, default: str | None = None) -> str:
        """Return a non-empty string.

        Raises:
            SettingsError: neither a value nor a default is there.
        """
        value = self._values.get(name, "").strip()
        if value:
            return value
        if default is not None:
            return default
        raise SettingsError(f"{name} is not set: give it a value such as {example!r}.")

    def integer(self, name: str, default: int, minimum: int, maximum: int) -> int:
        """Return an integer between `minimum` and `maximum`, both included.

        Raises:
            SettingsError: not a number, or out of range.
        """
        value = self._values.get(name, "").strip()
        if not value:
            return default
        try:
            number = int(value)
        except ValueError:
            raise SettingsError(f"{name} is {value!r}: write a whole number between {minimum} and {maximum}.") from None
        if not minimum <= number <= maximum:
            raise SettingsError(f"{name} is {number}: write a whole number between {minimum} and {maximum}.")
        return number

    def secret(self, name: str, minimum_characters: int = 1) -> str:
        """Return a secret out of the file that `<name>_FILE` names, by default `/run/secrets/<name in lower case>`.

        Raises:
            SettingsError: the secret stands in the environment itself, its file cannot be read, or it is empty or too short.
        """
        if self._values.get(name):
            # The environment is shown by `docker inspect` and inherited by every child; a secret there is a leak already.
            raise SettingsError(f"{name} stands in the environment: put it in a file and name that file in {name}_FILE.")
        variable = f"{name}_FILE"
        named = self._values.get(variable, "").strip()
        path = Path(named) if named else SECRETS_DIRECTORY / name.lower()
        try:
            value = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            if not named:
                raise SettingsError(f"{variable} is not set and {path} cannot be read ({reason}): name a file.") from None
            raise SettingsError(f"{variable} names {path}, which cannot be read ({reason}).") from None
        if not value:
            raise SettingsError(f"{variable} names {path}, which is empty: write the secret into it.")
        if len(value) < minimum_characters:
            raise SettingsError(
                f"{variable} names {path}, whose secret has {len(value)} characters: at least {minimum_characters} are needed."
            )
        return value

    def secret_url(self, name: str, schemes: tuple[str, ...]) -> str:
        """Return a secret that is a URL of one of `schemes`.

        Raises:
            SettingsError: as `secret`, or another scheme. The value is not repeated: it holds a password.
        """
        value = self.secret(name)
        if urlsplit(value).scheme not in schemes:
            raise SettingsError(f"{name}_FILE holds no URL that starts with {' or '.join(s + '://' for s in schemes)}.")
        return value

    def origin(self, name: str, value: str) -> str:
        """Check that `value` is an origin: scheme, host, port if not the default one, nothing after.

        Raises:
            SettingsError: it is something else.
        """
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname or value != f"{parts.scheme}://{parts.netloc}":
            raise SettingsError(f"{name} is {value!r}: write an origin such as 'https://audit.company.org', without a path.")
        return value.lower()

    def log_level(self) -> str:
        """Return `LOG_LEVEL`.

        Raises:
            SettingsError: an unknown level.
        """
        level = self.text("LOG_LEVEL", "INFO", "INFO").upper()
        if level not in LOG_LEVELS:
            raise SettingsError(f"LOG_LEVEL is {level!r}: write one of {', '.join(LOG_LEVELS)}.")
        return level


@dataclass(frozen=True)
class ObjectStoreSettings:
    """Where uploaded files go.

    Attributes:
        endpoint_url: scheme, host and port of the S3 service; addressed path-style.
        region: region that requests are signed for.
        bucket: name of an existing bucket.
        access_key: access key id.
        secret_key: secret key.
        ca_file: PEM bundle that the service's certificate is checked against; None for the system's.
    """

    endpoint_url: str
    region: str
    bucket: str
    access_key: str
    secret_key: str
    ca_file: str | None

    @classmethod
    def read(cls, env: Environment) -> "ObjectStoreSettings":
        """Read the `S3_*` variables.

        Raises:
            SettingsError: one is missing or wrong.
        """
        url = env.text("S3_ENDPOINT_URL", "https://s3.company.org:8333")
        env.origin("S3_ENDPOINT_URL", url.rstrip("/"))
        ca_file = env.text("S3_CA_FILE", "/etc/ssl/certs/ca-certificates.crt", "")
        if ca_file and not os.access(ca_file, os.R_OK):
            raise SettingsError(f"S3_CA_FILE names {ca_file}, which cannot be read.")
        return cls(
            endpoint_url=url.rstrip("/"),
            region=env.text("S3_REGION", "eu-central-1", "us-east-1"),
            bucket=env.text("S3_BUCKET", "smart-audit"),
            access_key=env.secret("S3_ACCESS_KEY"),
            secret_key=env.secret("S3_SECRET_KEY"),
            ca_file=ca_file or None,
        )


@dataclass(frozen=True)
class ServeSettings:
    """Settings of `smart-audit serve`; the README's table explains each."""

    uds_path: str
    database_url: str
    database_pool_size: int
    valkey_url: str
    object_store: ObjectStoreSettings
    session_secret: str
    session_hours: int
    public_origin: str
    cors_allow_origins: tuple[str, ...]
    max_upload_bytes: int
    max_in_flight: int
    drain_milliseconds: int
    graceful_timeout_seconds: int
    log_level: str

    @classmethod
    def read(cls, env: Environment) -> "ServeSettings":
        """Read them.

        Raises:
            SettingsError: one is missing or wrong.
        """
        origins = env.text("CORS_ALLOW_ORIGINS", "https://other.company.org", "").replace(",", " ").split()
        return cls(
            uds_path=env.text("UDS_PATH", "/run/app/backend-1.sock"),
            database_url=env.secret_url("DATABASE_URL", ("postgresql", "postgres")),
            database_pool_size=env.integer("DATABASE_POOL_SIZE", 8, 1, 100),
            valkey_url=env.secret_url("VALKEY_URL", ("unix", "valkey", "redis", "valkeys", "rediss")),
            object_store=ObjectStoreSettings.read(env),
            session_secret=env.secret("SESSION_SECRET", minimum_characters=32),
            session_hours=env.integer("SESSION_HOURS", 12, 1, 24 * 30),
            public_origin=env.origin("PUBLIC_ORIGIN", env.text("PUBLIC_ORIGIN", "https://audit.company.org")),
            cors_allow_origins=tuple(env.origin("CORS_ALLOW_ORIGINS", origin) for origin in origins),
            max_upload_bytes=env.integer("MAX_UPLOAD_BYTES", 10 * 1024 * 1024, 1, 100 * 1024 * 1024),
            max_in_flight=env.integer("MAX_IN_FLIGHT", 256, 1, 10_000),
            drain_milliseconds=env.integer("DRAIN_MILLISECONDS", 1500, 0, 60_000),
            graceful_timeout_seconds=env.integer("GRACEFUL_TIMEOUT_SECONDS", 20, 1, 600),
            log_level=env.log_level(),
        )


@dataclass(frozen=True)
class WorkerSettings:
    """Settings of `smart-audit worker`; the README's table explains each."""

    database_url: str
    valkey_url: str
    object_store: ObjectStoreSettings
    poll_milliseconds: int
    lease_seconds: int
    sweep_seconds: int
    requeue_seconds: int
    max_attempts: int
    log_level: str

    @classmethod
    def read(cls, env: Environment) -> "WorkerSettings":
        """Read them.

        Raises:
            SettingsError: one is missing or wrong.
        """
        return cls(
            database_url=env.secret_url("DATABASE_URL", ("postgresql", "postgres")),
            valkey_url=env.secret_url("VALKEY_URL", ("unix", "valkey", "redis", "valkeys", "rediss")),
            object_store=ObjectStoreSettings.read(env),
            poll_milliseconds=env.integer("WORKER_POLL_MILLISECONDS", 300, 10, 4000),
            lease_seconds=env.integer("WORKER_LEASE_SECONDS", 20, 1, 3600),
            sweep_seconds=env.integer("WORKER_SWEEP_SECONDS", 5, 1, 3600),
            requeue_seconds=env.integer("WORKER_REQUEUE_SECONDS", 30, 1, 86_400),
            max_attempts=env.integer("WORKER_MAX_ATTEMPTS", 5, 1, 100),
            log_level=env.log_level(),
        )


@dataclass(frozen=True)
class MigrateSettings:
    """Settings of `smart-audit migrate`: the owner's connection, and the first user."""

    database_url: str
    admin_username: str
    admin_password: str
    log_level: str

    @classmethod
    def read(cls, env: Environment) -> "MigrateSettings":
        """Read them.

        Raises:
            SettingsError: one is missing or wrong.
        """
        return cls(
            database_url=env.secret_url("MIGRATION_DATABASE_URL", ("postgresql", "postgres")),
            admin_username=env.text("ADMIN_USERNAME", "auditor"),
            admin_password=env.secret("ADMIN_PASSWORD", minimum_characters=12),
            log_level=env.log_level(),
        )
