"""Alarms: known ways for a run to go wrong, recognised by its metrics (docs/reference/alarms.md).

A rule compares levels, which are means over several steps, because single steps are noise. Its
thresholds are the constants above it; they were set on 31 healthy and 9 faulty recorded runs. A
rule never looks at weights or episodes, so it reports signs, and its advice says how to make sure.
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
"""Steps of a level. With fewer rows no rule holds."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """A sign that a run goes wrong."""

    name: str
    step: int
    """The first step of those at which it has held without a break."""
    message: str
    advice: str

    def __str__(self) -> str:
        sign = f"ALARM {self.name}, since step {self.step}: {self.message}"
        return f"{sign} {self.advice} (docs/reference/alarms.md)"


def check(rows: Sequence[Row]) -> list[Alarm]:
    """Return the alarms that hold at the last row, at most one of each name.

    One that held and no longer does is not reported: the question is whether to go on.

    Args:
        rows: the rows of metrics.jsonl so far. Each needs `step`; a metric may be missing.
    """
    if len(rows) < WINDOW:
        return []
    curves = Curves(rows)
    alarms = []
    for rule in RULES:
        name = rule.__name__
        for holds, message in rule(curves):
            if holds[-1]:
                # The row after the last at which it did not hold.
                since = int(np.flatnonzero(np.concatenate([[True], ~holds]))[-1])
                alarms.append(Alarm(name, int(rows[since]["step"]), message, ADVICE[name]))
                break
    return alarms


class Watch:
    """The alarms of a run while it trains; each is reported once, when it first holds."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = list(rows)
        self._reported: set[str] = set()

    def add(self, row: Row) -> list[Alarm]:
        """Add the row of a step and return the alarms that are new with it."""
        self._rows.append(row)
        new = [alarm for alarm in check(self._rows) if alarm.name not in self._reported]
        self._reported.update(alarm.name for alarm in new)
        return new


class Curves:
    """Metrics as arrays over the rows, [rows].

    A value is NaN where a row lacks the metric. A comparison with NaN is false, so that absent
    metrics cause no alarm.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows
        names: dict[str, None] = {}  # a dict, because it keeps the order
        for row in rows:
            names.update(dict.fromkeys(row))
        self.names = list(names)
        self.steps = self.raw("step")

    def raw(self, name: str, absent: float = np.nan) -> Array:
        """Return a metric, with `absent` where a row lacks it."""
        return np.array([row.get(name, absent) for row in self._rows], dtype=float)

    def level(self, name: str, window: int = WINDOW) -> Array:
        """Return a metric's mean over the last `window` rows."""
        return level(self.raw(name), window)

    def policies(self) -> list[str]:
        """Return the names of the policies that the metrics tell of."""
        policies = []
        for name in self.names:
            if name.startswith("policy/") and name.endswith("/weight_version"):
                policies.append(name.split("/")[1])
        return policies


Signs = Iterator[tuple[Array, str]]
"""For each sign of a rule: whether it holds, [rows], and the message about the last row."""


# --- levels --------------------------------------------------------------------------------------


def level(x: Array, window: int = WINDOW, function: Callable[..., Any] = np.nanmean) -> Array:
    """Return a mean, or another function, over a sliding window.

    Args:
        x: [rows]. NaNs are left out.
        window: number of rows.
        function: a NumPy reduction that ignores NaN.

    Returns:
        [rows]. NaN in the first `window - 1` rows, and where a window has no value.
    """
    levels = np.full(len(x), np.nan)
    if len(x) < window:
        return levels
    with warnings.catch_warnings():
        # NumPy warns of windows without any value; their result, NaN, is right.
        warnings.simplefilter("ignore", RuntimeWarning)
        windows = np.lib.stride_tricks.sliding_window_view(x, window)
        levels[window - 1 :] = function(windows, axis=-1)
    return levels


def peaks(x: Array) -> Array:
    """Return the index of the highest value so far, [rows].

    Of equal values it is the first one; without any value, 0.
    """
    filled = np.where(np.isnan(x), -np.inf, x)
    is_new = filled > np.concatenate([[-np.inf], np.maximum.accumulate(filled)[:-1]])
    return np.maximum.accumulate(np.where(is_new, np.arange(len(x)), 0))


def first(x: Array, num: int) -> float:
    """Return the median of the first `num` values, NaNs left out; NaN without any value."""
    values = x[~np.isnan(x)][:num]
    return float(np.median(values)) if len(values) else np.nan


def before(x: Array, steps: int) -> Array:
    """Return the values of `steps` rows ago, NaN in the first rows."""
    return np.concatenate([np.full(min(steps, len(x)), np.nan), x[:-steps]])


# --- the swarm -----------------------------------------------------------------------------------

DELEGATED = 0.03
"""Lowest spawn rate, over 4 steps, of a policy that counts as one that delegates."""
QUIET_STEPS, QUIET, QUIET_SHARE = 12, 0.005, 0.05
"""Collapsed: over 12 steps the spawn rate is at most 0.005, or a twentieth of its peak."""
PROFIT = 0.05
"""An outcome that has risen by more since the peak says that working alone may be right."""


def serial_collapse(curves: Curves) -> Signs:
    """The policy delegated, hardly does so any more, and the outcome has not profited."""
    # The peak is short: a policy that tries delegating for 4 steps has tried it.
    spawn_rate = curves.level("swarm/spawn_rate", 4)
    spawn_rate_now = curves.level("swarm/spawn_rate", QUIET_STEPS)
    outcome_then = curves.level("outcome/score", 4)
    outcome = curves.level("outcome/score")
    at = peaks(spawn_rate)
    peak = spawn_rate[at]
    collapsed = (peak >= DELEGATED) & (spawn_rate_now <= np.maximum(QUIET, QUIET_SHARE * peak))
    yield (
        collapsed & (outcome <= outcome_then[at] + PROFIT),
        f"{peak[-1]:.0%} of the episodes delegated around step {curves.steps[at[-1]]:.0f}, "
        f"{spawn_rate_now[-1]:.1%} of the last {QUIET_STEPS} steps do; the outcome was "
        f"{outcome_then[at[-1]]:.2f} and is {outcome[-1]:.2f}.",
    )


WASTED, ATTEMPTS = 0.5, 1.0
"""Lowest share of assignments without a result, of at least one assignment an episode."""
WIDER, WIDER_BY, SAME = 1.5, 2.0, 0.95
"""Wider: 1.5 times as many subagents and at least two more. No faster: at least 0.95 of the
critical steps."""
EQUAL_OUTCOME = 0.01
"""Outcomes that differ by less count as equal."""


def spurious_parallelism(curves: Curves) -> Signs:
    """Subagents are of no use: refused, repeated, unfinished; or ever more for one result."""
    assigned = curves.raw("swarm/num_assigned")
    refused = curves.raw("swarm/num_refused")
    duplicates = curves.raw("swarm/num_duplicates", 0.0)
    finished = assigned * curves.raw("swarm/finish_rate", 0.0) - duplicates
    attempts = level(assigned + refused)
    wasted = 1 - np.maximum(level(finished), 0.0) / np.maximum(attempts, 1e-9)
    yield (
        (attempts >= ATTEMPTS) & (wasted >= WASTED),
        f"{wasted[-1]:.0%} of {attempts[-1]:.1f} assignments an episode come to nothing: refused, "
        "repeated, or not finished with an accepted message.",
    )
    outcome = curves.level("outcome/score")
    width = curves.level("swarm/num_subagents")
    tokens = curves.level("tokens/subagent")
    critical = curves.level("swarm/critical_steps")
    # The first row at which the outcome was as good as it is at each row.
    best = np.fmax.accumulate(outcome)
    then = np.minimum(np.searchsorted(best, outcome - EQUAL_OUTCOME), np.arange(len(best)))
    wider = (width >= WIDER * width[then]) & (width >= width[then] + WIDER_BY)
    costs_more = tokens >= WIDER * tokens[then]
    no_faster = critical >= SAME * critical[then]
    yield (
        wider & costs_more & no_faster,
        f"{width[-1]:.1f} subagents an episode reach an outcome of {outcome[-1]:.2f} in "
        f"{critical[-1]:.1f} critical steps; {width[then[-1]]:.1f} did in {critical[then[-1]]:.1f} "
        f"around step {curves.steps[then[-1]]:.0f}.",
    )


# --- the reward ----------------------------------------------------------------------------------

FALL = 0.1
"""Least fall of the outcome below its best level."""
SURE = 3.0
"""Least rise of the reward since then, in standard errors."""


def reward_hacking(curves: Curves) -> Signs:
    """The reward, or a term that pays, has risen while the outcome has fallen."""
    outcome = curves.level("outcome/score")
    at = peaks(outcome)
    fallen = outcome <= outcome[at] - FALL
    for name in curves.names:
        if not name.startswith("reward/") or name == "reward/subagent":
            continue
        reward = curves.raw(name)
        now = level(reward)
        squared_error = level(reward, function=np.nanvar) / WINDOW
        risen = now - now[at] > SURE * np.sqrt(squared_error + squared_error[at])
        # A cost that shrinks rises as well, but is no pay; its gain shows in the total.
        pays = True if name == "reward/total" else now > 0
        yield (
            fallen & risen & pays,
            f"{name} rises ({now[at[-1]]:.3g} around step {curves.steps[at[-1]]:.0f}, now "
            f"{now[-1]:.3g}) while the outcome falls ({outcome[at[-1]]:.2f} to {outcome[-1]:.2f}).",
        )


SHORTER, LONGER = 0.8, 1.25
"""Tokens of the trained episodes, as a multiple of those of the finished ones."""


def length_bias(curves: Curves) -> Signs:
    """Asynchronous mode: trained episodes are shorter or longer than sampled ones."""
    finished = curves.raw("rollout/tokens_finished")
    ratio = curves.level("swarm/tokens_per_episode") / curves.level("rollout/tokens_finished")
    measured = level(np.isnan(finished).astype(float)) == 0  # in each step of the window
    yield (
        measured & ((ratio <= SHORTER) | (ratio >= LONGER)),
        f"Trained episodes have {ratio[-1]:.2f} times the tokens of those that finished in the "
        f"last {WINDOW} steps.",
    )


# --- the policy ----------------------------------------------------------------------------------

LOW_ENTROPY = 0.1
"""Highest share of the first steps' entropy that counts as collapsed."""
SOLVED, STILL_LEARNING = 0.9, 0.02
"""No collapse where the outcome is at least 0.9, or has risen by 0.02 over a window."""


def entropy_collapse(curves: Curves) -> Signs:
    """The policy explores no more, or has no advantages, at an outcome neither good nor rising."""
    outcome = curves.level("outcome/score")
    stuck = (outcome < SOLVED) & (outcome - before(outcome, WINDOW) < STILL_LEARNING)
    learned = np.zeros(len(outcome), dtype=bool)
    for name in curves.policies():
        learned |= ~np.isnan(curves.raw(f"policy/{name}/loss"))
        entropy = curves.raw(f"policy/{name}/entropy")
        start = first(entropy, 4)
        now = level(entropy, function=np.nanmedian)
        yield (
            stuck & (now <= LOW_ENTROPY * start),
            f"The entropy of {name} is {now[-1]:.2g} nats a token, {now[-1] / start:.0%} of its "
            f"first steps', at an outcome of {outcome[-1]:.2f}.",
        )
    # Not one step of the window: the recorded healthy runs have up to 6 of 8 without an advantage.
    # And not before the first update, when there is nothing to collapse.
    no_advantage = (level(learned.astype(float)) == 0) & np.logical_or.accumulate(learned)
    yield (
        stuck & no_advantage,
        f"No step of the last {WINDOW} had an advantage, at an outcome of {outcome[-1]:.2f}.",
    )


MISMATCH = 0.02
"""Nats per token. Float32 rounds to 1e-7; bfloat16 stays below."""
GROWN, GROWN_FROM = 100.0, 1e-4
"""Grown: 100 times that of the first steps, and at least 1e-4 nats."""


def logp_mismatch(curves: Curves) -> Signs:
    """Sampler and learner disagree about the log-probs of the same tokens and weights."""
    # Tokens of older weights have other log-probs by right.
    fresh = curves.raw("rollout/staleness_max", 0.0) == 0
    for name in curves.policies():
        mismatch = np.where(fresh, curves.raw(f"policy/{name}/logp_mismatch_mean"), np.nan)
        start = first(mismatch, 4)
        now = level(mismatch, function=np.nanmedian)
        yield (
            (now >= MISMATCH) | ((now >= GROWN * start) & (now >= GROWN_FROM)),
            f"The log-probs of {name} at sampling and in the learner differ by {now[-1]:.2g} nats "
            f"a token, in the first steps by {start:.2g}.",
        )


STALE = 4.0
"""Least mean number of weight versions between sampling and training."""


def stale_weights(curves: Curves) -> Signs:
    """The sampling weights are much older than the trained ones, or never change."""
    for name in curves.policies():
        version = curves.raw(f"policy/{name}/weight_version")
        updates = level((~np.isnan(curves.raw(f"policy/{name}/loss"))).astype(float))
        yield (
            (version == before(version, WINDOW)) & (updates > 0),
            f"The weights of {name} were updated in the last {WINDOW} steps, but their version "
            f"still is {version[-1]:.0f}.",
        )
    staleness = curves.level("rollout/staleness_mean")
    yield (
        staleness >= STALE,
        f"The trained tokens are {staleness[-1]:.1f} weight versions old, mean of the last "
        f"{WINDOW} steps.",
    )


RULES: tuple[Callable[[Curves], Signs], ...] = (
    serial_collapse,
    spurious_parallelism,
    reward_hacking,
    length_bias,
    entropy_collapse,
    logp_mismatch,
    stale_weights,
)

ADVICE = {
    "serial_collapse": (
        "Compare with forced_parallel in summary.json: if delegating scores more, raise the "
        "lambdas (reward.terms.parallel, .finish) or anneal them later, or set "
        "swarm.critical_step_budget."
    ),
    "spurious_parallelism": (
        "Read some subagents' prompts and results. Raise reward.terms.finish.weight, lower or "
        "anneal that of parallel, count accepted assignments only, set swarm.refuse_duplicates:"
        " true."
    ),
    "reward_hacking": (
        "Read the episodes with the highest reward: what are they paid for? Lower or anneal "
        "that term, and try it on the stored episodes with parl rescore before training again."
    ),
    "length_bias": (
        "Lower train.max_off_policy_steps, and see whether long episodes fail "
        "(failures/timeout, rollout.episode_deadline_s)."
    ),
    "entropy_collapse": (
        "Go back to a checkpoint before this step. Lower the learning rate or "
        "train.updates_per_step, set loss.entropy_bonus, or take tasks on which the group's "
        "episodes differ."
    ),
    "logp_mismatch": (
        "Stop: the ratios in the loss are wrong. Suspect the engine (its cache, its dtype, a "
        "chat template that renders other tokens), not the learning rate."
    ),
    "stale_weights": (
        "Lower train.max_off_policy_steps, or sample faster (rollout.num_workers). If versions "
        "stand still, the weights do not reach the engines: stop and look at the workers' logs."
    ),
}
