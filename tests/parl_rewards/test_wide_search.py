"""WideSearch's scoring against recorded official scores, and by hand where those are silent."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from parl_rewards.wide_search import item_f1_nonkey, parse_date, parse_table, wide_search

CASES = json.loads(
    (Path(__file__).parent / "data" / "widesearch_cases.json").read_text(encoding="utf-8")
)
GOLD = [
    {"Country": "Chad", "Capital": "N'Djamena", "Area km2": "1284000"},
    {"Country": "Peru", "Capital": "Lima", "Area km2": "1285220"},
    {"Country": "Togo", "Capital": "Lome", "Area km2": "56785"},
]
TEXT = {"preprocess": ["norm_str"], "metric": ["exact_match"]}
NUMBER = {"preprocess": ["extract_number"], "metric": ["number_near"], "criterion": 0.05}
EVALUATION: dict[str, Any] = {
    "required": ["country", "capital", "areakm2"],
    "unique_columns": ["country"],
    "eval_pipeline": {"country": TEXT, "capital": TEXT, "areakm2": NUMBER},
}
PERFECT = """| Country | Capital | Area km2 |
|---|---|---|
| Chad | N'Djamena | 1284000 |
| Peru | Lima | 1285220 |
| Togo | Lome | 56785 |"""


def cell(response: str, target: str, **rule: Any) -> float:
    """Score of one cell beside a key that matches."""
    evaluation = {
        "required": ["key", "value"],
        "unique_columns": ["key"],
        "eval_pipeline": {"key": TEXT, "value": rule},
    }
    answer = f"| key | value |\n|---|---|\n| a | {response} |"
    return item_f1_nonkey(answer, [{"key": "a", "value": target}], evaluation)


@pytest.mark.parametrize(
    "case", CASES, ids=[f"{i}-{case['style']}" for i, case in enumerate(CASES)]
)
def test_agrees_with_the_official_evaluator(case: dict[str, Any]) -> None:
    result = wide_search(case["answer"], case["gold"], case["evaluation"])
    assert result == pytest.approx(case["expected"], abs=1e-6)


def test_there_are_thirty_cases() -> None:
    assert len(CASES) == 30


def test_a_perfect_table_scores_one_everywhere() -> None:
    assert set(wide_search(PERFECT, GOLD, EVALUATION).values()) == {1.0}
    assert item_f1_nonkey(PERFECT, GOLD, EVALUATION) == 1.0


def test_permuted_columns_and_rows_change_nothing() -> None:
    answer = "| area KM2 | COUNTRY | Capital |\n|--|:-:|--|\n| 56785 | Togo | Lome |\n"
    answer += "| 1284000 | Chad | N'Djamena |\n| 1285220 | Peru | Lima |"
    assert wide_search(answer, GOLD, EVALUATION) == wide_search(PERFECT, GOLD, EVALUATION)


@pytest.mark.parametrize(
    "answer", ["", "Nothing.", "| a |", "```markdown\n```", "```markdown\n|---|\n```"]
)
def test_no_table_scores_zero(answer: str) -> None:
    assert parse_table(answer) is None
    assert set(wide_search(answer, GOLD, EVALUATION).values()) == {0.0}
    assert item_f1_nonkey(answer, GOLD, EVALUATION) == 0.0


@pytest.mark.parametrize(
    "header",
    ["Country | Capital", "Country | Capital | Area km2 | Notes", "Country | Capital | Capital"],
)
def test_other_columns_than_the_required_score_zero(header: str) -> None:
    width = header.count("|") + 1
    answer = f"| {header} |\n|{'---|' * width}\n| {' | '.join(['Chad'] * width)} |"
    assert set(wide_search(answer, GOLD, EVALUATION).values()) == {0.0}


def test_a_header_without_rows_scores_zero() -> None:
    assert parse_table(PERFECT.split("\n|---")[0] + "\n|---|---|---|") == []
    assert set(wide_search(PERFECT.split("\n| Chad")[0], GOLD, EVALUATION).values()) == {0.0}


def test_rows_and_items_worked_by_hand() -> None:
    """Chad perfect, Peru's capital wrong, Togo absent, Elbonia invented: 3 predicted rows, 3 gold rows."""
    answer = PERFECT.replace("Lima", "Cusco").replace("Togo", "Elbonia")
    result = wide_search(answer, GOLD, EVALUATION)
    assert result["precision_by_row"] == result["recall_by_row"] == pytest.approx(1 / 3)
    assert result["precision_by_item"] == result["recall_by_item"] == pytest.approx(5 / 9)
    assert result["score"] == 0.0


def test_nonkey_item_f1_worked_by_hand() -> None:
    """Two of three gold rows, one with a wrong capital: P = 3/(2*2), R = 3/(3*2), F1 = 2*.75*.5/1.25 = .6."""
    answer = PERFECT.replace("Lima", "Cusco").split("\n| Togo")[0]
    assert item_f1_nonkey(answer, GOLD, EVALUATION) == pytest.approx(0.6)


def test_keys_alone_earn_a_third_of_the_items_but_nothing_outside_the_key() -> None:
    answer = "| Country | Capital | Area km2 |\n" + "".join(
        f"| {row['Country']} | ? | ? |\n" for row in GOLD
    )
    assert wide_search(answer, GOLD, EVALUATION)["f1_by_item"] == pytest.approx(1 / 3)
    assert item_f1_nonkey(answer, GOLD, EVALUATION) == 0.0


def test_a_table_of_keys_has_no_nonkey_cells() -> None:
    evaluation = {**EVALUATION, "unique_columns": EVALUATION["required"]}
    assert wide_search(PERFECT, GOLD, evaluation)["score"] == 1.0
    assert item_f1_nonkey(PERFECT, GOLD, evaluation) == 0.0


def test_of_repeated_keys_the_first_row_counts() -> None:
    again = "\n| Chad | Paris | 1 |"
    assert wide_search(PERFECT + again, GOLD, EVALUATION)["score"] == 1.0
    assert (
        wide_search(PERFECT.replace("|---|---|---|", again.strip()), GOLD, EVALUATION)["score"]
        == 0.0
    )
    assert wide_search(PERFECT, [*GOLD, GOLD[0]], EVALUATION)["score"] == 1.0


def test_spelling_variants_of_a_key_do_not_count_twice() -> None:
    """Officially each joins the gold row again and recall exceeds 1. Here the copies are wrong rows."""
    copies = "".join(f"\n| {name} | N'Djamena | 1284000 |" for name in ("CHAD", "*Chad*", "C had"))
    result = wide_search(PERFECT + copies, GOLD, EVALUATION)
    assert result["recall_by_item"] == result["recall_by_row"] == 1.0
    assert result["precision_by_item"] == pytest.approx(0.5)
    assert result["score"] == 0.0


def test_several_key_columns_join_together() -> None:
    evaluation = {**EVALUATION, "unique_columns": ["country", "capital"]}
    result = wide_search(PERFECT.replace("Lima", "Cusco"), GOLD, evaluation)
    assert result["f1_by_row"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    "response, target, expected",
    [
        ("105", "100", 1.0),
        ("95", "100", 1.0),
        ("105.1", "100", 0.0),
        ("94.9", "100", 0.0),
        ("1,284,000 km2", "1284000", 1.0),
        ("about 100", "100", 1.0),
        ("-100", "100", 0.0),
        ("50%", "0.5", 1.0),
        ("50", "50%", 0.0),
        ("0", "0", 1.0),
        ("0.01", "0", 0.0),
        ("n/a", "100", 0.0),
        ("unknown", "none", 1.0),  # neither is a number: both become NULL
    ],
)
def test_number_tolerance_is_relative_to_the_gold(
    response: str, target: str, expected: float
) -> None:
    assert cell(response, target, **NUMBER) == expected


@pytest.mark.parametrize(
    "text, expected",
    [
        ("2020-03-05", date(2020, 3, 5)),
        ("2020/3/5", date(2020, 3, 5)),
        ("2020-03-05T12:00:00Z", date(2020, 3, 5)),
        ("March 5, 2020", date(2020, 3, 5)),
        ("5th of Mar. 2020", date(2020, 3, 5)),
        ("Thursday, 5 March 2020", date(2020, 3, 5)),
        ("03/05/2020", date(2020, 3, 5)),
        ("25/12/2020", date(2020, 12, 25)),
        ("2020年3月5日", date(2020, 3, 5)),
        ("2020-03", date(2020, 3, 1)),
        ("May 2020", date(2020, 5, 1)),
        ("2020", date(2020, 11, 1)),
        ("2020-02-30", None),
        ("2020-13", None),
        ("March 5", None),  # of which year? never this one
        ("today", None),
        ("unknown", None),
        ("", None),
    ],
)
def test_dates(text: str, expected: date | None) -> None:
    assert parse_date(text) == expected


@pytest.mark.parametrize(
    "response, target, expected",
    [
        ("2020-03-01", "2020-04-01", 1.0),  # 31 days
        ("2020-03-01", "2020-04-02", 0.0),
        ("April 1, 2020", "2020-03-05", 1.0),
        ("unknown", "2020-03-05", 0.0),
        ("unknown", "to be decided", 1.0),
    ],
)
def test_dates_are_near_within_31_days(response: str, target: str, expected: float) -> None:
    assert cell(response, target, preprocess=["norm_date"], metric=["date_near"]) == expected


@pytest.mark.parametrize(
    "response, target, expected",
    [
        ("https://a.org/x", "https://a.org/y?z=1", 1.0),
        ("http://a.org", "https://a.org/y", 1.0),
        ("see https://b.org/1 and https://a.org/2", "https://a.org https://b.org", 1.0),
        ("https://a.org", "https://a.org https://b.org", 0.0),
        ("https://www.a.org", "https://a.org", 0.0),
        ("[site](https://a.org/x)", "https://a.org", 1.0),
        ("https://archive.org/web/https://a.org/", "https://archive.org/", 1.0),
        ("none", "https://a.org", 0.0),
        ("none", "-", 1.0),
    ],
)
def test_urls_compare_by_the_set_of_hosts(response: str, target: str, expected: float) -> None:
    assert cell(response, target, preprocess=[], metric=["url_match"]) == expected


@pytest.mark.parametrize(
    "response, target, expected",
    [
        ("xo", "XOF", 1.0),
        ("the XOF", "XOF", 0.0),
        ("**", "XOF", 0.0),
        ("", "XOF", 0.0),
        ("**", "*", 1.0),
    ],
)
def test_containment_is_of_the_answer_in_the_gold(
    response: str, target: str, expected: float
) -> None:
    assert cell(response, target, preprocess=["norm_str"], metric=["in_match"]) == expected


@pytest.mark.parametrize(
    "response, target, expected",
    [
        ("007", "7", 1.0),
        ("7.0", "7", 1.0),
        ("7", "7.50", 0.0),
        ("", "", 1.0),
        ("N/A", "", 1.0),
        ("", "7", 0.0),
    ],
)
def test_numeric_and_missing_cells_compare_as_in_pandas(
    response: str, target: str, expected: float
) -> None:
    assert cell(response, target, **TEXT) == expected


def test_several_metrics_of_a_column_must_all_hold() -> None:
    assert cell("ab", "ab", metric=["exact_match", "in_match"]) == 1.0
    assert cell("a", "ab", metric=["exact_match", "in_match"]) == 0.0


def test_a_huge_cell_is_only_wrong() -> None:
    assert cell("9" * 10_000, "7", **TEXT) == cell("9" * 10_000, "7", **NUMBER) == 0.0
    assert cell("x" * 200_000, "7", **TEXT) == 0.0


def test_parse_table_prefers_a_fence_and_stops_at_its_end() -> None:
    answer = "| no | this |\n| 1 | 2 |\n```markdown\n| A b | C |\n|---|---|\n| x | |\n| y |\n```\n| z | z |"
    assert parse_table(answer) == [{"ab": "x", "c": ""}, {"ab": "y", "c": ""}]


def test_parse_table_takes_the_first_bare_table() -> None:
    answer = "Here:\n| a | b |\n|:--|--:|\n| 1 | 2 |\n\nAnd:\n| c | d |\n| 3 | 4 |"
    assert parse_table(answer) == [{"a": "1", "b": "2"}]


def test_a_row_with_a_stray_pipe_makes_the_table_unreadable() -> None:
    assert parse_table(PERFECT.replace("Lima", "Li|ma")) is None


@pytest.mark.parametrize("metric", ["llm_judge", "llm_judge_column", "nonsense"])
@pytest.mark.parametrize("column", ["country", "capital"])
@pytest.mark.parametrize("answer", [PERFECT, ""])
def test_judge_and_unknown_metrics_are_refused(metric: str, column: str, answer: str) -> None:
    pipeline = {
        **EVALUATION["eval_pipeline"],
        column: {"metric": [metric], "criterion": "same meaning"},
    }
    with pytest.raises(
        ValueError, match=f"'{column}'.*'{metric}'.*judge metrics need a judge environment"
    ):
        wide_search(answer, GOLD, {**EVALUATION, "eval_pipeline": pipeline})


@pytest.mark.parametrize(
    "rule, message",
    [
        ({"preprocess": ["stem"], "metric": ["exact_match"]}, "no preprocess 'stem'"),
        ({"metric": ["number_near"]}, "number_near needs a numeric criterion, got None"),
        ({"preprocess": ["norm_str"]}, "names no metric"),
    ],
)
def test_an_incomplete_rule_is_refused(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cell("a", "a", **rule)


def test_an_incomplete_evaluation_or_gold_is_refused() -> None:
    with pytest.raises(ValueError, match="lacks unique_columns"):
        wide_search(PERFECT, GOLD, {**EVALUATION, "unique_columns": []})
    with pytest.raises(ValueError, match="not among the required"):
        wide_search(PERFECT, GOLD, {**EVALUATION, "unique_columns": ["iso"]})
    with pytest.raises(ValueError, match="lacks the required column 'capital'"):
        wide_search(PERFECT, [{"Country": "Chad", "Area km2": "1"}], EVALUATION)
