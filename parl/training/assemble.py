"""The parts of a run, each built once from its section of the config.

What does not fit is refused where it is built.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from parl.config import Config
from parl.core.types import Split, Task
from parl.env.base import AgentEnv
from parl.env.tasks import load_tasks
from parl.evaluation.evaluator import Evaluator
from parl.learner.loss import weighting_of
from parl.learner.policies import PolicySet
from parl.rewards.credit import LossWeighting
from parl.rewards.scorer import Scorer
from parl.rollout.pool import make_pool
from parl.rollout.pool.local import Pool
from parl.training.light_parts import build_light_parts

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a training run. Use as a context manager: leaving it closes the pool."""

    config: Config
    env: AgentEnv
    """The driver's environment gives tasks, vocabulary and demonstrations.

    Episodes run in environments of the pool.
    """
    scorer: Scorer
    tasks: Mapping[Split, Sequence[Task]]
    policies: PolicySet
    pool: Pool
    """Its workers start with the first episodes, so that an error in the input is told before."""
    evaluator: Evaluator
    weighting: LossWeighting
    """How the loss wants its samples weighted."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.pool.close()


def assemble(config: Config, checkpoint: Path | None = None) -> Parts:
    """Build the parts of a run.

    Args:
        checkpoint: of a run that is resumed: the policies take their weights from it. None makes
            the first ones.
    Raises:
        ConfigError: a part cannot be built as its section says.
        ModelUnavailable: a pretrained model cannot be fetched.
    """
    # The order is by price: what costs milliseconds to refuse is refused before a model is loaded.
    light = build_light_parts(config)
    tasks = {split: load_tasks(config, light.env, split) for split in SPLITS}
    policies = PolicySet(config, light.env, checkpoint)
    # No worker starts here: `--dry-run` and an error in the input must not wait for Ray.
    pool = make_pool(config)
    evaluator = Evaluator(config, pool)
    weighting = weighting_of(config.loss)
    return Parts(config, light.env, light.scorer, tasks, policies, pool, evaluator, weighting)
