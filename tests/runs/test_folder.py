"""The run folder: who may write it, what is never overwritten, and how an episode stands on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from parl.config import parse
from parl.core.errors import CheckpointError
from parl.core.types import RewardBreakdown, Sample, ScoredEpisode
from parl.runs.folder import (
    SCHEMA_VERSION,
    RunFolder,
    read_episodes,
    read_metrics,
    read_resolved,
    write_atomic,
)
from parl.runs.records import episode_record
from tests.support.factories import make_config
from tests.support.helpers import assign, call, create, run, script


def close(folder: RunFolder) -> Path:
    folder._lock.close()
    return folder.path


def test_a_new_folder_holds_the_resolved_config(tmp_path: Path) -> None:
    made = make_config(seed=5, loss={"tau": 0.25})
    path = close(RunFolder.create(tmp_path / "runs" / "r", made))
    raw = yaml.safe_load((path / "config.resolved.yaml").read_text())
    assert raw["schema_version"] == SCHEMA_VERSION
    assert parse(read_resolved(path)) == made
    assert (path / "episodes").is_dir()
    assert (path / "eval").is_dir()


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    path = close(RunFolder.create(tmp_path / "r", make_config(seed=1)))
    before = (path / "config.resolved.yaml").read_bytes()
    with pytest.raises(
        CheckpointError, match=r"already holds a run.*--resume.*run_dir=.*delete it"
    ):
        RunFolder.create(path, make_config(seed=2))
    assert (path / "config.resolved.yaml").read_bytes() == before


def test_one_process_at_a_time(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "r", make_config())
    with pytest.raises(CheckpointError, match="in use by another process"):
        RunFolder.resume(folder.path)
    close(folder)
    close(RunFolder.resume(folder.path))


def test_no_run_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no run folder: it has no config\.resolved\.yaml"):
        RunFolder.resume(tmp_path)


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, SCHEMA_VERSION - 1, None])
def test_another_schema_version_is_refused_with_the_way_out(
    tmp_path: Path, version: int | None
) -> None:
    path = close(RunFolder.create(tmp_path / "r", make_config()))
    raw = yaml.safe_load((path / "config.resolved.yaml").read_text())
    (path / "config.resolved.yaml").write_text(yaml.safe_dump({**raw, "schema_version": version}))
    with pytest.raises(
        CheckpointError, match=f"schema version {version}, this program reads {SCHEMA_VERSION}.*Use"
    ):
        RunFolder.resume(path)


def test_metrics_are_cut_where_the_run_goes_on(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "r", make_config())
    folder.truncate_metrics(0)
    assert read_metrics(folder.path) == []
    for step in range(4):
        folder.log({"step": step, "reward/total": step / 3})
    file = folder.path / "metrics.jsonl"
    with file.open("a") as half:
        half.write('{"step": 4, "rew')  # killed while writing
    assert [row["step"] for row in read_metrics(folder.path)] == [0, 1, 2, 3]
    folder.truncate_metrics(3)
    assert [json.loads(line) for line in file.read_text().splitlines()] == [
        {"step": step, "reward/total": step / 3} for step in range(3)
    ]
    folder.log({"step": 3})
    assert len(file.read_text().splitlines()) == 4
    close(folder)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_atomic(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "new \ud800")
    assert path.read_text() == "old"
    write_atomic(path, "new ü")
    assert path.read_text(encoding="utf-8") == "new ü"


def scored() -> ScoredEpisode:
    two = "\n".join([create("a"), assign("a", "red"), assign("a", "green")])
    episode = run(
        script(
            [two, call("peek", at="ü"), "blue"], red=["RED"], green=[call("peek", at="x"), "GREEN"]
        )
    )
    rewards = {
        "0": RewardBreakdown({"outcome": 1.0, "parallel": 0.5}, {"outcome": 1.0, "parallel": 0.2})
    }
    return ScoredEpisode(
        episode, {**rewards, "1": RewardBreakdown({"subtask": 0.5}, {"subtask": 1.0})}
    )


def test_an_episode_on_disk_can_be_recomputed_from_its_traces(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "r", make_config())
    episode = scored().episode
    samples = [
        Sample(
            episode.id, t.id, t.role, "main", t.token_ids, t.mask, t.logprobs, 0.5 - k, 1.0, (0,)
        )
        for k, t in enumerate(episode.traces)
    ]
    folder.write_episodes(12, [scored(), scored()], samples)
    first, second = read_episodes(close(folder) / "episodes" / "step_000012.jsonl.zst")
    assert first == second
    traces = first["traces"]
    launched: dict[int, int] = {}
    for t in traces[1:]:
        launched[t["spawned_at"]] = max(launched.get(t["spawned_at"], 0), len(t["turns"]))
    assert first["critical_steps"] == len(traces[0]["turns"]) + sum(launched.values()) == 5
    assert first["total_steps"] == sum(len(t["turns"]) for t in traces) == 6
    assert first["rewards"]["0"]["total"] == pytest.approx(1.1)
    assert (first["status"], first["answer"], first["outcome"]) == (
        "completed",
        "blue",
        {"score": 1.0},
    )
    assert traces[0]["turns"][1]["tool_calls"] == [
        {"name": "peek", "arguments": {"at": "ü"}, "error": None}
    ]
    assert traces[0]["turns"][1]["observations"] == ["ü"]
    for k, t in enumerate(traces):
        assert len(t["token_ids"]) == len(t["mask"]) == len(t["logprobs"]) == len(t["advantages"])
        assert t["advantages"] == [(0.5 - k) * m for m in t["mask"]]
        assert all(
            a["t_end"] <= b["t_start"] for a, b in zip(t["turns"], t["turns"][1:], strict=False)
        )
    assert first["clock"]["critical_path_s"] == max(
        turn["t_end"] for t in traces for turn in t["turns"]
    )


def test_the_record_has_the_public_keys() -> None:
    record = episode_record(scored(), {})
    top = {
        "task",
        "group",
        "step",
        "status",
        "answer",
        "outcome",
        "critical_steps",
        "total_steps",
        "clock",
    }
    assert top | {"rewards", "traces"} <= set(record)
    trace = {
        "id",
        "role",
        "parent",
        "spawned_at",
        "name",
        "prompt",
        "status",
        "policy",
        "result",
        "turns",
    }
    assert trace | {"token_ids", "mask", "logprobs", "advantages"} <= set(record["traces"][0])
    turn = {"text", "tool_calls", "observations", "policy_versions", "t_start", "t_end"}
    assert turn <= set(record["traces"][0]["turns"][0])
    assert {"id", "env", "prompt"} <= set(record["task"])
