"""The typed configuration tree: one home for each value, frozen, unknown keys refused.

In: plain dicts (see `loader`). Out: a `Config`, of which each class of the platform receives its own part only.
The docstring under a field is its documentation; `parl config explain` prints it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from parl.config import rules
from parl.config.base import ConfigModel, NonNegInt, PositiveInt
from parl.config.credit import Credit
from parl.config.env import AnyEnv
from parl.config.loss import Loss
from parl.config.policy import Policy
from parl.config.reward import Reward
from parl.config.roles import ClockConfig, Roles, Swarm
from parl.config.rollout import Rollout
from parl.config.training import ColdStart, Eval, Tracking, Train
from parl.core import moved


class Config(ConfigModel):
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
    baseline: Path | None = None
    """Config of a control (a single agent) that `parl train` runs beside this one and shows in the summary: the single
    agent of a swarm, a baseline of a single agent."""

    @model_validator(mode="after")
    def _sections_fit(self) -> Config:
        rules.check_roles(self.roles, self.policies)
        rules.check_cold_start(self.cold_start, self.policies)
        rules.check_external_agents(self.roles, self.swarm)
        rules.check_mix(self.env, self.eval, self.roles)
        rules.check_adapters(self.policies, self.roles)
        rules.check_turns(self.roles)
        rules.check_endpoints(self.policies, self.roles, self.rollout, self.cold_start)
        rules.check_rollout(self.rollout, self.policies, self.train)
        return self

    def base_of(self, policy: str) -> str:
        """Return the policy whose weights `policy` stands on: itself, or an adapter's base."""
        return rules.base_of(self.policies, policy)

    @property
    def run_path(self) -> Path:
        """The run folder."""
        return self.run_dir or Path("runs") / self.name


if not TYPE_CHECKING:  # with a module's __getattr__, a type checker would accept any name

    def __getattr__(name: str) -> Any:
        raise moved.missing_name(__name__, name)
