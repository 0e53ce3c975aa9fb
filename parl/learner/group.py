"""A learner in several processes: Ray actors that share the samples of each update.

Every rank adds up the gradients of its share. Accelerate sums them over all ranks (gloo on CPUs,
NCCL on GPUs) before the optimizer steps, so that all end an update with the same weights.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any

import ray
import torch
from transformers import PreTrainedModel

from parl.config.loss import Loss
from parl.config.policy import Optimizer
from parl.core import ray_session
from parl.core.types import Sample
from parl.env import registry as plugins
from parl.learner.learner import Learner
from parl.policy.models import lora

START_S = 600.0
"""Deadline for the processes to start."""
DEADLINE_S = 3600.0
"""Deadline of an update: a rank whose peer is gone would wait for it for ever."""


class LearnerRank:
    """The actor: one process of the group."""

    def __init__(self, rank: int, num: int, threads: int) -> None:
        from parl.core.machine import pin_threads

        pin_threads(threads)
        # torch.distributed and accelerate read these, as from a launcher.
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(num), LOCAL_WORLD_SIZE=str(num)
        )

    def ping(self) -> str:
        """Answer once the process has started."""
        return "pong"

    def address(self) -> tuple[str, int]:
        """Return where the ranks meet: this node, and a port that is free now."""
        with socket.socket() as free:
            free.bind(("", 0))
            return ray.util.get_node_ip_address(), int(free.getsockname()[1])

    def build(self, address: tuple[str, int], *arguments: Any) -> None:
        """Make the learner. It waits until all ranks have come to `address`."""
        os.environ.update(MASTER_ADDR=address[0], MASTER_PORT=str(address[1]))
        # The loss may be a plugin's, which this process has not imported yet.
        plugins.load()
        self._learner = Learner(*arguments)

    def update(self, *arguments: Any) -> tuple[dict[str, float], dict[str, Any]]:
        """Return the metrics, and on the first rank the new weights as numpy arrays."""
        metrics = self._learner.update(*arguments)
        weights: dict[str, Any] = {}
        # All ranks have the same weights, so one sends them.
        if self._learner.accelerator.is_main_process:
            for name, tensor in self._learner.weights().items():
                weights[name] = tensor.cpu().numpy()
        return metrics, weights

    def logprobs(self, token_ids: Sequence[int], images: Sequence[str] = ()) -> torch.Tensor:
        """As `Learner.logprobs`."""
        return self._learner.logprobs(token_ids, images)

    def state_dict(self) -> dict[str, Any]:
        """As `Learner.state_dict`."""
        return self._learner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As `Learner.load_state_dict`."""
        self._learner.load_state_dict(state)


class LearnerGroup:
    """Several ranks of one policy, with the interface of `Learner`.

    Args:
        model: this process's mirror of the weights; updates are copied into it.
        num: ranks.
        threads: torch threads of each.
        num_cpus: of the Ray session, if there is none yet (`parl.config.derived.num_cpus`).
    Raises:
        RuntimeError: a rank was lost, or an update took longer than DEADLINE_S.
    """

    def __init__(
        self,
        name: str,
        model: PreTrainedModel,
        optimizer: Optimizer,
        loss: Loss,
        tokens_per_batch: int,
        num: int,
        threads: int,
        num_cpus: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        ray_session.connect(num_cpus)
        self.name = name
        self.model = model
        self.version = 0
        # The ranks of a group meet in NCCL, which wants a GPU for each.
        num_gpus = 1 if torch.cuda.is_available() else 0
        actor = ray.remote(num_cpus=1, num_gpus=num_gpus)(LearnerRank)
        self._ranks = [actor.remote(rank, num, threads) for rank in range(num)]
        ray_session.await_actors(self._ranks, START_S)
        address = self._call_all("address")[0]
        self._call_all("build", address, name, model, optimizer, loss, tokens_per_batch, dtype)

    def update(self, samples: Sequence[Sample], *arguments: Any) -> dict[str, float]:
        """As `Learner.update`, each rank on its share of the samples."""
        metrics, weights = self._call_all("update", samples, *arguments)[0]
        tensors = {name: torch.tensor(array) for name, array in weights.items()}
        # This process syncs engines and writes checkpoints, so it needs the weights, too.
        lora.set_model_state(self.model, tensors)
        self.version += 1
        return metrics  # type: ignore[no-any-return]

    def weights(self) -> dict[str, torch.Tensor]:
        """As `Learner.weights`."""
        return lora.model_state(self.model)

    def logprobs(self, token_ids: Sequence[int], images: Sequence[str] = ()) -> torch.Tensor:
        """As `Learner.logprobs`, by the first rank: its weights, not those of the mirror."""
        return self._call_all("logprobs", token_ids, images)[0]

    def state_dict(self) -> dict[str, Any]:
        """As `Learner.state_dict`."""
        return self._call_all("state_dict")[0]  # type: ignore[no-any-return]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As `Learner.load_state_dict`, on all ranks."""
        self._call_all("load_state_dict", state)
        self.version = state["version"]

    def close(self) -> None:
        """Stop the processes."""
        for rank in self._ranks:
            ray.kill(rank)

    def _call_all(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of all ranks at once, and return their results in order."""
        # Into the object store once, and not once per rank.
        shared = [ray.put(argument) for argument in arguments]
        try:
            calls = [getattr(rank, method).remote(*shared) for rank in self._ranks]
            results: list[Any] = ray.get(calls, timeout=DEADLINE_S)
            return results
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
            raise RuntimeError(
                f"A learner process of policy {self.name} was lost or did not answer "
                f"({type(error).__name__}). The run goes on from its last checkpoint with --resume."
            ) from error
