"""WideSearch: questions whose answer no page tells, and messages of subagents that contradict each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from parl.config.env import EnvConfig
from parl.core.errors import ConfigError
from parl.core.messages import assistant
from parl.core.types import Task
from parl.env.registry import make_env
from parl.testing.check_env import check
from parl_envs.search.sql import WideSearchSql
from parl_envs.search.wide_search import WideSearch
from parl_envs.search.world import NOT_FOUND, load_world, split_rows

SPLITS = ("train", "validation", "test")
COLUMNS = ["country", "capital", "currency"]
PIPELINE = {c: {"preprocess": ["norm_str"], "metric": ["exact_match"]} for c in COLUMNS}
DATA = {
    "columns": COLUMNS,
    "gold": [
        {"country": "Kenya", "capital": "Nairobi", "currency": NOT_FOUND},
        {"country": "Guinea", "capital": "Conakry", "currency": "GNF"},
    ],
    "evaluation": {"required": COLUMNS, "unique_columns": ["country"], "eval_pipeline": PIPELINE},
}
TASK = Task("t", "parl/WideSearch-v0", "find capital , currency for : #1 Kenya ; #2 Guinea", DATA)


def started(task: Task = TASK, **kwargs: Any) -> WideSearch:
    env = WideSearch(**{"unanswerable": 0.3, **kwargs})
    env.reset(seed=0, options={"task": task})
    return env


def scored(env: WideSearch, answer: str) -> dict[str, Any]:
    return env.step(assistant(answer))[4]


# --- what no page tells ----------------------------------------------------------------------------------------------


def test_it_keeps_every_promise_of_an_environment() -> None:
    found = list(check(EnvConfig(id="parl/WideSearch-v0", kwargs={"unanswerable": 0.3})))
    assert [f for f in found if f.status not in ("ok", "slow")] == []


@pytest.mark.parametrize("split", SPLITS)
def test_a_cell_is_unknown_exactly_where_the_pages_do_not_tell_it(split: str) -> None:
    env = WideSearch(unanswerable=0.3, two_hop=0.5)
    told = {r.name: r.facts for r in split_rows(split)}
    cells = []
    for task in env.generate_tasks(split, 60, 1):
        env.reset(options={"task": task})
        for row in task.data["gold"]:
            name = row["country"]
            pages = [d.text for d in env.world.index.documents if d.entity == name]
            lines = "\n".join(pages).split("\n")
            for column, value in list(row.items())[1:]:
                cells.append((column, value))
                assert (f"{column} : {told[name][column]}" in lines) == (value != NOT_FOUND)
                assert value in (told[name][column], NOT_FOUND)
                assert (
                    not any(line.startswith(f"{column} : ") for line in lines) or value != NOT_FOUND
                )
    assert {value for column, value in cells if column == "capital"}.isdisjoint({NOT_FOUND})
    others = [value == NOT_FOUND for column, value in cells if column != "capital"]
    assert 0.15 < sum(others) / len(others) < 0.45


@pytest.mark.parametrize("split", SPLITS)
def test_nothing_else_changes(split: str) -> None:
    """The same ids, titles and lines in the same order, and the same questions, but for what was left out."""
    plain, less = WideSearch(), WideSearch(unanswerable=0.3)
    pages = [load_world(env.world_spec, split).index.documents for env in (plain, less)]
    for before, after in zip(*pages, strict=True):
        assert (before.id, before.title, before.entity) == (after.id, after.title, after.entity)
        kept = set(after.text.split("\n"))
        assert [line for line in before.text.split("\n") if line in kept] == after.text.split("\n")
    asked = [[(t.id, t.prompt) for t in env.generate_tasks(split, 20, 0)] for env in (plain, less)]
    assert asked[0] == asked[1]


def test_demonstrations_have_such_questions_too() -> None:
    import numpy as np

    env = WideSearch(unanswerable=0.3)
    rng = np.random.default_rng(0)
    gold = [row for _ in range(20) for row in env.demonstrate("episode", rng).task.data["gold"]]  # type: ignore[union-attr]
    assert any(NOT_FOUND in row.values() for row in gold)
    assert not all(NOT_FOUND in row.values() for row in gold)


def test_sql_does_not_tell_what_the_pages_do_not() -> None:
    env = WideSearchSql(unanswerable=0.3, two_hop=0.5)
    tasks = env.generate_tasks("test", 40, 0)
    env.reset(options={"task": tasks[0]})
    asked = {
        (r["country"], c): v
        for t in tasks
        for r in t.data["gold"]
        for c, v in r.items()
        if c != "country"
    }
    for (country, column), value in asked.items():
        name = country.replace("'", "''")
        where = (
            f"cities WHERE country = '{name}'"
            if column == "time"
            else f"countries WHERE name = '{name}'"
        )
        said = env.call("sql", {"query": f"SELECT {column} FROM {where}"})
        assert said == f"{column}\n{'NULL' if value == NOT_FOUND else value}"


@pytest.mark.parametrize(
    "kwargs, said",
    [
        ({"unanswerable": 1.5}, "give a share of the facts, 0 to 1"),
        ({"unanswerable": -0.1}, "give a share of the facts, 0 to 1"),
        ({"unanswerable": 0.1, "pages": "prose"}, "factbook's records only"),
    ],
)
def test_a_share_that_cannot_be_left_out(kwargs: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_env(EnvConfig(id="parl/WideSearch-v0", kwargs=kwargs))


# --- what an abstention scores ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer, nonkey, success, counts",
    [
        # answered, of them right; abstained, of them right
        (
            "#1 Kenya capital Nairobi currency unknown #2 Guinea capital Conakry currency GNF",
            1.0,
            1.0,
            (3, 3, 1, 1),
        ),
        (
            "#1 Kenya capital Nairobi currency KES #2 Guinea capital Conakry currency GNF",
            0.75,
            0.0,
            (4, 3, 0, 0),
        ),
        (
            "#1 Kenya capital unknown currency unknown #2 Guinea capital x currency GNF",
            0.5,
            0.0,
            (2, 1, 2, 1),
        ),
        (
            "#1 Kenya capital Nairobi #2 Guinea capital Conakry currency",
            0.5,
            0.0,
            (2, 2, 0, 0),
        ),  # left out
        ("#2 Guinea capital Conakry currency GNF", 2 / 3, 0.0, (2, 2, 0, 0)),  # a row left out
        ("#1 Kenya currency *Unknown*", 1 / 3, 0.0, (0, 0, 1, 1)),  # as the official rules read it
        ("#3 Chad capital unknown currency unknown", 0.0, 0.0, (0, 0, 0, 0)),  # nobody asked
        ("no table", 0.0, 0.0, (0, 0, 0, 0)),
    ],
)
def test_an_abstention_is_a_cell_like_any_other(
    answer: str, nonkey: float, success: float, counts: tuple[int, ...]
) -> None:
    info = scored(started(), answer)
    assert (info["outcome"]["item_f1_nonkey"], info["outcome"]["success"]) == pytest.approx(
        (nonkey, success)
    )
    found = dict(info["facts"]["calibration"])
    assert (found.pop("questions"), found.pop("unanswerable")) == (4, 1)
    assert tuple(found.values()) == counts


def test_without_such_questions_nothing_is_counted() -> None:
    assert "calibration" not in scored(started(unanswerable=0), "#1 Kenya capital Nairobi")["facts"]


def test_a_subagent_may_report_that_there_is_nothing() -> None:
    message = "#1 Kenya capital Nairobi currency unknown"
    for share, accepted in ((0.3, True), (0, False)):
        child = started(unanswerable=share).fork("#1 Kenya : capital , currency")
        assert child.check_result(message) == accepted
        assert child.subtask_score(message) == 1.0
        assert not child.check_result("#1 Kenya capital Nairobi currency")


def test_unknown_cells_of_ones_own_tasks(tmp_path: Path) -> None:
    corpus = tmp_path / "films.jsonl"
    corpus.write_text(json.dumps({"title": "Alpha", "text": "The film Alpha."}))
    with pytest.raises(ConfigError, match="write unknown into the gold cells"):
        WideSearch(corpus=str(corpus), unanswerable=0.1)
    env = WideSearch(corpus=str(corpus), answer_format="markdown")
    year = {"preprocess": ["extract_number"], "metric": ["number_near"], "criterion": 0.0}
    name = {"preprocess": ["norm_str"], "metric": ["exact_match"]}
    evaluation = {
        "required": ["film", "year"],
        "unique_columns": ["film"],
        "eval_pipeline": {"film": name, "year": year},
    }
    row = {
        "id": "1",
        "prompt": "?",
        "evaluation": evaluation,
        "gold": [{"film": "Alpha", "year": "unknown"}],
    }
    env.reset(options={"task": env.load_task(row)})
    table = "| film | year |\n|---|---|\n| alpha | {} |"
    honest, wrong = (scored(env, table.format(cell)) for cell in ("Unknown", "1999"))
    assert (honest["outcome"]["success"], wrong["outcome"]["success"]) == (1.0, 0.0)
    assert honest["facts"]["calibration"]["abstained_right"] == 1
    assert (
        wrong["facts"]["calibration"]["answered"],
        wrong["facts"]["calibration"]["answered_right"],
    ) == (1, 0)


# --- what messages state ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message, claims",
    [
        (
            "#1 Kenya capital Nairobi currency KES",
            {"Kenya capital": "Nairobi", "Kenya currency": "KES"},
        ),
        ("#7 Kenya currency KES", {"Kenya currency": "KES"}),  # whatever its number
        ("#1 Kenya capital unknown currency", {}),  # what is left open is no claim
        ("#1 capital Nairobi", {}),  # of whom?
        ("Nairobi is a city", {}),
        ("", {}),
    ],
)
def test_a_message_states_its_cells(message: str, claims: dict[str, str]) -> None:
    assert started().claims(message) == claims


def test_a_markdown_message_states_its_table() -> None:
    env = started(unanswerable=0, answer_format="markdown")
    table = "Found:\n| Capital | Country |\n|---|---|\n| Nairobi | Kenya |\n| unknown | Guinea |"
    assert env.claims(table) == {"Kenya capital": "Nairobi"}
    assert env.claims("| Capital | Currency |\n|---|---|\n| Nairobi | KES |") == {}
    assert env.claims("Nairobi is the capital of Kenya.") == {}
