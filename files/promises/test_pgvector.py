"""What the role pgvector promises of every host."""

from __future__ import annotations

from testinfra.host import Host


def _ask(host: Host, query: str, database: str) -> str:
    psql = "psql --no-psqlrc --quiet --tuples-only --no-align --set ON_ERROR_STOP=1"
    return host.check_output(f"timeout 30 runuser -u postgres -- {psql} --dbname %s --command %s", database, query)


def _database(host: Host) -> str:
    return _ask(host, "SELECT datname FROM pg_database WHERE pg_get_userbyid(datdba) = datname || '_owner'", "postgres")


def test_extension_is_the_package(host: Host) -> None:
    """The database has the extension at the version of the installed package."""
    installed = host.package("holdfast-pgvector").version
    extension = _ask(host, "SELECT extversion FROM pg_extension WHERE extname = 'vector'", _database(host))
    assert installed.split("-")[0] == extension


def test_search(host: Host) -> None:
    """The nearest of three vectors is found through an HNSW index."""
    query = """
        BEGIN;
        CREATE TEMPORARY TABLE probe (id int, place vector(3));
        INSERT INTO probe VALUES (1, '[1,0,0]'), (2, '[0,1,0]'), (3, '[0,0,1]');
        CREATE INDEX ON probe USING hnsw (place vector_cosine_ops);
        SET LOCAL enable_seqscan = off;
        SELECT id FROM probe ORDER BY place <=> '[0.1,0.9,0]' LIMIT 1;
        ROLLBACK;
    """
    assert _ask(host, query, _database(host)) == "2"
