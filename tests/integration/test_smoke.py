"""`parl train` as a user runs it: the whole path on the smoke config, a killed run that goes on, wrong input."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from parl.runs.folder import SCHEMA_VERSION, read_episodes
from tests.support.helpers import ROOT

pytestmark = pytest.mark.integration

SMOKE = ROOT / "configs" / "smoke.yaml"
HELDOUT = {
    "item_f1",
    "item_f1_nonkey",
    "success",
    "critical_steps",
    "total_steps",
    "virtual_latency_s",
} | {
    "tokens_per_episode",
    "spawn_rate",
    "num_truncated",
    "num_tasks",
}
ALWAYS = {
    "reward/total",
    "reward/outcome",
    "outcome/score",
    "swarm/critical_steps",
    "swarm/total_steps",
    "swarm/num_subagents",
    "swarm/num_assigned",
    "swarm/width",
    "swarm/average_parallelism",
    "tokens/orchestrator",
    "tokens/subagent",
    "swarm/tokens_per_episode",
    "rollout/tokens_per_s",
    "rollout/episodes_per_s",
    "rollout/staleness_mean",
    "rollout/staleness_max",
    "learner/tokens_per_s",
    "failures/num_failed",
    "system/rss_mb",
    "time/step_s",
    "time/rollout_s",
    "time/learn_s",
    "time/sync_s",
}
TRAINED = {"loss", "grad_norm", "entropy", "lr", "weight_version", "clipped_fraction"} | {
    "logp_mismatch_mean",
    "logp_mismatch_max",
}


def parl(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "parl.cli", *map(str, args)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=1800
    )


def train(*args: object) -> None:
    done = parl("train", *args)
    assert done.returncode == 0, done.stdout + done.stderr


def metrics(run: Path) -> list[dict[str, Any]]:
    file = run / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def lines(run: Path) -> int:
    """Whole lines of a file that is being written."""
    file = run / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def contents(run: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()}


# --- the whole path --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("smoke") / "run"
    train(SMOKE, f"run_dir={path}")
    return path


@pytest.mark.parametrize("name", ["run", "run-single"])
def test_the_folder_holds_what_it_should(run: Path, name: str) -> None:
    path = run.with_name(name)
    found = set(contents(path))
    episodes = {
        f"episodes/step_{k:06d}.{kind}" for k in range(3) for kind in ("jsonl.zst", "index.json")
    }
    evals = {"eval/cold_start.json", "eval/step_000002.json", "eval/step_000003.json"}
    assert {
        "config.resolved.yaml",
        "metrics.jsonl",
        "summary.json",
        "report.html",
    } | episodes | evals <= found
    for checkpoint in ("cold_start", "step_000002", "step_000003"):
        folder = f"checkpoints/{checkpoint}"
        parts = ("learner.pt", "state.json", "manifest.json", "policies/main/model.safetensors")
        assert {f"{folder}/{part}" for part in (*parts, "policies/main/tokenizer.json")} <= found
    assert not [f for f in found if "tmp" in f]
    raw = yaml.safe_load((path / "config.resolved.yaml").read_text())
    assert raw["schema_version"] == SCHEMA_VERSION
    assert raw["swarm"]["mode"] == ("single" if name == "run-single" else "swarm")


def test_the_summary_has_every_result(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert {"seed", "wall_s", "cold_start_attempts", "split", "heldout"} <= set(summary)
    assert (summary["seed"], summary["split"]) == (0, "test")
    results = {
        (phase, mode, decoding): values
        for phase, modes in summary["heldout"].items()
        for mode, decodings in modes.items()
        for decoding, values in decodings.items()
    }
    both = {
        (phase, mode, decoding)
        for phase in ("cold_start", "trained")
        for mode in ("swarm", "single")
        for decoding in ("greedy", "sampled")
    }
    assert set(results) == both | {("cold_start", "forced_parallel", "greedy")}
    for values in results.values():
        assert set(values) >= HELDOUT
        assert values["num_tasks"] == 4
    own = json.loads((run.with_name("run-single") / "summary.json").read_text())["heldout"][
        "trained"
    ]["single"]
    assert summary["heldout"]["trained"]["single"] == own


def test_every_step_has_every_metric(run: Path) -> None:
    lines = metrics(run)
    assert [line["step"] for line in lines] == [0, 1, 2]
    for line in lines:
        assert set(line) >= ALWAYS
        assert all(isinstance(v, int | float) for v in line.values())


def test_episodes_can_be_read_and_their_steps_recomputed(run: Path) -> None:
    for step, line in enumerate(metrics(run)):
        episodes = read_episodes(run / "episodes" / f"step_{step:06d}.jsonl.zst")
        assert len(episodes) == 4  # 2 tasks, 2 attempts each
        assert len({e["group"] for e in episodes}) == 2
        criticals = []
        for episode in episodes:
            traces = episode["traces"]
            launched: dict[int, int] = {}
            for trace in traces[1:]:
                at = trace["spawned_at"]
                launched[at] = max(launched.get(at, 0), len(trace["turns"]))
            criticals.append(len(traces[0]["turns"]) + sum(launched.values()))
            assert episode["critical_steps"] == criticals[-1]
            assert episode["total_steps"] == sum(len(t["turns"]) for t in traces)
            for trace in traces:
                n = len(trace["token_ids"])
                assert len(trace["mask"]) == len(trace["logprobs"]) == len(trace["advantages"]) == n
                assert all(
                    p < 0 for p, m in zip(trace["logprobs"], trace["mask"], strict=True) if m
                )
        assert line["swarm/critical_steps"] == pytest.approx(sum(criticals) / 4)


def test_a_run_is_not_trained_twice(run: Path) -> None:
    before = contents(run.parent)
    done = parl("train", SMOKE, f"run_dir={run}")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "already holds a run" in done.stderr
    assert contents(run.parent) == before


def test_a_stored_policy_can_be_evaluated(run: Path) -> None:
    done = parl("eval", run, "--checkpoint", "best", "--tasks", 2, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert set(result["greedy"]) >= HELDOUT
    assert (result["split"], result["mode"], result["greedy"]["num_tasks"]) == ("test", "swarm", 2)
    rows = json.loads(
        (run / "eval" / f"{result['checkpoint']}-test-swarm-greedy.tasks.json").read_text()
    )
    assert [(row["trial"], row["num_parts"] > 0) for row in rows] == [(0, True), (0, True)]
    stored = json.loads((run / "eval" / f"{result['checkpoint']}-test-swarm.json").read_text())
    assert stored == {key: value for key, value in result.items() if key != "against"}


def test_trials_have_statistics_and_a_swarm_its_single_agent(run: Path) -> None:
    done = parl("eval", run, "--tasks", 3, "--trials", 2, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    rows = json.loads((run / "eval" / "step_000003-test-swarm-sampled.tasks.json").read_text())
    assert [row["trial"] for row in rows] == [0, 1] * 3
    assert [row["task"] for row in rows[::2]] == [row["task"] for row in rows[1::2]]
    found = result["statistics"]["sampled"]
    assert set(found["item_f1"]) == {"avg", "max"}
    assert set(found["success"]) == {"avg", "pass"}
    assert found["critical_steps"]["avg"]["mean"] == pytest.approx(
        result["sampled"]["critical_steps"]
    )
    single = json.loads(
        (run.with_name("run-single") / "eval" / "step_000003-test-single.json").read_text()
    )
    steps = result["against"]["sampled"]["critical_steps"]
    assert steps["other"] == pytest.approx(single["sampled"]["critical_steps"])
    assert steps["difference"]["mean"] == pytest.approx(steps["own"] - steps["other"])


def test_an_evaluation_is_printed(run: Path) -> None:
    done = parl("eval", run, "--tasks", 2, "--trials", 2)
    assert done.returncode == 0, done.stderr
    assert "Means with 95 % intervals" in done.stdout
    assert "success Pass@2" in done.stdout
    assert "single agent" in done.stdout
    assert "Intervals are over tasks" in done.stdout


def test_a_damaged_checkpoint_is_refused_with_the_way_out(run: Path) -> None:
    weights = run / "checkpoints" / "step_000003" / "policies" / "main" / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    try:
        done = parl("train", run / "config.resolved.yaml", "--resume", run)
    finally:
        weights.write_bytes(good)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "step_000003 is damaged: policies/main/model.safetensors" in done.stderr


# --- resume ----------------------------------------------------------------------------------------------------------

# A cost of tokens gives the untrained policy something to learn: without it, both runs would agree by standing still.
SHORT = (
    "baseline=null",
    "train.num_steps=4",
    "train.checkpoint_every=1",
    "eval.every=2",
    "eval.decoding=[greedy]",
    "env.tasks.test.num=2",
    "reward.terms.tokens={weight: 1.0, per: 100}",
    "roles.orchestrator.sampling={max_tokens: 200, temperature: 3.0}",  # hot enough to stop now and then
    "train.group_size=4",
)


def comparable(line: dict[str, Any]) -> dict[str, Any]:
    return {
        k: v
        for k, v in line.items()
        if not k.startswith(("time/", "system/")) and not k.endswith("_per_s")
    }


def test_a_killed_run_goes_on_as_if_it_had_not_been_killed(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(SMOKE, f"run_dir={whole}", *SHORT)

    command = [
        sys.executable,
        "-m",
        "parl.cli.main",
        "train",
        str(SMOKE),
        f"run_dir={killed}",
        *SHORT,
    ]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 900
            while lines(killed) < 2:
                assert process.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.005)
        finally:
            process.kill()
            process.wait()
    assert not (killed / "summary.json").exists()
    assert 2 <= lines(killed) < 4

    train(killed / "config.resolved.yaml", "--resume", killed)
    first, second = metrics(whole), metrics(killed)
    assert [line["step"] for line in first] == [0, 1, 2, 3]
    trained = [line for line in first if "policy/main/loss" in line]
    assert {0, 1} & {line["step"] for line in trained}
    assert {2, 3} & {line["step"] for line in trained}
    for line in trained:
        assert {f"policy/main/{name}" for name in TRAINED} <= set(line)
        assert line["policy/main/grad_norm"] > 0
        assert line["policy/main/logp_mismatch_max"] < 1e-3
    assert [comparable(line) for line in second] == [comparable(line) for line in first]
    one, two = contents(whole), contents(killed)
    weights = "policies/main/model.safetensors"
    assert two[f"checkpoints/step_000004/{weights}"] == one[f"checkpoints/step_000004/{weights}"]
    assert one[f"checkpoints/step_000004/{weights}"] != one[f"checkpoints/cold_start/{weights}"]
    same = [name for name in one if name.startswith(("episodes/", "eval/")) or name == "tasks.json"]
    assert (
        len(same) == 2 * 4 + 3 + 3 + 1
    )  # steps, indices, evaluations, the rows behind the held-out ones, tasks
    assert {name: two[name] for name in same} == {name: one[name] for name in same}
    ends = [json.loads((run / "summary.json").read_text())["heldout"] for run in (whole, killed)]
    assert ends[0] == ends[1]
