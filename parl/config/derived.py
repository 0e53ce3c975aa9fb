"""Numbers that follow from several sections of a config."""

from __future__ import annotations

import math

from parl.config.rollout import Rollout
from parl.config.training import Train


def num_cpus(rollout: Rollout, train: Train, num_policies: int) -> int:
    """Return the number of logical CPUs that the Ray actors of a run request together.

    Ray has to be started with as many: an actor that cannot be placed waits, and looks alive.
    """
    num_workers = rollout.num_workers if rollout.backend == "ray" else 0
    workers = num_workers * rollout.num_cpus_per_worker
    inference = 0.0
    for servers in rollout.inference.values():
        inference += servers.instances * servers.num_cpus
    # One learner process is the driver itself, which is no actor.
    learners = train.learner_processes * num_policies if train.learner_processes > 1 else 0
    return math.ceil(workers + inference + learners)
