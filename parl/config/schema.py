"""The typed configuration tree: one home for each value, frozen, unknown keys refused.

In: plain dicts (see `loader`). Out: a `Config`, of which each class of the platform receives its own part only.
The docstring under a field is its documentation; `parl config explain` prints it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from parl.config import phases
from parl.config.adapters import Adapter, check_adapters, check_turns
from parl.config.base import Fraction, Node, NonNegFloat, NonNegInt, PositiveFloat, PositiveInt, Rate
from parl.config.endpoint import RemoteConfig, check_endpoints
from parl.config.env import AnyEnv, MixConfig
from parl.config.env import EnvConfig as EnvConfig
from parl.config.env import TaskSource as TaskSource
from parl.config.objective import Credit, Loss, Reward
from parl.config.phases import Trainable
from parl.config.rollout import Rollout, check_rollout
from parl.config.tiny import TinyModel, TinyVlm


class Optimizer(Node):
    """One optimizer per policy: Muon on matrices where `muon_lr` is set, AdamW on everything else."""

    lr: PositiveFloat = 3e-4
    """AdamW's learning rate."""
    embedding_lr_scale: PositiveFloat = 1.0
    """Multiplies `lr` for the token embedding (tiny models with unit-rms embeddings want 5 to 25)."""
    muon_lr: NonNegFloat = 0.0
    """Learning rate of Muon for two-dimensional weights; 0 leaves them to AdamW."""
    betas: tuple[Rate, Rate] = (0.9, 0.98)
    weight_decay: NonNegFloat = 0.0
    grad_clip: PositiveFloat = 1.0
    """Maximum norm of the gradient."""
    warmup_steps: NonNegInt = 0
    decay: Literal["constant", "linear"] = "constant"
    """`linear`: constant for `hold`, then down to 3 % at the end of the run or stage."""
    hold: Fraction = 0.3


class EngineConfig(Node):
    """How a policy generates."""

    type: Literal["torch", "vllm"] = "torch"
    """`torch`: ours, in this process. `vllm`: an extra, in processes of its own (docs/vllm.md)."""
    prefill_tokens: PositiveInt = 4096
    """Largest number of (padded) prompt tokens in one forward pass."""
    decode_rows: PositiveInt = 256
    """Largest number of sequences in one decoding pass."""
    kv_cache_gb: PositiveFloat = 4.0
    """vllm: memory of its key-value cache, GiB. The torch engine takes what it needs."""


def _own_by_default(engine: Any) -> Any:
    return {"type": "torch", **engine} if isinstance(engine, dict) else engine


Engine = Annotated[EngineConfig | RemoteConfig, Field(discriminator="type"), BeforeValidator(_own_by_default)]


class Policy(Node):
    """One set of weights: a model of its own, or an adapter on another policy's."""

    model: str = "tiny"
    """`tiny` or `tiny_vlm` (which sees; built from the key of that name, with a vocabulary from the environment), a
    transformers folder, a run folder, or an id on the Hugging Face hub (`ORG/NAME`). Of an adapter: a peft folder or a
    run folder to start from; otherwise it starts at no change."""
    adapter: Adapter | None = None
    """null = full weights. An adapter has its base's `tiny`, `engine`, `dtype`, `renderer` and `tools_in_prompt`."""
    tiny: TinyModel = TinyModel()
    tiny_vlm: TinyVlm = TinyVlm()
    engine: Engine = EngineConfig()
    """`type: openai` instead: the weights are behind an endpoint (see docs/policies.md)."""
    optimizer: Optimizer = Optimizer()
    dtype: Literal["float32", "bfloat16"] = "float32"
    """In which it samples and computes gradients. Weights that learn, and their optimizer's state, are always float32:
    see docs/models.md."""
    gradient_checkpointing: bool | Literal["selective"] = False
    """Compute activations again in the backward pass instead of keeping them: less memory, a third more time.
    `selective` keeps the results of matrix products and attention, and computes the rest again."""
    renderer: Literal["auto", "chatml", "qwen3", "llama3", "kimi_k2_5"] = "auto"
    """The chat format. `auto` tells it by the tokenizer: see docs/models.md."""
    tools_in_prompt: bool = True
    """List the tools and their schemas in the system message (a tiny model has learned them and never lists them)."""

    @model_validator(mode="after")
    def _vllm_has_a_model(self) -> Policy:
        if self.engine.type == "vllm" and self.is_tiny:
            raise ValueError(
                "engine.type is vllm, which cannot serve a tiny model; give `model` a transformers folder or an id on "
                "the Hugging Face hub, or set engine.type: torch"
            )
        return self

    @property
    def lists_tools(self) -> bool:
        return self.tools_in_prompt and not self.is_tiny

    @property
    def is_tiny(self) -> bool:
        """Built from nothing, with a vocabulary from the environment."""
        return self.model in ("tiny", "tiny_vlm")

    @property
    def remote(self) -> RemoteConfig | None:
        """The endpoint that serves it, if its weights are not here."""
        return self.engine if isinstance(self.engine, RemoteConfig) else None


class Sampling(Node):
    """How a role samples while training. Truncated sampling (top-p, top-k) is not offered: it biases the ratio."""

    temperature: NonNegFloat = 1.0
    """0 is greedy: for frozen roles only."""
    max_tokens: PositiveInt = 192
    """Most tokens in one turn; a turn that reaches it ends the agent as truncated."""


class Limits(Node):
    """Budgets of one agent."""

    turns: PositiveInt = 64
    tokens: PositiveInt | None = None
    """Most tokens an agent may generate in all its turns."""
    context_tokens: PositiveInt = 2048
    """The window: prompt, generated tokens and observations together."""
    env_calls_per_turn: PositiveInt | None = None
    """Environment calls that one turn may make; further ones are answered with an error text. null = unlimited."""
    on_overflow: Literal["truncate", "answer"] = "truncate"
    """When the next observation does not fit: end as truncated, or replace it by a request to answer now."""


class RoleConfig(Node):
    """One role: which policy plays it, how it samples, whether it learns."""

    policy: str = "main"
    sampling: Sampling = Sampling()
    trainable: Trainable = True
    """Whether it learns, or a schedule: [{until: 20, value: false}, {value: true}]. A frozen role keeps the weights
    that its policy has; those of the cold start (or as loaded) where the other role trains that policy."""
    limits: Limits = Limits()
    system_prompt: str | dict[str, str] = ""
    """The orchestrator's first message; of a mix of environments, one by ability: {search: ..., visual: ...}. A
    subagent's is what `create_subagent` wrote."""
    harness: str | None = None
    """`module:function` of an agent that is written with another framework and plays the role in place of our loop: an
    orchestrator in mode single, subagents in mode swarm. It has prompts of its own: `system_prompt` is not given."""

    def prompt_for(self, ability: str) -> str:
        """The system prompt for tasks of an ability."""
        return self.system_prompt if isinstance(self.system_prompt, str) else self.system_prompt[ability]

    def trainable_at(self, step: int) -> bool:
        """Whether it learns at a step (0-based). Raises ConfigError when metrics decide (see `phases.now`)."""
        return phases.learns(self.trainable, phases.place_at(self.trainable, step), step)

    @property
    def ever_trainable(self) -> bool:
        return phases.ever(self.trainable)


class Roles(Node):
    orchestrator: RoleConfig = RoleConfig()
    subagent: RoleConfig = RoleConfig(limits=Limits(turns=8, context_tokens=512))


class Swarm(Node):
    """Limits of the whole episode and the rules of delegation."""

    mode: Literal["swarm", "single"] = "swarm"
    """`single` removes `create_subagent` and `assign_task`."""
    max_subagents: PositiveInt = 100
    """Assignments that one episode may launch."""
    max_concurrency: PositiveInt | None = None
    """Subagents that run at once on the virtual clock. null = all."""
    critical_step_budget: PositiveInt | None = None
    """The episode ends as truncated when its critical steps reach this (section 3). null = no budget."""
    token_budget: PositiveInt | None = None
    """Generated tokens of the whole tree, checked between turns."""
    refuse_duplicates: bool = True
    """Answer an assignment that repeats an earlier prompt of the episode with an error text."""


class ClockConfig(Node):
    """Rates of the virtual clock: an episode's latency is computed from token counts, so it is repeatable."""

    prefill_tokens_per_s: PositiveFloat = 5000.0
    decode_tokens_per_s: PositiveFloat = 50.0
    decode_slots: PositiveInt | None = 8
    """Turns that decode at once. null = unlimited."""
    tool_slots: PositiveInt | None = None
    tool_latency_s: dict[str, NonNegFloat] = Field(default_factory=dict)
    """Seconds of one call, by tool name; tools that are not named take `default_tool_latency_s`."""
    default_tool_latency_s: NonNegFloat = 0.5


class Until(Node):
    """When a stage of the cold start ends: at a skill measured on validation, or at max_steps."""

    metric: str
    value: float
    max_steps: PositiveInt
    min_steps: NonNegInt = 0
    every: PositiveInt = 20


class Stage(Node):
    name: str
    data: dict[str, NonNegFloat]
    """Mixture over the environment's demonstration kinds, by name -> share. Of a mix, ABILITY/KIND -> share."""
    until: Until
    optimizer: Optimizer = Optimizer(lr=3e-3, muon_lr=0.012, betas=(0.9, 0.95), warmup_steps=20)
    tokens_per_step: PositiveInt = 5000
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Knobs of the demonstrator in this stage, over those of `cold_start.demos`."""


class ColdStart(Node):
    """Supervised warm-up by demonstrations that a scripted expert writes through the same runtime."""

    demos: dict[str, Any] = Field(default_factory=dict)
    """Knobs of the environment's demonstrator (`episode` demonstrations), in every stage. Of a mix, by ability."""
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    max_attempts: PositiveInt = 2
    """A stage that misses its gate at max_steps is extended by half as many steps, up to this many attempts in all."""
    policy: str | None = None
    """The one policy that is trained; the others, models of the same shape, begin as its copies. null = each policy
    has a cold start of its own."""
    from_run: Path | None = None
    """A run folder whose cold start is taken instead of training one: same policies and tasks."""


class Eval(Node):
    split: Literal["validation", "test"] = "validation"
    num_tasks: PositiveInt = 54
    decoding: Annotated[tuple[Literal["greedy", "sampled"], ...], Field(min_length=1)] = ("greedy",)
    every: PositiveInt | None = 10
    """Evaluate every so many steps. null = only at the end."""


class Train(Node):
    num_steps: PositiveInt = 40
    tasks_per_step: PositiveInt = 8
    group_size: PositiveInt = 8
    """K: episodes per task."""
    tokens_per_batch: PositiveInt = 8192
    """Padded tokens of one micro-batch."""
    updates_per_step: PositiveInt = 1
    """Optimizer steps per step of rollouts: each episode is used once, in one of them."""
    max_subagent_samples: NonNegInt | None = None
    """Subagent traces trained per step, drawn at random. null = all; 0 = none: the subagents play the weights that the
    orchestrator's tokens alone train."""
    mode: Literal["sync", "async"] = "sync"
    """`sync`: sample, then learn; a run repeats bit for bit. `async`: both at once (needs `rollout.backend: ray`)."""
    learner_processes: PositiveInt = 1
    """Processes that share the samples of an update (Ray actors, one GPU each where there are GPUs)."""
    max_staleness: NonNegInt = 1
    """async: most weight versions between the first token of a problem and its training."""
    checkpoint_every: PositiveInt = 10
    keep_checkpoints: PositiveInt = 2
    store_episodes_every: PositiveInt = 1
    """Episodes are written every so many steps."""


class Wandb(Node):
    mode: Literal["offline", "online", "disabled"] = "offline"
    project: str = "parl"
    group: str | None = None
    """Runs that belong together. null = none; `parl ablate` takes the name of its folder."""


class Tracking(Node):
    wandb: Wandb = Wandb()


class Config(Node):
    """The whole tree."""

    name: str
    seed: NonNegInt = 0
    run_dir: Path | None = None
    """Default: runs/NAME."""
    threads: PositiveInt = 1
    """Torch threads of this process, the learner's. A Ray worker or inference actor has as many as CPUs of its own."""
    env: AnyEnv
    policies: dict[str, Policy] = Field(default_factory=lambda: {"main": Policy()})
    roles: Roles = Roles()
    swarm: Swarm = Swarm()
    clock: ClockConfig = ClockConfig()
    reward: Reward = Reward()
    credit: Credit = Credit()
    loss: Loss = Loss()
    cold_start: ColdStart | None = None
    eval: Eval = Eval()
    train: Train = Train()
    rollout: Rollout = Rollout()
    tracking: Tracking = Tracking()
    control: Path | None = None
    """Config of a control (a single agent) that `parl train` runs beside this one and shows in the summary: the single
    agent of a swarm, a baseline of a single agent."""

    @model_validator(mode="after")
    def _roles_have_policies(self) -> Config:
        for name in ("orchestrator", "subagent"):
            role: RoleConfig = getattr(self.roles, name)
            if role.policy not in self.policies:
                raise ValueError(
                    f"roles.{name}.policy is '{role.policy}', but policies has {sorted(self.policies)}; "
                    f"add policies.{role.policy} or name one of these"
                )
            if role.ever_trainable and role.sampling.temperature == 0:
                raise ValueError(
                    f"roles.{name} is trainable with temperature 0: greedy tokens have no sampling log-probs to "
                    "train on; set temperature 1.0 or trainable: false"
                )
        return self

    @model_validator(mode="after")
    def _cold_start_has_its_policy(self) -> Config:
        name = self.cold_start.policy if self.cold_start is not None else None
        if name is not None and (name not in self.policies or self.base_of(name) != name):
            own = sorted(p for p in self.policies if self.base_of(p) == p)
            raise ValueError(f"cold_start.policy is '{name}', but the policies with weights of their own are {own}")
        return self

    @model_validator(mode="after")
    def _a_harness_is_one_agent(self) -> Config:
        if self.roles.orchestrator.harness is not None and self.swarm.mode != "single":
            raise ValueError(
                "roles.orchestrator.harness runs one agent, which cannot launch subagents: set swarm.mode: single. "
                "(roles.subagent.harness is for subagents of another framework, launched by our orchestrator.)"
            )
        for name in ("orchestrator", "subagent"):
            role: RoleConfig = getattr(self.roles, name)
            if role.harness is not None and (role.system_prompt or role.limits.on_overflow != "truncate"):
                raise ValueError(
                    f"roles.{name}.harness writes its own prompts: remove roles.{name}.system_prompt and "
                    "limits.on_overflow"
                )
        return self

    @model_validator(mode="after")
    def _fits_a_mix(self) -> Config:
        abilities = set(self.env.weights) if isinstance(self.env, MixConfig) else set()
        if self.eval.num_tasks < len(abilities):
            raise ValueError(f"eval.num_tasks is {self.eval.num_tasks}; give each of {sorted(abilities)} a task")
        for name in ("orchestrator", "subagent"):
            prompt = getattr(self.roles, name).system_prompt
            if not isinstance(prompt, str) and set(prompt) != abilities:
                raise ValueError(
                    f"roles.{name}.system_prompt is given for {sorted(prompt)}; give one text, or with env.mix one for "
                    f"each ability{f' ({sorted(abilities)})' if abilities else ''}"
                )
        return self

    @model_validator(mode="after")
    def _policies_fit_roles(self) -> Config:
        check_adapters(self)
        check_turns(self)
        check_endpoints(self)
        check_rollout(self)
        return self

    def base_of(self, policy: str) -> str:
        """The policy whose weights it stands on: itself, or an adapter's base."""
        adapter = self.policies[policy].adapter
        return policy if adapter is None else adapter.base

    @property
    def run_path(self) -> Path:
        return self.run_dir or Path("runs") / self.name
