"""The parts of a run that need no model: what `parl config check` builds, and every run first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from parl.config import Config, load
from parl.config.loss import ShippedLoss
from parl.core.errors import ConfigError
from parl.env import registry
from parl.env.base import AgentEnv
from parl.env.registry import make_env
from parl.rewards import credit
from parl.rewards.scorer import Scorer


@dataclass(frozen=True, slots=True)
class LightParts:
    """The scorer and the driver's environment."""

    scorer: Scorer
    env: AgentEnv
    """It gives tasks, vocabulary and demonstrations. Episodes run in environments of the pool."""

    def close(self) -> None:
        """Close the environment."""
        self.env.close()  # type: ignore[no-untyped-call]


def build_light_parts(config: Config) -> LightParts:
    """Build the parts that need no model, and check those of the baseline.

    Raises:
        ConfigError: a plugin, reward term, credit rule, loss, environment or external agent is
            unknown or refuses its settings.
    """
    # First: rewards, environments and tools of plugins are known by their names from here on.
    registry.load()
    scorer = Scorer(config.reward)
    _check_functions(config)
    env = make_env(config.env)
    for role, settings in config.roles.items():
        if settings.external_agent is not None:
            # Imported here: it pulls in the gateway's web server, which few runs need.
            from parl.rollout.external_agent import load_external_agent

            load_external_agent(role, settings.external_agent)
    if config.baseline is not None:
        _check_baseline(load_baseline(config))
    return LightParts(scorer, env)


def _check_functions(config: Config) -> None:
    """Refuse a credit rule or a loss that is unknown, or that does not have the config's knobs."""
    credit.get(config.credit.type).bind(config.credit)
    if config.loss.type not in get_args(ShippedLoss):
        # Imported here: it loads torch, which the check of a shipped loss's section does not need.
        from parl.learner.loss import weighting_of

        weighting_of(config.loss)


def load_baseline(config: Config) -> Config:
    """Return the config of the baseline that runs next to this one.

    Raises:
        ConfigError: there is no such file, or it is not a valid config.
    """
    assert config.baseline is not None
    try:
        return load(config.baseline)
    except ConfigError as error:
        raise ConfigError(f"baseline: {error}") from None


def _check_baseline(baseline: Config) -> None:
    # Now, and not when its process starts: this run has a folder by then, and would fail after its
    # own cold start.
    try:
        Scorer(baseline.reward)
        _check_functions(baseline)
        make_env(baseline.env).close()  # type: ignore[no-untyped-call]
    except ConfigError as error:
        raise ConfigError(f"baseline: {error}") from None
