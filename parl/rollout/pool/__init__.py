"""Pools of episodes: in this process or on Ray workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from parl.config import Config
from parl.config.derived import num_cpus
from parl.core import moved
from parl.env.registry import make_env
from parl.rollout.pool.local import LocalPool, Pool


def make_pool(config: Config) -> Pool:
    """Make the pool that `rollout.backend` names. Close it when the work is done."""
    if config.rollout.backend == "ray":
        # Imported here: Ray is an extra, and takes its time to load.
        from parl.rollout.pool.ray import RayPool

        num = num_cpus(config.rollout, config.train, len(config.policies))
        return RayPool(config.env, config.rollout, num)
    return LocalPool(lambda: make_env(config.env), config.rollout)


# With a module's __getattr__, a type checker would accept any name.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        raise moved.missing_name(__name__, name)
