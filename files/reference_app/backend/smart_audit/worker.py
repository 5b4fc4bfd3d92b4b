"""`smart-audit worker`: one loop that carries the outbox to Valkey, processes documents, removes objects, and sweeps.

The loop is one thread, on purpose: the processes that a platform starts are the unit of parallelism, each with one document.
Whatever happens to it at any point, Postgres knows what is still to be done.
"""

import codecs
import hashlib
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Sequence
from types import FrameType

from sqlalchemy import Connection

from smart_audit import documents, heartbeat, queue, sessions, trace
from smart_audit.database import Database
from smart_audit.documents import Job
from smart_audit.embedding import embed
from smart_audit.errors import ObjectMissing, Unavailable
from smart_audit.objectstore import ObjectStore
from smart_audit.settings import WorkerSettings
from smart_audit.splitting import split

log = logging.getLogger(__name__)

_RELAY_ROWS = 200
_SWEEP_ROWS = 500
_PASSAGES_AT_ONCE = 32
# A queued document without any message in Postgres or Valkey is lost, unless its message was acknowledged a moment ago.
_LOST_SECONDS = 2.0
_LONGEST_DELAY_SECONDS = 60.0
_OUTAGE_DELAY_SECONDS = 3.0
_CONSUMER_SILENT_MILLISECONDS = 3_600_000


class Rejected(Exception):
    """The document can never be processed; the message says why, to the person who uploaded it."""


def _backoff_seconds(attempt: int) -> float:
    return float(min(2.0**attempt, _LONGEST_DELAY_SECONDS))


class Worker:
    """The loop and its steps."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._stop = threading.Event()
        self._database = Database(settings.database_url, 1, "smart-audit-worker")
        self._valkey = queue.connect(settings.valkey_url)
        self._stream = queue.DocumentStream(self._valkey, f"{socket.gethostname()}-{os.getpid()}")
        self._objects = ObjectStore(settings.object_store)
        self._next_sweep = 0.0

    def stop(self, signal_number: int, _frame: FrameType | None) -> None:
        """Finish the current document, then return from `run`."""
        log.info("draining", extra={"fields": {"signal": signal_number}})
        self._stop.set()

    def run(self) -> None:
        """Work until told to stop; outages of what we depend on are waited for."""
        outages = 0
        while not self._stop.is_set():
            heartbeat.beat()
            try:
                self._go_round()
                outages = 0
            except Unavailable as error:
                outages += 1
                log.warning("waiting for a service", extra={"fields": {"error": str(error)}})
                self._stop.wait(min(0.5 * outages, 5.0))
        self._database.close()
        self._valkey.close()

    def _go_round(self) -> None:
        due = self._database.read(documents.due)
        if "delete_object" in due:
            self._remove_objects()
        if "process" in due:
            self._database.transaction(self._relay)
        if time.monotonic() >= self._next_sweep:
            self._sweep()
            self._next_sweep = time.monotonic() + self._settings.sweep_seconds
        for message in self._stream.take(self._settings.poll_milliseconds):
            self._handle(message)

    def _relay(self, connection: Connection) -> None:
        rows = documents.lock_due(connection, "process", _RELAY_ROWS)
        # Added first, removed after: dying in between sends the message twice, and a message is only a hint.
        self._stream.add((str(row.document_id), row.traceparent) for row in rows)
        documents.remove_from_outbox(connection, [row.id for row in rows])

    def _remove_objects(self) -> None:
        while not self._stop.is_set() and self._database.transaction(self._remove_object):
            heartbeat.beat()

    def _remove_object(self, connection: Connection) -> bool:
        """Remove the object of one due note; return whether it is worth going on with the next."""
        for row in documents.lock_due(connection, "delete_object", 1):
            with trace.use(trace.continue_from(row.traceparent)):
                try:
                    self._objects.delete(row.object_key)
                except Unavailable as error:
                    documents.postpone(connection, row.id, _backoff_seconds(row.attempts + 1))
                    log.warning("object not removed", extra={"fields": {"object_key": row.object_key, "error": str(error)}})
                    return False
                documents.remove_from_outbox(connection, [row.id])
                log.info("object removed", extra={"fields": {"object_key": row.object_key}})
                return True
        return False

    def _sweep(self) -> None:
        """Bring back what got lost, and tidy up."""
        age = _LOST_SECONDS if self._stream.length() == 0 else float(self._settings.requeue_seconds)
        requeued = self._database.transaction(lambda connection: documents.requeue_lost(connection, age, _SWEEP_ROWS))
        if requeued:
            log.warning("documents queued again", extra={"fields": {"documents": requeued}})
        self._database.read(sessions.delete_expired)
        for message in self._stream.take_over(self._settings.lease_seconds * 1000):
            if self._stop.is_set():
                return
            self._handle(message)
        self._stream.forget_consumers(_CONSUMER_SILENT_MILLISECONDS)

    def _handle(self, message: queue.Message) -> None:
        heartbeat.beat()
        with trace.use(trace.continue_from(message.traceparent)):
            try:
                document_id = uuid.UUID(message.document_id)
            except ValueError:
                log.warning("a message names no document", extra={"fields": {"entry_id": message.entry_id}})
            else:
                self._process(document_id)
            # Also when there was nothing to do: whoever holds the document answers for it, and the sweep for the holder.
            self._stream.acknowledge(message)

    def _process(self, document_id: uuid.UUID) -> None:
        fields = {"document_id": str(document_id)}
        settings = self._settings
        job = self._database.transaction(
            lambda connection: documents.claim(connection, document_id, settings.lease_seconds, settings.max_attempts)
        )
        if job is None:
            log.debug("nothing to do", extra={"fields": fields})
            return
        if isinstance(job, str):
            log.error("document failed", extra={"fields": {**fields, "reason": job}})
            return
        fields["attempt"] = str(job.attempt)
        started = time.perf_counter()
        try:
            body = self._fetch(job)
            passages = self._database.transaction(lambda connection: self._store(connection, job, body))
        except Rejected as error:
            self._give_up(job, str(error))
        except Unavailable as error:
            # If it is the database, releasing fails as well; then the lease runs out and the sweep releases it.
            self._release(job, str(error), _OUTAGE_DELAY_SECONDS, counts=False)
        except Exception as error:
            # Whatever it is, one document must not stop the queue; after some attempts it is failed.
            log.exception("attempt failed", extra={"fields": fields})
            cause = f"{error}"[:500] or type(error).__name__
            if job.attempt < settings.max_attempts:
                self._release(job, cause, _backoff_seconds(job.attempt), counts=True)
            else:
                self._give_up(job, f"gave up after {job.attempt} attempts: {cause}")
        else:
            if passages is None:
                log.warning("taken over by another worker, or deleted", extra={"fields": fields})
                return
            milliseconds = round((time.perf_counter() - started) * 1000)
            log.info("document done", extra={"fields": {**fields, "passages": passages, "duration_ms": milliseconds}})

    def _give_up(self, job: Job, reason: str) -> None:
        self._database.transaction(lambda connection: documents.give_up(connection, job, reason))
        log.error("document failed", extra={"fields": {"document_id": str(job.document_id), "reason": reason}})

    def _release(self, job: Job, error: str, delay_seconds: float, counts: bool) -> None:
        self._database.transaction(lambda connection: documents.release(connection, job, error, delay_seconds, counts))
        log.warning(
            "document released",
            extra={"fields": {"document_id": str(job.document_id), "error": error, "delay_seconds": delay_seconds}},
        )

    def _fetch(self, job: Job) -> str:
        try:
            body = self._objects.get(job.object_key, job.size_bytes)
        except ObjectMissing:
            raise FileNotFoundError("the file is not in the bucket") from None
        if hashlib.sha256(body).digest() != job.sha256:
            raise ValueError("the file in the bucket is not the one that was uploaded")
        return codecs.decode(body, "utf-8-sig")

    def _store(self, connection: Connection, job: Job, body: str) -> int | None:
        """Store all passages and the state `done`; return how many, or None if the job is not ours any more."""
        if not documents.hold(connection, job):
            return None
        stored = 0
        batch: list[tuple[str, Sequence[float]]] = []
        for passage in split(body):
            embedding = embed(passage)
            if embedding is None:
                continue
            batch.append((passage, embedding))
            if len(batch) == _PASSAGES_AT_ONCE:
                documents.store_passages(connection, job, stored, batch)
                stored += len(batch)
                batch.clear()
                heartbeat.beat()
        if batch:
            documents.store_passages(connection, job, stored, batch)
            stored += len(batch)
        if not stored:
            raise Rejected("the document contains no words to search for")
        documents.finish(connection, job, stored)
        return stored


def work(settings: WorkerSettings) -> int:
    """Run a worker until SIGTERM or SIGINT; return the exit status."""
    heartbeat.announce("worker")
    worker = Worker(settings)
    signal.signal(signal.SIGTERM, worker.stop)
    signal.signal(signal.SIGINT, worker.stop)
    log.info("working")
    worker.run()
    log.info("stopped")
    return 0
