"""From rewards to advantages, per role.

In: the scored episodes of a step, in groups (one task each). Out: `Sample`s, one per trained trace, with the advantage
and the weight of its tokens in the loss. `credit.type` names the rule: one function below for each.

A failed episode or trace is in no mean and gives no sample: an infrastructure failure says nothing about the policy.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import TypeVar

from parl.config import phases
from parl.config.credit import Credit
from parl.config.loss import Loss
from parl.config.roles import Roles
from parl.core.errors import ConfigError
from parl.core.types import AgentTrace, Sample, ScoredEpisode
from parl.rewards.terms import finished

NO_ADVANTAGE = 1e-8
"""Samples whose |advantage| is smaller are left out: see `assign`."""

Group = Sequence[ScoredEpisode]
Agent = tuple[str, str]
"""(episode id, agent id)."""
Advantages = Mapping[Agent, float | tuple[float, ...]]
"""Of each agent that did not fail: one for all its tokens, or one per turn."""
K = TypeVar("K", bound=Hashable)


def assign(groups: Sequence[Group], config: Credit, roles: Roles, step: int) -> list[Sample]:
    """Advantages of every trained trace of a step, by the rule of `config.type`.

    A sample with |A| < 1e-8 is left out, because on-policy it has no gradient (the squared term's is 0 there too).
    Off-policy its squared term is lost with it. It still counts in eq. 1's N: see `token_mass`.

    Args:
        groups: one sequence per task.
        roles: which roles are trained at `step`; the others give no samples but still receive rewards.
    Returns:
        samples in the order of groups, episodes and traces.
    Raises:
        ConfigError: `leave_one_out`, and an episode does not say what its subagents contributed.
    """
    samples: list[Sample] = []
    for group in groups:
        advantages = _RULES[config.type](_alive(group), config)
        for scored, trace, weight in _trained(group, roles, step):
            # 0: a sibling, under a rule that does not know them
            sample = _sample(
                scored, trace, advantages.get((scored.episode.id, trace.id), 0.0), weight
            )
            if any(abs(a) >= NO_ADVANTAGE for a in (sample.per_token or (sample.advantage,))):
                samples.append(sample)
    return samples


def build_samples(
    groups: Sequence[Group], config: Credit, loss: Loss, roles: Roles, step: int
) -> tuple[list[Sample], dict[str, float]]:
    """All samples of the step, weighted as the loss wants them, and its N (that of eq. 1) per policy.

    `loss.denominator: problem` averages over problems instead of tokens: weights are scaled so that each problem
    has the same part of N. `dapo` leaves out groups that give no sample (dynamic sampling: DAPO, 2503.14476, eq. 11;
    there they are sampled anew, here the batch is smaller). `gspo` averages over traces, not over tokens: each token
    weighs 1/|y|, so that a trace weighs what one token did (GSPO, 2507.18071, eq. 5).
    """
    by_group = [assign([group], config, roles, step) for group in groups]
    per_trace = loss.type == "gspo"
    masses = token_mass(groups, roles, step, per_trace)
    if loss.type == "dapo":
        kept = [k for k, own in enumerate(by_group) if own]
        by_group, masses = [by_group[k] for k in kept], [masses[k] for k in kept]
    total: dict[str, float] = {}
    for mass in masses:
        for policy, tokens in mass.items():
            total[policy] = total.get(policy, 0.0) + tokens
    samples = []
    for own, mass in zip(by_group, masses, strict=True):
        for sample in own:
            if per_trace:
                sample = replace(sample, weight=sample.weight / sum(sample.mask))
            if loss.denominator == "problem":
                share = total[sample.policy] / (len(masses) * mass[sample.policy])
                sample = replace(sample, weight=sample.weight * share)
            samples.append(sample)
    return samples, total


def token_mass(
    groups: Sequence[Group], roles: Roles, step: int, per_trace: bool = False
) -> list[dict[str, float]]:
    """N of eq. 1: for each group, policy -> weighted number of tokens in the loss, zero advantages included.

    Summed over groups it is the denominator of `loss.denominator: batch`; one by one those of `problem`. With
    `per_trace` a trace counts once, however long it is.
    """
    masses: list[dict[str, float]] = []
    for group in groups:
        mass: dict[str, float] = {}
        for _, trace, weight in _trained(group, roles, step):
            size = 1 if per_trace else sum(trace.mask)
            mass[trace.policy] = mass.get(trace.policy, 0.0) + weight * size
        masses.append(mass)
    return masses


def _trained(
    group: Group, roles: Roles, step: int
) -> Iterator[tuple[ScoredEpisode, AgentTrace, float]]:
    """Traces whose tokens enter the loss, with the weight of each token.

    An orchestrator's tokens weigh 1; those of each of an episode's n subagents 1/n, so that all subagents together
    weigh as much as one of average length and spawning more adds no gradient mass. (WideSeek-R1, 2602.04634, has the
    same aim; it averages over an episode's agents, and over the tokens within each.) Siblings share the weight of
    their assignment.
    """
    for scored in _alive(group):
        num_children = len(_children(scored))
        num_attempts = Counter(
            _assignment(t) for t in (*_children(scored), *scored.episode.siblings)
        )
        for trace in (*scored.episode.traces, *scored.episode.siblings):
            role = roles.of(trace.role)
            if (
                phases.trainable_at(role.trainable, step)
                and trace.status != "failed"
                and any(trace.mask)
            ):
                attempts = num_attempts[_assignment(trace)]
                yield (
                    scored,
                    trace,
                    1.0 if trace.role == "orchestrator" else 1.0 / (num_children * attempts),
                )


# --- the rules -------------------------------------------------------------------------------------------------------


def group_mean(group: Group, config: Credit) -> dict[Agent, float]:
    """Each role against its own kind (Kimi K2.5, section 3 and eq. 1; for subagents our choice, docs/explain/credit.md).

    Orchestrator: A = r - mean of r over its group (the episodes of the same task).
    Subagent: A = r - b. Its peers are all subagents of the group, or of its episode (`subagent_group`); b is the mean
    over episodes of each episode's mean, so that a wide episode does not set the baseline.
    With `normalize_std` A is divided by (standard deviation over the same peers, population form, + `std_floor`).
    """
    own = {(s.episode.id, t.id): _reward(s, t) for s in group for t in _children(s)}
    return _orchestrators(group, config) | _subagents(group, own, config)


def trajectory(group: Group, config: Credit) -> dict[Agent, float]:
    """A_agent = A of its episode's orchestrator (WideSeek-R1, 2602.04634: one advantage per trajectory for all agents).

    The paper divides by the standard deviation: `normalize_std`. Subagents share the orchestrator's shaping terms.
    """
    roots = _orchestrators(group, config)
    agents = [(s, t) for s in group for t in (s.episode.orchestrator, *_children(s))]
    return {(s.episode.id, t.id): roots[s.episode.id, s.episode.orchestrator.id] for s, t in agents}


def role_normalized(group: Group, config: Credit) -> dict[Agent, float]:
    """A = (r - mu_role) / (sigma_role + `std_floor`), over all agents of the role (Dr. MAS, 2602.08847).

    Every agent counts once, so a wide episode sets much of the subagents' mean. There r is the episode's reward for
    every agent; here it is the agent's own, which is the same where the environment knows no `subtask_score`.
    """
    out: dict[Agent, float] = {}
    for traces in (
        [(s, s.episode.orchestrator) for s in group],
        [(s, t) for s in group for t in _children(s)],
    ):
        out |= _centred(
            [[((s.episode.id, t.id), _reward(s, t))] for s, t in traces], config, normalize=True
        )
    return out


def hierarchical(group: Group, config: Credit) -> dict[Agent, float]:
    """Subagent: A = A_own + `episode_share` * A_episode; orchestrator: as `group_mean`.

    A_own compares it with its peers, A_episode is its orchestrator's. The form is that of GiGPO (2505.10978, eq. 8:
    A^E + omega A^S) with a subagent in the place of a step; M-GRPO (2511.13288) has the same aim and mixes the main
    agent's result into the subagent's reward instead.
    """
    out = group_mean(group, config)
    for scored in group:
        root = out[scored.episode.id, scored.episode.orchestrator.id]
        for trace in _children(scored):
            out[scored.episode.id, trace.id] += config.episode_share * root
    return out


def per_turn(group: Group, config: Credit) -> dict[Agent, tuple[float, ...]]:
    """A of turn t = A_agent + `turn_weight` * (R_t - mean of R over the turns taken in the same state).

    GiGPO (2505.10978, eqs. 6-8). R_t = `discount`^(T-1-t) r is the discounted return of an agent's turn t of T; two
    turns of a role are taken in the same state ("anchor state") when their contexts are equal, token by token: always
    in the first turn of a task's orchestrators, and for subagents that got the same prompt. A_agent as `group_mean`.
    """
    agents = group_mean(group, config)
    states: dict[tuple[str, tuple[int, ...]], list[tuple[tuple[Agent, int], float]]] = {}
    lengths: dict[Agent, int] = {}
    for scored in group:
        for trace in (scored.episode.orchestrator, *_children(scored)):
            agent, last = (scored.episode.id, trace.id), len(trace.turns) - 1
            lengths[agent] = len(trace.turns)
            for i, turn in enumerate(trace.turns):
                state = states.setdefault((trace.role, trace.token_ids[: turn.start]), [])
                state.append(((agent, i), config.discount ** (last - i) * _reward(scored, trace)))
    turns: dict[tuple[Agent, int], float] = {}
    for state in states.values():
        turns |= _centred([[one] for one in state], config, config.normalize_std)
    return {
        agent: tuple(agents[agent] + config.turn_weight * turns[agent, i] for i in range(n))
        for agent, n in lengths.items()
    }


def leave_one_out(group: Group, config: Credit) -> dict[Agent, float]:
    """Subagent: as `group_mean`, with its worth in place of its reward; orchestrator: as `group_mean`.

    Worth = score of the answer - score of the answer without this subagent's message: the difference reward
    D_i = G(z) - G(z_-i) (Wolpert and Tumer 2002; COMA, 1705.08926, section 4). The
    environment tells it (`AgentEnv.contributions`); a subagent whose message left no trace in the answer is worth 0.
    """
    worth: dict[Agent, float] = {}
    for scored in group:
        for trace in _children(scored):
            if trace.contribution is None:
                raise ConfigError(
                    f"credit.type is leave_one_out, but episode {scored.episode.id} does not say what its subagent "
                    f"{trace.id} contributed. That is asked only while a run trains with leave_one_out, of environments "
                    "that implement contributions() (docs/explain/credit.md). Train a run with it, or set credit.type: "
                    "group_mean."
                )
            worth[scored.episode.id, trace.id] = trace.contribution
    return _orchestrators(group, config) | _subagents(group, worth, config)


def resample(group: Group, config: Credit) -> dict[Agent, float]:
    """Subagent with siblings: A = its own success - the mean of theirs; all other agents: as `group_mean`.

    Siblings are k further samples of one assignment, so they differ in nothing but chance: the baseline of a state by
    sampling from it again (VinePPO, 2410.01679; for subagents on one subtask the hierarchical GRPO of prime-rl). Their
    messages are not read and have no part in the episode's reward, so success is what can be said of the message
    alone: `subtask_score`, or whether it is finished and accepted where there is none.
    """
    out = group_mean(group, config)
    for scored in group:
        attempts: dict[str, list[tuple[Agent, float]]] = {}
        for trace in (*_children(scored), *scored.episode.siblings):
            success = trace.score if trace.score is not None else float(finished(trace))
            attempts.setdefault(_assignment(trace), []).append(
                ((scored.episode.id, trace.id), success)
            )
        for family in attempts.values():
            if len(family) > 1:
                out |= _centred([family], config, config.normalize_std)
    return out


_RULES: Mapping[str, Callable[[Group, Credit], Advantages]] = {
    "group_mean": group_mean,
    "trajectory": trajectory,
    "role_normalized": role_normalized,
    "hierarchical": hierarchical,
    "per_turn": per_turn,
    "leave_one_out": leave_one_out,
    "resample": resample,
}


# --- what they are made of -------------------------------------------------------------------------------------------


def _orchestrators(group: Group, config: Credit) -> dict[Agent, float]:
    roots = [
        [((s.episode.id, s.episode.orchestrator.id), _reward(s, s.episode.orchestrator))]
        for s in group
    ]
    return _centred(roots, config, config.normalize_std)


def _subagents(group: Group, values: Mapping[Agent, float], config: Credit) -> dict[Agent, float]:
    """Values of subagents against those of their peers."""
    children = [
        [((s.episode.id, t.id), values[s.episode.id, t.id]) for t in _children(s)] for s in group
    ]
    children = [c for c in children if c]
    out: dict[Agent, float] = {}
    for families in [children] if config.subagent_group == "task" else [[c] for c in children]:
        out |= _centred(families, config, config.normalize_std)
    return out


def _centred(
    families: Sequence[Sequence[tuple[K, float]]], config: Credit, normalize: bool
) -> dict[K, float]:
    """Values minus the mean over families of each family's mean (a family = the peers within one episode)."""
    if not families:
        return {}
    mean = fmean(fmean(v for _, v in family) for family in families)
    scale = 1.0
    if normalize:
        variance = fmean(fmean((v - mean) ** 2 for _, v in family) for family in families)
        scale = math.sqrt(variance) + config.std_floor
    return {key: (v - mean) / scale for family in families for key, v in family}


def _alive(group: Group) -> list[ScoredEpisode]:
    return [s for s in group if s.episode.status != "failed"]


def _children(scored: ScoredEpisode) -> list[AgentTrace]:
    return [t for t in scored.episode.subagents if t.status != "failed"]


def _assignment(trace: AgentTrace) -> str:
    """Subagent "3" and its siblings "3.1", "3.2", ... have one assignment."""
    return trace.id.partition(".")[0]


def _reward(scored: ScoredEpisode, trace: AgentTrace) -> float:
    return scored.rewards[trace.id].total


def _sample(
    scored: ScoredEpisode, trace: AgentTrace, advantage: float | tuple[float, ...], weight: float
) -> Sample:
    per_token = () if isinstance(advantage, float) else _per_token(trace, advantage)
    return Sample(
        episode=scored.episode.id,
        agent=trace.id,
        role=trace.role,
        policy=trace.policy,
        token_ids=trace.token_ids,
        mask=trace.mask,
        logprobs=trace.logprobs,
        advantage=advantage if isinstance(advantage, float) else sum(per_token) / sum(trace.mask),
        weight=weight,
        policy_versions=tuple(v for t in trace.turns for v in t.policy_versions),
        per_token=per_token,
        images=trace.images,
    )


def _per_token(trace: AgentTrace, turns: Sequence[float]) -> tuple[float, ...]:
    out = [0.0] * len(trace.mask)
    for turn, advantage in zip(trace.turns, turns, strict=True):
        out[turn.start : turn.end] = [advantage * m for m in trace.mask[turn.start : turn.end]]
    return tuple(out)
