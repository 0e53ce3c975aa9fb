"""The tool `sql(query)`: one SELECT over a SQLite database that cannot be changed.

Each query has a connection of its own. Four measures keep it harmless: the file is opened
read-only, SQLite asks an authorizer that allows only reading, values and expressions are bounded,
and a query that takes too long is interrupted.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from pydantic import Field

from parl.config.tools import SqlConfig
from parl.core.errors import ConfigError
from parl.env.tools import Toolset, ToolSpec, tool

ALLOWED = {
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
}
# The first two run code from outside. The random ones would answer the same call differently, and
# an episode could not be repeated from its seed.
REFUSED_FUNCTIONS = {"load_extension", "fts3_tokenizer", "random", "randomblob"}
LIMITS = {
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 10_000,
    sqlite3.SQLITE_LIMIT_LENGTH: 1_000_000,  # bytes of a value
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 100,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 50,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 100,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}
STEPS_PER_CLOCK_CHECK = 100
"""Instructions of SQLite's machine between two checks of the deadline."""


class Sql(Toolset):
    """One tool, `sql`, whose description lists the database's tables.

    Raises:
        ConfigError: the file is no SQLite database.
    """

    def __init__(self, config: SqlConfig) -> None:
        self._config = config
        path = config.database
        if not path.is_file():
            raise ConfigError(
                f"sql.database is {config.database}, which is no file. "
                "Give the path of a SQLite database."
            )
        try:
            with _open(path) as connection:
                table_list = tables(connection)
        except sqlite3.Error as error:
            raise ConfigError(
                f"sql.database is {config.database}, which cannot be read: {error}. "
                "Give a SQLite database."
            ) from error
        (spec,) = self.own_tool_specs()
        description = f"{spec.description} Tables: {table_list}."
        self._spec = spec.model_copy(update={"description": description})

    def tool_specs(self) -> tuple[ToolSpec, ...]:
        """Return the tool, with the tables in its description."""
        return (self._spec,)

    @tool
    def sql(
        self, query: Annotated[str, Field(description="One SELECT statement, in SQLite's dialect.")]
    ) -> str:
        """Ask a database. Returns a header and one line `value | value` for each row."""
        config = self._config
        return select(config.database, query, config.deadline_s, config.max_rows, config.max_chars)


def select(
    source: Path | bytes,
    query: str,
    deadline_s: float = 1.0,
    max_rows: int = 50,
    max_chars: int = 4000,
) -> str:
    """Return the rows of a query as a text, or `error: ...`; no query makes it raise.

    Args:
        source: a database file, or the bytes of `sqlite3.Connection.serialize`.
        query: one SELECT statement.
        deadline_s: seconds after which the query is interrupted.
        max_rows: most rows of the result.
        max_chars: most characters of the result.

    Returns:
        A header and one line for each row, `value | value`, with a note where something was cut.
    """
    try:
        with _open(source) as connection:
            ends = time.monotonic() + deadline_s
            connection.set_progress_handler(
                lambda: int(time.monotonic() > ends), STEPS_PER_CLOCK_CHECK
            )
            cursor = connection.execute(query)
            if cursor.description is None:
                return "error: not a SELECT"
            # One more than is shown tells whether there are more.
            rows = cursor.fetchmany(max_rows + 1)
            names = [name for name, *_ in cursor.description]
    except (sqlite3.Error, sqlite3.Warning, ValueError, MemoryError) as error:
        if str(error) == "interrupted":
            return f"error: the query takes longer than {deadline_s:g} s"
        return f"error: {error}"
    lines = [" | ".join(map(_cell, row)) for row in (names, *rows[:max_rows])]
    if len(rows) > max_rows:
        lines.append(f"(only the first {max_rows} rows)")
    text = "\n".join(lines)
    if len(text) > max_chars:
        text = f"{text[:max_chars]}\n(cut at {max_chars} characters)"
    return text


def tables(connection: sqlite3.Connection) -> str:
    """Return the tables and views with their columns.

    Example:
        "cities(name, country, time), countries(name, capital)"
    """
    names = connection.execute(
        "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') ORDER BY name"
    ).fetchall()
    texts = []
    for (name,) in names:
        quoted = '"' + name.replace('"', '""') + '"'
        columns = connection.execute(f"SELECT * FROM {quoted} LIMIT 0").description
        column_names = ", ".join(column for column, *_ in columns)
        texts.append(f"{name}({column_names})")
    return ", ".join(texts)


def _cell(value: Any) -> str:
    if isinstance(value, bytes):
        return f"({len(value)} bytes)"
    return "NULL" if value is None else str(value)


@contextmanager
def _open(source: Path | bytes) -> Iterator[sqlite3.Connection]:
    if isinstance(source, bytes):
        name = "file::memory:"
    else:
        name = f"file:{quote(str(source.resolve()))}?mode=ro"
    connection = sqlite3.connect(name, uri=True, isolation_level=None, timeout=1.0)
    try:
        if isinstance(source, bytes):
            connection.deserialize(source)
        # SQLite does not check that a text is UTF-8; by default such a row would raise.
        connection.text_factory = lambda raw: raw.decode(errors="replace")
        connection.execute("PRAGMA query_only = ON")
        for limit, value in LIMITS.items():
            connection.setlimit(limit, value)
        connection.set_authorizer(_authorize)
        yield connection
    finally:
        connection.close()


def _authorize(
    action: int, _one: str | None, two: str | None, _database: str | None, _trigger: str | None
) -> int:
    """Allow reading only; SQLite asks for each step of a statement when it compiles it.

    Args:
        action: one of SQLite's action codes.
        two: the second argument, of a function its name.
    """
    refused = action == sqlite3.SQLITE_FUNCTION and two in REFUSED_FUNCTIONS
    return sqlite3.SQLITE_OK if action in ALLOWED and not refused else sqlite3.SQLITE_DENY
