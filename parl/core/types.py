"""Frozen values from Task to Sample, in the order in which data flows. No field is filled in later.

    Task -> swarm.run -> Episode -> score(group) -> ScoredEpisode -> credit.assign(group) -> [Sample]

A token sequence is recorded once, as it was fed to and sampled from the model, and never re-rendered:

Example: an agent with prompt P, two turns A0 and A1 and the observation O between them
    token_ids = P + A0 + O + A1
    mask      = [0]*len(P) + [1]*len(A0) + [0]*len(O) + [1]*len(A1)
    logprobs  = 0.0 wherever mask is 0, the sampling log-prob elsewhere
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["orchestrator", "subagent"]
ROLES: tuple[Role, ...] = ("orchestrator", "subagent")
Status = Literal["completed", "truncated", "failed"]
ORCHESTRATOR_ID = "0"
UNKNOWN_TOKEN = -1
"""A token that was only counted: of a policy behind an endpoint, which tells texts and numbers. Never trained on."""


@dataclass(frozen=True, slots=True)
class Task:
    """One problem. `prompt` is what the orchestrator reads; `data` is the environment's own (gold included)."""

    id: str
    env: str
    prompt: str
    data: Mapping[str, Any]
    ability: str = ""
    """Of a task of a mix of environments: which of them it belongs to."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call as the model wrote it. `error` is set when the text could not be parsed as a call."""

    name: str
    arguments: Mapping[str, Any]
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """One generation of one agent and the observations that answered it.

    `start:end` is the span of the generated tokens in the trace's `token_ids`.
    """

    text: str
    tool_calls: tuple[ToolCall, ...]
    observations: tuple[str, ...]
    start: int
    end: int
    policy_versions: tuple[int, ...]
    """Weight version that sampled the turn; one per token where the weights changed in its middle."""
    env_calls: int = 0
    """Environment calls that ran: the first so many of the turn's well-formed calls of environment tools."""


@dataclass(frozen=True, slots=True)
class AgentTrace:
    """One agent from its prompt to its last message. `spawned_at` indexes the parent's turn that launched it."""

    id: str
    role: Role
    parent: str | None
    spawned_at: int | None
    name: str
    prompt: str
    policy: str
    turns: tuple[Turn, ...]
    status: Status
    stop_reason: str
    result: str
    token_ids: tuple[int, ...]
    mask: tuple[int, ...]
    logprobs: tuple[float, ...]
    accepted: bool = True
    """Subagents: the environment's `check_result` accepted a non-empty message."""
    score: float | None = None
    """Subagents: the environment's gold-informed `subtask_score`, where it has one."""
    contribution: float | None = None
    """Subagents: what the answer would lose without this one's message, where that was asked of it."""
    images: tuple[str, ...] = ()
    """What it saw: data URIs, in the order in which the ids that stand for them are in `token_ids`."""

    @property
    def num_generated(self) -> int:
        """Tokens that the agent wrote itself (a demonstration may mask some of them out of the loss)."""
        return sum(t.end - t.start for t in self.turns)


@dataclass(frozen=True, slots=True)
class Span:
    """When one turn of one agent ran on the virtual clock, in seconds from the episode's start."""

    agent: str
    turn: int
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Clock:
    """The episode on the virtual clock. `critical_path_s` is its latency, `serial_s` the sum of all work."""

    critical_path_s: float
    serial_s: float
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Episode:
    """One attempt at one task by one swarm: flat traces, the orchestrator's first."""

    id: str
    task: Task
    group: str
    step: int
    status: Status
    answer: str
    outcome: Mapping[str, float]
    facts: Mapping[str, Any]
    traces: tuple[AgentTrace, ...]
    num_assigned: int
    """Assignments that launched a subagent."""
    num_refused: int
    """Assignments answered with an error text (malformed, duplicate, over a limit)."""
    clock: Clock
    failure: str | None = None
    """Kind of failure when status is `failed` (environment, tool, timeout, ...): masked, counted, never scored 0."""
    siblings: tuple[AgentTrace, ...] = ()
    """Further attempts at some assignments, that nobody read: trained on, and no part of the answer or its steps.

    Example: ids "3.1" and "3.2" got what subagent "3" got (`credit.type: resample`).
    """

    @property
    def orchestrator(self) -> AgentTrace:
        return self.traces[0]

    @property
    def subagents(self) -> tuple[AgentTrace, ...]:
        return self.traces[1:]

    @property
    def num_finished(self) -> int:
        """Subagents that ended `completed` with a message that the environment accepts (PARL section 3, r_finish)."""
        return sum(
            t.status == "completed" and t.accepted and bool(t.result.strip())
            for t in self.subagents
        )

    @property
    def critical_steps(self) -> int:
        """Sum over orchestrator turns of 1 + the longest subagent launched by that turn (section 3)."""
        return critical_steps(self.traces)

    @property
    def total_steps(self) -> int:
        return sum(len(t.turns) for t in self.traces)

    def tokens(self, role: Role | None = None) -> int:
        """Generated tokens, of one role or of all; without those of siblings, which the answer did not need."""
        return sum(t.num_generated for t in self.traces if role is None or t.role == role)

    @property
    def num_sibling_tokens(self) -> int:
        return sum(t.num_generated for t in self.siblings)


def critical_steps(traces: Sequence[AgentTrace]) -> int:
    """CriticalSteps = sum_t (S_main(t) + max_i S_sub,i(t)), S_main = 1, max over none = 0 (Kimi K2.5, section 3)."""
    longest: dict[int, int] = {}
    for trace in traces[1:]:
        assert trace.spawned_at is not None
        longest[trace.spawned_at] = max(longest.get(trace.spawned_at, 0), len(trace.turns))
    return len(traces[0].turns) + sum(longest.values())


@dataclass(frozen=True, slots=True)
class RewardBreakdown:
    """Raw terms and the weights that applied to one agent. `total` is derived, never stored apart from them.

    `factor` is what a group-level modifier (Toggle) multiplied the outcome terms by; 1.0 without one.
    """

    terms: Mapping[str, float]
    weights: Mapping[str, float]
    factors: Mapping[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        return sum(self.weights[k] * self.factors.get(k, 1.0) * v for k, v in self.terms.items())


@dataclass(frozen=True, slots=True)
class ScoredEpisode:
    """An episode and the reward of each of its agents, by agent id."""

    episode: Episode
    rewards: Mapping[str, RewardBreakdown]


@dataclass(frozen=True, slots=True)
class Sample:
    """One trace ready for the learner: the sampled ids with their log-probs, and an advantage.

    `weight` multiplies the loss of each of its tokens (agent-balanced weights, so that width adds no gradient mass).
    """

    episode: str
    agent: str
    role: Role
    policy: str
    token_ids: tuple[int, ...]
    mask: tuple[int, ...]
    logprobs: tuple[float, ...]
    advantage: float
    """Of all its tokens; their mean where they differ."""
    weight: float
    policy_versions: tuple[int, ...]
    per_token: tuple[float, ...] = ()
    """The advantage of each token (0 where the mask is), where the turns of an agent have different ones."""
    images: tuple[str, ...] = ()
    """Those of the trace."""

    @property
    def advantages(self) -> tuple[float, ...]:
        """Of each token; 0 where the mask is."""
        return self.per_token or tuple(self.advantage * m for m in self.mask)


Decoding = Literal["greedy", "sampled"]


Mode = Literal["swarm", "single", "forced_parallel"]


Split = Literal["train", "validation", "test"]
