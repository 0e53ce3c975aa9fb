"""A stored episode as RLlib's `MultiAgentEpisode`: for its tools, its offline data, its algorithms.

An agent's observation is what is new in its context (token ids), its action the turn that it wrote
(token ids), its module the policy that played it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray.rllib.env.multi_agent_episode import MultiAgentEpisode

Record = Mapping[str, Any]
"""An episode as it is stored (`parl.runs.folder.read_episodes`)."""
Trace = Mapping[str, Any]
"""One agent of it."""
Action = tuple[Trace, int]
"""An agent and the index of its turn."""


def to_multi_agent_episode(record: Record) -> MultiAgentEpisode:
    """Convert a stored episode.

    An environment step is one turn of every agent that acts: first the orchestrator alone, then the
    subagents that it launched, turn by turn, until the longest has ended. Subagents join with their
    prompt and end with their last turn. The orchestrator's action hangs until they are done, as
    RLlib has it for agents that wait. An agent's reward comes with its last turn. Log-probs are in
    the extra outputs, under `logp`.

    Args:
        record: an episode of `parl.runs.folder.read_episodes`.
    Raises:
        ValueError: the episode failed, so it has no turns.
    """
    if record["status"] == "failed":
        raise ValueError(
            f"episode {record['id']} failed ({record['failure']}): it has no turns to convert"
        )
    traces: Sequence[Trace] = record["traces"]
    orchestrator, *subagents = traces
    modules = {trace["id"]: trace["policy"] for trace in traces}
    episode = MultiAgentEpisode(id_=str(record["id"]), agent_module_ids=modules)
    episode.add_env_reset(observations={orchestrator["id"]: _observation(orchestrator, 0)})
    for turn in range(len(orchestrator["turns"])):
        launched = [trace for trace in subagents if trace["spawned_at"] == turn]
        num_rounds = max((len(trace["turns"]) for trace in launched), default=0)

        # The orchestrator acts, which starts the subagents. It reads on when the last has ended.
        observations: dict[str, NDArray[Any]] = {}
        for trace in launched:
            if trace["turns"]:
                observations[trace["id"]] = _observation(trace, 0)
        if num_rounds == 0:
            observations[orchestrator["id"]] = _observation(orchestrator, turn + 1)
        is_last_turn = turn + 1 == len(orchestrator["turns"])
        _add_step(
            episode,
            record,
            [(orchestrator, turn)],
            observations,
            is_over=is_last_turn and num_rounds == 0,
        )

        for index in range(num_rounds):
            acting = [(trace, index) for trace in launched if index < len(trace["turns"])]
            observations = {}
            for trace, _ in acting:
                observations[trace["id"]] = _observation(trace, index + 1)
            is_last_round = index + 1 == num_rounds
            if is_last_round:
                observations[orchestrator["id"]] = _observation(orchestrator, turn + 1)
            _add_step(episode, record, acting, observations, is_over=is_last_turn and is_last_round)
    return episode


def _add_step(
    episode: MultiAgentEpisode,
    record: Record,
    acting: Sequence[Action],
    observations: dict[str, NDArray[Any]],
    *,
    is_over: bool,
) -> None:
    """Add an environment step.

    Args:
        episode: to add to.
        record: the stored episode.
        acting: who acts, with which turn.
        observations: agent -> what it reads after the step.
        is_over: the step is the episode's last.
    """
    orchestrator = record["traces"][0]
    actions: dict[str, NDArray[Any]] = {}
    rewards: dict[str, float] = {}
    extra_outputs: dict[str, dict[str, NDArray[Any]]] = {}
    terminateds: dict[str, bool] = {}
    for trace, turn in acting:
        agent = trace["id"]
        actions[agent] = _token_ids(trace, turn)
        rewards[agent] = _reward(record, trace, turn)
        extra_outputs[agent] = {"logp": _logprobs(trace, turn)}
        if trace is not orchestrator:
            terminateds[agent] = turn + 1 == len(trace["turns"])

    terminateds["__all__"] = False
    flags: dict[str, dict[str, bool]] = {"terminateds": terminateds}
    if is_over:
        # RLlib tells an episode that a limit cut from one that came to its end.
        kind = "truncateds" if record["status"] == "truncated" else "terminateds"
        flags.setdefault(kind, {})["__all__"] = True
    episode.add_env_step(observations, actions, rewards, extra_model_outputs=extra_outputs, **flags)


def _token_ids(trace: Trace, turn: int) -> NDArray[np.int64]:
    span = trace["turns"][turn]
    return np.array(trace["token_ids"][span["start"] : span["end"]], dtype=np.int64)


def _logprobs(trace: Trace, turn: int) -> NDArray[np.float32]:
    span = trace["turns"][turn]
    return np.array(trace["logprobs"][span["start"] : span["end"]], dtype=np.float32)


def _observation(trace: Trace, turn: int) -> NDArray[np.int64]:
    """Return the tokens between the turn before and this one.

    After the last turn these are the tokens that follow it, often none.
    """
    turns = trace["turns"]
    start = turns[turn - 1]["end"] if turn else 0
    end = turns[turn]["start"] if turn < len(turns) else len(trace["token_ids"])
    return np.array(trace["token_ids"][start:end], dtype=np.int64)


def _reward(record: Record, trace: Trace, turn: int) -> float:
    """Return the agent's total at its last turn, 0 before: a PARL reward is for the whole trace."""
    is_last = turn + 1 == len(trace["turns"])
    return float(record["rewards"][trace["id"]]["total"]) if is_last else 0.0
