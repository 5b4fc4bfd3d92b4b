"""Postgres: one small pool of connections, made to work through PgBouncer's transaction pooling.

Nothing here depends on a session: no `SET`, no advisory session locks, no `LISTEN`. What has to be set is set inside the
transaction that needs it.
"""

import select
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
from sqlalchemy import Connection, Engine, create_engine, event, exc

from smart_audit.errors import Unavailable

CONNECT_TIMEOUT_SECONDS = 5
POOL_TIMEOUT_SECONDS = 5

T = TypeVar("T")


def make_engine(dsn: str, pool_size: int, application_name: str) -> Engine:
    """Return an engine for the libpq connection string `dsn` that opens no connection yet."""
    engine = create_engine(
        "postgresql+psycopg://",
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT_SECONDS,
        # The catalogue query behind hstore support would be asked once a connection, for a type that is not used.
        use_native_hstore=False,
        connect_args={"connect_timeout": CONNECT_TIMEOUT_SECONDS, "application_name": application_name},
    )

    @event.listens_for(engine, "do_connect")
    def use_dsn(_dialect: Any, _record: Any, arguments: list[Any], _keywords: dict[str, Any]) -> None:
        # libpq reads the string itself, so that every form it knows (sockets, several hosts, sslmode) works.
        arguments[:] = [dsn]

    @event.listens_for(engine, "checkout")
    def refuse_dead(connection: psycopg.Connection[Any], _record: Any, _proxy: Any) -> None:
        # An idle connection with something to read was closed by the other side. Looking at the socket costs no round trip,
        # which "pool_pre_ping" would, and finds what a restart of PgBouncer leaves behind.
        poller = select.poll()
        poller.register(connection.fileno(), select.POLLIN | select.POLLHUP)
        if poller.poll(0):
            raise exc.DisconnectionError("closed by the other side")

    return engine


def _unavailable(error: exc.SQLAlchemyError) -> Unavailable | None:
    """Return what `error` means to a caller when it is an outage, None when it is a mistake of ours."""
    if isinstance(error, exc.TimeoutError):
        return Unavailable("database", "no connection in the pool became free", retry_after_seconds=1)
    if isinstance(error, (exc.OperationalError, exc.InterfaceError)):
        return Unavailable("database", str(error.orig).strip().replace("\n", " "))
    if isinstance(error, exc.DBAPIError) and error.connection_invalidated:
        return Unavailable("database", str(error.orig).strip().replace("\n", " "))
    return None


class Database:
    """Runs functions on connections of a pool.

    Attributes:
        on_wait: called with the seconds that each use waited for its connection.
    """

    def __init__(self, dsn: str, pool_size: int, application_name: str) -> None:
        self.engine = make_engine(dsn, pool_size, application_name)
        self._autocommit = self.engine.execution_options(isolation_level="AUTOCOMMIT")
        self.on_wait: Callable[[float], object] = lambda _seconds: None

    @contextmanager
    def _connection(self, engine: Engine) -> Iterator[Connection]:
        try:
            started = time.perf_counter()
            connection = engine.connect()
            self.on_wait(time.perf_counter() - started)
            with connection:
                yield connection
        except exc.SQLAlchemyError as error:
            outage = _unavailable(error)
            if outage:
                raise outage from error
            raise

    def read(self, function: Callable[[Connection], T]) -> T:
        """Run `function` outside any transaction: one round trip a query.

        Raises:
            Unavailable: the database does not answer.
        """
        with self._connection(self._autocommit) as connection:
            return function(connection)

    def transaction(self, function: Callable[[Connection], T]) -> T:
        """Run `function` in one transaction, committed when it returns and rolled back when it raises.

        Raises:
            Unavailable: the database does not answer. If it went away during the commit, the outcome is unknown.
        """
        with self._connection(self.engine) as connection, connection.begin():
            return function(connection)

    def session(self, function: Callable[[Connection], T]) -> T:
        """Run `function` on one connection and leave transactions to it; only for direct connections.

        Raises:
            Unavailable: the database does not answer.
        """
        with self._connection(self.engine) as connection:
            return function(connection)

    def close(self) -> None:
        """Close the idle connections."""
        self.engine.dispose()
