"""One Ray session for all actors of a run: on this machine, or the cluster of RAY_ADDRESS."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import Any

NOTE_S = 30.0
"""Seconds between two notes about actors that have no place yet."""


def connect(num_cpus: int) -> bool:
    """Join the cluster of RAY_ADDRESS, or start Ray here with room for `num_cpus`.

    Returns:
        False where the process has a session already, which stays as it is.
    """
    import ray

    if ray.is_initialized():
        return False
    address = os.environ.get("RAY_ADDRESS")
    ray.init(
        address=address,
        num_cpus=None if address else max(num_cpus, os.cpu_count() or 1),
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    return True


def await_actors(actors: Sequence[Any], deadline_s: float) -> None:
    """Wait until all actors answer their `ping`.

    An actor that cannot be placed looks alive to Ray, and a call to it waits for ever without a
    word.

    Raises:
        RuntimeError: the cluster has no room for them.
    """
    import ray

    began = time.monotonic()
    calls = [actor.ping.remote() for actor in actors]
    while True:
        timeout_s = min(NOTE_S, deadline_s)
        started, waiting = ray.wait(calls, num_returns=len(calls), timeout=timeout_s)
        if not waiting:
            return
        free = {}
        for name, amount in ray.available_resources().items():
            if name in ("CPU", "GPU"):
                free[name] = amount
        note = (
            f"{len(started)} of {len(calls)} Ray actors have started; the cluster has left: "
            f"{free or 'nothing'}."
        )
        if time.monotonic() - began > deadline_s:
            raise RuntimeError(
                f"{note} Ask for fewer (rollout.num_workers, num_cpus_per_worker, ...), "
                "or add nodes."
            )
        print(f"{note} Waiting.", file=sys.stderr)
