"""One Ray session for all actors of a run: on this machine, or the cluster of RAY_ADDRESS."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import Any

NOTE_S = 30.0


def connect(num_cpus: int) -> bool:
    """Join the cluster of RAY_ADDRESS, or start Ray here with room for `num_cpus`.

    A session that is there already is left as it is: then it returns False.
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
    """Until all actors answer their `ping`. Raises RuntimeError when the cluster has no room for them."""
    import ray

    began = time.monotonic()
    calls = [a.ping.remote() for a in actors]
    while len(
        done := ray.wait(calls, num_returns=len(calls), timeout=min(NOTE_S, deadline_s))[0]
    ) < len(calls):
        free = {k: v for k, v in ray.available_resources().items() if k in ("CPU", "GPU")}
        note = f"{len(done)} of {len(calls)} Ray actors have started; the cluster has left: {free or 'nothing'}."
        if time.monotonic() - began > deadline_s:
            raise RuntimeError(
                f"{note} Ask for fewer (rollout.num_workers, num_cpus_per_worker, ...), or add nodes."
            )
        print(f"{note} Waiting.", file=sys.stderr)
