"""Documents in Postgres: every statement that moves one from one state to the next.

The states are queued, processing, done, failed. Exactly once rests on three things: a document is claimed by a token that the
next claim replaces; passages and the state `done` are written in one transaction that checks the token; and whatever has to
happen elsewhere (a message, an object to remove) is a row of `outbox`, written in the same transaction as its cause.
"""

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, RowMapping, text

# An upload takes seconds; one whose document row is not there after this time never gets one.
ORPHAN_SECONDS = 600
# More candidates than passages asked for: the index is approximate, and a wider search finds the true nearest more often.
_CANDIDATES = 100

_PUBLIC_COLUMNS = "id, filename, content_type, size_bytes, status, reason, passages, created_at, processed_at"


@dataclass(frozen=True)
class Document:
    """What the API tells about a document; sizes in bytes."""

    id: uuid.UUID
    filename: str
    content_type: str
    size_bytes: int
    status: str
    reason: str | None
    passages: int
    created_at: datetime
    processed_at: datetime | None


@dataclass(frozen=True)
class Hit:
    """A passage and its cosine distance to the question, from 0 (the same direction) to 2 (the opposite)."""

    document_id: uuid.UUID
    filename: str
    passage: str
    distance: float


@dataclass(frozen=True)
class Job:
    """A claimed document."""

    document_id: uuid.UUID
    claim: uuid.UUID
    object_key: str
    size_bytes: int
    sha256: bytes
    attempt: int
    traceparent: str


def _document(row: RowMapping) -> Document:
    return Document(**row)


def _vector(components: Sequence[float]) -> str:
    return "[" + ",".join(f"{component:.7g}" for component in components) + "]"


def announce_object(connection: Connection, object_key: str, traceparent: str) -> int:
    """Note, before an object is put, that it is to be removed later; return the note's id.

    The transaction that inserts the document takes the note back. If it never comes, the worker removes the object.
    """
    return int(
        connection.execute(
            text(
                "INSERT INTO outbox (kind, object_key, traceparent, available_at)"
                " VALUES ('delete_object', :key, :trace, now() + make_interval(secs => :seconds)) RETURNING id"
            ),
            {"key": object_key, "trace": traceparent, "seconds": ORPHAN_SECONDS},
        ).scalar_one()
    )


def insert(
    connection: Connection,
    note_id: int,
    document_id: uuid.UUID,
    filename: str,
    content_type: str,
    size_bytes: int,
    sha256: bytes,
    object_key: str,
    traceparent: str,
    user_id: int,
) -> bool:
    """Insert a queued document with its message to the workers; return False if the note has been acted upon already."""
    note = connection.execute(text("DELETE FROM outbox WHERE id = :id RETURNING id"), {"id": note_id}).one_or_none()
    if note is None:
        return False
    connection.execute(
        text(
            "INSERT INTO documents"
            " (id, filename, content_type, size_bytes, sha256, object_key, traceparent, uploaded_by)"
            " VALUES (:id, :filename, :type, :size, :sha256, :key, :trace, :user)"
        ),
        {
            "id": document_id,
            "filename": filename,
            "type": content_type,
            "size": size_bytes,
            "sha256": sha256,
            "key": object_key,
            "trace": traceparent,
            "user": user_id,
        },
    )
    connection.execute(
        text("INSERT INTO outbox (kind, document_id, traceparent) VALUES ('process', :id, :trace)"),
        {"id": document_id, "trace": traceparent},
    )
    return True


def newest(connection: Connection, limit: int, before: uuid.UUID | None) -> list[Document]:
    """Return at most `limit` documents, newest first, from the one after `before` on."""
    where = "WHERE (created_at, id) < (SELECT created_at, id FROM documents WHERE id = :before)" if before else ""
    rows = connection.execute(
        text(f"SELECT {_PUBLIC_COLUMNS} FROM documents {where} ORDER BY created_at DESC, id DESC LIMIT :limit"),
        {"limit": limit, "before": before} if before else {"limit": limit},
    )
    return [_document(row) for row in rows.mappings()]


def get(connection: Connection, document_id: uuid.UUID) -> Document | None:
    """Return one document, if there is one of that id."""
    row = connection.execute(text(f"SELECT {_PUBLIC_COLUMNS} FROM documents WHERE id = :id"), {"id": document_id}).mappings().one_or_none()
    return _document(row) if row else None


def delete(connection: Connection, document_id: uuid.UUID, traceparent: str) -> bool:
    """Delete a document and its passages, and note that its object is to be removed; return whether there was one."""
    # A worker that is just storing the document's passages holds its row; that takes a moment, not for ever.
    connection.execute(text("SET LOCAL lock_timeout = '5s'"))
    key = connection.execute(text("DELETE FROM documents WHERE id = :id RETURNING object_key"), {"id": document_id}).scalar()
    if key is None:
        return False
    connection.execute(text("DELETE FROM outbox WHERE document_id = :id"), {"id": document_id})
    connection.execute(
        text("INSERT INTO outbox (kind, object_key, traceparent) VALUES ('delete_object', :key, :trace)"),
        {"key": key, "trace": traceparent},
    )
    return True


def search(connection: Connection, embedding: Sequence[float], limit: int) -> list[Hit]:
    """Return the `limit` passages nearest to `embedding`, nearest first."""
    connection.execute(text(f"SET LOCAL hnsw.ef_search = {_CANDIDATES}"))
    rows = connection.execute(
        text(
            "SELECT document_id, filename, passage, distance FROM ("
            "  SELECT document_id, ordinal, passage, embedding <=> CAST(:vector AS vector) AS distance"
            "  FROM chunks ORDER BY embedding <=> CAST(:vector AS vector) LIMIT :limit"
            ") AS nearest JOIN documents ON documents.id = document_id ORDER BY distance, document_id, ordinal"
        ),
        {"vector": _vector(embedding), "limit": limit},
    )
    return [Hit(row.document_id, row.filename, row.passage, float(row.distance)) for row in rows]


def claim(connection: Connection, document_id: uuid.UUID, lease_seconds: int, max_attempts: int) -> Job | str | None:
    """Take a document that is queued, or whose holder let its lease run out.

    Returns:
        The job; or, after too many attempts, the reason for which the document has been failed; or None if there is nothing
        to do: it is done, failed, deleted, or somebody holds it.
    """
    row = connection.execute(
        text(
            "SELECT attempts, last_error FROM documents WHERE id = :id"
            " AND (status = 'queued' OR (status = 'processing' AND lease_until < now())) FOR UPDATE SKIP LOCKED"
        ),
        {"id": document_id},
    ).one_or_none()
    if row is None:
        return None
    if row.attempts >= max_attempts:
        cause = row.last_error or "the worker stopped each time it was on it"
        reason = f"gave up after {row.attempts} attempts: {cause}"
        _fail(connection, document_id, reason)
        return reason
    token = uuid.uuid4()
    taken = connection.execute(
        text(
            "UPDATE documents SET status = 'processing', claim = :claim, attempts = attempts + 1,"
            " lease_until = now() + make_interval(secs => :lease) WHERE id = :id"
            " RETURNING object_key, size_bytes, sha256, attempts, traceparent"
        ),
        {"id": document_id, "claim": token, "lease": lease_seconds},
    ).one()
    return Job(document_id, token, taken.object_key, taken.size_bytes, bytes(taken.sha256), taken.attempts, taken.traceparent)


def _fail(connection: Connection, document_id: uuid.UUID, reason: str) -> None:
    connection.execute(
        text(
            "UPDATE documents SET status = 'failed', reason = :reason, claim = NULL, lease_until = NULL,"
            " processed_at = now() WHERE id = :id"
        ),
        {"id": document_id, "reason": reason},
    )


def hold(connection: Connection, job: Job) -> bool:
    """Lock the job's document for the rest of the transaction; return False if the job is not ours any more."""
    row = connection.execute(
        text("SELECT 1 FROM documents WHERE id = :id AND claim = :claim FOR UPDATE SKIP LOCKED"),
        {"id": job.document_id, "claim": job.claim},
    ).one_or_none()
    return row is not None


def store_passages(connection: Connection, job: Job, first_ordinal: int, passages: Iterable[tuple[str, Sequence[float]]]) -> None:
    """Insert passages with their embeddings, numbered from `first_ordinal` on; only inside a transaction that holds the job."""
    connection.execute(
        text("INSERT INTO chunks (document_id, ordinal, passage, embedding) VALUES (:id, :ordinal, :passage, CAST(:embedding AS vector))"),
        [
            {"id": job.document_id, "ordinal": first_ordinal + offset, "passage": passage, "embedding": _vector(embedding)}
            for offset, (passage, embedding) in enumerate(passages)
        ],
    )


def finish(connection: Connection, job: Job, passages: int) -> None:
    """Mark the job's document done; only inside a transaction that holds the job."""
    connection.execute(
        text(
            "UPDATE documents SET status = 'done', passages = :passages, claim = NULL, lease_until = NULL,"
            " processed_at = now() WHERE id = :id"
        ),
        {"id": job.document_id, "passages": passages},
    )


def give_up(connection: Connection, job: Job, reason: str) -> bool:
    """Mark the job's document failed; return False if the job is not ours any more."""
    if not hold(connection, job):
        return False
    _fail(connection, job.document_id, reason)
    return True


def release(connection: Connection, job: Job, error: str, delay_seconds: float, counts: bool) -> bool:
    """Put the job's document back, to be tried again after `delay_seconds`; return False if it is not ours any more.

    Args:
        connection: in a transaction.
        job: the job.
        error: what went wrong, kept for the reason if it goes wrong too often.
        delay_seconds: how long to wait.
        counts: whether this was the document's fault and counts as an attempt.
    """
    if not hold(connection, job):
        return False
    connection.execute(
        text(
            "UPDATE documents SET status = 'queued', claim = NULL, lease_until = NULL, queued_at = now(),"
            " last_error = :error, attempts = attempts - :refund WHERE id = :id"
        ),
        {"id": job.document_id, "error": error, "refund": 0 if counts else 1},
    )
    connection.execute(
        text(
            "INSERT INTO outbox (kind, document_id, traceparent, available_at)"
            " VALUES ('process', :id, :trace, now() + make_interval(secs => :delay))"
        ),
        {"id": job.document_id, "trace": job.traceparent, "delay": delay_seconds},
    )
    return True


def due(connection: Connection) -> set[str]:
    """Return the kinds of outbox rows that are due."""
    return set(connection.execute(text("SELECT DISTINCT kind FROM outbox WHERE available_at <= now()")).scalars())


def lock_due(connection: Connection, kind: str, limit: int) -> Sequence[Row[Any]]:
    """Return and lock due outbox rows of one kind that no other worker is on, oldest first."""
    return connection.execute(
        text(
            "SELECT id, document_id, object_key, attempts, traceparent FROM outbox"
            " WHERE kind = :kind AND available_at <= now() ORDER BY available_at, id LIMIT :limit FOR UPDATE SKIP LOCKED"
        ),
        {"kind": kind, "limit": limit},
    ).all()


def remove_from_outbox(connection: Connection, ids: list[int]) -> None:
    """Remove outbox rows that have been acted upon."""
    connection.execute(text("DELETE FROM outbox WHERE id = ANY(:ids)"), {"ids": ids})


def postpone(connection: Connection, row_id: int, delay_seconds: float) -> None:
    """Put an outbox row off by `delay_seconds`."""
    connection.execute(
        text("UPDATE outbox SET attempts = attempts + 1, available_at = now() + make_interval(secs => :delay) WHERE id = :id"),
        {"id": row_id, "delay": delay_seconds},
    )


def requeue_lost(connection: Connection, queued_seconds: float, limit: int) -> int:
    """Write a new message for every document that nobody is going to process otherwise; return how many.

    Those are documents whose holder let the lease run out, and documents that have been waiting for `queued_seconds` or longer
    without a message in the outbox. A holder that still stores passages has its row locked and is left alone.
    """
    result = connection.execute(
        text(
            """
            WITH lost AS (
                SELECT id, traceparent FROM documents
                WHERE (status = 'processing' AND lease_until < now())
                   OR (status = 'queued' AND queued_at < now() - make_interval(secs => :age)
                       AND NOT EXISTS (SELECT FROM outbox WHERE document_id = documents.id))
                ORDER BY queued_at LIMIT :limit FOR UPDATE SKIP LOCKED
            ), marked AS (
                UPDATE documents SET status = 'queued', claim = NULL, lease_until = NULL, queued_at = now()
                FROM lost WHERE documents.id = lost.id
            )
            INSERT INTO outbox (kind, document_id, traceparent) SELECT 'process', id, traceparent FROM lost
            """
        ),
        {"age": queued_seconds, "limit": limit},
    )
    return int(result.rowcount)


@dataclass(frozen=True)
class Backlog:
    """How much there is, for the metrics."""

    documents_by_status: dict[str, int]
    outbox_by_kind: dict[str, int]
    oldest_unfinished_seconds: float


def backlog(connection: Connection) -> Backlog:
    """Return how many documents are in each state and how long the oldest unfinished one has been waiting."""
    documents = connection.execute(text("SELECT status, count(*) FROM documents GROUP BY status")).all()
    outbox = connection.execute(text("SELECT kind, count(*) FROM outbox WHERE available_at <= now() GROUP BY kind")).all()
    oldest = connection.execute(
        text("SELECT coalesce(extract(epoch FROM now() - min(created_at)), 0) FROM documents WHERE status IN ('queued', 'processing')")
    ).scalar_one()
    return Backlog(
        dict.fromkeys(("queued", "processing", "done", "failed"), 0) | {row[0]: row[1] for row in documents},
        dict.fromkeys(("process", "delete_object"), 0) | {row[0]: row[1] for row in outbox},
        float(oldest),
    )
