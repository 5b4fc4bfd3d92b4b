"""Prove a restored server: every row can be read, every index fits its table, the extensions are there, and vectors are found."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from holdfast import postgres
from holdfast.failure import Failure

Ask = Callable[[str, str], str]
DATABASES = "SELECT coalesce(json_agg(datname ORDER BY datname), '[]') FROM pg_database WHERE datallowconn AND NOT datistemplate"
COUNTS = """
SELECT coalesce(json_object_agg(name, (xpath('/row/c/text()', counted))[1]::text::bigint ORDER BY name), '{}') FROM (
    SELECT name, query_to_xml(format('SELECT count(*) AS c FROM ONLY %s', name), false, true, '') AS counted
    FROM (SELECT format('%I.%I', n.nspname, c.relname) AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
          WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema') named) each
"""
EXTENSIONS = """
SELECT coalesce(json_agg(e.extname ORDER BY 1), '[]') FROM pg_extension e
WHERE NOT EXISTS (SELECT FROM pg_available_extension_versions v WHERE v.name = e.extname AND v.version = e.extversion)
"""
# Nothing of it stays: the extension goes with the transaction.
AMCHECK = """
BEGIN;
SET LOCAL client_min_messages = error;
CREATE EXTENSION IF NOT EXISTS amcheck;
SELECT count(*) FROM (
    SELECT bt_index_check(i.indexrelid, true)
    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam
    WHERE a.amname = 'btree' AND c.relpersistence = 'p' AND i.indisvalid AND i.indisready) checked;
SELECT format('%s, block %s: %s', c.oid::regclass, found.blkno, found.msg)
FROM pg_class c JOIN pg_am a ON a.oid = c.relam, verify_heapam(c.oid) found
WHERE c.relkind IN ('r', 't', 'm') AND a.amname = 'heap' AND c.relpersistence = 'p' LIMIT 5;
ROLLBACK;
"""
VECTOR_INDEXES = """
SELECT coalesce(json_agg(json_build_object('index', i.indexrelid::regclass::text, 'relation', i.indrelid::regclass::text,
                                           'column', quote_ident(at.attname), 'distance', format('OPERATOR(%I.%s)', n.nspname, o.oprname))
                         ORDER BY i.indexrelid), '[]')
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam
JOIN pg_opclass oc ON oc.oid = i.indclass[0] JOIN pg_amop ao ON ao.amopfamily = oc.opcfamily AND ao.amoppurpose = 'o'
JOIN pg_operator o ON o.oid = ao.amopopr JOIN pg_namespace n ON n.oid = o.oprnamespace
JOIN pg_attribute at ON at.attrelid = i.indrelid AND at.attnum = i.indkey[0]
WHERE a.amname IN ('hnsw', 'ivfflat') AND i.indisvalid AND i.indpred IS NULL
"""
# By the index, a row's own vector has to find a neighbour that is as near as the row itself.
VECTOR_SEARCH = """
BEGIN;
SET LOCAL enable_seqscan = off;
SET LOCAL enable_sort = off;
-- A search that looks at as few candidates as by default misses the row once in some thousand indexes.
SET LOCAL hnsw.ef_search = 1000;
CREATE TEMPORARY TABLE holdfast_sample ON COMMIT DROP AS
    SELECT :column AS v, :column :distance :column AS own FROM :relation
    WHERE :column IS NOT NULL AND (:column :distance :column) <> 'NaN' LIMIT 1;
SELECT coalesce((SELECT (near.d <= own + 1e-6)::text
                 FROM holdfast_sample, LATERAL (SELECT :column :distance v AS d FROM :relation ORDER BY :column :distance v LIMIT 1) near),
                CASE WHEN EXISTS (SELECT FROM holdfast_sample) THEN 'false' ELSE 'empty' END);
ROLLBACK;
"""


@dataclass
class Proof:
    """What was found.

    Attributes:
        rows: rows of each table, by database.
        said: what holds, in sentences.
        faults: what does not.
    """

    rows: dict[str, dict[str, int]] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def databases(ask: Ask) -> list[str]:
    """Name the databases that people may connect to."""
    found: list[str] = json.loads(ask(DATABASES, "postgres"))
    return found


def count(ask: Ask) -> dict[str, dict[str, int]]:
    """Count the rows of each table of each database, by reading them."""
    return {name: json.loads(ask(COUNTS, name)) for name in databases(ask)}


def _amcheck(ask: Ask, database: str) -> Iterator[str]:
    try:
        _, *broken = ask(AMCHECK, database).splitlines()
    except Failure as failure:
        broken = [str(failure)]
    for each in broken:
        yield f"amcheck of {database}: {each}"


def _vectors(ask: Ask, database: str, proof: Proof) -> None:
    for found in json.loads(ask(VECTOR_INDEXES, database)):
        answer = ask(postgres.variables(**found) + VECTOR_SEARCH, database)
        if answer == "false":
            proof.faults.append(f"The index {found['index']} of {database} does not find a row by its own vector: reindex it.")
        elif answer == "true":
            proof.said.append(f"a vector search by {found['index']} finds what it should")


def prove(ask: Ask) -> Proof:
    """Read and check everything."""
    proof = Proof()
    try:
        for name in databases(ask):
            proof.rows[name] = json.loads(ask(COUNTS, name))
            if lacking := json.loads(ask(EXTENSIONS, name)):
                proof.faults.append(f"{name} uses {', '.join(lacking)} in a version that this host lacks: run `ansible-playbook site.yml`.")
                continue
            proof.faults += _amcheck(ask, name)
            _vectors(ask, name, proof)
    except Failure as failure:
        proof.faults.append(str(failure))
    tables = sum(len(each) for each in proof.rows.values())
    rows = sum(sum(each.values()) for each in proof.rows.values())
    proof.said.insert(0, f"{rows} rows of {tables} tables were read")
    if not proof.faults:
        proof.said.append("amcheck finds every index and every table sound, and every extension is there")
    return proof
