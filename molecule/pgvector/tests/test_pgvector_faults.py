"""The role pgvector: recall of its index, its cache on the controller, and a minor upgrade of the server."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from database import ask, converge, login
from testinfra.host import Host

from tools.shell import ROOT

CACHE = ROOT / ".cache" / "molecule-pgvector"
ROWS = 5000
DIMENSIONS = 64
QUERIES = 50
NEAREST = 10
# Measured on random vectors, the hardest case for such an index, with upstream's default m and ef_construction.
RECALL = 0.95


@pytest.fixture(scope="module", autouse=True)
def _table(host: Host) -> None:
    """Make the table before the first test."""
    _make_table(host)


def _make_table(host: Host) -> None:
    """Have the owner make a table of random vectors with an HNSW index, as a migration does."""
    statements = f"""
        CREATE EXTENSION IF NOT EXISTS vector;
        DROP TABLE IF EXISTS place;
        SELECT setseed(0.42);
        CREATE TABLE place AS SELECT id, array_agg(random() - 0.5)::vector({DIMENSIONS}) AS at
            FROM generate_series(1, {ROWS}) AS id, generate_series(1, {DIMENSIONS}) GROUP BY id;
        CREATE INDEX place_at ON place USING hnsw (at vector_cosine_ops)
    """
    host.check_output(f'{login("owner")} --command "{statements}"')


def _recall(host: Host) -> float:
    """Compare what the index finds with what an exact scan finds, as the application's role."""
    nearest = f"SELECT array_agg(id) FROM (SELECT id FROM place ORDER BY at <=> %L LIMIT {NEAREST}) AS n"
    function = f"""
        SET hnsw.ef_search = 100;
        DO $$
        DECLARE query record; found int[]; exact int[]; hits int := 0;
        BEGIN
            FOR query IN SELECT at FROM place WHERE id <= {QUERIES} LOOP
                SET LOCAL enable_seqscan = off; SET LOCAL enable_indexscan = on;
                EXECUTE format('{nearest}', query.at) INTO found;
                SET LOCAL enable_seqscan = on; SET LOCAL enable_indexscan = off;
                EXECUTE format('{nearest}', query.at) INTO exact;
                hits := hits + (SELECT count(*) FROM unnest(found) AS id WHERE id = ANY (exact));
            END LOOP;
            RAISE EXCEPTION 'recall %', hits::float / ({QUERIES} * {NEAREST});
        END $$
    """
    quoted = function.replace("$", "\\$")
    said = host.run(f'{login("app")} --command "{quoted}"').stderr
    assert "recall" in said, said
    return float(said.split("recall ")[1].split()[0])


def _version(host: Host) -> str:
    return host.check_output("dpkg-query --show --showformat '${Version}' postgresql-17")


def _remove(host: Host) -> None:
    host.check_output("dpkg --purge holdfast-pgvector")


def _changed(done: subprocess.CompletedProcess[str], task: str) -> bool:
    """Say whether a run changed something in a task."""
    after = done.stdout.split(f"TASK [pgvector : {task}]")
    return len(after) > 1 and after[1].split("TASK [", maxsplit=1)[0].count("changed: [") > 0


@pytest.fixture
def package(host: Host) -> Iterator[Path]:
    """Take the package off the host, lend the one of the controller's cache for damage, and put all back."""
    found = sorted(CACHE.glob("holdfast-pgvector_*.deb"))
    assert len(found) == 1
    whole = found[0].read_bytes()
    _remove(host)
    yield found[0]
    found[0].write_bytes(whole)
    assert converge(host, "pgvector").returncode == 0
    assert host.package("holdfast-pgvector").is_installed


def test_index_is_used(host: Host) -> None:
    """The planner takes the HNSW index for a search."""
    probe = f"SELECT array_agg(0.1 * i)::vector FROM generate_series(1, {DIMENSIONS}) AS i"
    plan = host.check_output(f'{login("app")} --command "EXPLAIN SELECT id FROM place ORDER BY at <=> ({probe}) LIMIT {NEAREST}"')
    assert "place_at" in plan


def test_recall(host: Host) -> None:
    """Of the ten nearest of 5,000 random vectors the index finds at least 95 of 100."""
    assert _recall(host) >= RECALL


@pytest.mark.parametrize("program", ["cc", "gcc", "clang", "make", "mmdebstrap", "dpkg-buildpackage"])
def test_no_compiler_on_the_host(host: Host, program: str) -> None:
    """The host that built the package has no compiler, and nothing of the build is left."""
    assert not host.exists(program)
    assert host.run(f"dpkg --list {program}").stdout.count(f"\nii  {program} ") == 0
    assert host.run("ls -d /var/tmp/pgvector-build.* /var/tmp/holdfast-pgvector").stdout == ""


def test_package_from_the_cache(host: Host, package: Path) -> None:
    """A host without the package gets it out of the controller's cache, and builds nothing."""
    assert package.exists()
    done = converge(host, "pgvector")
    assert done.returncode == 0, done.stdout
    assert _changed(done, "Install the package")
    assert not _changed(done, "Build the package in a throw-away tree")
    assert _recall(host) >= RECALL


def test_corrupt_package_is_refused(host: Host, package: Path) -> None:
    """A corrupt package in the cache is refused by name before anything is installed."""
    package.write_bytes(package.read_bytes()[:-1] + b"?")
    done = converge(host, "pgvector")
    assert done.returncode != 0
    said = " ".join(done.stdout.split())
    assert package.name in said
    assert "is corrupt" in said
    assert "Nothing was changed" in said
    assert not host.package("holdfast-pgvector").is_installed


def test_corrupt_source_is_refused(host: Host) -> None:
    """A corrupt source in the cache is refused by name before anything is built."""
    source = next(CACHE.glob("pgvector_*.orig.tar.gz"))
    whole = source.read_bytes()
    source.write_bytes(whole + b"?")
    try:
        done = converge(host, "pgvector")
        assert done.returncode != 0
        assert source.name in " ".join(done.stdout.split())
        assert "is corrupt" in done.stdout
    finally:
        source.write_bytes(whole)


def test_check_before_there_is_a_database(host: Host) -> None:
    """A check of a host that has the server and not yet the database says that the extension would come; a run refuses it."""
    given = ("-e", "pgvector_database=not_yet_there")
    done = converge(host, "pgvector", *given, "--check")
    assert done.returncode == 0, done.stdout
    assert "changed=1" in done.stdout
    done = converge(host, "pgvector", *given)
    assert done.returncode != 0
    assert "does not exist" in " ".join(done.stdout.split())


def test_old_extension_is_upgraded(host: Host) -> None:
    """An extension that is older than the package is brought to the package's version, and a check says so before."""
    # No release installs an older one, so what 0.8.0 has more than 0.7.4 is taken away.
    for kind in ("integer", "real", "double precision", "numeric"):
        function = f"array_to_sparsevec({kind}[], integer, boolean)"
        ask(host, f"ALTER EXTENSION vector DROP CAST ({kind}[] AS sparsevec); DROP CAST ({kind}[] AS sparsevec)")
        ask(host, f"ALTER EXTENSION vector DROP FUNCTION {function}; DROP FUNCTION {function}")
    ask(host, "UPDATE pg_extension SET extversion = '0.7.4' WHERE extname = 'vector'")
    assert "changed=1" in converge(host, "pgvector", "--check").stdout
    assert ask(host, "SELECT extversion FROM pg_extension WHERE extname = 'vector'") == "0.7.4"
    assert "changed=1" in converge(host, "pgvector").stdout
    package = host.package("holdfast-pgvector").version
    assert ask(host, "SELECT extversion FROM pg_extension WHERE extname = 'vector'") == package.split("-")[0]
    assert ask(host, "SELECT ARRAY[0, 2]::sparsevec") == "{2:2}/2"


def _repack(host: Host, version: str, new: str) -> str:
    """Make the server's package anew under a later version, for weeks in which the archive has only one; return its path."""
    path = f"/root/repacked/postgresql-17_{new}.deb"
    host.check_output(f"""mkdir /root/repacked && cd /root/repacked && timeout 120 apt-get download --quiet=2 postgresql-17={version}
        dpkg-deb --raw-extract postgresql-17_*.deb tree && sed --in-place 's/^Version: .*/Version: {new}/' tree/DEBIAN/control
        dpkg-deb -Zgzip -z1 --root-owner-group --build tree {path} && rm --recursive tree""")
    return path


def test_minor_upgrade_of_the_server(host: Host) -> None:
    """After a minor upgrade of PostgreSQL the search works with the same package, and the next run changes nothing."""
    _make_table(host)
    before, package = _version(host), host.package("holdfast-pgvector").version
    host.check_output("rm /etc/apt/preferences.d/molecule.pref")
    candidate = host.check_output("apt-cache policy postgresql-17 | sed --quiet 's/^  Candidate: //p'")
    upgrade = "--only-upgrade postgresql-17"
    if candidate == before:
        candidate = f"{before}+molecule1"
        upgrade = _repack(host, before, candidate)
    host.check_output(f"DEBIAN_FRONTEND=noninteractive timeout 300 apt-get install --quiet=2 --yes {upgrade}")
    assert _version(host) == candidate
    assert host.run(f"dpkg --compare-versions {before} lt {candidate}").rc == 0
    assert ask(host, "SHOW server_version").split()[0] == candidate.split("-")[0]
    assert host.package("holdfast-pgvector").version == package
    assert _recall(host) >= RECALL
    done = converge(host, "pgvector")
    assert "changed=0" in done.stdout
