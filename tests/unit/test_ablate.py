"""`parl ablate`: its statistics, words, tables, variants and the order of its runs. No run is started."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from plotly.offline import get_plotlyjs

from parl import ablate
from parl.ablate import Job, cold_start_key, command, run_all
from parl.config import load
from parl.errors import ConfigError
from parl.report.ablation import Measured, analyse, difference, markdown, print_ablation, t95, words, write_ablation
from parl.report.ablation_page import learning_curves, write_page
from parl.variants import Variant, vary_configs, vary_values

BASE = """
name: r
env: {id: test/Env-v0}
roles: {subagent: {limits: {turns: 8}}}
cold_start:
  stages: [{name: s, data: {episode: 1}, until: {metric: score, value: 0.9, max_steps: 3}}]
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.yaml"
    path.write_text(BASE)
    return path


def measured(label: str, **metrics: list[float]) -> Measured:
    """A variant with a value of each metric for the seeds 0, 1, ..."""
    num = len(next(iter(metrics.values())))
    runs = {seed: {"greedy": {name: values[seed] for name, values in metrics.items()}} for seed in range(num)}
    return Measured(label, label, runs, frozenset({"tasks"}))


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
    assert difference({0: 1.0, 1: 5.0}, {1: 7.0, 2: 9.0}) == {"num": 1, "mean": 2.0, "low": None, "high": None}
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
    first = measured("a", score=[0.1, 0.2, 0.3], critical_steps=[5.0, 6.0, 7.0], spawn_rate=[1.0, 1.0, 1.0])
    other = measured("b", score=[0.5, 0.61, 0.7], critical_steps=[6.0, 5.0, 7.5], spawn_rate=[1.0, 1.0, 1.0])
    (line,) = analyse([first, other], [0, 1, 2])["verdicts"]
    assert line.startswith("b against a (greedy, 3 paired seeds): score higher by 0.403 (0.389..0.418); ")
    assert line.endswith("no difference shown in critical_steps; identical in every seed: spawn_rate.")


def test_one_seed_makes_no_statement() -> None:
    result = analyse([measured("a", score=[0.1]), measured("b", score=[0.5])], [0])
    (line,) = result["verdicts"]
    assert line == ("b against a (greedy, 1 paired seed): one seed, so no statement (score +0.400).")
    assert result["results"]["score"]["greedy"][1]["sd"] is None


# --- tables --------------------------------------------------------------------------------------------------


def test_page_and_json_hold_all_that_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    other = Measured("b", "b", {0: {"greedy": {"score": 0.3}}}, frozenset({"other"}))
    result = analyse([first, other], [0, 1])
    assert result["notes"] == [
        "a: 2 held-out episodes failed and are not in the means.",
        "b: no result for seed 1.",
        "b: measured on other tasks than a, so not comparable as is.",
    ]
    assert result["results"]["score"]["greedy"][1]["difference"]["num"] == 1
    assert result["verdicts"][0].startswith("b against a (greedy, 1 paired seed, on other tasks): ")


def test_nothing_measured_is_still_a_page() -> None:
    result = analyse([Measured("a", "a", {}), Measured("b", "b", {})], [0]) | {"base": "x", "failed": []}
    assert (result["results"], result["verdicts"]) == ({}, [])
    assert "no result for seed 0" in markdown(result)


# --- the page ------------------------------------------------------------------------------------------------


def history(run: Path, *lines: dict[str, float]) -> Path:
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def test_learning_curves_are_means_and_extremes_over_seeds(tmp_path: Path) -> None:
    short = history(tmp_path / "0", {"step": 0, "outcome/score": 0.1}, {"step": 1, "outcome/score": 0.3, "x": 1.0})
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
    result |= {"base": "<script>x</script>.yaml", "failed": [{"run": "b/seed_2", "log": "b/seed_2.log"}]}
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
    result = analyse([Measured("a", "a", {}), Measured("b", "b", {})], [0]) | {"base": "x", "failed": []}
    write_page(result, {"a": [], "b": []}, tmp_path)
    text = (tmp_path / "ablation.html").read_text()
    assert "No run has finished." in text
    assert "<script>" not in text


# --- variants ------------------------------------------------------------------------------------------------


def test_vary_is_a_product_whose_first_values_are_variant_0(base: Path) -> None:
    found = vary_values(base, ["loss.tau=0,0.1", "reward.terms.outcome.weight={start: 1, to_step: 9},2"])
    assert [v.label for v in found] == [
        'tau=0, weight={"start": 1, "to_step": 9}',
        "tau=0, weight=2",
        'tau=0.1, weight={"start": 1, "to_step": 9}',
        "tau=0.1, weight=2",
    ]
    assert [v.config.loss.tau for v in found] == [0, 0, 0.1, 0.1]
    assert found[1].folder == "loss.tau=0,reward.terms.outcome.weight=2"
    assert len({v.folder for v in found}) == 4
    assert not any(set(v.folder) & set('/ "{}:') for v in found)


def test_labels_are_as_long_as_they_have_to_be(base: Path) -> None:
    keys = ["roles.subagent.limits.turns", "roles.orchestrator.limits.turns"]
    found = vary_values(base, [f"{key}=4,8" for key in keys])
    assert found[0].label == "subagent.limits.turns=4, orchestrator.limits.turns=4"


@pytest.mark.parametrize(
    "vary, message",
    [
        (["loss.tau"], "write key.path=v1,v2"),
        (["loss.tau="], "write key.path=v1,v2"),
        (["loss.tau=0.1"], "nothing to compare"),
        (["loss.tau=0.1,0.10"], "a value twice"),
        (["loss.tau=0,1", "loss.tau=2,3"], "given twice"),
        (["seed=0,1"], "use --seeds N"),
        (["name=a,b"], "named after its variant"),
        (["loss.tau={,1"], "not YAML"),
        (["loss.tua=0,1"], "Did you mean 'tau'"),
    ],
)
def test_wrong_values_are_explained(base: Path, vary: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        vary_values(base, vary)


def test_configs_are_compared_with_the_base(base: Path) -> None:
    other = base.with_name("other.yaml")
    other.write_text("extends: base.yaml\nloss: {tau: 0.5}\n")
    found = vary_configs(base, [other])
    assert [(v.label, v.folder, v.config.loss.tau) for v in found] == [("base", "base", 0.01), ("other", "other", 0.5)]
    with pytest.raises(ConfigError, match="Two configs are named base"):
        vary_configs(base, [base])


def test_a_folder_of_another_config_is_refused(base: Path, tmp_path: Path) -> None:
    ablate._write_config(tmp_path / "v", Variant("v", "v", load(base)))
    ablate._write_config(tmp_path / "v", Variant("v", "v", load(base)))
    with pytest.raises(ConfigError, match=r"another config \(different: loss\)"):
        ablate._write_config(tmp_path / "v", Variant("v", "v", load(base, ["loss.tau=3"])))


# --- runs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "override, shared",
    [
        ("reward.terms.outcome.weight=3", True),
        ("loss.tau=0.5", True),
        ("policies.main.optimizer.lr=0.1", True),
        ("roles.subagent.trainable=false", True),
        ("swarm.critical_step_budget=9", True),
        ("env.kwargs.n=3", False),
        ("policies.main.tiny.ff_size=32", False),
        ("roles.subagent.limits.turns=3", False),
        ("swarm.mode=single", False),
        ("cold_start.max_attempts=1", False),
    ],
)
def test_cold_start_is_shared_where_it_would_come_out_the_same(base: Path, override: str, shared: bool) -> None:
    one, other = load(base, ["policies.main.model=tiny"]), load(base, ["policies.main.model=tiny", override])
    assert (cold_start_key(one, 0) == cold_start_key(other, 0)) == shared
    assert cold_start_key(one, 0) != cold_start_key(one, 1)
    assert cold_start_key(load(base, ["cold_start=null"]), 0) is None


FAKE_RUN = """
import pathlib, sys, time
run, source, fail = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "fail"
(run / "checkpoints" / "cold_start").mkdir(parents=True)
(run / "eval").mkdir()
if fail:
    sys.exit("it broke")
(run / "eval" / "cold_start.json").write_text(source)
(run / "checkpoints" / "cold_start" / "manifest.json").write_text("{}")
time.sleep(0.2)
(run / "summary.json").write_text("{}")
"""


@pytest.fixture
def jobs(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Two seeds of three variants; a run is a script that leaves the files of a run. Of seed 1, the first run fails."""
    variants = vary_values(base, ["loss.tau=1,2,3"])
    found = [ablate._job(tmp_path, v, seed) for seed in (0, 1) for v in variants]
    for variant in variants:
        (tmp_path / variant.folder).mkdir()

    def fake(job: Job, source: Job | None) -> list[str]:
        end = "fail" if job.seed == 1 and job.variant is variants[0] else "well"
        return [sys.executable, "-c", FAKE_RUN, str(job.path), source.name if source else "own", end]

    monkeypatch.setattr(ablate, "command", fake)
    monkeypatch.setattr(ablate, "POLL_S", 0.02)
    return found


def test_one_run_of_each_seed_trains_the_cold_start(jobs: list[Job], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_all(jobs, 4) == [jobs[3]]
    taken = [(j.path / "eval" / "cold_start.json").read_text() for j in jobs if j is not jobs[3]]
    assert taken == ["own", "tau=1 seed 0", "tau=1 seed 0", "own", "tau=2 seed 1"]
    err = capsys.readouterr().err
    assert f"FAILED: tau=1 seed 1, exit code 1, see {jobs[3].log}: it broke" in err


def test_finished_runs_are_not_run_again(jobs: list[Job], capsys: pytest.CaptureFixture[str]) -> None:
    done = [j for j in jobs if j is not jobs[3]]
    for job in done:
        job.path.mkdir(parents=True)
        (job.path / "summary.json").write_text("{}")
    assert run_all(done, 2) == []
    assert "5 runs, 5 done before" in capsys.readouterr().err


RUN_OF_ANOTHER = """
import fcntl, pathlib, sys, time
run = pathlib.Path(sys.argv[1])
run.mkdir(parents=True)
(run / "config.resolved.yaml").write_text("")
lock = (run / ".lock").open("a+")
fcntl.flock(lock, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.readline()
if sys.argv[2] == "ends":
    (run / "summary.json").write_text("{}")
"""


@pytest.mark.parametrize("how", ["ends", "dies"])
def test_a_run_that_outlived_its_ablation_is_waited_for(
    jobs: list[Job], how: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after `kill -9` of the ablation: its runs go on alone, and hold their folders."""
    left = jobs[0]
    started = []

    def fake(job: Job, source: Job | None) -> list[str]:
        started.append(job)
        return [sys.executable, "-c", f"open({str(job.path / 'summary.json')!r}, 'w').write('{{}}')"]

    monkeypatch.setattr(ablate, "command", fake)
    arguments = [sys.executable, "-c", RUN_OF_ANOTHER, str(left.path), how]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        assert left.in_use
        looked: list[float] = []

        def wait(seconds: float) -> None:
            looked.append(seconds)
            if len(looked) == 5:
                assert started == []  # the run's log, its cold start, nothing is touched
                assert other.stdin is not None
                other.stdin.write("\n")
                other.stdin.flush()
                other.wait()

        monkeypatch.setattr(ablate.time, "sleep", wait)
        assert run_all([left], 2) == []
    err = capsys.readouterr().err
    assert "tau=1 seed 0 is still running from an earlier start" in err
    assert ("done elsewhere: tau=1 seed 0" in err) == (how == "ends")
    assert started == ([] if how == "ends" else [left])


def test_a_stopped_ablation_stops_its_runs(jobs: list[Job], monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    interrupted: list[bool] = []

    def start(job: Job, source: Job | None) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        return started[-1]

    def steps(_: Job) -> int:
        if len(started) == 2 and not interrupted:
            interrupted.append(True)
            raise KeyboardInterrupt
        return 0

    monkeypatch.setattr(ablate, "_start", start)
    monkeypatch.setattr(ablate.Job, "steps", steps)
    with pytest.raises(SystemExit, match="1"):
        run_all(jobs, 2)
    assert len(started) == 2
    assert all(process.poll() is not None for process in started)


def test_command_of_a_new_and_of_a_begun_run(base: Path, tmp_path: Path) -> None:
    one, other = (ablate._job(tmp_path, v, 3) for v in vary_values(base, ["loss.tau=1,2"]))
    config = tmp_path / "loss.tau=2" / "config.yaml"
    assert command(other, one)[3:] == [
        "train",
        str(config),
        f'run_dir="{other.path}"',
        "seed=3",
        'name="tau=2 seed 3"',
        f'tracking.wandb.group="{tmp_path.name}"',
        f'cold_start.from_run="{one.path}"',
    ]
    ablate._write_config(config.parent, other.variant)
    loaded = load(config, command(other, one)[5:])
    assert (loaded.seed, loaded.run_dir, loaded.control) == (3, other.path, None)
    assert (loaded.name, loaded.tracking.wandb.group) == ("tau=2 seed 3", tmp_path.name)
    assert loaded.cold_start is not None
    assert loaded.cold_start.from_run == one.path
    other.path.mkdir()
    (other.path / "config.resolved.yaml").write_text("")
    assert command(other, None)[4:] == [str(other.path / "config.resolved.yaml"), "--resume", str(other.path)]
