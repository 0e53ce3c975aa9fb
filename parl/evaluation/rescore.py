"""Stored episodes under another reward: what would they have been paid, and what would have been learned from them?

In: a run folder, which is only read, and a config: its reward, credit and roles. Out: for every episode its reward,
rank and advantage as stored and as they would have been. No model and no environment is needed. Under the run's own
config both are equal, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby
from pathlib import Path
from statistics import StatisticsError, correlation, fmean
from typing import Any

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


@dataclass(frozen=True, slots=True)
class Change:
    """One episode, its orchestrator's numbers. Rank 1 is the best of its group; equal rewards share a rank."""

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
    """Of one step, or of the whole run."""

    step: int | None
    """None = the whole run."""
    num_episodes: int
    num_failed: int
    num_groups: int
    reward_old: float | None
    reward_new: float | None
    """Means over the orchestrators; None without an episode that did not fail."""
    terms: Mapping[str, tuple[float, float]]
    """Term -> (old, new): what it adds to the mean reward (weight * factor * value); 0 where it is not there."""
    ranks_changed: int
    """Episodes with another rank in their group."""
    order_changed: float | None
    """Share of the pairs in a group whose order changes; a tie is an order of its own. None without pairs."""
    order_reversed: float | None
    """Share of the pairs in a group of which the better one becomes the worse one."""
    best_changed: int
    """Groups in which no episode is the best one under both rewards."""
    advantage_correlation: float | None
    """Pearson's, over the orchestrators' old and new advantages; None where either are all equal."""
    subagent_correlation: float | None


@dataclass(frozen=True, slots=True)
class RescoredEpisodes:
    run: str
    config: str
    exact: bool
    """Every term, weight, factor, total and advantage of every agent is the stored one."""
    notes: tuple[str, ...]
    """What the numbers cannot know."""
    total: Summary
    steps: tuple[Summary, ...]
    episodes: tuple[Change, ...]

    @property
    def most_changed(self) -> list[Change]:
        """The episodes that move in their group, by how far their advantage moves."""
        moved = [
            c
            for c in self.episodes
            if c.rank_old != c.rank_new or c.advantage_old != c.advantage_new
        ]
        return sorted(moved, key=lambda c: -abs(c.advantage_new - c.advantage_old))


def rescore_run(run: Path, config: Config, source: str) -> RescoredEpisodes:
    """Score the stored episodes of a run again.

    Args:
        source: where the config came from, for the result.
    Raises:
        CheckpointError: no run, no stored episodes, or a damaged file of them.
        ConfigError: the config's reward is not one (see `parl.rewards.scorer.validate`), or a term cannot score an episode.
    """
    read_resolved(run)
    files = sorted((run / "episodes").glob("step_*.jsonl.zst"))
    if not files:
        raise CheckpointError(
            f"{run} has no stored episodes (episodes/step_NNNNNN.jsonl.zst), so there is nothing to score. Give a run "
            "that has trained a step; train.store_episodes_every says how often they are written."
        )
    plugins.load()
    scorer = Scorer(config.reward)
    budgets: dict[str, float] = {}
    exact, steps, episodes, everything = True, [], [], []
    with Progress("steps scored", len(files)) as bar:
        for file in files:
            step, (stored, played) = _step_of(file), _read(file)
            again, budgets = _score(stored, played, config, scorer, step, budgets)
            exact = exact and all(map(_equal, stored, again))
            pairs = list(map(_pair, stored, again))
            steps.append(_summary(step, pairs))
            episodes += _changes(step, pairs)
            everything += pairs
            bar.advance()
    notes = _notes(config, [_step_of(f) for f in files])
    return RescoredEpisodes(
        str(run), source, exact, notes, _summary(None, everything), tuple(steps), tuple(episodes)
    )


# --- reading and scoring ---------------------------------------------------------------------------------------------


def _step_of(file: Path) -> int:
    return int(file.name.removeprefix("step_").partition(".")[0])


def _read(file: Path) -> tuple[list[Record], list[Episode]]:
    import zstandard

    try:
        records = read_episodes(file)
        return records, [episode_of(r) for r in records]
    except (zstandard.ZstdError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{file} is damaged, or no file of episodes ({type(error).__name__}: {error}). Move it out of the folder "
            "to score the other steps."
        ) from None


def _score(
    records: Sequence[Record],
    episodes: Sequence[Episode],
    config: Config,
    scorer: Scorer,
    step: int,
    budgets: Mapping[str, float],
) -> tuple[list[Record], dict[str, float]]:
    """The records of a step with the rewards and advantages of another config, and the budgets after it."""
    roles = phases.roles_at(config.roles, {}, step)
    scored: dict[str, ScoredEpisode] = {}
    advantages: dict[tuple[str, str], Sequence[float]] = {}
    for _, group in groupby(episodes, key=lambda e: e.group):
        try:
            done, budgets = scorer.score(list(group), step, budgets)
        except ConfigError:
            raise
        except Exception as error:  # whatever a plugin's term raises
            raise ConfigError(
                f"A stored episode cannot be scored: {type(error).__name__}: {error} "
                f"({'; '.join(getattr(error, '__notes__', ())) or 'in a modifier'}). It may lack a fact that the term "
                "reads: episodes keep what the environment told when they were played. Leave the term out "
                "(reward.terms.NAME=null), or train a new run."
            ) from error
        scored |= {s.episode.id: s for s in done}
        advantages |= {
            (s.episode, s.agent): s.advantages
            for s in credit.assign([done], config.credit, roles, step)
        }
    again = [
        r if r["status"] == "failed" else episode_record(scored[r["id"]], advantages)
        for r in records
    ]
    return again, dict(budgets)


def _notes(config: Config, stored: Sequence[int]) -> tuple[str, ...]:
    """Budgets are taken from the first good answers to a task: a step that is not stored may have been that one."""
    notes = []
    for name, modifier in config.reward.modifiers:
        missing = (
            []
            if modifier is None
            else sorted(set(range(modifier.start_step, stored[-1])) - set(stored))
        )
        if missing:
            notes.append(
                f"The budgets of {name} cannot be followed: {len(missing)} of the steps from "
                f"reward.modifiers.{name}.start_step on are not stored, step {missing[0]} first (the run's "
                "train.store_episodes_every). Budgets are taken from the stored steps alone, so rewards may differ "
                "from those of training."
            )
    return tuple(notes)


# --- comparing -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Pair:
    """What is compared of one episode: rewards and advantages by agent, as stored and as they would have been."""

    id: str
    group: str
    failed: bool
    rewards: tuple[Mapping[str, RewardBreakdown], Mapping[str, RewardBreakdown]]
    advantages: tuple[Mapping[str, float], Mapping[str, float]]

    @property
    def old(self) -> float:
        return self.rewards[0][ORCHESTRATOR_ID].total

    @property
    def new(self) -> float:
        return self.rewards[1][ORCHESTRATOR_ID].total


def _pair(old: Record, new: Record) -> _Pair:
    return _Pair(
        old["id"],
        old["group"],
        old["status"] == "failed",
        (rewards_of(old), rewards_of(new)),
        (advantages_of(old), advantages_of(new)),
    )


def _equal(old: Record, new: Record) -> bool:
    before, after = (
        [t["advantages"] for t in (*r["traces"], *r.get("siblings", ()))] for r in (old, new)
    )
    return bool(old["rewards"] == new["rewards"]) and before == after


def _changes(step: int, pairs: Sequence[_Pair]) -> list[Change]:
    changes = []
    for group in _alive(pairs):
        for p in group:
            changes.append(
                Change(
                    id=p.id,
                    group=p.group,
                    step=step,
                    reward_old=p.old,
                    reward_new=p.new,
                    rank_old=1 + sum(other.old > p.old for other in group),
                    rank_new=1 + sum(other.new > p.new for other in group),
                    advantage_old=p.advantages[0][ORCHESTRATOR_ID],
                    advantage_new=p.advantages[1][ORCHESTRATOR_ID],
                )
            )
    return changes


def _summary(step: int | None, pairs: Sequence[_Pair]) -> Summary:
    groups = _alive(pairs)
    alive = [p for group in groups for p in group]
    orders = [
        (_sign(a.old - b.old), _sign(a.new - b.new))
        for group in groups
        for a, b in combinations(group, 2)
    ]
    roots = [(p.advantages[0][ORCHESTRATOR_ID], p.advantages[1][ORCHESTRATOR_ID]) for p in alive]
    children = [
        (a, p.advantages[1][k])
        for p in alive
        for k, a in p.advantages[0].items()
        if k != ORCHESTRATOR_ID
    ]
    return Summary(
        step=step,
        num_episodes=len(pairs),
        num_failed=len(pairs) - len(alive),
        num_groups=len(groups),
        reward_old=fmean(p.old for p in alive) if alive else None,
        reward_new=fmean(p.new for p in alive) if alive else None,
        terms=_terms(alive),
        ranks_changed=sum(c.rank_old != c.rank_new for c in _changes(-1, pairs)),
        order_changed=fmean(old != new for old, new in orders) if orders else None,
        order_reversed=fmean(old * new < 0 for old, new in orders) if orders else None,
        best_changed=sum(not _best(g, 0) & _best(g, 1) for g in groups),
        advantage_correlation=_correlation(roots),
        subagent_correlation=_correlation(children),
    )


def _alive(pairs: Sequence[_Pair]) -> list[list[_Pair]]:
    """The groups without their failed episodes; a group that failed as a whole is none."""
    return [list(g) for _, g in groupby((p for p in pairs if not p.failed), key=lambda p: p.group)]


def _terms(pairs: Sequence[_Pair]) -> dict[str, tuple[float, float]]:
    shares = [[_contributions(p.rewards[side][ORCHESTRATOR_ID]) for p in pairs] for side in (0, 1)]
    names = dict.fromkeys(name for side in shares for terms in side for name in terms)
    old, new = ({n: fmean(t.get(n, 0.0) for t in side) for n in names} for side in shares)
    return {n: (old[n], new[n]) for n in names}


def _contributions(reward: RewardBreakdown) -> dict[str, float]:
    return {k: reward.weights[k] * reward.factors.get(k, 1.0) * v for k, v in reward.terms.items()}


def _best(group: Sequence[_Pair], side: int) -> set[str]:
    totals = {p.id: p.rewards[side][ORCHESTRATOR_ID].total for p in group}
    return {k for k, v in totals.items() if v == max(totals.values())}


def _correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    try:
        return correlation([a for a, _ in pairs], [b for _, b in pairs])
    except StatisticsError:  # fewer than two, or all equal
        return None


def _sign(x: float) -> int:
    return (x > 0) - (x < 0)
