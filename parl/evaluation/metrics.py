"""From scored episodes to the flat, slash-separated metrics of one step. Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from parl.config.roles import Roles
from parl.core.abstention import rates
from parl.core.text import normalize_text
from parl.core.types import ORCHESTRATOR_ID, Episode, ScoredEpisode


def step_metrics(scored: Sequence[ScoredEpisode], episodes: Sequence[Episode]) -> dict[str, float]:
    """Means over the step's episodes; failed ones are counted by kind and left out of every mean."""
    ok = [e for e in episodes if e.status != "failed"]
    metrics: dict[str, float] = {}
    rewards = [s.rewards[ORCHESTRATOR_ID] for s in scored]
    if rewards:
        metrics["reward/total"] = fmean(r.total for r in rewards)
        for name in rewards[0].terms:
            metrics[f"reward/{name}"] = fmean(r.terms[name] for r in rewards)
    children = [
        r.total for s in scored for agent, r in s.rewards.items() if agent != ORCHESTRATOR_ID
    ]
    if children:
        metrics["reward/subagent"] = fmean(children)
    metrics |= outcome_metrics(ok) | swarm_metrics(ok) | ability_metrics(scored)
    for kind, count in Counter(
        e.failure or "unknown" for e in episodes if e.status == "failed"
    ).items():
        metrics[f"failures/{kind}"] = float(count)
    metrics["failures/num_failed"] = float(len(episodes) - len(ok))
    return metrics


def by_ability(episodes: Sequence[Episode]) -> dict[str, list[Episode]]:
    """The episodes of each ability of a mix, by name; {} of one environment."""
    found: dict[str, list[Episode]] = {}
    for episode in episodes:
        if episode.task.ability:
            found.setdefault(episode.task.ability, []).append(episode)
    return found


def ability_metrics(scored: Sequence[ScoredEpisode]) -> dict[str, float]:
    """What each ability of a mix has got: number of episodes, reward, outcome, steps and tokens."""
    rewards = {s.episode.id: s.rewards[ORCHESTRATOR_ID].total for s in scored}
    metrics: dict[str, float] = {}
    for ability, own in by_ability([s.episode for s in scored]).items():
        found = {
            "num_episodes": float(len(own)),
            "reward": fmean(rewards[e.id] for e in own),
            **mean_outcome(own),
            "critical_steps": fmean(e.critical_steps for e in own),
            "tokens": fmean(e.tokens() for e in own),
        }
        metrics |= {f"ability/{ability}/{k}": v for k, v in found.items()}
    return metrics


def staleness(episodes: Sequence[Episode], versions: Mapping[str, int]) -> tuple[float, float]:
    """(mean, largest) number of weight versions between a token's sampling and now, over all sampled tokens."""
    lags: Counter[int] = Counter()
    for trace in (
        t for e in episodes if e.status != "failed" for t in e.traces if t.policy in versions
    ):
        for turn in trace.turns:
            share = (turn.end - turn.start) // len(turn.policy_versions)
            for version in turn.policy_versions:
                lags[versions[trace.policy] - version] += share
    return (sum(k * n for k, n in lags.items()) / max(1, lags.total()), float(max(lags, default=0)))


def roles_trained(schedule: Roles, now: Roles) -> dict[str, float]:
    """1 or 0 for each role whose schedule leaves it open whether it learns now."""
    names = ("orchestrator", "subagent")
    return {
        f"roles/{name}/trained": float(getattr(now, name).trainable)
        for name in names
        if not isinstance(getattr(schedule, name).trainable, bool)
    }


def outcome_metrics(episodes: Sequence[Episode]) -> dict[str, float]:
    """Mean of every outcome that the environment reports, and what `mean_outcome` makes of its facts."""
    if not episodes:
        return {}
    return {f"outcome/{k}": v for k, v in mean_outcome(episodes).items()}


def mean_outcome(episodes: Sequence[Episode]) -> dict[str, float]:
    """Mean of every outcome that all of the episodes have; the rates of answers and abstentions, where counted."""
    means = {
        k: fmean(e.outcome[k] for e in episodes)
        for k in episodes[0].outcome
        if all(k in e.outcome for e in episodes)
    }
    return means | rates(e.facts["calibration"] for e in episodes if "calibration" in e.facts)


def num_contradictions(episodes: Sequence[Episode]) -> dict[str, float]:
    """Mean number of keys on which subagents contradict each other, over the episodes that can tell; {} without one."""
    told = [len(e.facts["contradictions"]) for e in episodes if "contradictions" in e.facts]
    return {"contradictions": fmean(told)} if told else {}


def swarm_metrics(episodes: Sequence[Episode]) -> dict[str, float]:
    """How the work was split, and what it cost."""
    if not episodes:
        return {}
    assigned = [e for e in episodes if e.num_assigned]
    subagents = [t for e in episodes for t in e.subagents]
    metrics = {
        "swarm/critical_steps": fmean(e.critical_steps for e in episodes),
        "swarm/total_steps": fmean(e.total_steps for e in episodes),
        "swarm/num_subagents": fmean(len(e.subagents) for e in episodes),
        "swarm/num_assigned": fmean(e.num_assigned for e in episodes),
        "swarm/num_refused": fmean(e.num_refused for e in episodes),
        "swarm/num_duplicates": fmean(_num_duplicates(e) for e in episodes),
        "swarm/spawn_rate": len(assigned) / len(episodes),
        "swarm/width": fmean(_width(e) for e in episodes),
        "swarm/average_parallelism": fmean(
            e.clock.serial_s / max(e.clock.critical_path_s, 1e-9) for e in episodes
        ),
        "swarm/truncated_rate": fmean(e.status == "truncated" for e in episodes),
        "tokens/orchestrator": fmean(e.tokens("orchestrator") for e in episodes),
        "tokens/subagent": fmean(e.tokens("subagent") for e in episodes),
        "swarm/tokens_per_episode": fmean(e.tokens() + e.num_sibling_tokens for e in episodes),
    }
    if any(e.siblings for e in episodes):
        metrics["tokens/siblings"] = fmean(e.num_sibling_tokens for e in episodes)
    if assigned:
        metrics["swarm/finish_rate"] = fmean(e.num_finished / e.num_assigned for e in assigned)
    metrics |= {f"swarm/{k}": v for k, v in num_contradictions(episodes).items()}
    scores = [t.score for t in subagents if t.score is not None]
    if scores:
        metrics["outcome/subtask"] = fmean(scores)
    return metrics


def _width(episode: Episode) -> int:
    """Most subagents that one turn launched."""
    launched = Counter(t.spawned_at for t in episode.subagents)
    return max(launched.values(), default=0)


def _num_duplicates(episode: Episode) -> int:
    """Subagents that got the prompt of an earlier one (where `swarm.refuse_duplicates` does not prevent it)."""
    return len(episode.subagents) - len({normalize_text(t.prompt) for t in episode.subagents})


def heldout_metrics(episodes: Sequence[Episode]) -> dict[str, float]:
    """What summary.json says of one evaluation; of a mix, `ability/NAME/...` says the same of each ability."""
    parts = by_ability(episodes).items()
    return _heldout(episodes) | {
        f"ability/{a}/{k}": v for a, own in parts for k, v in _heldout(own).items()
    }


def _heldout(episodes: Sequence[Episode]) -> dict[str, float]:
    ok = [e for e in episodes if e.status != "failed"]
    if not ok:
        raise RuntimeError(
            f"all {len(episodes)} episodes failed: {episodes[0].orchestrator.stop_reason}"
        )
    metrics = mean_outcome(ok)
    delegating = any(e.num_assigned for e in ok)
    subtasks = [t.score for e in ok for t in e.subagents if t.score is not None]
    return metrics | {
        "critical_steps": fmean(e.critical_steps for e in ok),
        "total_steps": fmean(e.total_steps for e in ok),
        "virtual_latency_s": fmean(e.clock.critical_path_s for e in ok),
        "tokens_per_episode": fmean(e.tokens() for e in ok),
        "spawn_rate": fmean(e.num_assigned > 0 for e in ok),
        "num_subagents": fmean(len(e.subagents) for e in ok),
        "subtask_score": fmean(subtasks) if subtasks else 0.0,
        "finish_rate": fmean(e.num_finished / e.num_assigned for e in ok if e.num_assigned)
        if delegating
        else 0.0,
        "num_truncated": float(sum(e.status == "truncated" for e in ok)),
        **num_contradictions(ok),
        **{f"num_truncated_{why}": float(num) for why, num in _truncated_by(ok).items()},
        "num_failed": float(len(episodes) - len(ok)),
        "num_tasks": float(len(episodes)),
    }


def _truncated_by(episodes: Sequence[Episode]) -> Counter[str]:
    """Which limit ended how many of the episodes: a step budget says something else than a full window."""
    return Counter(e.orchestrator.stop_reason for e in episodes if e.status == "truncated")


def heldout_rows(episodes: Sequence[Episode], trials: int = 1) -> list[dict[str, Any]]:
    """One row per episode (`trials` of each task): what statistics, and a comparison by task or by width, need."""
    return [
        {
            "task": e.task.id,
            "trial": index % trials,
            **({"ability": e.task.ability} if e.task.ability else {}),
            "status": e.status,
            "num_parts": e.facts.get("num_parts"),
            **e.outcome,
            "critical_steps": e.critical_steps,
            "total_steps": e.total_steps,
            "virtual_latency_s": e.clock.critical_path_s,
            "tokens": e.tokens(),
            "num_assigned": e.num_assigned,
        }
        for index, e in enumerate(episodes)
    ]
