"""`parl/WideSearchSQL-v0`: WideSearch whose corpus can also be read by SQL."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Annotated

from pydantic import Field

from parl.env.tools import tool
from parl.env.toolsets.sql import select
from parl_envs.search.wide_search import WideSearch
from parl_envs.search.world import HOP, World


class WideSearchSql(WideSearch):
    """Fill a table by search or by SQL over the same corpus. For pretrained models; its arguments are WideSearch's."""

    @tool
    def sql(
        self,
        query: Annotated[str, Field(description="One SELECT statement, in SQLite's dialect.")],
    ) -> str:
        """Ask the corpus as a database: `documents`, and of the factbook also `countries` and `cities`.

        Returns a header and one line `value | value` for each row. `SELECT sql FROM sqlite_master` tells the columns.
        """
        return select(database(self.world), query)


@lru_cache(maxsize=64)
def database(world: World) -> bytes:
    """The documents of a world, and the facts that its tasks are made of, as a SQLite database."""
    connection = sqlite3.connect(":memory:")
    documents = [
        {"id": d.id, "title": d.title, "entity": d.entity, "text": d.text}
        for d in world.index.documents
    ]
    _add(connection, "documents", documents)
    capital, time = HOP
    if world.rows:
        own = [
            {"name": r.name, **{k: v for k, v in r.facts.items() if k != time}} for r in world.rows
        ]
        cities = [
            {
                "name": r.facts[capital],
                "country": r.name,
                **{k: v for k, v in r.facts.items() if k == time},
            }
            for r in world.rows
        ]
        _add(connection, "countries", own)
        _add(connection, "cities", cities)
    connection.commit()
    whole = connection.serialize()
    connection.close()
    return whole


def _add(connection: sqlite3.Connection, name: str, rows: Sequence[Mapping[str, str]]) -> None:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    connection.execute(f"CREATE TABLE {name} ({', '.join(columns)})")
    slots = ", ".join("?" for _ in columns)
    connection.executemany(
        f"INSERT INTO {name} VALUES ({slots})", [[row.get(c) for c in columns] for row in rows]
    )
