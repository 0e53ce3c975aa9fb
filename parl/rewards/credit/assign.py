"""Samples of a step: every trained trace with the advantage and the weight of its tokens.

A failed episode or trace is in no mean and gives no sample: an infrastructure failure says nothing
about the policy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from parl.config import phases
from parl.config.credit import Credit
from parl.config.roles import Roles
from parl.core.types import AgentTrace, Sample, ScoredEpisode
from parl.rewards.credit.peers import alive, assignment_of, children
from parl.rewards.credit.rule import Group, get

NO_ADVANTAGE = 1e-8
"""Samples whose |advantage| is smaller are left out: see `assign`."""


@dataclass(frozen=True, slots=True)
class LossWeighting:
    """How a loss wants its samples weighted (`parl.learner.loss.weighting_of`)."""

    denominator: Literal["batch", "problem"] = "batch"
    """N of eq. 1: tokens of the whole batch, or of each problem."""
    weighs_traces: bool = False
    """The mean is one over traces (GSPO), not over tokens."""
    drops_equal_groups: bool = False
    """Groups that give no sample are left out of the mean (DAPO)."""


def assign(groups: Sequence[Group], config: Credit, roles: Roles, step: int) -> list[Sample]:
    """Return the samples of every trained trace of a step, by the rule of `config.type`.

    A sample with |A| < 1e-8 is left out, because on-policy it has no gradient (the squared term's
    is 0 there too). Off-policy its squared term is lost with it. It still counts in eq. 1's N: see
    `token_mass`.

    Args:
        groups: one sequence of episodes per task.
        roles: which roles are trained at `step`; the others give no samples but still receive
            rewards.
    Returns:
        samples in the order of groups, episodes and traces.
    Raises:
        ConfigError: there is no such rule, or it lacks something (contributions, a knob).
    """
    rule = get(config.type)
    knobs = rule.bind(config)
    samples: list[Sample] = []
    for group in groups:
        advantages = rule.advantages(alive(group), knobs)
        for scored, trace, weight in _trained(group, roles, step):
            # A sibling, under a rule that does not know siblings, has no advantage.
            advantage = advantages.get((scored.episode.id, trace.id), 0.0)
            sample = _sample(scored, trace, advantage, weight)
            by_token = sample.per_token or (sample.advantage,)
            if any(abs(value) >= NO_ADVANTAGE for value in by_token):
                samples.append(sample)
    return samples


def build_samples(
    groups: Sequence[Group], config: Credit, loss: LossWeighting, roles: Roles, step: int
) -> tuple[list[Sample], dict[str, float]]:
    """Return all samples of a step, weighted as the loss wants them, and its N (eq. 1) per policy.

    `loss.denominator: problem` averages over problems instead of tokens: weights are scaled so that
    each problem has the same part of N. `dapo` leaves out groups that give no sample (dynamic
    sampling: DAPO, 2503.14476, eq. 11; there they are sampled again, here the batch is smaller).
    `gspo` averages over traces, not over tokens: each token weighs 1/|y|, so that a trace weighs
    what one token did (GSPO, 2507.18071, eq. 5).
    """
    per_trace = loss.weighs_traces
    samples_of_groups: list[list[Sample]] = []
    masses: list[dict[str, float]] = []
    all_masses = token_mass(groups, roles, step, per_trace)
    for group, mass in zip(groups, all_masses, strict=True):
        samples_of_group = assign([group], config, roles, step)
        # Equal rewards give advantages of 0, and so no sample: DAPO leaves such groups out of N.
        if samples_of_group or not loss.drops_equal_groups:
            samples_of_groups.append(samples_of_group)
            masses.append(mass)

    # Per policy: roles may be played by different ones, and each has its own update.
    total: dict[str, float] = {}
    for mass in masses:
        for policy, tokens in mass.items():
            total[policy] = total.get(policy, 0.0) + tokens

    samples: list[Sample] = []
    for samples_of_group, mass in zip(samples_of_groups, masses, strict=True):
        for sample in samples_of_group:
            weight = sample.weight
            # The loss adds up tokens, so a mean over traces is made by their weights.
            if per_trace:
                weight = weight / sum(sample.mask)
            # Each problem gets the same part of N, however many tokens it has.
            if loss.denominator == "problem":
                share = total[sample.policy] / (len(masses) * mass[sample.policy])
                weight = weight * share
            samples.append(replace(sample, weight=weight))
    return samples, total


def token_mass(
    groups: Sequence[Group], roles: Roles, step: int, per_trace: bool = False
) -> list[dict[str, float]]:
    """Return N of eq. 1 for each group: policy -> weighted number of tokens in the loss.

    Zero advantages are included. Summed over groups it is the denominator of `loss.denominator:
    batch`; one by one those of `problem`. With `per_trace` a trace counts once, however long it is.
    """
    masses: list[dict[str, float]] = []
    for group in groups:
        mass: dict[str, float] = {}
        # All trained traces, not only those that give a sample: with a smaller N the loss of a
        # batch in which few episodes differ would grow.
        for _, trace, weight in _trained(group, roles, step):
            size = 1 if per_trace else sum(trace.mask)
            mass[trace.policy] = mass.get(trace.policy, 0.0) + weight * size
        masses.append(mass)
    return masses


def _trained(
    group: Group, roles: Roles, step: int
) -> Iterator[tuple[ScoredEpisode, AgentTrace, float]]:
    """Yield the traces whose tokens enter the loss, with the weight of each token.

    An orchestrator's tokens weigh 1; those of each of an episode's n subagents 1/n, so that all
    subagents together weigh as much as one of average length and spawning more adds no gradient
    mass. (WideSeek-R1, 2602.04634, has the same aim; it averages over an episode's agents, and over
    the tokens within each.) Siblings share the weight of their assignment.
    """
    for scored in alive(group):
        episode = scored.episode
        num_children = len(children(scored))
        attempts = Counter(assignment_of(t) for t in (*children(scored), *episode.siblings))
        for trace in (*episode.traces, *episode.siblings):
            is_trained = phases.trainable_at(roles.of(trace.role).trainable, step)
            # A mask of zeros: a policy behind an endpoint wrote the text, or no turn was taken.
            if not is_trained or trace.status == "failed" or not any(trace.mask):
                continue
            if trace.role == "orchestrator":
                yield scored, trace, 1.0
            else:
                yield scored, trace, 1.0 / (num_children * attempts[assignment_of(trace)])


def _sample(
    scored: ScoredEpisode, trace: AgentTrace, advantage: float | tuple[float, ...], weight: float
) -> Sample:
    per_token: tuple[float, ...] = ()
    if isinstance(advantage, tuple):
        per_token = _per_token(trace, advantage)
        # The sample's single advantage is then the mean over its tokens.
        mean = sum(per_token) / sum(trace.mask)
    else:
        mean = advantage
    versions = tuple(version for turn in trace.turns for version in turn.policy_versions)
    return Sample(
        episode=scored.episode.id,
        agent=trace.id,
        role=trace.role,
        policy=trace.policy,
        token_ids=trace.token_ids,
        mask=trace.mask,
        logprobs=trace.logprobs,
        advantage=mean,
        weight=weight,
        policy_versions=versions,
        per_token=per_token,
        images=trace.images,
    )


def _per_token(trace: AgentTrace, turns: Sequence[float]) -> tuple[float, ...]:
    """Spread one advantage per turn over the tokens that the agent wrote in it."""
    advantages = [0.0] * len(trace.mask)
    for turn, advantage in zip(trace.turns, turns, strict=True):
        # The mask leaves out tokens of the turn that the policy did not sample.
        for position in range(turn.start, turn.end):
            advantages[position] = advantage * trace.mask[position]
    return tuple(advantages)
