"""Fingerprints of a database's rows: two of them tell whether every row that nobody has changed since is still the same.

A fingerprint covers the rows of transactions that had ended before it was taken. It counts them and adds up their hashes in buckets, a
row's own hash saying in which. Taken again of a copy that went on, with the same bound, it covers a subset: a bucket that has lost none of
its rows must have the same sum, and none may have gained one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from holdfast import postgres, recovery

BUCKETS = 64
SECONDS = 3600
TABLES = """
SELECT coalesce(json_agg(format('%I.%I', n.nspname, c.relname) ORDER BY n.nspname, c.relname), '[]')
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
"""
DATABASES = "SELECT json_agg(datname ORDER BY datname) FROM pg_database WHERE datallowconn AND NOT datistemplate"
BOUND = "SELECT pg_snapshot_xmin(pg_current_snapshot())::xid"
# The name of a segment begins with its timeline. The empty transaction has all before it archived, on a server that stands idle too.
POSITION = """
SELECT json_build_array(left(pg_walfile_name(pg_current_wal_insert_lsn()), 8), pg_current_wal_insert_lsn());
DO $$ BEGIN PERFORM pg_current_xact_id(); END $$;
"""
HISTORY = """
SELECT json_build_array(timeline, pg_current_wal_insert_lsn(), coalesce(pg_read_file('pg_wal/' || timeline || '.history', true), ''))
FROM (SELECT left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) AS timeline) here
"""
# A name comes quoted from the catalogue.
HASHES = """
SELECT json_build_array('LITERAL', (hash & BITS)::text, count(*), sum(hash)::text)
FROM (SELECT ('x' || left(md5(record_send(holdfast_row)), 16))::bit(64)::bigint AS hash
      FROM ONLY TABLE holdfast_row WHERE age(holdfast_row.xmin) > age(:'bound'::xid)) covered
GROUP BY hash & BITS;
"""


@dataclass(frozen=True)
class Fingerprint:
    """The rows of one database as they were.

    Attributes:
        bound: the first transaction that it does not cover.
        tables: by table, by bucket, the number of rows and the sum of their hashes.
    """

    bound: str
    tables: dict[str, dict[str, tuple[int, str]]]

    @classmethod
    def read(cls, content: dict[str, Any]) -> Fingerprint:
        """Read what `dump` wrote."""
        tables = {
            table: {bucket: (int(rows), str(total)) for bucket, (rows, total) in buckets.items()}
            for table, buckets in content["tables"].items()
        }
        return cls(str(content["bound"]), tables)

    def dump(self) -> dict[str, Any]:
        """Return it as JSON knows it."""
        return asdict(self)

    @property
    def rows(self) -> int:
        """Count the rows that it covers."""
        return sum(rows for buckets in self.tables.values() for rows, _ in buckets.values())


@dataclass(frozen=True)
class Position:
    """How far the server had written.

    Attributes:
        timeline: the timeline that it wrote on.
        lsn: where on it.
    """

    timeline: int
    lsn: str

    @classmethod
    def now(cls) -> Position:
        """Return how far it has written; everything that a fingerprint of before covers lies before that."""
        timeline, lsn = json.loads(postgres.psql(POSITION))
        return cls(int(timeline, 16), lsn)

    def is_past(self) -> bool:
        """Say whether the server here came by this position: a timeline that was left counts up to there."""
        timeline, lsn, history = json.loads(postgres.psql(HISTORY))
        words = [line.split() for line in history.splitlines() if line.strip() and not line.startswith("#")]
        ends = {int(each[0]): each[1] for each in words} | {int(timeline, 16): lsn}
        return self.timeline in ends and recovery.lsn(self.lsn) <= recovery.lsn(ends[self.timeline])


def databases() -> list[str]:
    """Name the databases that people have."""
    found: list[str] = json.loads(postgres.psql(DATABASES))
    return found


def take(database: str, bound: str = "", socket: str = postgres.SOCKETS, tables: Sequence[str] | None = None) -> Fingerprint:
    """Take the fingerprint of a database.

    Args:
        database: its name.
        bound: cover the same transactions as an earlier one; those that have ended by now where empty.
        socket: folder of the server's socket.
        tables: cover these only; all of the database's where nothing is given.

    Raises:
        Failure: the server refused.
    """
    if tables is None:
        tables = json.loads(postgres.psql(TABLES, database=database, socket=socket))
    # All in one snapshot, the bound first.
    first = f"SELECT '{bound}' AS bound \\gset" if bound else f"SELECT ({BOUND}) AS bound \\gset"
    statements = [first, "\\echo :bound", *map(_hashes, tables)]
    sql = "\n".join(["BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;", *statements, "COMMIT;"])
    taken, *lines = postgres.psql(sql, database=database, socket=socket, timeout_seconds=SECONDS).splitlines()
    found: dict[str, dict[str, tuple[int, str]]] = {table: {} for table in tables}
    for table, bucket, rows, total in map(json.loads, lines):
        found[table][bucket] = (rows, total)
    return Fingerprint(taken, found)


def again(database: str, before: Fingerprint, socket: str = postgres.SOCKETS) -> Fingerprint:
    """Take a fingerprint again, with its bound, of those of its tables that are there still.

    Raises:
        Failure: the server refused.
    """
    there = json.loads(postgres.psql(TABLES, database=database, socket=socket))
    return take(database, before.bound, socket, [table for table in before.tables if table in there])


def _hashes(table: str) -> str:
    """Say in SQL how a table's buckets are summed up."""
    literal = table.replace("'", "''")
    return HASHES.replace("LITERAL", literal).replace("TABLE", table).replace("BITS", str(BUCKETS - 1))


def faults(before: Fingerprint, after: Fingerprint) -> Iterator[str]:
    """Name each table in which rows are other than they were, though nobody changed them."""
    for table, buckets in before.tables.items():
        now = after.tables.get(table)
        if now is None:
            continue  # dropped since; who dropped it meant all of its rows
        wrong = sum(
            rows > buckets.get(bucket, (0, "0"))[0] or (rows == buckets[bucket][0] and total != buckets[bucket][1])
            for bucket, (rows, total) in now.items()
        )
        if wrong:
            yield f"{table} ({wrong} of {BUCKETS} buckets of rows)"


def lost(copy: Fingerprint, live: Fingerprint) -> Iterator[str]:
    """Name each table of which the copy has fewer rows than the live database still has, taken later with the same bound.

    Such rows only ever become fewer, so the copy has at least those that are there now.
    """
    for table, buckets in live.tables.items():
        there = sum(rows for rows, _ in copy.tables.get(table, {}).values())
        missing = sum(rows for rows, _ in buckets.values()) - there
        if missing > 0:
            yield f"{table} ({missing} rows)"


def changed(before: Fingerprint, after: Fingerprint) -> int:
    """Count the rows that were changed or deleted in between."""
    return before.rows - after.rows
