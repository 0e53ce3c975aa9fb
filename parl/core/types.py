"""Frozen values from Task to Sample, in the order in which data flows. No field is filled in later.

    Task -> swarm.run -> Episode -> score(group) -> ScoredEpisode -> credit.assign(group) ->
    [Sample]

A token sequence is recorded once, as it was fed to and sampled from the model, and never
re-rendered:

Example: an agent with prompt P, two turns A0 and A1, and the observation O between them
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
"""A token that was only counted, of a policy behind an endpoint, which reports texts and numbers of
tokens. It is never trained on."""
Decoding = Literal["greedy", "sampled"]
Mode = Literal["swarm", "single", "forced_parallel"]
Split = Literal["train", "validation", "test"]


# --- the input -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Task:
    """One problem.

    Example:
        ```python
        Task("train-0-7", "phone/PhoneBook-v0", "call : 1 ada.k", {"book": {"ada.k": "117"}})
        ```
    """

    id: str
    """Unique within a split."""
    env: str
    """Id of the environment."""
    prompt: str
    """The orchestrator's first message from the user."""
    data: Mapping[str, Any]
    """The environment's data, gold answer included, as JSON values."""
    ability: str = ""
    """In a mix of environments, the ability of the task's part; else ""."""


# --- an episode ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call as the model wrote it."""

    name: str
    arguments: Mapping[str, Any]
    error: str | None = None
    """Why the text could not be parsed as a call; None for a well-formed one."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One generation of one agent, and the observations that answered it."""

    text: str
    tool_calls: tuple[ToolCall, ...]
    observations: tuple[str, ...]
    """One text for each call."""
    start: int
    end: int
    """`start:end` is the span of the generated tokens in the trace's `token_ids`."""
    policy_versions: tuple[int, ...]
    """The weight version that sampled the turn; one per token where the weights changed
    meanwhile."""
    env_calls: int = 0
    """How many of the turn's well-formed calls of environment tools ran: the first ones, up to
    `limits.env_calls_per_turn`."""


@dataclass(frozen=True, slots=True)
class AgentTrace:
    """One agent from its prompt to its last message."""

    id: str
    """"0" is the orchestrator; subagents are numbered in the order of launch."""
    role: Role
    parent: str | None
    spawned_at: int | None
    """Index of the parent's turn that launched the agent; None for the orchestrator."""
    name: str
    prompt: str
    policy: str
    turns: tuple[Turn, ...]
    status: Status
    stop_reason: str
    """Why the agent ended, such as `answer` or the limit that it reached."""
    result: str
    """Its last message."""
    token_ids: tuple[int, ...]
    """Its context, [tokens], as it was fed and sampled; the module's docstring has an example."""
    mask: tuple[int, ...]
    """1 where the agent wrote the token and it may be trained on, [tokens]."""
    logprobs: tuple[float, ...]
    """Log-probs at sampling, 0 where the mask is, [tokens]."""
    accepted: bool = True
    """Subagents: the environment's `check_result` accepted a non-empty message."""
    score: float | None = None
    """Subagents: the environment's gold-informed `subtask_score`, where it has one."""
    contribution: float | None = None
    """Subagents: what the answer's score would lose without this one's message, where the credit
    rule needs it and the environment can tell."""
    images: tuple[str, ...] = ()
    """The images in its context: data URIs, in the order of their ids in `token_ids`."""

    @property
    def num_generated(self) -> int:
        """Tokens that the agent wrote. A demonstration may mask some of them out of the loss."""
        return sum(t.end - t.start for t in self.turns)


@dataclass(frozen=True, slots=True)
class Span:
    """The time of one agent's turn on the virtual clock, in seconds from the episode's start."""

    agent: str
    turn: int
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Clock:
    """The episode on the virtual clock, in seconds."""

    critical_path_s: float
    """The episode's latency."""
    serial_s: float
    """The sum of all work."""
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
    """Kind of failure when the status is `failed` (environment, tool, timeout, ...). Such an
    episode is masked and counted, never scored 0."""
    siblings: tuple[AgentTrace, ...] = ()
    """Further attempts at some assignments (`credit.type: resample`). Their messages were not read,
    so they are trained on, but are no part of the answer or its steps. Example: "3.1" and "3.2" had
    the assignment of subagent "3"."""

    @property
    def orchestrator(self) -> AgentTrace:
        return self.traces[0]

    @property
    def subagents(self) -> tuple[AgentTrace, ...]:
        return self.traces[1:]

    @property
    def num_finished(self) -> int:
        """Subagents that completed with an accepted message (Kimi K2.5, section 3: r_finish)."""
        num = 0
        for trace in self.subagents:
            if trace.status == "completed" and trace.accepted and trace.result.strip():
                num += 1
        return num

    @property
    def critical_steps(self) -> int:
        """Sum over orchestrator turns of 1 + the longest subagent launched by that turn (section
        3)."""
        return critical_steps(self.traces)

    @property
    def total_steps(self) -> int:
        """Turns of all agents."""
        return sum(len(t.turns) for t in self.traces)

    def tokens(self, role: Role | None = None) -> int:
        """Return the number of generated tokens, of one role or of both.

        Those of siblings are left out, since the answer did not need them.
        """
        traces = [trace for trace in self.traces if role is None or trace.role == role]
        return sum(trace.num_generated for trace in traces)

    @property
    def num_sibling_tokens(self) -> int:
        """Generated tokens of all siblings."""
        return sum(t.num_generated for t in self.siblings)


def critical_steps(traces: Sequence[AgentTrace]) -> int:
    """Return the critical steps of an episode, its latency in turns (Kimi K2.5, section 3).

    CriticalSteps = sum_t (S_main(t) + max_i S_sub,i(t)) over the orchestrator's turns t, with
    S_main = 1 and a maximum over no subagents of 0.

    Args:
        traces: the orchestrator's first.
    """
    longest: dict[int, int] = {}
    for trace in traces[1:]:
        assert trace.spawned_at is not None
        longest[trace.spawned_at] = max(longest.get(trace.spawned_at, 0), len(trace.turns))
    return len(traces[0].turns) + sum(longest.values())


# --- rewards and training samples ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RewardBreakdown:
    """The raw reward terms of one agent, and the weights that applied to them."""

    terms: Mapping[str, float]
    weights: Mapping[str, float]
    factors: Mapping[str, float] = field(default_factory=dict)
    """Term -> the factor of a group-level modifier (Toggle), 1 where absent."""

    @property
    def total(self) -> float:
        """The weighted sum. Never stored apart from the terms, so that the two cannot disagree."""
        return sum(self.weights[k] * self.factors.get(k, 1.0) * v for k, v in self.terms.items())


@dataclass(frozen=True, slots=True)
class ScoredEpisode:
    """An episode and the reward of each of its agents, by agent id."""

    episode: Episode
    rewards: Mapping[str, RewardBreakdown]


@dataclass(frozen=True, slots=True)
class Sample:
    """One trace ready for the learner: sampled ids, their log-probs, and an advantage."""

    episode: str
    agent: str
    role: Role
    policy: str
    token_ids: tuple[int, ...]
    mask: tuple[int, ...]
    logprobs: tuple[float, ...]
    advantage: float
    """The advantage of all its tokens; their mean where they differ."""
    weight: float
    """Factor on the loss of each of its tokens: agents are balanced, so that spawning more adds no
    gradient mass."""
    policy_versions: tuple[int, ...]
    per_token: tuple[float, ...] = ()
    """The advantage of each token, 0 where the mask is, [tokens]; () where all have the same."""
    images: tuple[str, ...] = ()
    """The images of the trace."""

    @property
    def advantages(self) -> tuple[float, ...]:
        """The advantage of each token, 0 where the mask is, [tokens]."""
        return self.per_token or tuple(self.advantage * m for m in self.mask)
