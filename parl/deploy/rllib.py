"""Stored episodes as RLlib's own: for its tools, its offline data, its algorithms.

In: an episode as it stands on disk (`run_folder.read_episodes`). Out: a `MultiAgentEpisode`. An agent's observation is
what was new in its context (token ids), its action the turn that it wrote, its module the policy that played it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ray.rllib.env.multi_agent_episode import MultiAgentEpisode

Trace = Mapping[str, Any]


def to_multi_agent_episode(record: Mapping[str, Any]) -> MultiAgentEpisode:
    """One environment step per orchestrator turn, and one per turn of the longest subagent that it launched.

    Subagents join with their prompt and end with their last turn; the orchestrator's action hangs until they are done,
    as RLlib has it for agents that wait. An agent's reward comes with its last turn. `logp` is in the extra outputs.

    Raises:
        ValueError: the episode failed, so it has no turns.
    """
    traces: Sequence[Trace] = record["traces"]
    if record["status"] == "failed":
        raise ValueError(
            f"episode {record['id']} failed ({record['failure']}): it has no turns to convert"
        )
    modules = {t["id"]: t["policy"] for t in traces}
    episode = MultiAgentEpisode(id_=str(record["id"]), agent_module_ids=modules)
    root, children = traces[0], traces[1:]
    episode.add_env_reset(observations={root["id"]: _observation(root, 0)})
    for turn in range(len(root["turns"])):
        launched = [t for t in children if t["spawned_at"] == turn]
        rounds = max((len(t["turns"]) for t in launched), default=0)
        first = {t["id"]: _observation(t, 0) for t in launched if t["turns"]}
        acting = [(root, turn)]
        for k in range(rounds + 1):
            waiting = k < rounds
            observations = first if k == 0 else {}
            for trace, at in acting:
                if trace is not root:
                    observations[trace["id"]] = _observation(trace, at + 1)
            if not waiting:
                observations[root["id"]] = _observation(root, turn + 1)
            done = {t["id"]: at + 1 == len(t["turns"]) for t, at in acting if t is not root}
            over = not waiting and turn + 1 == len(root["turns"])
            ended = "truncateds" if record["status"] == "truncated" else "terminateds"
            flags: dict[str, dict[str, bool]] = {"terminateds": {**done, "__all__": False}}
            if over:
                flags.setdefault(ended, {})["__all__"] = True
            rewards = {t["id"]: _reward(record, t, at) for t, at in acting}
            episode.add_env_step(
                observations,
                {t["id"]: _ids(t, at) for t, at in acting},
                rewards,
                extra_model_outputs={t["id"]: {"logp": _logp(t, at)} for t, at in acting},
                **flags,
            )
            acting = [(t, k) for t in launched if k < len(t["turns"])]
    return episode


def _ids(trace: Trace, turn: int) -> np.ndarray[Any, Any]:
    span = trace["turns"][turn]
    return np.array(trace["token_ids"][span["start"] : span["end"]], dtype=np.int64)


def _logp(trace: Trace, turn: int) -> np.ndarray[Any, Any]:
    span = trace["turns"][turn]
    return np.array(trace["logprobs"][span["start"] : span["end"]], dtype=np.float32)


def _observation(trace: Trace, turn: int) -> np.ndarray[Any, Any]:
    """What stands between the turn before and this one; after the last turn, what is left (often nothing)."""
    turns = trace["turns"]
    start = turns[turn - 1]["end"] if turn else 0
    end = turns[turn]["start"] if turn < len(turns) else len(trace["token_ids"])
    return np.array(trace["token_ids"][start:end], dtype=np.int64)


def _reward(record: Mapping[str, Any], trace: Trace, turn: int) -> float:
    last = turn + 1 == len(trace["turns"])
    return float(record["rewards"][trace["id"]]["total"]) if last else 0.0
