"""Roles: the policy of each role, its limits, and when it is trained. Also: the rules of the
swarm."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from parl.config.base import ConfigModel, NonNegFloat, PositiveFloat, PositiveInt
from parl.config.gate import Gate
from parl.core.types import Role


class Turns(ConfigModel):
    """Learning by turns: steps of learning, then as many frozen, from the phase's first step on."""

    steps: PositiveInt
    """Steps of one turn."""
    first: bool
    """Whether the role learns in the first turn."""


class Phase(ConfigModel):
    """A value and its end. The last phase lasts to the end of the run."""

    until: PositiveInt | Gate | None = None
    """A step (exclusive), or a skill: {metric: outcome/subtask, value: 0.8, max_steps: 30}."""
    value: bool | Turns
    """Whether the role learns, or by turns: {steps: 5, first: true}."""


def _all_but_the_last_end(phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
    for i, phase in enumerate(phases[:-1]):
        if phase.until is None:
            raise ValueError(
                f"phase {i} has no `until`, so those after it never begin; "
                "give it a step or a metric"
            )
    return phases


Trainable = (
    bool | Annotated[tuple[Phase, ...], Field(min_length=1), AfterValidator(_all_but_the_last_end)]
)


class Sampling(ConfigModel):
    """How a role samples while training.

    Truncated sampling (top-p, top-k) is not offered: it biases the ratio.
    """

    temperature: NonNegFloat = 1.0
    """0 is greedy: for frozen roles only."""
    max_tokens: PositiveInt = 192
    """Most tokens in one turn; a turn that reaches it ends the agent as truncated."""


class Limits(ConfigModel):
    """Budgets of one agent."""

    turns: PositiveInt = 64
    tokens: PositiveInt | None = None
    """Most tokens that an agent may generate in all its turns. null = no limit."""
    context_tokens: PositiveInt = 2048
    """The window: prompt, generated tokens and observations together."""
    env_calls_per_turn: PositiveInt | None = None
    """Environment calls that one turn may make; further ones are answered with an error text. null
    = unlimited."""
    on_overflow: Literal["truncate", "answer"] = "truncate"
    """When the next observation does not fit: end as truncated, or replace it by a request to
    answer now."""


class RoleConfig(ConfigModel):
    """One role: its policy, how it samples, whether it learns."""

    policy: str = "main"
    """Name of the policy that plays the role."""
    sampling: Sampling = Sampling()
    trainable: Trainable = True
    """Whether the role learns, or a schedule: [{until: 20, value: false}, {value: true}]. A frozen
    role keeps the weights that its policy has; those of the cold start (or as loaded) where the
    other role trains that policy."""
    limits: Limits = Limits()
    system_prompt: str | dict[str, str] = ""
    """The orchestrator's first message; with a mix of environments, one by ability: {search: ...,
    visual: ...}. The text that `create_subagent` wrote is a subagent's."""
    external_agent: str | None = None
    """`module:function` of an agent of another framework that plays the role in place of PARL's
    loop: an orchestrator in mode single, subagents in mode swarm. It writes its own prompts, so it
        gets no
    `system_prompt`."""

    def prompt_for(self, ability: str) -> str:
        """Return the system prompt for tasks of an ability ("" without a mix)."""
        if isinstance(self.system_prompt, str):
            return self.system_prompt
        return self.system_prompt[ability]

    @property
    def ever_trainable(self) -> bool:
        """Whether there can be a step at which the role learns."""
        if isinstance(self.trainable, bool):
            return self.trainable
        return any(phase.value is not False for phase in self.trainable)


class Roles(ConfigModel):
    """The settings of both roles."""

    orchestrator: RoleConfig = RoleConfig()
    subagent: RoleConfig = RoleConfig(limits=Limits(turns=8, context_tokens=512))

    def of(self, role: Role) -> RoleConfig:
        """Return the settings of one role."""
        return self.orchestrator if role == "orchestrator" else self.subagent

    def items(self) -> tuple[tuple[Role, RoleConfig], ...]:
        """Return both roles with their settings, the orchestrator first."""
        return ("orchestrator", self.orchestrator), ("subagent", self.subagent)


class Swarm(ConfigModel):
    """Limits of the whole episode and the rules of delegation."""

    mode: Literal["swarm", "single"] = "swarm"
    """`single` removes `create_subagent` and `assign_task`."""
    max_subagents: PositiveInt = 100
    """Assignments that one episode may launch."""
    max_concurrency: PositiveInt | None = None
    """Subagents that run at once on the virtual clock. null = all."""
    critical_step_budget: PositiveInt | None = None
    """The episode ends as truncated when its critical steps reach this (Kimi K2.5, section 3). null
    = no budget."""
    token_budget: PositiveInt | None = None
    """Generated tokens of the whole tree, checked between turns. null = no budget."""
    # Against spurious parallelism (Kimi K2.5, section 3): a spawn reward pays for copies as well.
    refuse_duplicates: bool = True
    """Answer an assignment that repeats an earlier prompt of the episode with an error text."""


class ClockConfig(ConfigModel):
    """Rates of the virtual clock.

    An episode's latency is computed from token counts, so that it is the same on any machine.
    """

    prefill_tokens_per_s: PositiveFloat = 5000.0
    decode_tokens_per_s: PositiveFloat = 50.0
    decode_slots: PositiveInt | None = 8
    """Turns that decode at once. null = unlimited."""
    tool_slots: PositiveInt | None = None
    """Tool calls that run at once. null = unlimited."""
    tool_latency_s: dict[str, NonNegFloat] = Field(default_factory=dict)
    """Seconds of one call, by tool name; other tools take `default_tool_latency_s`."""
    default_tool_latency_s: NonNegFloat = 0.5
