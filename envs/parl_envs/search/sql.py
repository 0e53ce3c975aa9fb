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
    """Fill a table by search, or by SQL over the same corpus.

    For pretrained models: SQL is not in the vocabulary of `model: tiny`. The arguments are
    WideSearch's.
    """

    @tool
    def sql(
        self,
        query: Annotated[str, Field(description="One SELECT statement, in SQLite's dialect.")],
    ) -> str:
        """Ask the corpus as a database: `documents`, and of the factbook also `countries` and `cities`.

        Returns a header and one line `value | value` for each row. `SELECT sql FROM sqlite_master` tells the columns.
        """
        return select(database(self.world), query)


# Building a database takes longer than most queries, and all agents of a split read the same one.
@lru_cache(maxsize=64)
def database(world: World) -> bytes:
    """Serialize a world as a SQLite database: its documents, and the facts of its tasks."""
    documents = []
    for doc in world.index.documents:
        row = {"id": doc.id, "title": doc.title, "entity": doc.entity, "text": doc.text}
        documents.append(row)

    # A second hop stands on the capital's page, so it is a column of the city here, too: a query
    # has to join the two tables, as a search has to read the two pages.
    capital, time = HOP
    countries = []
    cities = []
    for entity in world.rows:
        country = {"name": entity.name, **entity.facts}
        country.pop(time, None)
        countries.append(country)
        city = {"name": entity.facts[capital], "country": entity.name}
        if time in entity.facts:
            city[time] = entity.facts[time]
        cities.append(city)

    connection = sqlite3.connect(":memory:")
    _add_table(connection, "documents", documents)
    if world.rows:
        _add_table(connection, "countries", countries)
        _add_table(connection, "cities", cities)
    connection.commit()
    serialized = connection.serialize()
    connection.close()
    return serialized


def _add_table(
    connection: sqlite3.Connection, name: str, rows: Sequence[Mapping[str, str]]
) -> None:
    # A dict keeps the order in which columns first occur; a set would not.
    columns: dict[str, None] = {}
    for row in rows:
        columns.update(dict.fromkeys(row))
    connection.execute(f"CREATE TABLE {name} ({', '.join(columns)})")
    slots = ", ".join("?" for _ in columns)
    values = [tuple(map(row.get, columns)) for row in rows]
    connection.executemany(f"INSERT INTO {name} VALUES ({slots})", values)
