"""WideSearch by SQL: the database says what the pages say, and of each split its own facts only."""

from __future__ import annotations

import json
from pathlib import Path

from parl.config.env import EnvConfig
from parl.testing.check_env import check
from parl_envs.search.sql import WideSearchSql
from parl_envs.search.world import split_rows


def test_the_variant_with_sql_keeps_every_promise() -> None:
    found = list(check(EnvConfig(id="parl/WideSearchSQL-v0")))
    assert [f for f in found if f.status not in ("ok", "slow")] == []


def test_sql_reads_what_the_pages_say() -> None:
    env = WideSearchSql()
    for split in ("train", "validation", "test"):
        (one,) = env.generate_tasks(split, 1, seed=0)
        env.reset(options={"task": one})
        row = one.data["gold"][0]
        column = next(c for c in row if c not in ("country", "time"))
        name, value = row["country"], row[column]
        said = f"SELECT {column} FROM countries WHERE name = '{name}'"
        assert env.call("sql", {"query": said}) == f"{column}\n{value}"
        assert env.fork("part").call("sql", {"query": said}) == f"{column}\n{value}"
        names = set(
            env.call("sql", {"query": "SELECT name FROM countries LIMIT 50"}).splitlines()[1:]
        )
        assert (
            {r.name for r in split_rows(split)} >= names - {"(only the first 50 rows)"} != set()
        )  # no split reads another's facts
    text = env.call("sql", {"query": f"SELECT text FROM documents WHERE title = '{name}'"})
    assert text.startswith(f"text\n{name}\ncapital : ")
    time = env.call(
        "sql",
        {
            "query": "SELECT c.name, t.time FROM countries c JOIN cities t ON t.country = c.name LIMIT 1"
        },
    )
    assert time.startswith("name | time\n")
    assert env.call("sql", {"query": "DELETE FROM countries"}).startswith("error: ")


def test_sql_over_a_corpus_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text(
        json.dumps({"title": "Holidays", "text": "30 days", "entity": "HR"})
    )
    env = WideSearchSql(corpus=str(tmp_path / "c.jsonl"))
    assert (
        env.call("sql", {"query": "SELECT * FROM documents"})
        == "id | title | entity | text\nd1 | Holidays | HR | 30 days"
    )
