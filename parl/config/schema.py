"""The root of the configuration tree: one home for each value, frozen, unknown keys refused.

`loader` makes a `Config` of a YAML file. Each class of the platform receives only the sections that
it needs. The text below a field is its documentation; `parl config explain` prints it.
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
    """A run: its environment, its policies, and how they are trained."""

    name: str
    seed: NonNegInt = 0
    run_dir: Path | None = None
    """Default: runs/NAME."""
    threads: PositiveInt = 1
    """Torch threads of this process, the learner's. A Ray worker or inference actor has one for
    each of its CPUs."""
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
    """Config of a comparison run that `parl train` starts at the same time and shows in the
    summary: the single agent of a swarm, or a single agent without tools."""

    @model_validator(mode="after")
    def _sections_fit(self) -> Config:
        # In the order in which a reader corrects them: a policy that is missing would make the
        # later checks complain about its absence.
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


# Not for type checkers: with a module's __getattr__ they would accept any name.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        raise moved.missing_name(__name__, name)
