"""Stored episodes under another reward: the rewards, ranks and advantages that they would have had.

`rescore_run` reads a run folder (and writes nothing) and takes reward, credit and roles from a config.
It needs no model and no environment, since an episode keeps what the environment measured. Under the
run's own config every number is the stored one, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby
from pathlib import Path
from statistics import StatisticsError, correlation, fmean
from typing import Any, Literal

from parl.config import Config, phases
from parl.core.errors import CheckpointError, ConfigError
from parl.core.progress import Progress
from parl.core.types import ORCHESTRATOR_ID, Episode, RewardBreakdown, ScoredEpisode
from parl.env import registry as plugins
from parl.rewards import credit
from parl.rewards.scorer import Scorer
from parl.runs.folder import read_episodes, read_resolved
from parl.runs.records import advantages_of, episode_of, episode_record, rewards_of

Record = dict[str, Any]
"""An episode as it is stored, see `parl.runs.records`."""


@dataclass(frozen=True, slots=True)
class Change:
    """The orchestrator's numbers of one episode, as stored (old) and as rescored (new).

    Rank 1 is the best of its group; equal rewards share a rank.
    """

    id: str
    group: str
    step: int
    """The step that trained it; in asynchronous runs it may have begun earlier."""
    reward_old: float
    reward_new: float
    rank_old: int
    rank_new: int
    advantage_old: float
    advantage_new: float


@dataclass(frozen=True, slots=True)
class Summary:
    """The changes over one step, or over the whole run.

    Failed episodes have no reward, so they are in `num_episodes` and `num_failed` alone.
    """

    step: int | None
    """None = the whole run."""
    num_episodes: int
    num_failed: int
    num_groups: int
    """Groups with an episode that did not fail."""
    reward_old: float | None
    reward_new: float | None
    """Means over the orchestrators; None where every episode failed."""
    terms: Mapping[str, tuple[float, float]]
    """Term -> (old, new): its part of the mean reward, weight * factor * value; 0 where a config
    does not have it."""
    ranks_changed: int
    """Episodes with another rank in their group."""
    order_changed: float | None
    """Share of the pairs of a group whose order (better, worse, equal) changes; None without pairs."""
    order_reversed: float | None
    """Share of the pairs of a group whose better episode becomes the worse one."""
    best_changed: int
    """Groups without an episode that is the best (or among equals) under both rewards."""
    advantage_correlation: float | None
    """Pearson's r between old and new advantages of orchestrators; None where either are all equal."""
    subagent_correlation: float | None
    """The same of subagents."""


@dataclass(frozen=True, slots=True)
class RescoredEpisodes:
    """The result of `rescore_run`."""

    run: str
    config: str
    """Where the config came from."""
    exact: bool
    """Every term, weight, factor, total and advantage of every agent is the stored one."""
    notes: tuple[str, ...]
    """Limits of these numbers."""
    total: Summary
    steps: tuple[Summary, ...]
    episodes: tuple[Change, ...]

    @property
    def most_changed(self) -> list[Change]:
        """The episodes whose rank or advantage changes, the largest change of advantage first."""
        changed: list[Change] = []
        for change in self.episodes:
            has_other_rank = change.rank_old != change.rank_new
            has_other_advantage = change.advantage_old != change.advantage_new
            if has_other_rank or has_other_advantage:
                changed.append(change)
        return sorted(changed, key=lambda c: -abs(c.advantage_new - c.advantage_old))


def rescore_run(run: Path, config: Config, source: str) -> RescoredEpisodes:
    """Score the stored episodes of a run under another config.

    Args:
        run: the run folder.
        config: gives reward, credit and roles.
        source: the config's origin, for the result.
    Raises:
        CheckpointError: no run, no stored episodes, or a damaged file of them.
        ConfigError: the reward is not valid (see `parl.rewards.scorer.validate`), or a term cannot
            score an episode.
    """
    read_resolved(run)  # raises where there is no run
    files = sorted((run / "episodes").glob("step_*.jsonl.zst"))
    if not files:
        raise CheckpointError(
            f"{run} has no stored episodes (episodes/step_NNNNNN.jsonl.zst), so there is nothing "
            "to score. Give a run that has trained a step; train.store_episodes_every says how "
            "often they are written."
        )
    plugins.load()
    scorer = Scorer(config.reward)

    exact = True
    # Budgets (Toggle, effort budget) are state that one step hands to the next, as in training.
    budgets: dict[str, float] = {}
    summaries: list[Summary] = []
    changes: list[Change] = []
    all_pairs: list[_Pair] = []
    with Progress("steps scored", len(files)) as bar:
        for file in files:
            step = _step_of(file)
            stored, episodes = _read(file)
            rescored, budgets = _score(stored, episodes, config, scorer, step, budgets)
            exact = exact and all(map(_is_equal, stored, rescored))

            pairs = list(map(_make_pair, stored, rescored))
            summaries.append(_summarize(step, pairs))
            changes.extend(_changes(step, pairs))
            all_pairs.extend(pairs)
            bar.advance()
    return RescoredEpisodes(
        run=str(run),
        config=source,
        exact=exact,
        notes=_notes(config, [_step_of(file) for file in files]),
        total=_summarize(None, all_pairs),
        steps=tuple(summaries),
        episodes=tuple(changes),
    )


# --- reading and scoring -----------------------------------------------------------------


def _step_of(file: Path) -> int:
    """Example: step_000012.jsonl.zst -> 12."""
    return int(file.name.removeprefix("step_").partition(".")[0])


def _read(file: Path) -> tuple[list[Record], list[Episode]]:
    # Only here: zstandard is in an extra, and the rest of the module works without it.
    import zstandard

    try:
        records = read_episodes(file)
        return records, [episode_of(record) for record in records]
    except (zstandard.ZstdError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{file} is damaged, or no file of episodes ({type(error).__name__}: {error}). "
            "Move it out of the folder to score the other steps."
        ) from None


def _score(
    records: Sequence[Record],
    episodes: Sequence[Episode],
    config: Config,
    scorer: Scorer,
    step: int,
    budgets: Mapping[str, float],
) -> tuple[list[Record], dict[str, float]]:
    """Return a step's records with rewards and advantages of `config`, and the budgets after it."""
    # As in this step of training: a role that does not learn then has no advantages.
    roles = phases.roles_at(config.roles, {}, step)
    scored_by_id: dict[str, ScoredEpisode] = {}
    advantages: dict[tuple[str, str], Sequence[float]] = {}
    for _, group in groupby(episodes, key=lambda episode: episode.group):
        scored_group, budgets = _score_group(list(group), scorer, step, budgets)
        for scored in scored_group:
            scored_by_id[scored.episode.id] = scored
        for sample in credit.assign([scored_group], config.credit, roles, step):
            advantages[sample.episode, sample.agent] = sample.advantages

    rescored: list[Record] = []
    for record in records:
        if record["status"] == "failed":
            rescored.append(record)  # has no reward under any config
        else:
            rescored.append(episode_record(scored_by_id[record["id"]], advantages))
    return rescored, dict(budgets)


def _score_group(
    group: list[Episode], scorer: Scorer, step: int, budgets: Mapping[str, float]
) -> tuple[list[ScoredEpisode], dict[str, float]]:
    try:
        return scorer.score(group, step, budgets)
    except ConfigError:
        raise
    except Exception as error:  # a term is a plugin's code, which may raise anything
        where = "; ".join(getattr(error, "__notes__", ())) or "in a modifier"
        raise ConfigError(
            f"A stored episode cannot be scored: {type(error).__name__}: {error} ({where}). It may "
            "lack a fact that the term reads: episodes keep what the environment told when they "
            "were played. Leave the term out (reward.terms.NAME=null), or train a new run."
        ) from error


def _notes(config: Config, stored_steps: Sequence[int]) -> tuple[str, ...]:
    """Say which modifiers cannot be followed exactly.

    Budgets are taken from the first correct answers to a task, which may have been given in a step
    that was not stored.
    """
    notes: list[str] = []
    for name, modifier in config.reward.modifiers:
        if modifier is None:
            continue
        steps = set(range(modifier.start_step, stored_steps[-1]))
        missing = sorted(steps - set(stored_steps))
        if missing:
            notes.append(
                f"The budgets of {name} cannot be followed: {len(missing)} of the steps from "
                f"reward.modifiers.{name}.start_step on are not stored, step {missing[0]} first "
                "(the run's train.store_episodes_every). Budgets are taken from the stored steps "
                "alone, so rewards may differ from those of training."
            )
    return tuple(notes)


# --- comparing ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Scores:
    """Rewards and advantages of an episode's agents under one config."""

    rewards: Mapping[str, RewardBreakdown]
    advantages: Mapping[str, float]

    @property
    def reward(self) -> float:
        """The orchestrator's total."""
        return self.rewards[ORCHESTRATOR_ID].total

    @property
    def advantage(self) -> float:
        """The orchestrator's."""
        return self.advantages[ORCHESTRATOR_ID]


@dataclass(frozen=True, slots=True)
class _Pair:
    """An episode under both configs."""

    id: str
    group: str
    failed: bool
    old: _Scores
    new: _Scores


def _make_pair(stored: Record, rescored: Record) -> _Pair:
    return _Pair(
        id=stored["id"],
        group=stored["group"],
        failed=stored["status"] == "failed",
        old=_Scores(rewards_of(stored), advantages_of(stored)),
        new=_Scores(rewards_of(rescored), advantages_of(rescored)),
    )


def _is_equal(stored: Record, rescored: Record) -> bool:
    """Compare rewards and the advantage of every token, bit for bit."""
    same_rewards = bool(stored["rewards"] == rescored["rewards"])
    return same_rewards and _token_advantages(stored) == _token_advantages(rescored)


def _token_advantages(record: Record) -> list[Any]:
    traces = (*record["traces"], *record.get("siblings", ()))
    return [trace["advantages"] for trace in traces]


def _groups(pairs: Sequence[_Pair]) -> list[list[_Pair]]:
    """Return the groups without failed episodes; a group of failures alone is left out."""
    groups: list[list[_Pair]] = []
    # Episodes of a group are stored one after another, so groupby finds each group once.
    for _, group in groupby(_with_reward(pairs), key=lambda pair: pair.group):
        groups.append(list(group))
    return groups


def _with_reward(pairs: Sequence[_Pair]) -> list[_Pair]:
    return [pair for pair in pairs if not pair.failed]


def _rewards(pairs: Sequence[_Pair], side: Literal["old", "new"]) -> list[float]:
    """Return the orchestrators' rewards under one of the two configs."""
    return [pair.old.reward if side == "old" else pair.new.reward for pair in pairs]


def _changes(step: int, pairs: Sequence[_Pair]) -> list[Change]:
    changes: list[Change] = []
    for group in _groups(pairs):
        old_rewards = _rewards(group, "old")
        new_rewards = _rewards(group, "new")
        for pair in group:
            change = Change(
                id=pair.id,
                group=pair.group,
                step=step,
                reward_old=pair.old.reward,
                reward_new=pair.new.reward,
                rank_old=_rank(pair.old.reward, old_rewards),
                rank_new=_rank(pair.new.reward, new_rewards),
                advantage_old=pair.old.advantage,
                advantage_new=pair.new.advantage,
            )
            changes.append(change)
    return changes


def _rank(reward: float, rewards: Sequence[float]) -> int:
    """Return 1 + the number of better rewards."""
    # A tie is no better reward: equal rewards share a rank, and the next rank is skipped.
    return 1 + sum(other > reward for other in rewards)


def _summarize(step: int | None, pairs: Sequence[_Pair]) -> Summary:
    groups = _groups(pairs)
    with_reward = _with_reward(pairs)
    order_changed, order_reversed = _order_changes(groups)
    return Summary(
        step=step,
        num_episodes=len(pairs),
        num_failed=len(pairs) - len(with_reward),
        num_groups=len(groups),
        reward_old=_mean(_rewards(with_reward, "old")),
        reward_new=_mean(_rewards(with_reward, "new")),
        terms=_term_means(with_reward),
        ranks_changed=_num_ranks_changed(pairs),
        order_changed=order_changed,
        order_reversed=order_reversed,
        best_changed=_num_best_changed(groups),
        advantage_correlation=_orchestrator_correlation(with_reward),
        subagent_correlation=_subagent_correlation(with_reward),
    )


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _term_means(pairs: Sequence[_Pair]) -> dict[str, tuple[float, float]]:
    """Return each term's (old, new) part of the mean reward of orchestrators."""
    old_parts: list[dict[str, float]] = []
    new_parts: list[dict[str, float]] = []
    for pair in pairs:
        old_parts.append(_parts(pair.old.rewards[ORCHESTRATOR_ID]))
        new_parts.append(_parts(pair.new.rewards[ORCHESTRATOR_ID]))

    means: dict[str, tuple[float, float]] = {}
    for episode_parts in (*old_parts, *new_parts):
        for name in episode_parts:
            if name not in means:
                means[name] = (_mean_part(name, old_parts), _mean_part(name, new_parts))
    return means


def _mean_part(name: str, parts: Sequence[Mapping[str, float]]) -> float:
    # A term that one of the configs does not have adds nothing there.
    return fmean(episode_parts.get(name, 0.0) for episode_parts in parts)


def _parts(reward: RewardBreakdown) -> dict[str, float]:
    """Return what each term adds to the total: weight * factor * value."""
    parts: dict[str, float] = {}
    for name, value in reward.terms.items():
        parts[name] = reward.weights[name] * reward.factors.get(name, 1.0) * value
    return parts


def _num_ranks_changed(pairs: Sequence[_Pair]) -> int:
    return sum(change.rank_old != change.rank_new for change in _changes(-1, pairs))


def _order_changes(groups: Sequence[Sequence[_Pair]]) -> tuple[float | None, float | None]:
    """Return the shares of pairs within a group whose order changes, and is reversed."""
    changed: list[bool] = []
    is_reversed: list[bool] = []
    for group in groups:
        for first, second in combinations(group, 2):
            old_order = _sign(first.old.reward - second.old.reward)
            new_order = _sign(first.new.reward - second.new.reward)
            changed.append(old_order != new_order)
            # A tie that is broken (or made) changes the order, but reverses none.
            is_reversed.append(old_order * new_order < 0)
    return _mean(changed), _mean(is_reversed)


def _num_best_changed(groups: Sequence[Sequence[_Pair]]) -> int:
    num_changed = 0
    for group in groups:
        best_old = _best(_rewards(group, "old"))
        best_new = _best(_rewards(group, "new"))
        if not best_old & best_new:
            num_changed += 1
    return num_changed


def _best(rewards: Sequence[float]) -> set[int]:
    """Return the places of the highest reward, several where it is shared."""
    highest = max(rewards)
    return {index for index, reward in enumerate(rewards) if reward == highest}


def _orchestrator_correlation(pairs: Sequence[_Pair]) -> float | None:
    old: list[float] = []
    new: list[float] = []
    for pair in pairs:
        old.append(pair.old.advantage)
        new.append(pair.new.advantage)
    return _correlation(old, new)


def _subagent_correlation(pairs: Sequence[_Pair]) -> float | None:
    old: list[float] = []
    new: list[float] = []
    for pair in pairs:
        for agent, advantage in pair.old.advantages.items():
            if agent != ORCHESTRATOR_ID:
                old.append(advantage)
                new.append(pair.new.advantages[agent])
    return _correlation(old, new)


def _correlation(old: Sequence[float], new: Sequence[float]) -> float | None:
    try:
        return correlation(old, new)
    except StatisticsError:  # fewer than two values, or all of them equal
        return None


def _sign(x: float) -> int:
    return (x > 0) - (x < 0)
