"""An episode on disk and back."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from parl.core.types import RewardBreakdown, ScoredEpisode
from parl.rollout.env_calls import EpisodeFailure
from parl.rollout.swarm import failed_episode
from parl.runs.records import advantages_of, episode_of, episode_record, rewards_of
from tests.support.helpers import TASK, assign, call, create, run, script, turns

REWARDS = {
    "0": RewardBreakdown(
        {"outcome": 0.1, "parallel": 1 / 3}, {"outcome": 0.7, "parallel": 0.2}, {"outcome": 0.0}
    ),
    "1": RewardBreakdown({"outcome": 0.3}, {"outcome": 0.7}),
    "2": RewardBreakdown({"outcome": 0.0}, {"outcome": 0.7}),
}
ADVANTAGES = {"0": -0.1, "1": 1 / 3}


def stored(scored: ScoredEpisode) -> dict[str, Any]:
    traces = [t for t in scored.episode.traces if t.id in ADVANTAGES]
    advantages = {("e", t.id): [ADVANTAGES[t.id] * m for m in t.mask] for t in traces}
    return dict(json.loads(json.dumps(episode_record(scored, advantages))))


def test_an_episode_comes_back_as_it_was() -> None:
    play = script(
        [
            turns(create("a"), assign("a", "red"), assign("a", "green"), "@oops"),
            call("peek", at="ü"),
            "blue",
        ],
        red=[call("peek", at="x"), "RED"],
        green=["junk"],
    )
    before = ScoredEpisode(run(play), REWARDS)
    record = stored(before)
    assert episode_of(record) == before.episode
    assert [t.env_calls for t in episode_of(record).traces[1].turns] == [1, 0]
    assert episode_of(record).traces[2].accepted is False
    assert rewards_of(record) == REWARDS
    assert advantages_of(record) == {"0": -0.1, "1": 1 / 3, "2": 0.0}


def test_siblings_and_contributions_come_back_and_older_records_have_none() -> None:
    played = run(script([turns(create("a"), assign("a", "red")), "blue"], red=["RED"]))
    child = replace(played.subagents[0], contribution=0.25)
    episode = replace(
        played, traces=(played.orchestrator, child), siblings=(replace(child, id="1.1"),)
    )
    record = stored(ScoredEpisode(episode, {}))
    assert episode_of(record) == episode
    assert advantages_of(record) == {"0": -0.1, "1": 1 / 3, "1.1": 0.0}
    assert {t["t_start"] for s in record["siblings"] for t in s["turns"]} == {None}
    del record["siblings"]
    for trace in record["traces"]:
        del trace["contribution"]
    assert episode_of(record) == played


def test_and_its_record_too() -> None:
    record = stored(ScoredEpisode(run(script(["blue"])), {"0": REWARDS["0"]}))
    again = ScoredEpisode(episode_of(record), rewards_of(record))
    back = episode_record(
        again, {(again.episode.id, t["id"]): t["advantages"] for t in record["traces"]}
    )
    assert json.dumps(back) == json.dumps(record)


def test_a_failed_episode_has_no_reward() -> None:
    episode = failed_episode("e", TASK, "g", 3, EpisodeFailure("environment", "it broke"))
    record = stored(ScoredEpisode(episode, {}))
    assert episode_of(record) == episode
    assert rewards_of(record) == {}


def test_a_record_from_before_env_calls_were_stored() -> None:
    record = stored(ScoredEpisode(run(script([call("peek", at="x"), "blue"])), {}))
    for trace in record["traces"]:
        for turn in trace["turns"]:
            assert turn.pop("env_calls") in (0, 1)
    assert [t.env_calls for t in episode_of(record).orchestrator.turns] == [0, 0]


def test_what_is_no_record_is_refused() -> None:
    with pytest.raises(KeyError):
        episode_of({"id": "e"})
