"""The SQL tool: reads, and cannot write, wait, or reach anything else."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import pytest

from parl.config.tools import SqlConfig
from parl.core.errors import ConfigError
from parl.env.toolsets.sql import Sql, select


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("databases") / "a b?#%.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE countries(name TEXT, capital TEXT, people INTEGER)")
        rows = [("Kenya", "Nairobi", 53), ("Chad", "N'Djamena", 18), ("Nauru", None, 0)]
        connection.executemany("INSERT INTO countries VALUES (?, ?, ?)", rows)
        connection.execute(
            "CREATE TABLE numbers AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 2000) "
            "SELECT i FROM n"
        )
        connection.execute('CREATE TABLE "odd ""name"(x)')
        connection.execute("INSERT INTO \"odd \"\"name\" VALUES (x'00ff'), (CAST(x'ff41' AS TEXT))")
    connection.close()
    return path


def test_rows_as_text(database: Path) -> None:
    said = "SELECT name, capital FROM countries WHERE people < 50 ORDER BY name"
    assert select(database, said) == "name | capital\nChad | N'Djamena\nNauru | NULL"
    assert select(database, "SELECT count(*) AS n FROM countries") == "n\n3"
    assert (
        select(
            database,
            "WITH b AS (SELECT max(people) m FROM countries) SELECT name FROM countries, b WHERE people = m",
        )
        == "name\nKenya"
    )
    assert select(database, "SELECT 1 WHERE 0") == "1"
    assert select(database, 'SELECT * FROM "odd ""name"') == "x\n(2 bytes)\n\ufffdA"


def test_a_database_in_memory(database: Path) -> None:
    connection = sqlite3.connect(database)
    source = connection.serialize()
    connection.close()
    assert select(source, "SELECT name FROM countries LIMIT 1") == "name\nKenya"
    assert select(source, "DELETE FROM countries").startswith("error: ")
    assert select(source, "SELECT count(*) AS n FROM countries") == "n\n3"


@pytest.mark.parametrize(
    "query",
    [
        "INSERT INTO countries VALUES ('x', 'y', 1)",
        "UPDATE countries SET people = 0",
        "DELETE FROM countries",
        "REPLACE INTO countries VALUES ('x', 'y', 1)",
        "WITH x AS (SELECT 1) DELETE FROM countries",
        "DROP TABLE countries",
        "ALTER TABLE countries RENAME TO c",
        "CREATE TABLE t(x)",
        "CREATE TEMP TABLE t(x)",
        "CREATE VIEW v AS SELECT 1",
        "CREATE VIRTUAL TABLE t USING fts5(x)",
        "ATTACH 'other.db' AS other",
        "DETACH main",
        "PRAGMA query_only = OFF",
        "PRAGMA writable_schema = ON",
        "PRAGMA database_list",
        "SELECT * FROM pragma_database_list",
        "VACUUM INTO 'copy.db'",
        "BEGIN",
        "SAVEPOINT s",
        "REINDEX",
        "ANALYZE",
        "SELECT load_extension('x')",
        "SELECT random()",
        "SELECT hex(randomblob(4))",
        "SELECT writefile('x', 'y')",
        "SELECT readfile('/etc/passwd')",
        "SELECT 1; DROP TABLE countries",
        "SELECT",
        "",
        "-- nothing",
        "SELECT * FROM nowhere",
        "SELECT \0",
        "SELECT '\ud800'",
        "SELECT " + "(" * 500 + "1" + ")" * 500,
        "SELECT " + " UNION SELECT ".join(["1"] * 100),
        "SELECT '" + "x" * 20_000 + "'",
        "EXPLAIN DELETE FROM countries",
    ],
)
def test_what_is_no_reading_is_refused(
    database: Path, query: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(database.parent)
    before = database.read_bytes()
    assert select(database, query).startswith("error: ")
    assert database.read_bytes() == before
    assert [p.name for p in database.parent.iterdir()] == [database.name]


@pytest.mark.parametrize(
    "query",
    [
        "SELECT count(*) FROM numbers a, numbers b, numbers c",
        "SELECT a.i FROM numbers a, numbers b, numbers c ORDER BY a.i * b.i % c.i",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n",
        "WITH RECURSIVE n(i, s) AS (SELECT 1, hex(zeroblob(400000)) UNION ALL "
        "SELECT i + 1, replace(s, '0', '0') FROM n) SELECT max(i) FROM n",
        "SELECT sum(length(hex(zeroblob(400000 + i)))) FROM (SELECT a.i FROM numbers a, numbers b)",
    ],
)
def test_a_query_has_a_deadline(database: Path, query: str) -> None:
    began = time.perf_counter()
    assert select(database, query, deadline_s=0.2) == "error: the query takes longer than 0.2 s"
    assert time.perf_counter() - began < 2


@pytest.mark.parametrize(
    "query",
    [
        "SELECT zeroblob(1000000000)",
        "SELECT replace(hex(zeroblob(400000)), '0', 'xxxx')",
        "SELECT group_concat(hex(zeroblob(9000))) FROM numbers",
    ],
)
def test_values_are_bounded(database: Path, query: str) -> None:
    assert "too big" in select(database, query)


def test_a_pattern_that_backtracks_ends(database: Path) -> None:
    long = "replace(hex(zeroblob(200000)), '0', 'a')"
    began = time.perf_counter()
    for pattern in ("%a" * 30 + "b", "%_" * 40 + "b"):
        assert select(database, f"SELECT {long} LIKE '{pattern}' AS x") == "x\n0"
    assert time.perf_counter() - began < 5


def test_results_are_cut(database: Path) -> None:
    lines = select(database, "SELECT i FROM numbers", max_rows=3).splitlines()
    assert lines == ["i", "1", "2", "3", "(only the first 3 rows)"]
    assert select(database, "SELECT i FROM numbers WHERE i <= 3", max_rows=3).splitlines() == [
        "i",
        "1",
        "2",
        "3",
    ]
    text = select(database, "SELECT hex(zeroblob(5000)) AS z", max_chars=100)
    assert text == "z\n" + "0" * 98 + "\n(cut at 100 characters)"


def test_the_tool_describes_the_tables(database: Path) -> None:
    tool = Sql(SqlConfig(database=database, max_rows=1))
    (spec,) = tool.tool_specs()
    assert spec.description.endswith(
        'Tables: countries(name, capital, people), numbers(i), odd "name(x).'
    )
    assert tool.call("sql", {"query": "SELECT i FROM numbers"}) == "i\n1\n(only the first 1 rows)"
    assert tool.call("sql", {}).startswith("error: sql: query: ")


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="which is no file"):
        Sql(SqlConfig(database=tmp_path / "none.db"))
    (tmp_path / "text.db").write_text("no database, though it is long enough for a header " * 20)
    with pytest.raises(ConfigError, match="cannot be read: file is not a database"):
        Sql(SqlConfig(database=tmp_path / "text.db"))
