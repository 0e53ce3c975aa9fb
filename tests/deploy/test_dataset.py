"""`parl export --episodes`: rows that are the run's traces, pairs of the same prompt, and what is left out, counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml

from parl.config.roles import Limits
from parl.core.errors import CheckpointError, ConfigError
from parl.core.types import Episode, RewardBreakdown, ScoredEpisode
from parl.deploy.dataset import DatasetRequest, export_episodes
from parl.rollout.env_calls import EpisodeFailure
from parl.rollout.swarm import failed_episode
from parl.runs.folder import RunFolder, read_episodes
from tests.support.factories import make_config
from tests.support.helpers import TASK, assign, call, create, roles, run, script, turns

TWO = turns(
    create("a", "first"),
    create("a", "worker"),
    assign("a", "red"),
    assign("a", "green"),
    call("peek", at="x"),
)


def attempt(
    name: str, answer: str, red: str = "RED", green: str = "GREEN", group: str = "g"
) -> Episode:
    """Two subagents, whose messages are given, and an answer; `blue` is right."""
    return replace(run(script([TWO, answer], red=[red], green=[green])), id=name, group=group)


def cut(name: str) -> Episode:
    """The orchestrator is stopped after its first turn."""
    limits = roles(orchestrator=Limits(turns=1, context_tokens=100_000))
    return replace(run(script([TWO, "blue"], red=["RED"], green=["GREEN"]), who=limits), id=name)


def scored(episode: Episode) -> ScoredEpisode:
    totals = {t.id: RewardBreakdown({"outcome": 1.0}, {"outcome": 0.5}) for t in episode.traces}
    return ScoredEpisode(episode, totals if episode.status != "failed" else {})


FAILED = failed_episode("f", TASK, "g", 3, EpisodeFailure("timeout", "no result"))
STEPS: dict[int, Sequence[Episode]] = {
    3: [
        attempt("e1", "blue"),
        attempt("e2", "green", red="no"),
        attempt("e3", "green"),
        cut("e4"),
        FAILED,
    ],
    4: [attempt("e5", "blue", group="h"), attempt("e6", "blue", group="h", red="junk", green="no")],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = make_config(
        "parl/WideSearch-v0", roles={"orchestrator": {"system_prompt": "be brief"}}
    )
    made = RunFolder.create(tmp_path_factory.mktemp("dataset") / "r", config)
    for step, episodes in STEPS.items():
        made.write_episodes(step, [scored(replace(e, step=step)) for e in episodes], [])
    made.close()
    return made.path


def rows(path: Path) -> list[dict[str, Any]]:
    return list(
        datasets.load_dataset(str(path), split="train", cache_dir=str(path.parent / "cache"))
    )


def test_each_row_is_a_trace_of_the_run(folder: Path, tmp_path: Path) -> None:
    written = export_episodes(folder, tmp_path / "out", DatasetRequest("sft"))
    found = {(r["episode"], r["agent"]): r for r in rows(tmp_path / "out")}
    files = sorted((folder / "episodes").glob("*.zst"))
    stored = {
        (e["id"], t["id"]): (e, t)
        for f in files
        for e in read_episodes(f)
        for t in e["traces"]
        if t["turns"]
    }
    assert found.keys() == stored.keys()
    assert written.num_rows == len(found) == 18
    for key, (episode, trace) in stored.items():
        row = found[key]
        for name in ("token_ids", "mask", "status", "stop_reason", "role", "policy"):
            assert row[name] == trace[name]
        assert (row["step"], row["task_id"], row["group"]) == (
            episode["step"],
            "t",
            episode["group"],
        )
        assert (row["run"], row["outcome"], row["reward"]) == (
            "r",
            episode["outcome"]["score"],
            0.5,
        )
        assert len([m for m in row["messages"] if m["role"] == "assistant"]) == len(trace["turns"])
    assert written.counts["tokens"] == sum(len(t["token_ids"]) for _, t in stored.values())
    assert written.counts["tokens that the agents wrote"] == sum(
        sum(t["mask"]) for _, t in stored.values()
    )


def test_messages_say_what_the_agent_read_and_did(folder: Path, tmp_path: Path) -> None:
    export_episodes(folder, tmp_path / "out", DatasetRequest("sft"))
    found = {(r["episode"], r["agent"]): r for r in rows(tmp_path / "out")}
    system, user, first, *heard, last = found["e1", "0"]["messages"]
    assert (system, user) == (
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": TASK.prompt},
    )
    assert [c["function"]["name"] for c in first["tool_calls"]] == ["create_subagent"] * 2 + [
        "assign_task"
    ] * 2 + ["peek"]
    assert first["tool_calls"][2]["function"]["arguments"] == {"agent": "a", "prompt": "red"}
    assert [m["content"] for m in heard] == ["ok", "ok", "RED", "GREEN", "x"]
    assert last == {"role": "assistant", "content": "blue"}  # no key of another message
    own = [{"role": "user", "content": "red"}, {"role": "assistant", "content": "RED"}]
    assert found["e1", "1"]["messages"] == [{"role": "system", "content": "worker"}, *own]
    tools = {
        role: [t["function"]["name"] for t in found["e1", a]["tools"]]
        for role, a in (("o", "0"), ("s", "1"))
    }
    assert set(tools["o"]) == {*tools["s"], "create_subagent", "assign_task"}


def test_the_answers_that_a_stopped_agent_never_read_are_left_out(
    folder: Path, tmp_path: Path
) -> None:
    written = export_episodes(folder, tmp_path / "out", DatasetRequest("sft", role="orchestrator"))
    row = next(r for r in rows(tmp_path / "out") if r["episode"] == "e4")
    assert [m["role"] for m in row["messages"]] == ["system", "user", "assistant"]
    assert (row["status"], row["stop_reason"]) == ("truncated", "turns")
    assert written.counts["rows of truncated agents (`status`)"] == 1
    assert (written.counts["episodes read"], written.counts["failed episodes, left out"]) == (7, 1)


def test_filters(folder: Path, tmp_path: Path) -> None:
    good = export_episodes(folder, tmp_path / "good", DatasetRequest("sft", min_score=0.5))
    assert all(r["score"] >= 0.5 for r in rows(tmp_path / "good"))
    assert good.counts["traces below --min-score, left out"] == 18 - good.num_rows == 6
    export_episodes(folder, tmp_path / "late", DatasetRequest("sft", role="subagent", steps="4"))
    assert {(r["step"], r["role"]) for r in rows(tmp_path / "late")} == {(4, "subagent")}
    export_episodes(folder, tmp_path / "all", DatasetRequest("sft", steps="0-3"))
    assert {r["step"] for r in rows(tmp_path / "all")} == {3}


def test_pairs_are_the_best_against_the_worst_of_the_same_prompt(
    folder: Path, tmp_path: Path
) -> None:
    written = export_episodes(folder, tmp_path / "out", DatasetRequest("preferences"))
    found = rows(tmp_path / "out")
    told = [
        (r["chosen_episode"], r["chosen_agent"], r["rejected_episode"], r["rejected_agent"])
        for r in found
    ]
    assert told == [
        ("e1", "0", "e2", "0"),
        ("e1", "1", "e2", "1"),
        ("e5", "1", "e6", "1"),
        ("e5", "2", "e6", "2"),
    ]
    assert [m["content"] for m in found[1]["prompt"]] == ["worker", "red"]
    assert (found[1]["chosen"][-1]["content"], found[1]["rejected"][-1]["content"]) == ("RED", "no")
    assert [(r["chosen_score"], r["rejected_score"]) for r in found] == [(1.0, 0.0)] * 4
    assert (
        written.counts["prompts whose attempts differ too little, or are not good enough, left out"]
        == 2
    )


def test_a_truncated_attempt_is_never_the_chosen_one(folder: Path, tmp_path: Path) -> None:
    made = RunFolder.create(tmp_path / "r", make_config("parl/WideSearch-v0"))
    stopped, wrong = replace(cut("e4"), outcome={"score": 1.0}), attempt("e2", "green")
    made.write_episodes(0, [scored(stopped), scored(wrong)], [])
    with pytest.raises(ConfigError, match="No row fits"):
        export_episodes(
            made.path, tmp_path / "out", DatasetRequest("preferences", role="orchestrator")
        )
    made.write_episodes(
        1, [scored(replace(stopped, outcome={"score": 0.0})), scored(attempt("e1", "blue"))], []
    )
    export_episodes(made.path, tmp_path / "out", DatasetRequest("preferences", role="orchestrator"))
    (row,) = rows(tmp_path / "out")
    assert (row["chosen_episode"], row["rejected_episode"], row["rejected_status"]) == (
        "e1",
        "e4",
        "truncated",
    )


def test_the_card_counts_and_says_how(folder: Path, tmp_path: Path) -> None:
    export_episodes(folder, tmp_path / "out", DatasetRequest("sft", min_score=0.5))
    _, head, text = (tmp_path / "out" / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(head)["configs"][0]["data_files"] == "*.parquet"
    for line in (
        "| rows | 12 |",
        "| failed episodes, left out | 1 |",
        "| lowest score | 0.5 |",
        "parl/WideSearch-v0",
    ):
        assert line in text
    shown = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert shown["roles"]["orchestrator"]["system_prompt"] == "be brief"
    assert str(folder.parent) not in text
    columns = [
        line.split(" | ")[0].lstrip("| ")
        for line in text.split("## Columns")[1].split("##")[0].splitlines()
    ]
    assert set(rows(tmp_path / "out")[0]) <= set(columns)


def test_what_is_refused_leaves_nothing_behind(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--steps 9-8: no stored step .* stored are 3 to 4"):
        export_episodes(folder, tmp_path / "out", DatasetRequest("sft", steps="9-8"))
    with pytest.raises(ConfigError, match=r"No row fits .*failed episodes, left out: 1"):
        export_episodes(folder, tmp_path / "out", DatasetRequest("sft", min_score=1.1))
    (tmp_path / "mine").write_text("")
    with pytest.raises(CheckpointError, match="holds something already"):
        export_episodes(folder, tmp_path, DatasetRequest("sft"))
    empty = RunFolder.create(tmp_path / "empty", make_config("parl/WideSearch-v0"))
    with pytest.raises(CheckpointError, match="has no stored episodes"):
        export_episodes(empty.path, tmp_path / "out", DatasetRequest("sft"))
    played = make_config(
        "parl/WideSearch-v0",
        swarm={"mode": "single"},
        roles={"orchestrator": {"external_agent": "a:b"}},
    )
    external_agent = RunFolder.create(tmp_path / "external_agent", played)
    with pytest.raises(ConfigError, match="not stored as messages"):
        export_episodes(external_agent.path, tmp_path / "out", DatasetRequest("sft"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "external_agent", "mine"]
