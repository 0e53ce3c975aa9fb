"""Known ways for a run to go wrong, seen in its metrics alone (docs/reference/alarms.md).

In: the rows of metrics.jsonl so far. Out: the alarms that hold at the last of them, each with the step since when. One
that held and no longer does is not reported: what is asked is whether to go on.

A rule compares levels: means over several steps, because single steps are noise. Its thresholds are the constants above
it. It never looks at weights or episodes, so it speaks of signs, and its advice says how to make sure.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Row = Mapping[str, float]
Array = np.ndarray[Any, np.dtype[Any]]

WINDOW = 8
"""Steps that make a level. Before there are so many rows, no rule holds."""


@dataclass(frozen=True, slots=True)
class Alarm:
    name: str
    step: int
    """Since when it holds without a break."""
    message: str
    advice: str

    def __str__(self) -> str:
        return f"ALARM {self.name}, since step {self.step}: {self.message} {self.advice} (docs/reference/alarms.md)"


def check(rows: Sequence[Row]) -> list[Alarm]:
    """The alarms that hold at the last row, at most one of each name. Rows need `step`; a metric may be missing."""
    if len(rows) < WINDOW:
        return []
    curves = Curves(rows)
    alarms = []
    for rule in RULES:
        found = next(((holds, message) for holds, message in rule(curves) if holds[-1]), None)
        if found is not None:
            holds, message = found
            since = int(
                np.flatnonzero(np.concatenate([[True], ~holds]))[-1]
            )  # the row after the last without it
            alarms.append(
                Alarm(rule.__name__, int(rows[since]["step"]), message, ADVICE[rule.__name__])
            )
    return alarms


class Watch:
    """Follows a run that trains: says an alarm once, when it first holds."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = list(rows)
        self._told: set[str] = set()

    def add(self, row: Row) -> list[Alarm]:
        """The alarms that are new with this row."""
        self._rows.append(row)
        new = [a for a in check(self._rows) if a.name not in self._told]
        self._told |= {a.name for a in new}
        return new


class Curves:
    """Metrics as arrays over the rows, NaN where a row lacks one (a comparison with NaN is false: no alarm)."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows
        self.names = list(dict.fromkeys(name for row in rows for name in row))
        self.steps = self.raw("step")

    def raw(self, name: str, absent: float = np.nan) -> Array:
        return np.array([row.get(name, absent) for row in self._rows], dtype=float)

    def level(self, name: str, window: int = WINDOW) -> Array:
        """Mean over the last `window` rows."""
        return level(self.raw(name), window)

    def policies(self) -> list[str]:
        return [
            n.split("/")[1]
            for n in self.names
            if n.startswith("policy/") and n.endswith("/weight_version")
        ]


Found = Iterator[tuple[Array, str]]
"""Of each thing that a rule looks at: whether it holds, row by row, and what to say of the last row."""


# --- levels ----------------------------------------------------------------------------------------------------------


def level(x: Array, window: int = WINDOW, function: Callable[..., Any] = np.nanmean) -> Array:
    """A mean (or another function) of what is there of the last `window` values; NaN for the first rows."""
    out = np.full(len(x), np.nan)
    if len(x) >= window:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", RuntimeWarning
            )  # of windows without any value: NaN is what they are
            out[window - 1 :] = function(
                np.lib.stride_tricks.sliding_window_view(x, window), axis=-1
            )
    return out


def peaks(x: Array) -> Array:
    """Index of the highest value so far, row by row (the first of equal ones; 0 while there is none)."""
    filled = np.where(np.isnan(x), -np.inf, x)
    is_new = filled > np.concatenate([[-np.inf], np.maximum.accumulate(filled)[:-1]])
    return np.maximum.accumulate(np.where(is_new, np.arange(len(x)), 0))


def first(x: Array, num: int) -> float:
    """Median of the first `num` values that are there."""
    there = x[~np.isnan(x)][:num]
    return float(np.median(there)) if len(there) else np.nan


def before(x: Array, steps: int) -> Array:
    """The values of so many rows ago."""
    return np.concatenate([np.full(min(steps, len(x)), np.nan), x[:-steps]])


# --- the swarm -------------------------------------------------------------------------------------------------------

DELEGATED = 0.03
"""Spawn rate over 4 steps from which a policy counts as one that delegates."""
QUIET_STEPS, QUIET, QUIET_SHARE = 12, 0.005, 0.05
"""Collapsed: the spawn rate over so many steps is below 0.005, or below a twentieth of its peak."""
PROFIT = 0.05
"""An outcome that has risen by more since the peak says that working alone may be right."""


def serial_collapse(curves: Curves) -> Found:
    """The policy delegated, hardly does so any more, and the outcome has not profited."""
    spawned, now = (
        curves.level("swarm/spawn_rate", 4),
        curves.level("swarm/spawn_rate", QUIET_STEPS),
    )
    short, outcome = curves.level("outcome/score", 4), curves.level("outcome/score")
    at = peaks(spawned)
    gone = (spawned[at] >= DELEGATED) & (now <= np.maximum(QUIET, QUIET_SHARE * spawned[at]))
    yield (
        gone & (outcome <= short[at] + PROFIT),
        f"{spawned[at[-1]]:.0%} of the episodes delegated around step {curves.steps[at[-1]]:.0f}, {now[-1]:.1%} of the "
        f"last {QUIET_STEPS} steps do; the outcome was {short[at[-1]]:.2f} and is {outcome[-1]:.2f}.",
    )


WASTED, ATTEMPTS = 0.5, 1.0
"""Share of the assignments that come to nothing, of at least one an episode."""
WIDER, WIDER_BY, SAME = 1.5, 2.0, 0.95
"""So much wider, by at least two subagents, for critical steps that are no fewer than 0.95 of what they were."""
EQUAL_OUTCOME = 0.01


def spurious_parallelism(curves: Curves) -> Found:
    """Subagents that nothing comes of: refused, repeated, not finished; or more and more for the same result."""
    assigned, refused = curves.raw("swarm/num_assigned"), curves.raw("swarm/num_refused")
    finished = assigned * curves.raw("swarm/finish_rate", 0.0) - curves.raw(
        "swarm/num_duplicates", 0.0
    )
    attempts = level(assigned + refused)
    wasted = 1 - np.maximum(level(finished), 0.0) / np.maximum(attempts, 1e-9)
    yield (
        (attempts >= ATTEMPTS) & (wasted >= WASTED),
        f"{wasted[-1]:.0%} of {attempts[-1]:.1f} assignments an episode come to nothing: refused, repeated, or not "
        "finished with an accepted message.",
    )
    outcome, width = curves.level("outcome/score"), curves.level("swarm/num_subagents")
    tokens, critical = curves.level("tokens/subagent"), curves.level("swarm/critical_steps")
    best = np.fmax.accumulate(outcome)
    then = np.minimum(
        np.searchsorted(best, outcome - EQUAL_OUTCOME), np.arange(len(best))
    )  # when it was as good first
    wider = (
        (width >= WIDER * width[then])
        & (width >= width[then] + WIDER_BY)
        & (tokens >= WIDER * tokens[then])
    )
    yield (
        wider & (critical >= SAME * critical[then]),
        f"{width[-1]:.1f} subagents an episode reach an outcome of {outcome[-1]:.2f} in {critical[-1]:.1f} critical "
        f"steps; {width[then[-1]]:.1f} did in {critical[then[-1]]:.1f} around step {curves.steps[then[-1]]:.0f}.",
    )


# --- the reward ------------------------------------------------------------------------------------------------------

FALL = 0.1
"""The outcome has fallen so far below its best level."""
SURE = 3.0
"""Standard errors by which the reward must be higher than it was then."""


def reward_hacking(curves: Curves) -> Found:
    """The reward, or a term that pays, has risen while the outcome has fallen."""
    outcome = curves.level("outcome/score")
    at = peaks(outcome)
    fallen = outcome <= outcome[at] - FALL
    for name in (n for n in curves.names if n.startswith("reward/") and n != "reward/subagent"):
        raw = curves.raw(name)
        now, error = level(raw), level(raw, function=np.nanvar) / WINDOW
        risen = now - now[at] > SURE * np.sqrt(error + error[at])
        pays = True if name == "reward/total" else now > 0  # what costs less shows in the total
        yield (
            fallen & risen & pays,
            f"{name} rises ({now[at[-1]]:.3g} around step {curves.steps[at[-1]]:.0f}, now {now[-1]:.3g}) while the "
            f"outcome falls ({outcome[at[-1]]:.2f} to {outcome[-1]:.2f}).",
        )


SHORTER, LONGER = 0.8, 1.25
"""Tokens of the trained episodes against those of the finished ones."""


def length_bias(curves: Curves) -> Found:
    """Asynchronous mode: the episodes that are trained on are shorter or longer than those that are sampled."""
    ratio = curves.level("swarm/tokens_per_episode") / curves.level("rollout/tokens_finished")
    there = level(np.isnan(curves.raw("rollout/tokens_finished")).astype(float)) == 0
    yield (
        there & ((ratio <= SHORTER) | (ratio >= LONGER)),
        f"Trained episodes have {ratio[-1]:.2f} times the tokens of those that finished in the last {WINDOW} steps.",
    )


# --- the policy ------------------------------------------------------------------------------------------------------

ENTROPY_LEFT = 0.1
"""Share of the first steps' entropy."""
SOLVED, STILL_LEARNING = 0.9, 0.02
"""No collapse where the outcome is so high, or has risen so much over a window."""


def entropy_collapse(curves: Curves) -> Found:
    """The policy has decided, or has no advantage left to learn from, while its outcome is neither good nor rising."""
    outcome = curves.level("outcome/score")
    stuck = (outcome < SOLVED) & (outcome - before(outcome, WINDOW) < STILL_LEARNING)
    learned = np.zeros(len(outcome), dtype=bool)
    for name in curves.policies():
        learned |= ~np.isnan(curves.raw(f"policy/{name}/loss"))
        entropy = curves.raw(f"policy/{name}/entropy")
        start, now = first(entropy, 4), level(entropy, function=np.nanmedian)
        yield (
            stuck & (now <= ENTROPY_LEFT * start),
            f"The entropy of {name} is {now[-1]:.2g} nats a token, {now[-1] / start:.0%} of its first steps', at an "
            f"outcome of {outcome[-1]:.2f}.",
        )
    none = (level(learned.astype(float)) == 0) & np.logical_or.accumulate(learned)
    yield (
        stuck & none,
        f"No step of the last {WINDOW} had an advantage, at an outcome of {outcome[-1]:.2f}.",
    )


MISMATCH = 0.02
"""Nats. Float32 rounds to 1e-7; bfloat16 stays below."""
GROWN, GROWN_FROM = 100.0, 1e-4
"""Or so many times that of the first steps, from so many nats on."""


def logp_mismatch(curves: Curves) -> Found:
    """Sampler and learner disagree about the log-probs of the same tokens and weights."""
    fresh = curves.raw("rollout/staleness_max", 0.0) == 0  # of older weights they should
    for name in curves.policies():
        off = np.where(fresh, curves.raw(f"policy/{name}/logp_mismatch_mean"), np.nan)
        start, now = first(off, 4), level(off, function=np.nanmedian)
        yield (
            (now >= MISMATCH) | ((now >= GROWN * start) & (now >= GROWN_FROM)),
            f"The log-probs of {name} at sampling and in the learner differ by {now[-1]:.2g} nats a token, in the "
            f"first steps by {start:.2g}.",
        )


STALE = 4.0
"""Weight versions between sampling and training."""


def stale_weights(curves: Curves) -> Found:
    """Episodes are sampled by weights that are much older than those that are trained, or that never change."""
    for name in curves.policies():
        version = curves.raw(f"policy/{name}/weight_version")
        updates = level((~np.isnan(curves.raw(f"policy/{name}/loss"))).astype(float))
        yield (
            (version == before(version, WINDOW)) & (updates > 0),
            f"The weights of {name} were updated in the last {WINDOW} steps, but their version still is "
            f"{version[-1]:.0f}.",
        )
    staleness = curves.level("rollout/staleness_mean")
    yield (
        staleness >= STALE,
        f"The trained tokens are {staleness[-1]:.1f} weight versions old, mean of the last {WINDOW} steps.",
    )


RULES: tuple[Callable[[Curves], Found], ...] = (
    serial_collapse,
    spurious_parallelism,
    reward_hacking,
    length_bias,
    entropy_collapse,
    logp_mismatch,
    stale_weights,
)

ADVICE = {
    "serial_collapse": "Compare with forced_parallel in summary.json: if delegating scores more, raise the lambdas "
    "(reward.terms.parallel, .finish) or anneal them later, or set swarm.critical_step_budget.",
    "spurious_parallelism": "Read some subagents' prompts and results. Raise reward.terms.finish.weight, lower or "
    "anneal that of parallel, count accepted assignments only, set swarm.refuse_duplicates: true.",
    "reward_hacking": "Read the episodes with the highest reward: what are they paid for? Lower or anneal that term, "
    "and try it on the stored episodes with parl rescore before training again.",
    "length_bias": "Lower train.max_off_policy_steps, and see whether long episodes fail (failures/timeout, "
    "rollout.episode_deadline_s).",
    "entropy_collapse": "Go back to a checkpoint before this step. Lower the learning rate or train.updates_per_step, "
    "set loss.entropy_bonus, or take tasks on which the group's episodes differ.",
    "logp_mismatch": "Stop: the ratios in the loss are wrong. Suspect the engine (its cache, its dtype, a chat "
    "template that renders other tokens), not the learning rate.",
    "stale_weights": "Lower train.max_off_policy_steps, or sample faster (rollout.num_workers). If versions stand still, the "
    "weights do not reach the engines: stop and look at the workers' logs.",
}
