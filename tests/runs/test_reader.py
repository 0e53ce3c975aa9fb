"""Reading a run's folder while it is being written: half lines, stale indices, failed episodes, who holds the lock."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from parl.core.errors import CheckpointError
from parl.core.types import Episode, ScoredEpisode
from parl.runs.folder import RunFolder, index_path, read_episode, read_episodes
from parl.runs.reader import RunReader
from tests.support.factories import make_config, with_rewards
from tests.support.helpers import TASK, assign, create, run, script, turns


def scored(reward: float = 1.0) -> ScoredEpisode:
    two = turns(create("a"), assign("a", "red"), assign("a", "green"))
    episode = run(script([two, "blue"], red=["RED"], green=["GREEN"]))
    return with_rewards(episode, {"0": reward})


def failed() -> ScoredEpisode:
    from parl.rollout.env_calls import EpisodeFailure
    from parl.rollout.swarm import failed_episode

    episode: Episode = failed_episode("f", TASK, "g", 3, EpisodeFailure("timeout", "no result"))
    return ScoredEpisode(episode, {})


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "r", make_config("parl/WideSearch-v0"))


def test_a_row_says_what_a_list_shows(folder: RunFolder) -> None:
    folder.write_episodes(3, [scored(0.5), failed()], [])
    one, two = RunReader(folder.path).rows()
    wanted = {
        "id": "e",
        "task": "t",
        "group": "g",
        "status": "completed",
        "failure": None,
        "reward": 0.5,
        "score": 1.0,
    }
    assert {k: one[k] for k in wanted} == wanted
    assert (one["width"], one["num_subagents"], one["critical_steps"]) == (2, 2, 3)
    generated = sum(t.num_generated for t in scored().episode.traces)
    assert (one["tokens"], one["latency_s"]) == (generated, scored().episode.clock.critical_path_s)
    assert (two["status"], two["failure"], two["reward"], two["score"]) == (
        "failed",
        "timeout",
        None,
        None,
    )
    assert read_episodes(folder.path / "episodes" / "step_000003.jsonl.zst")[1]["rewards"] == {}


def test_rows_are_the_same_without_an_index(folder: RunFolder) -> None:
    folder.write_episodes(3, [scored(), failed()], [])
    index = index_path(folder.path / "episodes" / "step_000003.jsonl.zst")
    assert index.is_file()
    before = RunReader(folder.path).rows()
    index.unlink()
    assert RunReader(folder.path).rows() == before


def test_an_index_of_another_file_is_not_believed(folder: RunFolder) -> None:
    """A run that is killed between the two writes leaves an old index beside a new file."""
    folder.write_episodes(3, [scored()], [])
    index = index_path(folder.path / "episodes" / "step_000003.jsonl.zst")
    old = index.read_text()
    folder.write_episodes(3, [scored(), failed()], [])
    index.write_text(old)
    assert [row["id"] for row in RunReader(folder.path).rows()] == ["e", "f"]
    index.write_text(old[: len(old) // 2])
    assert [row["id"] for row in RunReader(folder.path).rows()] == ["e", "f"]


def test_the_index_is_read_and_not_the_episodes(folder: RunFolder) -> None:
    folder.write_episodes(3, [scored()], [])
    stored = folder.path / "episodes" / "step_000003.jsonl.zst"
    stored.write_bytes(b"x" * stored.stat().st_size)  # would raise if it were opened
    assert [row["id"] for row in RunReader(folder.path).rows()] == ["e"]


def test_one_episode_whole(folder: RunFolder) -> None:
    folder.write_episodes(3, [scored(), failed()], [])
    file = folder.path / "episodes" / "step_000003.jsonl.zst"
    reader = RunReader(folder.path)
    assert reader.episode(3, "f") == read_episodes(file)[1] == read_episode(file, "f")
    assert reader.episode(3, "") is None
    assert reader.episode(4, "e") is None


def test_new_steps_and_metrics_are_seen_by_the_same_reader(folder: RunFolder) -> None:
    reader = RunReader(folder.path)
    assert (reader.steps(), reader.rows(), reader.metrics(), reader.summary()) == ([], [], [], None)
    for step in (2, 11):
        folder.log({"step": step, "reward/total": 0.5})
        folder.write_episodes(step, [scored()], [])
        (folder.path / "episodes" / ".step_000099.jsonl.zst.tmp").write_bytes(b"half")
        assert reader.metrics()[-1] == {"step": step, "reward/total": 0.5}
        assert reader.steps()[-1] == step
    assert len(reader.rows()) == 2


def test_a_half_written_line_and_values_that_are_no_numbers_are_left_out(folder: RunFolder) -> None:
    folder.log({"step": 0, "a": 1.0, "b": float("nan")})
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "a": 2.0}\n{"step": 2, "a"')
    assert RunReader(folder.path).metrics() == [{"step": 0, "a": 1.0}, {"step": 1, "a": 2.0}]


def test_evaluations_are_found_but_not_their_rows(folder: RunFolder) -> None:
    folder.write_json("eval/step_000002.json", {"score": 1.0, "num_tasks": 2.0})
    folder.write_json("eval/trained-swarm-greedy.tasks.json", [{"task": "t"}])
    (folder.path / "eval" / "step_000004.json").write_text('{"score": ')
    assert RunReader(folder.path).evaluations() == {"step_000002": {"score": 1.0, "num_tasks": 2.0}}


def test_the_state_comes_from_the_lock_and_the_summary(folder: RunFolder) -> None:
    reader = RunReader(folder.path)
    assert reader.state() == "running"
    folder.close()
    assert reader.state() == "stopped"
    RunFolder.resume(folder.path).close()  # having looked does not keep others out
    (folder.path / "summary.json").write_text(json.dumps({}))
    assert reader.state() == "finished"


def test_reading_writes_nothing(folder: RunFolder) -> None:
    folder.write_episodes(3, [scored()], [])
    index_path(folder.path / "episodes" / "step_000003.jsonl.zst").unlink()
    before = {p: p.stat().st_mtime_ns for p in folder.path.rglob("*")}
    mode = folder.path.stat().st_mode
    os.chmod(folder.path, 0o555)
    try:
        reader = RunReader(folder.path)
        (
            reader.rows(),
            reader.metrics(),
            reader.state(),
            reader.evaluations(),
            reader.baseline_metrics(),
        )
    finally:
        os.chmod(folder.path, mode)
    assert {p: p.stat().st_mtime_ns for p in folder.path.rglob("*")} == before


def test_no_run_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no run folder"):
        RunReader(tmp_path)
