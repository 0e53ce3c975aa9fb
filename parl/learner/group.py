"""A learner in several processes: Ray actors that share the samples of each update and end it with the same weights.

In: what `Learner` takes. Out: the same, with the weights mirrored in this process. Every rank adds up the gradients of
its share of the samples; accelerate sums them over all ranks (gloo on CPUs, NCCL on GPUs) before the optimizer steps.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any

import ray
import torch

from parl.config.loss import Loss
from parl.config.policy import Optimizer
from parl.core import ray_session
from parl.core.types import Sample
from parl.env import registry as plugins
from parl.learner.learner import Learner
from parl.policy.models import lora

START_S = 600.0
DEADLINE_S = 3600.0
"""Of one update: a rank that waits for one that is gone would wait for ever."""


class LearnerRank:
    """The actor: one process of the group."""

    def __init__(self, rank: int, num: int, threads: int) -> None:
        from parl.core.machine import pin_threads

        pin_threads(threads)
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(num), LOCAL_WORLD_SIZE=str(num)
        )

    def ping(self) -> str:
        return "pong"

    def address(self) -> tuple[str, int]:
        """Where the ranks meet: this node, a port that is free now."""
        with socket.socket() as free:
            free.bind(("", 0))
            return ray.util.get_node_ip_address(), int(free.getsockname()[1])

    def build(self, address: tuple[str, int], *arguments: Any) -> None:
        os.environ.update(MASTER_ADDR=address[0], MASTER_PORT=str(address[1]))
        # The loss may be a plugin's, which this process has not imported yet.
        plugins.load()
        self._learner = Learner(*arguments)

    def update(self, *arguments: Any) -> tuple[dict[str, float], dict[str, Any]]:
        """The metrics, and on the first rank the new weights as numpy arrays."""
        metrics = self._learner.update(*arguments)
        first = self._learner.accelerator.is_main_process
        return metrics, {
            k: v.cpu().numpy() for k, v in self._learner.weights().items()
        } if first else {}

    def logprobs(self, token_ids: Sequence[int], images: Sequence[str] = ()) -> torch.Tensor:
        return self._learner.logprobs(token_ids, images)

    def state_dict(self) -> dict[str, Any]:
        return self._learner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._learner.load_state_dict(state)


class LearnerGroup:
    """`num` ranks of one policy. `model` is this process's mirror of the weights.

    Args:
        num_cpus: of the Ray session, if none is there yet (`ray_session.cpus_of`).
    Raises:
        RuntimeError: a rank was lost, or an update took longer than DEADLINE_S.
    """

    def __init__(
        self,
        name: str,
        model: Any,
        optimizer: Optimizer,
        loss: Loss,
        tokens_per_batch: int,
        num: int,
        threads: int,
        num_cpus: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        ray_session.connect(num_cpus)
        self.name, self.model = name, model
        self.version = 0
        actor = ray.remote(num_cpus=1, num_gpus=1 if torch.cuda.is_available() else 0)(LearnerRank)
        self._ranks = [actor.remote(rank, num, threads) for rank in range(num)]
        ray_session.await_actors(self._ranks, START_S)
        address = self._all("address")[0]
        self._all("build", address, name, model, optimizer, loss, tokens_per_batch, dtype)

    def update(self, samples: Sequence[Sample], *arguments: Any) -> dict[str, float]:
        """As `Learner.update`, each rank on its share."""
        metrics, weights = self._all("update", samples, *arguments)[0]
        lora.set_model_state(self.model, {k: torch.tensor(v) for k, v in weights.items()})
        self.version += 1
        return metrics  # type: ignore[no-any-return]

    def weights(self) -> dict[str, torch.Tensor]:
        return lora.model_state(self.model)

    def logprobs(self, token_ids: Sequence[int], images: Sequence[str] = ()) -> torch.Tensor:
        return self._all("logprobs", token_ids, images)[0]

    def state_dict(self) -> dict[str, Any]:
        return self._all("state_dict")[0]  # type: ignore[no-any-return]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._all("load_state_dict", state)
        self.version = state["version"]

    def close(self) -> None:
        """Stop the processes."""
        for rank in self._ranks:
            ray.kill(rank)

    def _all(self, method: str, *arguments: Any) -> list[Any]:
        shared = [ray.put(a) for a in arguments]
        try:
            calls = [getattr(rank, method).remote(*shared) for rank in self._ranks]
            results: list[Any] = ray.get(calls, timeout=DEADLINE_S)
            return results
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
            raise RuntimeError(
                f"A learner process of policy {self.name} was lost or did not answer ({type(error).__name__}). The run "
                "goes on from its last checkpoint with --resume."
            ) from error
