"""The worker: every accepted document is processed exactly once, whatever is killed, lost or sent twice."""

import os
import random
import signal
import time
import uuid
from collections.abc import Callable

import pytest

from smart_audit import documents
from smart_audit.embedding import embed
from smart_audit.errors import ObjectMissing
from smart_audit.queue import STREAM
from smart_audit.splitting import split
from tests.conftest import App, Client
from tests.host import Platform, wait_for

StartWorker = Callable[..., App]


def long_text(paragraphs: int, seed: int = 1) -> str:
    """Return a text of about 600 characters a paragraph, the same for the same seed."""
    source = random.Random(seed)
    vocabulary = ["".join(source.choices("abcdefghijklmnopqrstuvwxyz", k=source.randint(3, 10))) for _ in range(500)]
    return "\n\n".join(" ".join(source.choices(vocabulary, k=80)) + "." for _ in range(paragraphs))


def stored(platform: Platform, document_id: str) -> list[tuple[object, ...]]:
    """Return ordinal and text of the document's passages."""
    with platform.superuser() as connection:
        query = "SELECT ordinal, passage FROM chunks WHERE document_id = %s ORDER BY ordinal"
        return connection.execute(query, (document_id,)).fetchall()


def assert_exactly_once(platform: Platform, texts: dict[str, str]) -> None:
    """Check that the passages of each document are all there, once."""
    for document_id, text in texts.items():
        assert stored(platform, document_id) == list(enumerate(split(text)))


def wait_until_processing(platform: Platform, document_id: str) -> None:
    """Wait until a worker has the document."""

    def processing() -> bool:
        with platform.superuser() as connection:
            query = "SELECT status FROM documents WHERE id = %s"
            return connection.execute(query, (document_id,)).fetchone() == ("processing",)

    wait_for(processing, "a worker to take the document")


def test_document_becomes_passages(client: Client, platform: Platform, worker: App) -> None:
    """An accepted document is soon done, with all of its passages, and the queue is empty again."""
    text = long_text(20)
    started = time.monotonic()
    document_id = client.accepted(text)
    client.wait_until_done(document_id)
    assert time.monotonic() - started < 10
    document = client.document(document_id)
    assert document["passages"] == len(list(split(text))) > 10 and document["processed_at"]
    assert_exactly_once(platform, {document_id: text})
    wait_for(lambda: platform.valkey.xlen(STREAM) == 0, "the stream to be empty")


def test_killed_in_the_middle(client: Client, platform: Platform, start_worker: StartWorker) -> None:
    """A worker killed while it stores passages leaves none; the next one processes the document, once."""
    first = start_worker()
    text = long_text(1500)
    document_id = client.accepted(text)
    wait_until_processing(platform, document_id)
    time.sleep(0.5)
    first.kill()
    assert client.document(document_id)["status"] == "processing" and stored(platform, document_id) == []
    second = start_worker()
    client.wait_until_done(document_id)
    assert_exactly_once(platform, {document_id: text})
    # The line follows the commit.
    wait_for(lambda: second.logged("document done", document_id=document_id), "the worker's line")
    (line,) = second.logged("document done", document_id=document_id)
    assert line["attempt"] == "2"
    assert not first.logged("document done", document_id=document_id)


def test_killed_again_and_again(client: Client, platform: Platform, start_worker: StartWorker) -> None:
    """Two workers killed at random moments, over and over: every document is done in the end, exactly once."""
    source = random.Random(7)
    texts = {client.accepted(text): text for text in (long_text(30, seed) for seed in range(25))}
    workers = []
    for _ in range(7):
        pair = [start_worker(WORKER_MAX_ATTEMPTS="50", WORKER_LEASE_SECONDS="1") for _ in range(2)]
        time.sleep(source.uniform(0.05, 0.5))
        for app in pair:
            app.kill()
        workers += pair
    workers.append(start_worker(WORKER_MAX_ATTEMPTS="50", WORKER_LEASE_SECONDS="1"))
    client.wait_until_done(*texts, seconds=60)
    assert_exactly_once(platform, texts)
    done = [line["document_id"] for app in workers for line in app.logged("document done")]
    # A worker killed between commit and log line says nothing; none may say it twice.
    assert len(done) == len(set(done)) >= len(texts) - 14


def test_flushed_before_it_was_read(client: Client, platform: Platform, start_worker: StartWorker) -> None:
    """Messages that Valkey loses are made up for: the documents are known to Postgres."""
    texts = {client.accepted(text): text for text in (long_text(3, seed) for seed in range(5))}
    # As if a worker had relayed them, and Valkey had then lost everything.
    with platform.superuser() as connection:
        connection.execute("DELETE FROM outbox")
    platform.valkey.flushall()
    worker = start_worker()
    client.wait_until_done(*texts)
    assert_exactly_once(platform, texts)
    assert worker.logged("documents queued again")


def test_flushed_all_the_time(client: Client, platform: Platform, start_worker: StartWorker) -> None:
    """FLUSHALL between, before and during everything: nothing is lost and nothing is done twice."""
    workers = [start_worker(), start_worker()]
    texts = {}
    for seed in range(30):
        text = long_text(5, seed)
        texts[client.accepted(text)] = text
        platform.valkey.flushall()
    client.wait_until_done(*texts, seconds=60)
    assert_exactly_once(platform, texts)

    def done() -> list[str]:
        return [line["document_id"] for app in workers for line in app.logged("document done")]

    wait_for(lambda: len(done()) >= len(texts), "the workers' lines")
    assert sorted(done()) == sorted(texts)


def test_duplicate_and_foreign_messages(client: Client, platform: Platform, start_worker: StartWorker) -> None:
    """The same message fifty times, and messages that make no sense, change nothing."""
    text = long_text(40)
    document_id = client.accepted(text)
    for _ in range(50):
        platform.valkey.xadd(STREAM, {"document_id": document_id, "traceparent": ""})
    platform.valkey.xadd(STREAM, {"document_id": str(uuid.uuid4()), "traceparent": "nonsense"})
    platform.valkey.xadd(STREAM, {"unknown": "field"})
    workers = [start_worker(), start_worker()]
    client.wait_until_done(document_id)
    wait_for(lambda: platform.valkey.xlen(STREAM) == 0, "the stream to be empty")
    assert_exactly_once(platform, {document_id: text})
    wait_for(lambda: any(app.logged("document done") for app in workers), "the worker's line")
    assert len([line for app in workers for line in app.logged("document done")]) == 1
    assert all(app.process.poll() is None for app in workers)


def test_slow_worker_is_fenced(client: Client, platform: Platform, start_worker: StartWorker) -> None:
    """A worker that sleeps through its lease and wakes up afterwards does not process the document a second time."""
    first = start_worker()
    # The bucket does not answer, so that the worker stands between taking the document and storing it.
    text = long_text(10)
    document_id = client.accepted(text)
    process = platform.s3.process
    assert process
    os.kill(process.pid, signal.SIGSTOP)
    try:
        second_id = client_insert(platform, document_id)
        wait_until_processing(platform, second_id)
        os.kill(first.process.pid, signal.SIGSTOP)
    finally:
        os.kill(process.pid, signal.SIGCONT)
    second = start_worker()
    client.wait_until_done(document_id, second_id)
    os.kill(first.process.pid, signal.SIGCONT)
    wait_for(lambda: first.logged("taken over by another worker, or deleted"), "the first worker to notice")
    assert_exactly_once(platform, {document_id: text, second_id: text})
    wait_for(lambda: second.logged("document done", document_id=second_id), "the second worker's line")


def client_insert(platform: Platform, document_id: str) -> str:
    """Queue a copy of a document past the API (which would need the bucket); return its id."""
    copy = str(uuid.uuid4())
    with platform.superuser() as connection:
        connection.execute("ALTER TABLE documents DROP CONSTRAINT IF EXISTS documents_object_key_key")
        columns = "filename, content_type, size_bytes, sha256, object_key, traceparent"
        connection.execute(f"INSERT INTO documents (id, {columns}) SELECT '{copy}', {columns} FROM documents WHERE id = '{document_id}'")
    return copy


def test_poison_fails_with_a_reason(client: Client, platform: Platform, start_worker: StartWorker) -> None:
    """A document that fails each time is given up with the reason, and does not hold up the others."""
    poison = client.accepted("This one's file is going to be lost.")
    platform.objects.delete(f"documents/{poison}")
    start_worker(WORKER_MAX_ATTEMPTS="2")
    good = client.accepted("This one is fine.")
    client.wait_until_done(good)
    reason = client.wait_until_failed(poison)
    assert reason == "gave up after 2 attempts: the file is not in the bucket"
    assert [item["status"] for item in client.get("/api/documents").json()] == ["done", "failed"]


def test_document_that_kills_workers_is_given_up(client: Client, platform: Platform, start_worker: StartWorker) -> None:
    """A document on which the worker dies each time is failed after as many attempts, not tried for ever."""
    document_id = client.accepted("deadly")
    with platform.superuser() as connection:
        connection.execute("UPDATE documents SET attempts = 3")
    start_worker(WORKER_MAX_ATTEMPTS="3")
    assert client.wait_until_failed(document_id) == ("gave up after 3 attempts: the worker stopped each time it was on it")


def test_tampered_file_is_refused(client: Client, platform: Platform, start_worker: StartWorker) -> None:
    """A file that is not what was uploaded is never stored as if it were."""
    import hashlib
    import io

    document_id = client.accepted("The original text.")
    forged = b"The replaced text."
    digest = hashlib.sha256(forged).hexdigest()
    platform.objects.put(f"documents/{document_id}", io.BytesIO(forged), len(forged), digest, "text/plain")
    start_worker(WORKER_MAX_ATTEMPTS="1")
    reason = client.wait_until_failed(document_id)
    assert reason == "gave up after 1 attempts: the file in the bucket is not the one that was uploaded"


def test_no_words_no_passages(client: Client, worker: App) -> None:
    """A document without a single word fails at once and says so."""
    document_id = client.accepted("--- !!! ***")
    assert client.wait_until_failed(document_id) == "the document contains no words to search for"


def test_file_without_row_is_removed(client: Client, platform: Platform, start_worker: StartWorker) -> None:
    """An upload that dies between file and row leaves a note, by which the file is removed."""
    with platform.superuser() as connection:
        connection.execute("ALTER TABLE documents ADD CONSTRAINT refuse CHECK (filename <> 'fault.txt')")
        try:
            assert client.upload("never stored", "fault.txt").status_code == 500
        finally:
            connection.execute("ALTER TABLE documents DROP CONSTRAINT refuse")
        rows = connection.execute("SELECT kind, object_key, available_at - now() FROM outbox").fetchall()
        ((kind, key, delay),) = rows
        assert kind == "delete_object" and str(delay) > "0:09:00"
        assert platform.objects.get(str(key), 100) == b"never stored"
        connection.execute("UPDATE outbox SET available_at = now()")
    worker = start_worker()
    wait_for(lambda: worker.logged("object removed", object_key=str(key)), "the file to be removed")
    with pytest.raises(ObjectMissing):
        platform.objects.get(str(key), 100)


def test_upload_slower_than_its_note_is_refused(platform: Platform, clean: None) -> None:
    """Once the note to remove the file has been acted upon, the row is not inserted any more."""
    from smart_audit.database import Database

    dsn = (platform.secrets / "database_url").read_text(encoding="utf-8").strip()
    database = Database(dsn, 1, "test")
    note = database.read(lambda connection: documents.announce_object(connection, "documents/x", "00-1-2-01"))
    database.read(lambda connection: documents.remove_from_outbox(connection, [note]))
    inserted = database.transaction(
        lambda connection: documents.insert(connection, note, uuid.uuid4(), "a", "text/plain", 1, b"", "documents/x", "00-1-2-01", 1)
    )
    database.close()
    assert not inserted


def test_deletion_survives_a_crash(client: Client, platform: Platform, start_worker: StartWorker) -> None:
    """A file is removed though no worker was there, or the bucket did not answer, when its document was deleted."""
    document_id = client.accepted("Deleted while nobody is working.")
    assert client.request("DELETE", f"/api/documents/{document_id}").status_code == 204
    platform.s3_relay.stop()
    worker = start_worker()
    try:
        wait_for(lambda: worker.logged("object not removed"), "the worker to try")
    finally:
        platform.s3_relay.start()
    wait_for(lambda: worker.logged("object removed", object_key=f"documents/{document_id}"), "the worker to succeed")
    with pytest.raises(ObjectMissing):
        platform.objects.get(f"documents/{document_id}", 100)


def test_deleted_while_processing(client: Client, platform: Platform, worker: App) -> None:
    """A document deleted under the worker's hands is gone, its passages too, and the worker goes on."""
    for seed in range(3):
        document_id = client.accepted(long_text(300, seed))
        wait_until_processing(platform, document_id)
        assert client.request("DELETE", f"/api/documents/{document_id}").status_code == 204
        assert stored(platform, document_id) == []
    client.wait_until_done(client.accepted("still working"))


def test_stop_finishes_the_current_document(client: Client, platform: Platform, start_worker: StartWorker) -> None:
    """SIGTERM lets the worker finish what it is on, and take nothing more."""
    worker = start_worker()
    text = long_text(800)
    first = client.accepted(text)
    wait_until_processing(platform, first)
    second = client.accepted("for the next worker")
    assert worker.terminate() == 0
    assert client.document(first)["status"] == "done"
    assert client.document(second)["status"] == "queued"
    assert_exactly_once(platform, {first: text})
    start_worker()
    client.wait_until_done(second)


def test_trace_reaches_the_worker(client: Client, worker: App, backend: App) -> None:
    """The trace id of the upload stands in the worker's lines about the document, and in the backend's."""
    trace_id = uuid.uuid4().hex
    headers = {"traceparent": f"00-{trace_id}-{'a' * 16}-01"}
    answer = client.post("/api/documents", files={"file": ("a.txt", b"traced words", "text/plain")}, headers=headers)
    assert answer.headers["x-trace-id"] == trace_id
    client.wait_until_done(answer.json()["id"])
    wait_for(lambda: worker.logged("document done", trace_id=trace_id), "the worker's line")
    assert backend.logged("document accepted", trace_id=trace_id)


def test_worker_is_healthy_only_while_it_goes_round(worker: App) -> None:
    """The health check tells a living worker from one that hangs, and needs no socket for it."""
    wait_for(lambda: worker.healthcheck().returncode == 0, "the worker to be healthy")
    heartbeat = worker.log_file.with_name("smart-audit.heartbeat")
    os.kill(worker.process.pid, signal.SIGSTOP)
    long_ago = time.time() - 100
    os.utime(heartbeat, (long_ago, long_ago))
    result = worker.healthcheck()
    assert result.returncode == 1 and "last sign of life is 100 s old" in result.stderr
    os.kill(worker.process.pid, signal.SIGCONT)
    wait_for(lambda: worker.healthcheck().returncode == 0, "the worker to recover")


def test_worker_is_small(client: Client, worker: App) -> None:
    """A worker that has processed documents stays under 100 MiB."""
    client.wait_until_done(*(client.accepted(long_text(200, seed)) for seed in range(3)))
    assert worker.memory_mib() < 100


def test_embedding_never_changes() -> None:
    """The vector of a text is the same on every machine and Python version: stored ones stay comparable."""
    vector = embed("Straße 42: the AUDITOR's ﬁndings")
    assert vector
    assert [(index, round(value, 5)) for index, value in enumerate(vector) if abs(value) > 0.3] == GOLDEN
    assert sum(value * value for value in vector) == pytest.approx(1)
    assert embed("STRASSE 42 — the auditor's findings!") == pytest.approx(vector)
    assert embed("?!") is None and embed("the") is not None


GOLDEN = [(189, -0.37139), (239, -0.37139), (240, 0.37139), (320, 0.37139), (370, -0.37139)]


def test_headings_stay_with_their_text() -> None:
    """A heading opens a passage; short paragraphs under it join it."""
    text = "# Payments\n\nTwo managers approve.\n\n# Passwords\n\nRotated often.\n\nKept in the vault."
    assert list(split(text)) == ["# Payments\n\nTwo managers approve.", "# Passwords\n\nRotated often.\n\nKept in the vault."]


def test_splitting_loses_nothing() -> None:
    """Passages hold every word of the text in order and respect the limit, also without spaces or paragraphs."""
    for text in (long_text(20), "word " * 5000, "x" * 5000, "a\n\n\n\n\nb", "Sentence one. " * 300, "\r\n\r\n a \r\n\r\n b"):
        passages = list(split(text))
        assert all(0 < len(passage) <= 700 for passage in passages)
        assert "".join("".join(passages).split()) == "".join(text.split())
