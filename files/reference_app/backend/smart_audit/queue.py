"""Valkey: the stream that carries document ids to the workers, and the counters that slow down password guessing.

Nothing here is the truth. Losing all of it (`FLUSHALL`) delays documents by seconds and forgets failed logins.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import wraps
from typing import Any, ClassVar, TypeVar, cast

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from smart_audit.errors import Unavailable

# One prefix for every key, so that the platform can limit this application's ACL user to `~smart_audit:*`.
PREFIX = "smart_audit:"
STREAM = f"{PREFIX}documents"
GROUP = "workers"
# Beyond this, old entries are dropped; Postgres knows the documents and brings them back.
STREAM_MAXIMUM_LENGTH = 100_000
_CONNECT_TIMEOUT_SECONDS = 2.0
# Longer than the longest blocking read (the worker's poll interval is at most 4 s).
_SOCKET_TIMEOUT_SECONDS = 6.0

F = TypeVar("F", bound=Callable[..., Any])


def _outage(function: F) -> F:
    """Turn connection and server errors into `Unavailable`."""

    @wraps(function)
    def wrapper(*arguments: Any, **keywords: Any) -> Any:
        try:
            return function(*arguments, **keywords)
        except (redis.RedisError, OSError) as error:
            raise Unavailable("valkey", f"{type(error).__name__}: {error}") from error

    return cast("F", wrapper)


def connect(url: str) -> "redis.Redis":
    """Return a client for `url` (`unix://`, `redis://`, `valkey://` and their TLS forms) that connects when first used."""
    for ours, theirs in (("valkeys://", "rediss://"), ("valkey://", "redis://")):
        if url.startswith(ours):
            url = theirs + url[len(ours) :]
    return redis.Redis.from_url(
        url,
        decode_responses=True,
        protocol=2,
        socket_timeout=_SOCKET_TIMEOUT_SECONDS,
        socket_connect_timeout=_CONNECT_TIMEOUT_SECONDS,
        # One immediate repetition hides a restart of Valkey; every command used here may be repeated.
        retry=Retry(NoBackoff(), 1),
    )


@dataclass(frozen=True)
class Message:
    """An entry of the stream: its id, the document that it speaks of, and the trace to continue."""

    entry_id: str
    document_id: str
    traceparent: str


def _messages(entries: Iterable[Any]) -> list[Message]:
    # An entry that XAUTOCLAIM finds pending but trimmed has no fields.
    return [
        Message(entry_id, fields.get("document_id", ""), fields.get("traceparent", ""))
        for entry_id, fields in entries
        if fields is not None
    ]


class DocumentStream:
    """The stream of documents to process, read by one consumer group."""

    def __init__(self, client: "redis.Redis", consumer: str) -> None:
        self._client = client
        self._consumer = consumer

    def _ensure_group(self) -> None:
        try:
            # From the start, not from now: what was added before the group existed must be read as well.
            self._client.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
        except redis.ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise

    def _with_group(self, command: Callable[[], Any]) -> Any:
        try:
            return command()
        except redis.ResponseError as error:
            # Valkey was flushed, lost its file, or is new.
            if not str(error).startswith(("NOGROUP", "UNBLOCKED")):
                raise
            self._ensure_group()
            return command()

    @_outage
    def add(self, messages: Iterable[tuple[str, str]]) -> None:
        """Append (document id, traceparent) pairs.

        Raises:
            Unavailable: Valkey does not answer or refuses.
        """
        pipeline = self._client.pipeline(transaction=False)
        for document_id, traceparent in messages:
            pipeline.xadd(
                STREAM,
                {"document_id": document_id, "traceparent": traceparent},
                maxlen=STREAM_MAXIMUM_LENGTH,
                approximate=True,
            )
        pipeline.execute()

    @_outage
    def take(self, wait_milliseconds: int) -> list[Message]:
        """Return at most one new message, waiting for it at most `wait_milliseconds`.

        Raises:
            Unavailable: Valkey does not answer or refuses.
        """
        reply = self._with_group(lambda: self._client.xreadgroup(GROUP, self._consumer, {STREAM: ">"}, count=1, block=wait_milliseconds))
        return [message for _stream, entries in reply or [] for message in _messages(entries)]

    @_outage
    def take_over(self, idle_milliseconds: int) -> list[Message]:
        """Return messages that some consumer took `idle_milliseconds` ago or longer and never acknowledged.

        Raises:
            Unavailable: Valkey does not answer or refuses.
        """
        reply = self._with_group(lambda: self._client.xautoclaim(STREAM, GROUP, self._consumer, min_idle_time=idle_milliseconds, count=10))
        return _messages(reply[1])

    @_outage
    def acknowledge(self, message: Message) -> None:
        """Remove a message that has been dealt with.

        Raises:
            Unavailable: Valkey does not answer or refuses.
        """
        pipeline = self._client.pipeline(transaction=False)
        pipeline.xack(STREAM, GROUP, message.entry_id)
        pipeline.xdel(STREAM, message.entry_id)
        try:
            pipeline.execute()
        except redis.ResponseError as error:
            # Flushed meanwhile: nothing is left to remove.
            if "NOGROUP" not in str(error):
                raise

    @_outage
    def length(self) -> int:
        """Return how many messages are waiting or being dealt with.

        Raises:
            Unavailable: Valkey does not answer or refuses.
        """
        return int(self._client.xlen(STREAM))

    @_outage
    def forget_consumers(self, idle_milliseconds: int) -> None:
        """Remove consumers (old containers) that hold nothing and have been silent for `idle_milliseconds`.

        Raises:
            Unavailable: Valkey does not answer or refuses.
        """
        for consumer in self._with_group(lambda: self._client.xinfo_consumers(STREAM, GROUP)):
            gone = consumer["pending"] == 0 and consumer["idle"] > idle_milliseconds
            if gone and consumer["name"] != self._consumer:
                self._client.xgroup_delconsumer(STREAM, GROUP, consumer["name"])


class Throttle:
    """Counts failed logins: by user and address, by address, and by user."""

    WINDOW_SECONDS = 300
    LIMITS: ClassVar = {"pair": 8, "address": 30, "user": 60}

    def __init__(self, client: "redis.Redis") -> None:
        self._client = client

    @staticmethod
    def _keys(username: str, address: str) -> dict[str, str]:
        parts = {"pair": f"{username}\0{address}", "address": address, "user": username}
        # Hashed, because a user name is typed by a stranger and may be long, or a password in the wrong field.
        return {kind: f"{PREFIX}login:{kind}:{hashlib.sha256(value.encode()).hexdigest()[:32]}" for kind, value in parts.items()}

    @_outage
    def count(self, username: str, address: str) -> int:
        """Count one attempt before the password is looked at; return for how many seconds to refuse it, 0 for not at all.

        Raises:
            Unavailable: Valkey does not answer; then no password may be tried either.
        """
        keys = self._keys(username, address)
        pipeline = self._client.pipeline(transaction=True)
        for key in keys.values():
            pipeline.incr(key)
            pipeline.expire(key, self.WINDOW_SECONDS, nx=True)
            pipeline.ttl(key)
        replies = pipeline.execute()
        waits = [0]
        for position, kind in enumerate(keys):
            attempts, _set, ttl = replies[position * 3 : position * 3 + 3]
            if attempts > self.LIMITS[kind]:
                waits.append(max(1, ttl))
        return max(waits)

    @_outage
    def forgive(self, username: str, address: str) -> None:
        """Take back the attempt just counted, because the password was right.

        Raises:
            Unavailable: Valkey does not answer.
        """
        keys = self._keys(username, address)
        pipeline = self._client.pipeline(transaction=True)
        pipeline.delete(keys["pair"])
        pipeline.decr(keys["address"])
        pipeline.decr(keys["user"])
        pipeline.execute()


@_outage
def ping(client: "redis.Redis") -> None:
    """Ask whether Valkey answers.

    Raises:
        Unavailable: it does not.
    """
    client.ping()
