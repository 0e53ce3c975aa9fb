"""WideSearch: tasks and splits, answers by row, what a subagent is scored on, and the user's own material."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parl.config.env import EnvConfig
from parl.core.errors import ConfigError
from parl.core.messages import assistant
from parl.core.types import Task, ToolCall
from parl.env.registry import make_env
from parl.testing.check_env import check
from parl_envs.search.table import parse_rows, rows_to_markdown
from parl_envs.search.wide_search import WideSearch

SPLITS = ("train", "validation", "test")
COLUMNS = ["country", "capital", "currency"]


def task(*rows: Sequence[str], columns: Sequence[str] = COLUMNS) -> Task:
    gold = [dict(zip(columns, row, strict=True)) for row in rows]
    pipeline = {c: {"preprocess": ["norm_str"], "metric": ["exact_match"]} for c in columns}
    evaluation = {
        "required": list(columns),
        "unique_columns": [columns[0]],
        "eval_pipeline": pipeline,
    }
    return Task(
        "t",
        "parl/WideSearch-v0",
        "find",
        {"columns": list(columns), "gold": gold, "evaluation": evaluation},
    )


TWO = task(("Kenya", "Nairobi", "KES"), ("Guinea", "Conakry", "GNF"))


def started(what: Task = TWO, **kwargs: Any) -> WideSearch:
    env = WideSearch(**kwargs)
    env.reset(seed=0, options={"task": what})
    return env


# --- tasks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kwargs",
    [{}, pytest.param({"pages": "prose", "answer_format": "markdown"}, marks=pytest.mark.slow)],
)
def test_it_keeps_every_promise_of_an_environment(kwargs: dict[str, Any]) -> None:
    found = list(check(EnvConfig(id="parl/WideSearch-v0", kwargs=kwargs)))
    assert [f for f in found if f.status not in ("ok", "slow")] == []
    assert len(found) == 10


@pytest.mark.parametrize("split", SPLITS)
def test_the_same_seed_gives_the_same_tasks(split: str) -> None:
    first = WideSearch().generate_tasks(split, 20, seed=3)
    assert WideSearch().generate_tasks(split, 20, seed=3) == first
    assert WideSearch().generate_tasks(split, 20, seed=4) != first
    assert len({t.id for t in first}) == 20


def test_tasks_are_what_the_knobs_say() -> None:
    tasks = WideSearch(n=[2, 5], two_hop=0.5).generate_tasks("train", 200, 0)
    assert {len(t.data["gold"]) for t in tasks} == {2, 3, 4, 5}
    hops = [t.data["two_hop"] for t in tasks]
    assert 70 < sum(hops) < 130
    assert all((" > " in t.prompt) == hop for t, hop in zip(tasks, hops, strict=True))
    ranges = WideSearch(n=[[1, 1], [4, 4]]).generate_tasks("train", 50, 0)
    assert {len(t.data["gold"]) for t in ranges} == {1, 4}


def test_splits_share_neither_entities_nor_pages() -> None:
    names, pages = [], []
    for split in SPLITS:
        tasks = WideSearch().generate_tasks(split, 200, 0)
        names.append({row["country"] for t in tasks for row in t.data["gold"]})
        env = started(tasks[0])
        pages.append({d.title for d in env.world.index.documents})
        assert all(
            d.entity in names[-1] for d in env.world.index.documents
        )  # 200 tasks ask for every entity
    for sets in (names, pages):
        assert sum(map(len, sets)) == len(set.union(*sets))


@pytest.mark.parametrize("split", SPLITS)
def test_every_gold_cell_stands_on_the_page_that_search_and_open_find(split: str) -> None:
    for what in WideSearch(two_hop=0.5).generate_tasks(split, 30, 1):
        env = started(what)
        for row in what.data["gold"]:
            title, *cells = row.values()
            seen = []
            for name in (title, cells[0]) if what.data["two_hop"] else (title,):
                hits = dict(line.rsplit(" : ", 1) for line in env.search(name).split("\n"))
                seen.append(env.open(hits[name]))
            lines = "\n".join(seen).split("\n")
            assert all(f"{c} : {v}" in lines for c, v in row.items() if c != "country")


def test_a_page_does_not_tell_the_second_hop() -> None:
    what = next(t for t in WideSearch(two_hop=1.0).generate_tasks("train", 1, 0))
    env = started(what)
    entity = what.data["gold"][0]["country"]
    page = next(d for d in env.world.index.documents if d.title == entity)
    assert "time" not in page.text


def test_bad_ids_and_queries_are_answered() -> None:
    env = started()
    calls = [
        ToolCall("open", {"doc": "d0"}),
        ToolCall("search", {"query": "qqq"}),
        ToolCall("search", {}),
    ]
    observations, *_ = env.step(assistant(calls=calls))
    assert [o["content"] for o in observations] == [
        "unknown",
        "unknown",
        "error: search: query: Field required",
    ]


@pytest.mark.parametrize(
    "kwargs, said",
    [
        ({"n": [3, 2]}, r"give \[lo, hi\]"),
        ({"n": ["a", "b"]}, r"give \[lo, hi\]"),
        ({"pages": "record"}, "Did you mean 'records'"),
        ({"answer_format": "cell"}, "Did you mean 'cells'"),
        ({"attributes": ["capitol", "currency"]}, "Did you mean 'capital'"),
        ({"attributes": ["capital"]}, "at least two"),
        ({"top": 3}, "has no argument 'top'"),
    ],
)
def test_a_bad_argument_says_what_is_allowed(kwargs: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_env(EnvConfig(id="parl/WideSearch-v0", kwargs=kwargs))


# --- answers ---------------------------------------------------------------------------------------------------------


WORDS = st.sampled_from(
    ["#1", "#2", "#12", "capital", "currency", "Kenya", "Nairobi", "x|y", "|", "\n", "---"]
)


@given(st.lists(WORDS))
def test_a_table_holds_only_cells_that_were_written(words: list[str]) -> None:
    rows = parse_rows(" ".join(words), COLUMNS)
    table = rows_to_markdown(rows, COLUMNS)
    shown = [
        cell.strip() for line in table.split("\n")[2:] for cell in line.strip("|").split(" | ")
    ]
    own = [v.replace("|", "/") for row in rows.values() for v in row.values()]
    assert sorted(filter(None, shown)) == sorted(filter(None, own))
    assert all(part in words for v in own for part in v.split() if "/" not in part)


def test_rows() -> None:
    text = "so: capital x #1 Kenya capital Nairobi #2 Togo currency XOF capital Lome"
    text += " #1 Kenya capital Mombasa #12 Costa Rica"
    assert parse_rows(text, COLUMNS) == {
        1: {"country": "Kenya", "capital": "Mombasa"},
        2: {"country": "Togo", "currency": "XOF", "capital": "Lome"},
        12: {"country": "Costa Rica"},
    }
    two_words = parse_rows("#1 Kenya land area 5 land x", ["country", "land area"])
    assert two_words == {1: {"country": "Kenya", "land area": "5 land x"}}
    assert rows_to_markdown({2: {"capital": "x"}}, COLUMNS).split("\n")[2:] == ["|  | x |  |"]
    assert rows_to_markdown({}, COLUMNS) == ""


@pytest.mark.parametrize(
    "answer, score, nonkey, success",
    [
        (
            "#1 Kenya capital Nairobi currency KES #2 Guinea capital Conakry currency GNF",
            1.0,
            1.0,
            1.0,
        ),
        (
            "#2 kenya capital NAIROBI currency kes #7 guinea capital conakry currency gnf",
            1.0,
            1.0,
            1.0,
        ),  # rows may have any number
        (
            "#1 Kenya capital Nairobi currency unknown #2 Guinea capital Conakry currency GNF",
            5 / 6,
            3 / 4,
            0.0,
        ),
        ("#1 Kenya capital Nairobi currency KES", 2 / 3, 2 / 3, 0.0),  # precision 1, recall 1/2
        ("#1 Kenya #2 Guinea", 1 / 3, 0.0, 0.0),
        ("Kenya Nairobi KES", 0.0, 0.0, 0.0),
        ("", 0.0, 0.0, 0.0),
    ],
)
def test_score(answer: str, score: float, nonkey: float, success: float) -> None:
    outcome = started().score(answer)
    assert (outcome["score"], outcome["item_f1_nonkey"], outcome["success"]) == pytest.approx(
        (score, nonkey, success)
    )


def test_markdown_answers_are_scored_as_they_are() -> None:
    env = started(answer_format="markdown")
    table = "| country | capital | currency |\n|---|---|---|\n| Kenya | Nairobi | KES |\n| Guinea | Conakry | GNF |"
    assert env.score(f"Here it is:\n\n{table}")["success"] == 1.0
    assert env.score("#1 Kenya capital Nairobi currency KES")["score"] == 0.0


# --- subagents -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prompt, message, score, accepted",
    [
        ("#1 Kenya : capital , currency", "#1 Kenya capital Nairobi currency KES", 1.0, True),
        ("#1 Kenya : capital , currency", "#1 Kenya capital nairobi currency EUR", 0.5, True),
        ("#1 Kenya : capital , currency", "#1 Kenya capital Nairobi currency unknown", 0.5, False),
        ("#1 Kenya : capital , currency", "#1 Kenya capital Nairobi", 0.5, False),
        (
            "#1 Kenya : capital , currency",
            "#1 Kenya capital Nairobi currency KES #2 Guinea",
            1.0,
            False,
        ),
        ("#1 Kenya : capital , currency", "#2 Guinea capital Conakry currency GNF", 0.0, False),
        (
            "#1 Kenya ; #2 Guinea : capital",
            "#1 Kenya capital Nairobi currency KES #2 Guinea capital x currency GNF",
            0.75,
            True,
        ),
        ("do something", "#1 Kenya capital Nairobi currency KES", 0.0, False),
        ("#1 Kenya : capital , currency", "", 0.0, False),
    ],
)
def test_a_subagent_answers_for_the_rows_that_its_prompt_names(
    prompt: str, message: str, score: float, accepted: bool
) -> None:
    child = started().fork(prompt)
    assert (child.subtask_score(message), child.check_result(message)) == (score, accepted)


def test_a_name_inside_a_longer_name_is_not_named() -> None:
    env = started(task(("Guinea", "Conakry", "GNF"), ("Papua New Guinea", "Port Moresby", "PGK")))
    child = env.fork("2 Papua New Guinea : capital , currency")
    assert child.subtask_score("#2 Papua New Guinea capital Port Moresby currency PGK") == 1.0
    assert child.check_result("#2 Papua New Guinea capital Port Moresby currency PGK")
    both = env.fork("Guinea, and Papua New Guinea")
    assert both.subtask_score("#1 Guinea capital Conakry currency GNF") == 0.5


def test_a_name_with_a_comma_is_found() -> None:
    child = started(task(("Korea, South", "Seoul", "KRW"))).fork(
        "Look up Korea, South: its capital and currency"
    )
    assert child.subtask_score("#1 Korea, South capital Seoul currency KRW") == 1.0


def test_markdown_subagents_and_wide_tables() -> None:
    columns = [f"c{i}" for i in range(14)]
    env = started(task([f"v{i}" for i in range(14)], columns=columns), answer_format="markdown")
    child = env.fork("please find v0")
    assert child.subtask_score("| v1 | v2 |") == 2 / 13
    assert child.check_result("anything")


# --- what a message is worth to the answer ---------------------------------------------------------------------------

ANSWER = "#1 Kenya capital Nairobi currency KES #2 Guinea capital Conakry currency XOF"
KENYA, GUINEA = "#1 Kenya capital Nairobi currency KES", "#2 Guinea capital Conakry currency XOF"
NAMED = replace(TWO, prompt="find capital , currency for : #1 Kenya ; #2 Guinea")


@pytest.mark.parametrize(
    "messages, worth",
    [
        # 5 of 6 cells are right; without Kenya's two 3 of 6, without Guinea's right one 4 of 6
        ([KENYA, GUINEA], [2 / 6, 1 / 6]),
        ([GUINEA, KENYA], [1 / 6, 2 / 6]),
        # given twice: without either of them the answer stays what it is
        ([KENYA, KENYA, GUINEA], [0, 0, 1 / 6]),
        # right, but ignored: the answer says something else; and one that was stopped
        ([KENYA, "#2 Guinea capital Conakry currency GNF", ""], [2 / 6, 1 / 6, 0]),
        (["#1 Kenya capital Mombasa currency UGX", "#2 Guinea capital Labe", "nothing"], [0, 0, 0]),
        # the right words in another row
        (["#2 Kenya capital Nairobi currency KES"], [0]),
        ([], []),
    ],
)
def test_a_message_is_worth_the_cells_that_only_it_gives(
    messages: list[str], worth: list[float]
) -> None:
    env = started(NAMED)
    assert env.score(ANSWER)["score"] == pytest.approx(5 / 6)
    assert env.contributions(ANSWER, messages) == pytest.approx(worth)


def test_a_wrong_row_that_nobody_asked_for_costs() -> None:
    """The keys are not in the prompt, so a row goes with the message that gives its key: 6 of 9 and 6 of 6 cells."""
    answer = "#1 Kenya capital Nairobi currency KES #2 Guinea capital Conakry currency GNF #3 Chad capital x currency y"
    env = started(TWO)
    whole = env.score(answer)["score"]
    got = env.contributions(answer, [KENYA, "#3 Chad capital x currency y"])
    assert whole == pytest.approx(2 * (6 / 9) / (6 / 9 + 1))
    assert got == pytest.approx([whole - 2 * (3 / 6) * (3 / 6) / (3 / 6 + 3 / 6), whole - 1.0])
    assert got[1] < 0


def test_what_a_message_is_worth_in_markdown() -> None:
    env = started(NAMED, pages="prose", answer_format="markdown")
    answer = "Here:\n| Country | Capital | Currency |\n|---|---|---|\n| Kenya | Nairobi | KES |\n| Guinea | Conakry | XOF |"
    assert env.score(answer)["score"] == pytest.approx(5 / 6)
    prose = [
        "Nairobi is the capital of Kenya; it pays in KES.",
        "| Guinea | Conakry | XOF |",
        "Kenya is in Africa.",
    ]
    assert env.contributions(answer, prose) == pytest.approx([2 / 6, 1 / 6, 0])
    assert env.contributions("no table", prose) == [0, 0, 0]


def test_the_parent_has_no_subtask_and_a_fork_shares_the_index() -> None:
    env = started()
    child = env.fork("#1 Kenya")
    assert env.subtask_score("#1 Kenya") is None
    assert isinstance(child, WideSearch)
    assert child.world.index is env.world.index


# --- the user's own corpus and tasks ---------------------------------------------------------------------------------

ROWS = [{"Film Name": "Alpha", "Year": "1999"}, {"Film Name": "Beta", "Year": "2001"}]
CSV = "Film Name,Year\nAlpha,1999\nBeta,2001\n"
EVALUATION = {
    "required": ["filmname", "year"],
    "unique_columns": ["filmname"],
    "eval_pipeline": {
        "filmname": {"preprocess": ["norm_str"], "metric": ["exact_match"]},
        "year": {"preprocess": ["extract_number"], "metric": ["number_near"], "criterion": 0.0},
    },
}


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    path = tmp_path / "films.jsonl"
    pages = [
        {"title": name, "text": f"The film {name} is of {year}."}
        for name, year in (r.values() for r in ROWS)
    ]
    path.write_text("".join(json.dumps(page) + "\n" for page in pages))
    return str(path)


def row(gold: Any, evaluation: Any = EVALUATION) -> Mapping[str, Any]:
    return {
        "instance_id": "ws_en_001",
        "query": "All films.",
        "evaluation": evaluation,
        "gold": gold,
    }


@pytest.mark.parametrize("form", ["rows", "text", "path"])
@pytest.mark.parametrize("as_text", [True, False])
def test_tasks_in_widesearchs_format(corpus: str, tmp_path: Path, form: str, as_text: bool) -> None:
    file = tmp_path / "gold.csv"
    file.write_text(CSV, encoding="utf-8-sig")
    gold = {"rows": ROWS, "text": CSV, "path": str(file)}[form]
    env = WideSearch(corpus=corpus, answer_format="markdown")
    what = env.load_task(row(gold, json.dumps(EVALUATION) if as_text else EVALUATION))
    assert (what.id, what.prompt) == ("ws_en_001", "All films.")
    env.reset(options={"task": what})
    assert env.search("Beta").startswith("Beta : d2")
    assert env.open("d2") == "The film Beta is of 2001."
    assert (
        env.score("| Film Name | Year |\n|---|---|\n| alpha | 1999 |\n| Beta | 2001 |")["success"]
        == 1.0
    )
    child = env.fork("When was Beta made?")
    assert (child.subtask_score("In 2001."), child.subtask_score("In 1999.")) == (1.0, 0.0)
    assert env.num_parts() == 2


@pytest.mark.parametrize(
    "bad, said",
    [
        (row(None), "has no gold table"),
        (row([]), "has no gold table"),
        (row("no/such.csv"), "no gold file no/such.csv"),
        (row([{"Film Name": "Alpha"}]), "lacks the required column 'year'"),
        (row(ROWS, "{"), "not JSON"),
        (row(ROWS, None), "needs required, unique_columns and eval_pipeline"),
        (row(ROWS, {**EVALUATION, "eval_pipeline": None}), "lacks eval_pipeline"),
        (row(ROWS, {**EVALUATION, "unique_columns": ["title"]}), "unique columns"),
        ({"query": "All films."}, "needs instance_id and query"),
    ],
)
def test_a_task_that_cannot_be_scored_is_refused(
    corpus: str, bad: Mapping[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        WideSearch(corpus=corpus).load_task(bad)


def test_a_corpus_of_your_own_needs_tasks_of_your_own(corpus: str) -> None:
    with pytest.raises(ConfigError, match=r"env\.tasks\.train\.path"):
        WideSearch(corpus=corpus).generate_tasks("train", 1, 0)


def test_a_corpus_line_that_is_not_json(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"title": "a", "text": "b"}\nnot json\n')
    with pytest.raises(ConfigError, match=r"bad\.jsonl line 2 is not JSON"):
        WideSearch(corpus=str(path))
