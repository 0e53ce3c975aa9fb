"""Stored episodes under another reward; under their own, nothing may change."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import zstandard

import parl_rewards  # noqa: F401  (registers the terms)
from parl.config import Config, parse
from parl.core.errors import CheckpointError, ConfigError
from parl.core.types import AgentTrace, Episode, ScoredEpisode, Task
from parl.evaluation.rescore import Change, rescore_run
from parl.rewards import credit, terms
from parl.rewards.scorer import Scorer
from parl.rewards.terms import reward
from parl.rollout.env_calls import EpisodeFailure
from parl.rollout.swarm import failed_episode
from parl.runs.folder import RunFolder
from tests.support.helpers import TASK, assign, create, run, script, turns

TERMS = {
    "outcome": {"weight": 1.0},
    "parallel": {"weight": {"start": 0.3, "end": 0.0, "to_step": 3}, "cap": 3},
    "tokens": {"weight": 0.1, "per": 100},
}
TOGGLE = {"period": 1, "accuracy_threshold": 0.1, "percentile": 0.5}
EFFORT = {"tau": {"start": 3.0, "end": 0.5, "to_step": 3}, "percentile": 0.5}
NUM_STEPS = 4


def config(path: Path, terms: dict[str, Any] | None = None, **more: Any) -> Config:
    raw = {
        "name": "r",
        "env": {"id": "parl/Gone-v0"},
        "run_dir": str(path),
        "reward": {"terms": terms or TERMS},
    }
    return parse({**raw, **more})


def with_toggle(**more: Any) -> dict[str, Any]:
    return {"terms": TERMS, "modifiers": {"toggle": {**TOGGLE, **more}}}


@cache
def episodes(step: int, task: str) -> list[Episode]:
    """A group: alone and right, alone and wrong, a swarm that is right, one that is wrong, and one that failed."""
    swarm = turns(create("a"), assign("a", "red"), assign("a", "green"))
    played = [
        run(script(["blue"])),
        run(script(["green" * (1 + step % 2)])),
        run(script([swarm, "blue"], red=["RED"], green=["no" * step])),
        run(script([swarm + " " * step, "no"], red=["RED"], green=["GREEN"])),
    ]
    group = f"{step}-{task}"
    played = [
        replace(e, traces=(e.traces[0], *_with_worth(e)), siblings=_siblings(e)) for e in played
    ]
    named = [
        replace(
            e,
            id=f"{group}-{k}",
            group=group,
            step=step,
            task=Task(task, e.task.env, e.task.prompt, e.task.data),
        )
        for k, e in enumerate(played)
    ]
    lost = failed_episode(
        f"{group}-9", replace(TASK, id=task), group, step, EpisodeFailure("timeout", "late")
    )
    return [*named, lost]


def _with_worth(episode: Episode) -> list[AgentTrace]:
    return [replace(t, contribution=0.5 / int(t.id)) for t in episode.subagents]


def _siblings(episode: Episode) -> tuple[AgentTrace, ...]:
    """The first subagent's attempt, once more and without success."""
    return tuple(replace(t, id=f"{t.id}.1", score=0.0) for t in episode.subagents[:1])


def train(config: Config, every: int = 1, failed: bool = True) -> Path:
    """What a run leaves of its steps, as `parl.training.trainer` makes it; the episodes that failed with or without a line."""
    folder = RunFolder.create(config.run_path, config)
    scorer = Scorer(config.reward)
    budgets: dict[str, float] = {}
    for step in range(NUM_STEPS):
        scored, samples = [], []
        for task in ("x", "y"):
            group = episodes(step, task)
            done, budgets = scorer.score(group, step, budgets)
            samples += credit.assign([done], config.credit, config.roles, step)
            scored += [
                *done,
                *(ScoredEpisode(e, {}) for e in group if failed and e.status == "failed"),
            ]
        if step % every == 0:
            folder.write_episodes(step, scored, samples)
    folder.close()
    return config.run_path


def contents(path: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(p): (p.stat().st_mtime_ns, p.read_bytes())
        for p in sorted(path.rglob("*"))
        if p.is_file()
    }


@pytest.mark.parametrize("failed", [True, False])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"credit": {"normalize_std": True, "subagent_group": "episode"}},
        {"roles": {"subagent": {"trainable": [{"until": 2, "value": False}, {"value": True}]}}},
        {"reward": with_toggle()},
        {"reward": with_toggle(scope="tree", rigid=True, start_step=1)},
        {"reward": {"terms": TERMS, "modifiers": {"effort_budget": EFFORT}}},
        {"reward": {"terms": TERMS, "modifiers": {"effort_budget": EFFORT, "toggle": TOGGLE}}},
        {"credit": {"type": "trajectory"}},
        {"credit": {"type": "role_normalized"}},
        {"credit": {"type": "hierarchical"}},
        {"credit": {"type": "per_turn", "normalize_std": True}},
        {"credit": {"type": "leave_one_out"}},
        {"credit": {"type": "resample"}},
    ],
    ids=[
        *("plain", "std", "frozen", "toggle", "rigid tree", "effort", "effort and toggle"),
        *("trajectory", "role_normalized", "hierarchical", "per_turn", "leave_one_out", "resample"),
    ],
)
def test_under_its_own_config_a_run_is_as_it_was(
    tmp_path: Path, more: dict[str, Any], failed: bool
) -> None:
    own = config(tmp_path / "run", **more)
    path = train(own, failed=failed)
    before = contents(path)
    result = rescore_run(path, own, "own")
    assert result.exact
    assert result.notes == ()
    assert (result.total.order_changed, result.total.best_changed, result.total.ranks_changed) == (
        0,
        0,
        0,
    )
    assert result.total.reward_old == result.total.reward_new
    assert result.total.num_failed == (8 if failed else 0)
    assert not result.most_changed
    assert contents(path) == before


def test_toggle_binds_in_these_runs(tmp_path: Path) -> None:
    """So that the test above would see budgets that are not followed."""
    own = config(tmp_path / "run", reward=with_toggle())
    path = train(own)
    assert not rescore_run(path, config(tmp_path / "run"), "without").exact
    assert not rescore_run(
        path, config(tmp_path / "run", reward=with_toggle(percentile=0.0)), "tighter"
    ).exact


def test_the_effort_budget_binds_in_these_runs(tmp_path: Path) -> None:
    own = config(tmp_path / "run", reward={"terms": TERMS, "modifiers": {"effort_budget": EFFORT}})
    path = train(own)
    constant = {"terms": TERMS, "modifiers": {"effort_budget": {**EFFORT, "tau": 3.0}}}
    assert not rescore_run(path, config(tmp_path / "run"), "without").exact
    assert not rescore_run(path, config(tmp_path / "run", reward=constant), "constant").exact


def test_another_credit_rule_changes_the_subagents_advantages(tmp_path: Path) -> None:
    path = train(config(tmp_path / "run"))
    for rule in ("trajectory", "role_normalized", "hierarchical", "per_turn", "leave_one_out"):
        result = rescore_run(path, config(tmp_path / "run", credit={"type": rule}), rule)
        assert not result.exact, rule
        assert result.total.order_changed == 0
        assert result.total.subagent_correlation is not None


def test_episodes_that_do_not_say_what_subagents_contributed(tmp_path: Path) -> None:
    own = config(tmp_path / "run")
    path = train(own)
    file = path / "episodes" / "step_000000.jsonl.zst"
    text = (
        zstandard.decompress(file.read_bytes())
        .decode()
        .replace('"contribution": 0.5', '"contribution": null')
    )
    file.write_bytes(zstandard.compress(text.encode()))
    assert rescore_run(path, own, "own").exact  # no other rule needs it
    with pytest.raises(
        ConfigError,
        match=r"does not say what its subagent 1 contributed. That is asked only while a run trains",
    ):
        rescore_run(path, config(path, credit={"type": "leave_one_out"}), "other")


def test_one_number_that_differs_is_seen(tmp_path: Path) -> None:
    path = train(config(tmp_path / "run"))
    nearly = {**TERMS, "tokens": {"weight": 0.1 + 1e-16, "per": 100}}
    assert 0.1 + 1e-16 != 0.1
    assert not rescore_run(path, config(path, nearly), "nearly").exact


def test_what_another_reward_changes(tmp_path: Path) -> None:
    """At step 0: right alone 1; wrong alone 0; right with two subagents 1 + .2; wrong with two .2. Then without .2."""
    terms = {"outcome": {"weight": 1.0}, "parallel": {"weight": 0.3, "cap": 3}}
    path = train(config(tmp_path / "run", terms))
    result = rescore_run(path, config(path, {"outcome": {"weight": 1.0}}), "other")
    assert not result.exact
    first = {c.id: c for c in result.episodes if c.group == "0-x"}
    change = first["0-x-0"]
    expected = Change("0-x-0", "0-x", 0, 1.0, 1.0, 2, 1, change.advantage_old, change.advantage_new)
    assert change == expected
    assert change.advantage_old == pytest.approx(0.4)
    assert change.advantage_new == pytest.approx(0.5)
    assert (first["0-x-3"].rank_old, first["0-x-3"].rank_new) == (3, 3)
    assert (first["0-x-1"].rank_old, first["0-x-1"].rank_new) == (4, 3)
    step = result.steps[0]
    assert step.terms == {"outcome": (0.5, 0.5), "parallel": (pytest.approx(0.1), 0.0)}
    assert step.order_changed == pytest.approx(2 / 6)  # both pairs of equal outcome become ties
    assert step.order_reversed == 0
    assert step.best_changed == 0  # the best swarm still is among the best
    assert step.ranks_changed == 4  # of both groups
    assert step.advantage_correlation == pytest.approx(5 / 26**0.5)
    assert {round(abs(c.advantage_new - c.advantage_old), 9) for c in result.most_changed[:8]} == {
        0.1
    }


def test_an_order_that_is_turned_round(tmp_path: Path) -> None:
    terms = {"outcome": {"weight": 1.0}}
    path = train(config(tmp_path / "run", terms))
    total = rescore_run(path, config(path, {"outcome": {"weight": -1.0}}), "other").total
    assert total.order_changed == total.order_reversed == pytest.approx(4 / 6)
    assert (total.best_changed, total.num_groups) == (8, 8)
    assert total.advantage_correlation == pytest.approx(-1.0)


def test_steps_that_are_not_stored_are_said(tmp_path: Path) -> None:
    own = config(tmp_path / "run", reward=with_toggle())
    path = train(own, every=3)
    (note,) = rescore_run(path, own, "own").notes
    assert "budgets of toggle cannot be followed: 2 of the steps" in note
    assert "step 1 first" in note
    assert rescore_run(path, config(path), "without toggle").notes == ()
    assert rescore_run(path, config(path, reward=with_toggle(start_step=3)), "later").notes == ()


# --- what cannot be scored -------------------------------------------------------------------------------------------


@pytest.fixture
def reads_a_fact() -> Iterator[None]:
    @reward
    def depth(episode: Episode) -> float:
        return float(episode.facts["depth"])

    yield
    del terms._REGISTRY["depth"]


@pytest.mark.usefixtures("reads_a_fact")
def test_a_fact_that_the_episodes_lack(tmp_path: Path) -> None:
    path = train(config(tmp_path / "run"))
    with pytest.raises(
        ConfigError,
        match=r"KeyError: 'depth' \(in reward term 'depth', episode 0-x-0\).*may lack a",
    ):
        rescore_run(path, config(path, {"depth": {}}), "other")


@pytest.mark.parametrize(
    "terms, message",
    [
        ({"gone": {}}, "reward.terms.gone: no such reward term"),
        ({"outcome": {"metric": "f1"}}, "scores no 'f1'"),
        ({"parallel": {"form": "parts"}}, "does not say how many parts task 'x' has"),
    ],
)
def test_a_reward_that_does_not_fit(tmp_path: Path, terms: dict[str, Any], message: str) -> None:
    path = train(config(tmp_path / "run"))
    with pytest.raises(ConfigError, match=message):
        rescore_run(path, config(path, terms), "other")


def test_no_run_and_no_episodes(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no run folder"):
        rescore_run(tmp_path, config(tmp_path), "own")
    own = config(tmp_path / "run")
    RunFolder.create(own.run_path, own).close()
    with pytest.raises(CheckpointError, match="has no stored episodes"):
        rescore_run(own.run_path, own, "own")


@pytest.mark.parametrize(
    "content", [b"no zstd", zstandard.compress(b"{"), zstandard.compress(b'{"id": "e"}')]
)
def test_a_damaged_file(tmp_path: Path, content: bytes) -> None:
    own = config(tmp_path / "run")
    file = train(own) / "episodes" / "step_000001.jsonl.zst"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"step_000001.jsonl.zst is damaged"):
        rescore_run(own.run_path, own, "own")


def test_a_group_that_failed_as_a_whole(tmp_path: Path) -> None:
    own = config(tmp_path / "run")
    path = train(own)
    folder = RunFolder.resume(path)
    lost = [e for e in episodes(NUM_STEPS, "x") if e.status == "failed"]
    folder.write_episodes(NUM_STEPS, [ScoredEpisode(e, {}) for e in lost], [])
    folder.close()
    last = rescore_run(path, own, "own").steps[-1]
    assert (last.num_episodes, last.num_failed, last.num_groups, last.reward_old) == (1, 1, 0, None)
