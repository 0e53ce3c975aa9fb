"""What an ablation says of its runs: intervals, words, tables, and the page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from plotly.offline import get_plotlyjs

from parl.evaluation.ablation.analysis import (
    VariantResults,
    analyse,
    difference,
    markdown,
    print_ablation,
    t95,
    words,
    write_ablation,
)
from parl.report.ablation_page import learning_curves, write_page


def measured(label: str, **metrics: list[float]) -> VariantResults:
    """A variant with a value of each metric for the seeds 0, 1, ..."""
    num = len(next(iter(metrics.values())))
    runs = {
        seed: {"greedy": {name: values[seed] for name, values in metrics.items()}}
        for seed in range(num)
    }
    return VariantResults(label, label, runs, frozenset({"tasks"}))


# --- statistics ----------------------------------------------------------------------------------------------


def test_t_quantiles_are_students_and_never_too_narrow() -> None:
    stats = pytest.importorskip("scipy.stats")
    for degrees in range(1, 200):
        exact = stats.t.ppf(0.975, degrees)
        assert exact - 5e-4 <= t95(degrees) <= exact + 0.03
        if degrees <= 30:
            assert t95(degrees) == pytest.approx(exact, abs=6e-4)


def test_difference_is_a_paired_t_interval() -> None:
    # By hand: differences 1, 2, 3; mean 2, sd 1; half width 4.303 / sqrt(3).
    found = difference({0: 10.0, 1: 20.0, 2: 30.0}, {0: 11.0, 1: 22.0, 2: 33.0})
    assert found is not None
    assert found == {
        "num": 3,
        "mean": pytest.approx(2.0),
        "low": pytest.approx(2.0 - 2.4843, abs=1e-3),
        "high": pytest.approx(2.0 + 2.4843, abs=1e-3),
    }


def test_difference_uses_only_seeds_that_both_have() -> None:
    assert difference({0: 1.0, 1: 5.0}, {1: 7.0, 2: 9.0}) == {
        "num": 1,
        "mean": 2.0,
        "low": None,
        "high": None,
    }
    assert difference({0: 1.0}, {1: 1.0}) is None


@pytest.mark.parametrize("delta", [0.0, 0.1, 3.0])
def test_equal_differences_make_no_interval(delta: float) -> None:
    found = difference({0: 0.1, 1: 0.7, 2: 0.3}, {0: 0.1 + delta, 1: 0.7 + delta, 2: 0.3 + delta})
    assert found == {"num": 3, "mean": pytest.approx(delta), "low": None, "high": None}


# --- words ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "delta, said",
    [
        ((3, 0.2, 0.1, 0.3), "higher by 0.20 (0.10..0.30)"),
        ((3, -0.2, -0.3, -0.1), "lower by 0.20 (0.10..0.30)"),
        ((3, 0.2, -0.1, 0.5), "no difference shown (-0.10..+0.50)"),
        ((3, 0.2, 0.0, 0.4), "no difference shown (+0.00..+0.40)"),
        ((3, 0.2, None, None), "higher by 0.20 in each of 3 seeds (no spread, so no interval)"),
        ((3, 0.0, None, None), "identical in every seed"),
        ((1, 0.2, None, None), "one seed: no statement"),
    ],
)
def test_words_claim_no_more_than_the_interval(delta: tuple[Any, ...], said: str) -> None:
    assert words(dict(zip(("num", "mean", "low", "high"), delta, strict=True)), 2) == said


def test_verdict_of_several_metrics() -> None:
    first = measured(
        "a", score=[0.1, 0.2, 0.3], critical_steps=[5.0, 6.0, 7.0], spawn_rate=[1.0, 1.0, 1.0]
    )
    other = measured(
        "b", score=[0.5, 0.61, 0.7], critical_steps=[6.0, 5.0, 7.5], spawn_rate=[1.0, 1.0, 1.0]
    )
    (line,) = analyse([first, other], [0, 1, 2])["verdicts"]
    assert line.startswith(
        "b against a (greedy, 3 paired seeds): score higher by 0.403 (0.389..0.418); "
    )
    assert line.endswith(
        "no difference shown in critical_steps; identical in every seed: spawn_rate."
    )


def test_one_seed_makes_no_statement() -> None:
    result = analyse([measured("a", score=[0.1]), measured("b", score=[0.5])], [0])
    (line,) = result["verdicts"]
    assert line == (
        "b against a (greedy, 1 paired seed): one seed, so no statement (score +0.400)."
    )
    assert result["results"]["score"]["greedy"][1]["sd"] is None


# --- tables --------------------------------------------------------------------------------------------------


def test_page_and_json_hold_all_that_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, other = measured("a", score=[0.1, 0.2]), measured("b|c", score=[0.4, 0.6])
    result = analyse([first, other], [0, 1]) | {
        "base": "x.yaml",
        "failed": [{"run": "b/seed_2", "log": "b/seed_2.log"}],
    }
    write_ablation(result, tmp_path)
    page = (tmp_path / "ablation.md").read_text()
    assert page == markdown(result)
    assert "| a | 0.150 ± 0.071 (n=2) |  |" in page
    assert "| b/c | 0.500 ± 0.141 (n=2) | +0.350 (-0.285..+0.985) |" in page
    assert "failed: `b/seed_2`, see `b/seed_2.log`" in page
    assert "item_f1_nonkey" not in page
    stored = json.loads((tmp_path / "ablation.json").read_text())
    assert stored["results"]["score"]["greedy"][1]["by_seed"] == {"0": 0.4, "1": 0.6}
    print_ablation(result, tmp_path)
    assert "+0.350 (-0.285..+0.985)" in capsys.readouterr().out


def test_notes_tell_what_is_missing_or_not_comparable() -> None:
    first = measured("a", score=[0.1, 0.2], num_failed=[0.0, 2.0])
    other = VariantResults("b", "b", {0: {"greedy": {"score": 0.3}}}, frozenset({"other"}))
    result = analyse([first, other], [0, 1])
    assert result["notes"] == [
        "a: 2 held-out episodes failed and are not in the means.",
        "b: no result for seed 1.",
        "b: measured on other tasks than a, so not comparable as is.",
    ]
    assert result["results"]["score"]["greedy"][1]["difference"]["num"] == 1
    assert result["verdicts"][0].startswith("b against a (greedy, 1 paired seed, on other tasks): ")


def test_nothing_measured_is_still_a_page() -> None:
    result = analyse([VariantResults("a", "a", {}), VariantResults("b", "b", {})], [0]) | {
        "base": "x",
        "failed": [],
    }
    assert (result["results"], result["verdicts"]) == ({}, [])
    assert "no result for seed 0" in markdown(result)


# --- the page ------------------------------------------------------------------------------------------------


def history(run: Path, *lines: dict[str, float]) -> Path:
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def test_learning_curves_are_means_and_extremes_over_seeds(tmp_path: Path) -> None:
    short = history(
        tmp_path / "0",
        {"step": 0, "outcome/score": 0.1},
        {"step": 1, "outcome/score": 0.3, "x": 1.0},
    )
    long = history(tmp_path / "1", *({"step": k, "outcome/score": 0.5} for k in range(3)))
    (chart,) = learning_curves({"a": [short, long], "b": [long], "none": []})
    a, b, none = chart["lines"]
    assert chart["metric"] == "outcome/score"
    assert (a["steps"], a["low"], a["high"]) == ([1, 2], [0.1, 0.3], [0.5, 0.5])
    assert a["mean"] == pytest.approx([0.3, 0.4])
    assert (b["steps"], b["num_seeds"], none["steps"], none["num_seeds"]) == ([1, 2, 3], 1, [], 0)
    assert learning_curves({"none": []}) == []


def test_the_page_is_one_file_without_network(tmp_path: Path) -> None:
    result = analyse([measured("a", score=[0.1, 0.2]), measured("<b>", score=[0.4, 0.6])], [0, 1])
    result |= {
        "base": "<script>x</script>.yaml",
        "failed": [{"run": "b/seed_2", "log": "b/seed_2.log"}],
    }
    run = history(tmp_path / "0", {"step": 0, "outcome/score": 0.1})
    write_page(result, {"a": [run], "</script><b>": [run]}, tmp_path)
    text = (tmp_path / "ablation.html").read_text()
    library = get_plotlyjs()
    assert library in text
    own = text.replace(library, "")
    assert "+0.350 (-0.285..+0.985)" in own
    assert "b/seed_2.log" in own
    assert "<script>x" not in own
    assert "<b>" not in own
    assert own.count("</script>") == 2
    assert not re.search(r"(src|href)=|https?://|@import", own)
    assert "default-src &#39;none&#39;" in own or "default-src 'none'" in own
    assert "prefers-color-scheme: dark" in own
    assert 'name="viewport"' in own


def test_a_page_without_a_finished_run_has_no_charts(tmp_path: Path) -> None:
    result = analyse([VariantResults("a", "a", {}), VariantResults("b", "b", {})], [0]) | {
        "base": "x",
        "failed": [],
    }
    write_page(result, {"a": [], "b": []}, tmp_path)
    text = (tmp_path / "ablation.html").read_text()
    assert "No run has finished." in text
    assert "<script>" not in text


def test_scores_by_ability_are_compared_beside_the_whole() -> None:
    both = {
        "ability/a/score": [0.5, 0.6],
        "ability/b/score": [0.1, 0.2],
        "ability/a/num_tasks": [2.0, 2.0],
    }
    variants = [
        measured("joint", score=[0.3, 0.4], critical_steps=[4.0, 5.0], **both),
        measured("a", score=[0.9, 0.7]),
    ]
    variants[1].runs[0]["greedy"]["ability/a/score"] = 0.9  # type: ignore[index]
    found = analyse(variants, (0, 1))["results"]
    assert list(found) == ["score", "ability/a/score", "ability/b/score", "critical_steps"]
    assert [row["num"] for row in found["ability/a/score"]["greedy"]] == [2, 1]
    assert found["ability/a/score"]["greedy"][1]["difference"]["mean"] == pytest.approx(0.4)
    assert found["ability/b/score"]["greedy"][1]["difference"] is None


def test_rates_of_abstentions_are_compared_where_they_were_measured() -> None:
    plain = [measured("a", score=[0.5, 0.6]), measured("b", score=[0.5, 0.7])]
    rates = [
        measured(v.label, score=[0.5, 0.6], abstention_recall=[0.1, 0.2 + k])
        for k, v in enumerate(plain)
    ]
    assert set(analyse(plain, (0, 1))["results"]) == {"score"}
    found = analyse(rates, (0, 1))["results"]
    assert set(found) == {"score", "abstention_recall"}
    assert [row["mean"] for row in found["abstention_recall"]["greedy"]] == pytest.approx(
        [0.15, 0.65]
    )
