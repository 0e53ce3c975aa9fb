"""Stored episodes as RLlib's."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from parl.core.types import RewardBreakdown, ScoredEpisode
from parl.deploy.rllib import to_multi_agent_episode
from parl.runs.records import episode_record
from tests.support.helpers import assign, call, create, run, script

pytestmark = pytest.mark.integration


def test_an_episode_survives_the_conversion() -> None:
    """Two subagents of different lengths: all tokens, log-probs and rewards are there, in the order they were made."""
    spawn = f"{create('w')}\n{assign('w', 'a')}\n{assign('w', 'b')}"
    play = script([spawn, call("peek", at="x"), "blue"], a=["A"], b=[call("peek", at="y"), "B"])
    episode = run(play)
    rewards = {
        t.id: RewardBreakdown({"r": float(len(t.id) + k)}, {"r": 1.0})
        for k, t in enumerate(episode.traces)
    }
    record = json.loads(json.dumps(episode_record(ScoredEpisode(episode, rewards), {})))

    made = to_multi_agent_episode(record)

    assert made.is_terminated
    assert set(made.agent_episodes) == {t.id for t in episode.traces}
    for trace in episode.traces:
        own = made.agent_episodes[trace.id]
        assert own.is_done
        seen, wrote = own.get_observations(), own.get_actions()
        assert len(wrote) == len(trace.turns)
        pieces = itertools.chain(
            *itertools.zip_longest(seen, wrote, fillvalue=np.array([], dtype=np.int64))
        )
        assert np.concatenate(list(pieces)).astype(int).tolist() == list(trace.token_ids)
        assert own.get_return() == rewards[trace.id].total
        assert own.module_id == trace.policy
        logp = np.concatenate(
            [own.get_extra_model_outputs("logp", k) for k in range(len(trace.turns))]
        )
        assert len(logp) == trace.num_generated


def test_a_failed_episode_is_refused() -> None:
    with pytest.raises(ValueError, match="failed"):
        to_multi_agent_episode(
            {"id": "e", "status": "failed", "failure": "environment", "traces": [{}]}
        )
