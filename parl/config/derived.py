"""Numbers that follow from several sections of a config."""

from __future__ import annotations

import math

from parl.config.rollout import Rollout
from parl.config.training import Train


def num_cpus(rollout: Rollout, train: Train, num_policies: int) -> int:
    """Count the logical CPUs that the Ray actors of a run ask for together."""
    num_workers = rollout.num_workers if rollout.backend == "ray" else 0
    workers = num_workers * rollout.num_cpus_per_worker
    inference = sum(s.instances * s.num_cpus for s in rollout.inference.values())
    learners = train.learner_processes * num_policies if train.learner_processes > 1 else 0
    return math.ceil(workers + inference + learners)
