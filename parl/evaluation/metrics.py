"""Metrics of scored episodes: flat, slash-separated names with one number each. Pure functions.

`step_metrics` describes a training step (metrics.jsonl), `heldout_metrics` an evaluation
(eval/*.json, summary.json), `heldout_rows` the same evaluation with one row per episode.
docs/reference/metrics.md says what each name means.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from parl.config.roles import Roles
from parl.core.abstention import rates
from parl.core.text import normalize_text
from parl.core.types import ORCHESTRATOR_ID, ROLES, AgentTrace, Episode, ScoredEpisode

# --- a training step ---------------------------------------------------------------------


def step_metrics(scored: Sequence[ScoredEpisode], episodes: Sequence[Episode]) -> dict[str, float]:
    """Compute the metrics of one training step.

    Args:
        scored: the step's episodes with their rewards. Failed episodes are not among them.
        episodes: all episodes of the step, failed ones included.
    Returns:
        Metric name -> mean over the episodes that did not fail. Failed episodes are counted by
        kind (`failures/KIND`). A metric without a case is left out rather than written as 0.
    """
    # A failure (a lost worker, an endpoint that is down) is not the policy's doing, so it must
    # not lower a mean.
    completed = _without_failed(episodes)
    metrics = _reward_metrics(scored)
    metrics |= outcome_metrics(completed)
    metrics |= swarm_metrics(completed)
    metrics |= ability_metrics(scored)

    num_by_kind: Counter[str] = Counter()
    for episode in episodes:
        if episode.status == "failed":
            num_by_kind[episode.failure or "unknown"] += 1
    for kind, count in num_by_kind.items():
        metrics[f"failures/{kind}"] = float(count)
    metrics["failures/num_failed"] = float(len(episodes) - len(completed))
    return metrics


def _reward_metrics(scored: Sequence[ScoredEpisode]) -> dict[str, float]:
    """Return mean rewards: of the orchestrators in total and by term, of the subagents in total."""
    if not scored:
        return {}
    totals: list[float] = []
    values_by_term: dict[str, list[float]] = {}
    subagent_totals: list[float] = []
    for scored_episode in scored:
        for agent, reward in scored_episode.rewards.items():
            if agent != ORCHESTRATOR_ID:
                subagent_totals.append(reward.total)
        orchestrator_reward = scored_episode.rewards[ORCHESTRATOR_ID]
        totals.append(orchestrator_reward.total)
        for name, value in orchestrator_reward.terms.items():
            values_by_term.setdefault(name, []).append(value)

    metrics = {"reward/total": fmean(totals)}
    # The terms come from the config, so each episode of a step has a value for each of them.
    for name, values in values_by_term.items():
        metrics[f"reward/{name}"] = fmean(values)
    if subagent_totals:
        metrics["reward/subagent"] = fmean(subagent_totals)
    return metrics


def outcome_metrics(episodes: Sequence[Episode]) -> dict[str, float]:
    """Return `mean_outcome` with `outcome/` before each name; {} without episodes."""
    if not episodes:
        return {}
    return _prefixed("outcome", mean_outcome(episodes))


def mean_outcome(episodes: Sequence[Episode]) -> dict[str, float]:
    """Average what the environments measured.

    Args:
        episodes: at least one, none of them failed.
    Returns:
        The mean of every outcome that all of the episodes have, and the rates of right answers
        and abstentions (`parl.core.abstention.rates`) where the environment counts them.
    """
    # A mix has environments with different outcomes: a mean over some of the episodes would
    # change with the mix and could not be compared between steps.
    means: dict[str, float] = {}
    for name in episodes[0].outcome:
        if all(name in e.outcome for e in episodes):
            means[name] = fmean(e.outcome[name] for e in episodes)

    # Rates are ratios of summed counts, not means of ratios per episode: an episode without any
    # abstention has no precision, but its questions still count for the recall.
    return means | rates(_facts(episodes, "calibration"))


def num_contradictions(episodes: Sequence[Episode]) -> dict[str, float]:
    """Return the mean number of keys on which an episode's subagents contradict each other.

    The mean is over the episodes whose environment reports them; {} where none does.
    """
    contradictions = _facts(episodes, "contradictions")
    if not contradictions:
        return {}
    return {"contradictions": fmean(map(len, contradictions))}


def swarm_metrics(episodes: Sequence[Episode]) -> dict[str, float]:
    """Measure how the work was split between agents, and its cost in turns and tokens."""
    if not episodes:
        return {}
    delegating = _delegating(episodes)
    metrics = {
        "swarm/critical_steps": _mean(episodes, lambda e: e.critical_steps),
        "swarm/total_steps": _mean(episodes, lambda e: e.total_steps),
        "swarm/num_subagents": _mean(episodes, lambda e: len(e.subagents)),
        "swarm/num_assigned": _mean(episodes, lambda e: e.num_assigned),
        "swarm/num_refused": _mean(episodes, lambda e: e.num_refused),
        "swarm/num_duplicates": _mean(episodes, _num_duplicates),
        "swarm/spawn_rate": len(delegating) / len(episodes),
        "swarm/width": _mean(episodes, _width),
        "swarm/average_parallelism": _mean(episodes, _average_parallelism),
        "swarm/truncated_rate": _mean(episodes, lambda e: e.status == "truncated"),
        "tokens/orchestrator": _mean(episodes, lambda e: e.tokens("orchestrator")),
        "tokens/subagent": _mean(episodes, lambda e: e.tokens("subagent")),
        "swarm/tokens_per_episode": _mean(episodes, lambda e: e.tokens() + e.num_sibling_tokens),
    }
    # Siblings are sampled for credit alone and nobody reads them: they cost tokens, but they are
    # no work of the swarm.
    if any(e.siblings for e in episodes):
        metrics["tokens/siblings"] = _mean(episodes, lambda e: e.num_sibling_tokens)
    if delegating:
        metrics["swarm/finish_rate"] = _mean(delegating, _finish_rate)
    metrics |= _prefixed("swarm", num_contradictions(episodes))
    subtask_scores = _subtask_scores(episodes)
    if subtask_scores:
        metrics["outcome/subtask"] = fmean(subtask_scores)
    return metrics


def _width(episode: Episode) -> int:
    """Return the largest number of subagents that one turn launched."""
    launched_by_turn = Counter(trace.spawned_at for trace in episode.subagents)
    return max(launched_by_turn.values(), default=0)


def _num_duplicates(episode: Episode) -> int:
    """Count subagents with the prompt of an earlier one.

    Always 0 with `swarm.refuse_duplicates`, which refuses such an assignment.
    """
    different_prompts = {normalize_text(trace.prompt) for trace in episode.subagents}
    return len(episode.subagents) - len(different_prompts)


def _average_parallelism(episode: Episode) -> float:
    """Return work over span: all work divided by the critical path, both on the virtual clock.

    It is no speed-up, since work without use raises it as well.
    """
    # An episode without any turn takes no time.
    return episode.clock.serial_s / max(episode.clock.critical_path_s, 1e-9)


# --- the abilities of a mix --------------------------------------------------------------


def by_ability(episodes: Sequence[Episode]) -> dict[str, list[Episode]]:
    """Group the episodes of a mix by ability; {} where there is only one environment."""
    groups: dict[str, list[Episode]] = {}
    for episode in episodes:
        if episode.task.ability:
            groups.setdefault(episode.task.ability, []).append(episode)
    return groups


def ability_metrics(scored: Sequence[ScoredEpisode]) -> dict[str, float]:
    """Return `ability/NAME/...` for each ability of a mix: reward, outcomes, steps and tokens."""
    total_rewards: dict[str, float] = {}
    for scored_episode in scored:
        total_rewards[scored_episode.episode.id] = scored_episode.rewards[ORCHESTRATOR_ID].total

    metrics: dict[str, float] = {}
    for ability, episodes in by_ability([s.episode for s in scored]).items():
        values = {
            "num_episodes": float(len(episodes)),
            "reward": _mean(episodes, lambda e: total_rewards[e.id]),
            **mean_outcome(episodes),
            "critical_steps": _mean(episodes, lambda e: e.critical_steps),
            "tokens": _mean(episodes, lambda e: e.tokens()),
        }
        metrics |= _prefixed(f"ability/{ability}", values)
    return metrics


# --- the state of training ---------------------------------------------------------------


def staleness(episodes: Sequence[Episode], versions: Mapping[str, int]) -> tuple[float, float]:
    """Measure how old the weights were that sampled the step's tokens.

    Args:
        versions: policy name -> the weight version that is trained now. Traces of other policies
            (frozen ones) do not count.
    Returns:
        Mean and maximum, over all sampled tokens, of the current version minus the version that
        sampled the token.
    """
    tokens_by_lag: Counter[int] = Counter()
    for trace in _traces(_without_failed(episodes)):
        if trace.policy not in versions:
            continue
        for turn in trace.turns:
            # One version for the whole turn, or one per token where the weights changed within
            # it: each version stands for an equal share of the tokens.
            tokens_per_version = (turn.end - turn.start) // len(turn.policy_versions)
            for version in turn.policy_versions:
                tokens_by_lag[versions[trace.policy] - version] += tokens_per_version
    total_lag = 0
    for lag, num_tokens in tokens_by_lag.items():
        total_lag += lag * num_tokens
    mean = total_lag / max(1, tokens_by_lag.total())
    return mean, float(max(tokens_by_lag, default=0))


def roles_trained(schedule: Roles, current: Roles) -> dict[str, float]:
    """Say which roles learn in this step.

    Args:
        schedule: the roles as configured, where `trainable` may be a list of phases.
        current: the same roles in this step.
    Returns:
        `roles/ROLE/trained` -> 1 or 0, for each role whose schedule changes during the run.
    """
    metrics: dict[str, float] = {}
    for role in ROLES:
        has_phases = not isinstance(getattr(schedule, role).trainable, bool)
        if has_phases:
            metrics[f"roles/{role}/trained"] = float(getattr(current, role).trainable)
    return metrics


# --- an evaluation -----------------------------------------------------------------------


def heldout_metrics(episodes: Sequence[Episode]) -> dict[str, float]:
    """Compute the metrics of one evaluation, as summary.json and eval/*.json hold them.

    Every mean is over episodes: with several trials per task, each trial counts once. For the
    uncertainty of a mean see `parl.evaluation.statistics`, which needs the rows.

    Args:
        episodes: all episodes under one decoding and mode, failed ones included.
    Returns:
        Over the episodes that did not fail, with n of them:

        - outcomes and rates of `mean_outcome`
        - `critical_steps`, `total_steps`, `num_subagents`: sum over episodes / n
        - `virtual_latency_s`: mean critical path on the virtual clock, in virtual seconds
        - `tokens_per_episode`: mean number of generated tokens of all agents, without siblings
        - `spawn_rate`: episodes that launched a subagent / n
        - `subtask_score`: mean over all subagents with a score, not over episodes; 0 without any
        - `finish_rate`: mean over the delegating episodes of finished / assigned subagents
          (`r_finish` of Kimi K2.5, section 3); 0 without any
        - `num_truncated` and `num_truncated_REASON`: episodes that a limit ended
        - `contradictions`: see `num_contradictions`

        Over all episodes: `num_failed`, and `num_tasks`, which counts episodes (trials included).
        For a mix, `ability/NAME/METRIC` is the same over the episodes of one ability.
    Raises:
        RuntimeError: every episode failed, so that there is nothing to average.
    """
    metrics = _heldout_metrics(episodes)
    for ability, ability_episodes in by_ability(episodes).items():
        metrics |= _prefixed(f"ability/{ability}", _heldout_metrics(ability_episodes))
    return metrics


def _heldout_metrics(episodes: Sequence[Episode]) -> dict[str, float]:
    completed = _without_failed(episodes)
    if not completed:
        raise RuntimeError(
            f"all {len(episodes)} episodes failed: {episodes[0].orchestrator.stop_reason}"
        )
    delegating = _delegating(completed)
    subtask_scores = _subtask_scores(completed)
    # By reason, since the remedies differ: a step budget is a choice, a full context is not.
    num_truncated: Counter[str] = Counter()
    for episode in completed:
        if episode.status == "truncated":
            num_truncated[episode.orchestrator.stop_reason] += 1

    metrics = mean_outcome(completed)
    metrics |= {
        "critical_steps": _mean(completed, lambda e: e.critical_steps),
        "total_steps": _mean(completed, lambda e: e.total_steps),
        "virtual_latency_s": _mean(completed, lambda e: e.clock.critical_path_s),
        "tokens_per_episode": _mean(completed, lambda e: e.tokens()),
        "spawn_rate": _mean(completed, lambda e: e.num_assigned > 0),
        "num_subagents": _mean(completed, lambda e: len(e.subagents)),
        # Unlike in a training step, 0 stands for "no case" here.
        "subtask_score": fmean(subtask_scores) if subtask_scores else 0.0,
        "finish_rate": _mean(delegating, _finish_rate) if delegating else 0.0,
        "num_truncated": float(num_truncated.total()),
    }
    metrics |= num_contradictions(completed)
    for reason, count in num_truncated.items():
        metrics[f"num_truncated_{reason}"] = float(count)
    metrics["num_failed"] = float(len(episodes) - len(completed))
    metrics["num_tasks"] = float(len(episodes))
    return metrics


def heldout_rows(episodes: Sequence[Episode], trials: int = 1) -> list[dict[str, Any]]:
    """Return one row per episode, for statistics and for comparisons by task or by width.

    Args:
        episodes: in the order of the tasks, the `trials` episodes of a task one after the other.
        trials: episodes per task.
    """
    rows: list[dict[str, Any]] = []
    for index, episode in enumerate(episodes):
        rows.append(_heldout_row(episode, trial=index % trials))
    return rows


def _heldout_row(episode: Episode, trial: int) -> dict[str, Any]:
    row: dict[str, Any] = {"task": episode.task.id, "trial": trial}
    if episode.task.ability:
        row["ability"] = episode.task.ability
    row["status"] = episode.status
    row["num_parts"] = episode.facts.get("num_parts")
    row |= episode.outcome
    row["critical_steps"] = episode.critical_steps
    row["total_steps"] = episode.total_steps
    row["virtual_latency_s"] = episode.clock.critical_path_s
    row["tokens"] = episode.tokens()
    row["num_assigned"] = episode.num_assigned
    return row


# --- shared ------------------------------------------------------------------------------


def _mean(episodes: Sequence[Episode], value: Callable[[Episode], float]) -> float:
    return fmean(map(value, episodes))


def _prefixed(prefix: str, metrics: Mapping[str, float]) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in metrics.items()}


def _without_failed(episodes: Sequence[Episode]) -> list[Episode]:
    return [e for e in episodes if e.status != "failed"]


def _delegating(episodes: Sequence[Episode]) -> list[Episode]:
    """Return the episodes that launched a subagent."""
    return [e for e in episodes if e.num_assigned]


def _facts(episodes: Sequence[Episode], name: str) -> list[Any]:
    """Collect a fact from the environments that state it."""
    return [e.facts[name] for e in episodes if name in e.facts]


def _traces(episodes: Sequence[Episode]) -> list[AgentTrace]:
    traces: list[AgentTrace] = []
    for episode in episodes:
        traces.extend(episode.traces)
    return traces


def _subtask_scores(episodes: Sequence[Episode]) -> list[float]:
    """Collect the scores of all subagents that the environment could score."""
    scores: list[float] = []
    for episode in episodes:
        for trace in episode.subagents:
            if trace.score is not None:
                scores.append(trace.score)
    return scores


def _finish_rate(episode: Episode) -> float:
    """Return the share of an episode's assignments that ended with an accepted message."""
    return episode.num_finished / episode.num_assigned
