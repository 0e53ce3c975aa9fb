"""vLLM, an extra, behind the protocol of the torch engine.

In: `Request`s. Out: sampled ids with their log-probs and weight versions. vLLM runs in processes of its own, and its
client in a thread of its own, so that any event loop here may ask it. New weights go through vLLM's API for RL
(start, update and finish of a weight update) as a file that its workers read.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import os
import shutil
import tempfile
import threading
import uuid
import weakref
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from vllm import SamplingParams
from vllm.config import WeightTransferConfig
from vllm.distributed.weight_transfer.base import (
    WeightTransferInitRequest,
    WeightTransferUpdateRequest,
)
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

from parl.config.policy import EngineConfig
from parl.core.errors import ConfigError
from parl.policy.base import Blueprint, Generation, Request
from parl.policy.engines.torch import BASE, to_numpy, to_tensor
from parl.policy.engines.vllm_worker import TRANSFER, WorkerExtension
from parl.policy.models import lora

BLOCK = 32
"""Tokens of a block of its cache: prefixes are shared in whole blocks."""
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""For which vLLM has room to offer."""
WEIGHTS = "weights.safetensors"
_Recipe = tuple[Any, torch.dtype, tuple[int, ...], EngineConfig, dict[str, LoraConfig]]
"""The model's config, its dtype, stop ids, settings, shapes of adapters."""


class VllmEngine:
    """Samples from a copy of `model`'s weights; `load_weights` replaces them.

    Args:
        adapters: name -> shape of adapters on the model. Each request names its own, or none.
        dtype: in which it computes; weights may come in another.
    """

    def __init__(
        self,
        model: Any,
        stop_ids: Sequence[int],
        config: EngineConfig,
        adapters: Mapping[str, LoraConfig] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        shape = copy.deepcopy(model.config)
        shape.architectures = [type(model).__name__]
        self._open((shape, dtype, tuple(stop_ids), config, dict(adapters or {})))
        self.load_weights(lora.base_state(model), 0)

    def _open(self, recipe: _Recipe) -> None:
        """Start vLLM with random weights."""
        self._recipe = recipe
        shape, self._dtype, self._stop_ids, _, self._adapters = recipe
        self._tied = bool(shape.tie_word_embeddings)
        self.versions: dict[str, int] = dict.fromkeys((BASE, *self._adapters), -1)
        self.serial = uuid.uuid4().hex
        self.tokens_generated = self.tokens_fed = 0
        self._folder = Path(tempfile.mkdtemp(prefix="parl-vllm-"))
        self._loras: dict[str, LoRARequest] = {}
        self._replaced: dict[str, str] = {}
        self._shapes: dict[str, dict[str, tuple[int, ...]]] = {}
        self._num_loras = self._num_requests = 0
        shape.save_pretrained(self._folder)
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name="vllm", daemon=True)
        thread.start()
        self._loop = loop
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._llm: AsyncLLM = self._do(_start(_arguments(self._folder, recipe))).result()
        self._close = weakref.finalize(self, _stop, self._llm, loop, thread)

    @property
    def version(self) -> int:
        """Of all parts together: it grows with each change of any."""
        return sum(self.versions.values())

    def close(self) -> None:
        """End vLLM's processes. It also happens when the engine is forgotten."""
        self._close()
        del self._llm

    def blueprint(self) -> Blueprint:
        """How to build this engine in another process, to which `load_weights` then gives its weights."""
        return functools.partial(_build, self._recipe)

    def export_weights(self, part: str = BASE) -> dict[str, np.ndarray[Any, Any]]:
        """A part's weights as they were loaded last, as numpy arrays."""
        file = (
            self._folder / WEIGHTS
            if part == BASE
            else Path(self._loras[part].lora_path) / lora.FILE
        )
        return {k.removeprefix(lora.PREFIX): to_numpy(v) for k, v in load_file(file).items()}

    def load_weights(self, weights: Mapping[str, Any], version: int, part: str = BASE) -> None:
        """Replace the weights of the model or of one adapter; nothing that older ones have computed is used again.

        An agent in the middle of a turn goes on under the model's new weights with a state computed anew, and under
        its adapter's old ones. Raises RuntimeError when a name or shape does not fit.
        """
        tensors = {k: to_tensor(v).detach().cpu().contiguous() for k, v in weights.items()}
        if part == BASE and self._tied:  # one weight by two names
            tensors.pop("lm_head.weight", None)
        self._check(tensors, part)
        if part == BASE:
            save_file({k: v.to(self._dtype) for k, v in tensors.items()}, self._folder / WEIGHTS)
            self._do(self._sync(version)).result()
        else:
            self._do(self._sync_adapter(tensors, version, part)).result()
        self.versions[part] = version

    def _check(self, tensors: Mapping[str, torch.Tensor], part: str) -> None:
        """vLLM keeps the old weights where names are lacking, and says nothing."""
        shapes = {k: tuple(v.shape) for k, v in tensors.items()}
        known = self._shapes.setdefault(part, shapes)
        bad = sorted(k for k in {*shapes, *known} if shapes.get(k) != known.get(k))
        if bad:
            raise RuntimeError(f"the weights do not fit: {', '.join(bad[:3])}")

    # --- the protocol ------------------------------------------------------------------------------------------------

    async def generate(self, request: Request) -> Generation:
        """Sample one turn: until a stop token or `max_tokens`."""
        params = SamplingParams(
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            seed=request.seed,
            stop_token_ids=list(self._stop_ids),
            ignore_eos=True,  # the renderer alone says what ends a turn
            logprobs=0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        return await asyncio.wrap_future(self._do(self._generate(request, params)))

    def release(self, session: str) -> None:
        """Nothing to do: vLLM drops the blocks that were used longest ago."""

    def score(
        self, token_ids: Sequence[int], part: str = BASE, images: Sequence[str] = ()
    ) -> torch.Tensor:
        """Log-probs (T-1,) of a sequence's tokens.

        All but the last are those of a prompt. The last is sampled on top of what the prefix cache has, so that a
        cache of older weights shows as well. There are no images: models that see are refused.
        """
        return torch.tensor(self._do(self._score(list(token_ids), part)).result())

    def probe(self, token_ids: Sequence[int]) -> torch.Tensor:
        """`score` by each part, one row each: what another process's engine with these weights says."""
        return torch.stack([self.score(token_ids, part) for part in self.versions])

    # --- in vLLM's thread --------------------------------------------------------------------------------------------

    def _do(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _ask(self, token_ids: Sequence[int], params: SamplingParams, part: str) -> Any:
        self._num_requests += 1
        prompt: Any = {"prompt_token_ids": list(token_ids)}
        outputs = self._llm.generate(
            prompt, params, str(self._num_requests), lora_request=self._loras.get(part)
        )
        return [output async for output in outputs][-1]

    async def _generate(self, request: Request, params: SamplingParams) -> Generation:
        version = self.versions[request.adapter]
        output = await self._ask(request.token_ids, params, request.adapter)
        sampled = output.outputs[0]
        ids = tuple(sampled.token_ids)
        logprobs = tuple(
            entry[token].logprob for token, entry in zip(ids, sampled.logprobs, strict=True)
        )
        versions = [version]
        if request.adapter == BASE:  # vLLM notes which of the model's weights sampled which tokens
            versions = [
                int(s.version) for s in sampled.weight_versions for _ in range(s.start, s.end)
            ]
        self.tokens_generated += len(ids)
        self.tokens_fed += len(request.token_ids) - (output.num_cached_tokens or 0)
        finish: Literal["stop", "length"] = "stop" if ids[-1] in self._stop_ids else "length"
        return Generation(
            ids, logprobs, finish, tuple(versions if len(set(versions)) > 1 else versions[:1])
        )

    async def _score(self, token_ids: list[int], part: str) -> list[float]:
        common: dict[str, Any] = {"max_tokens": 1, "temperature": 1.0, "detokenize": False}
        last = SamplingParams(logprob_token_ids=token_ids[-1:], **common)
        sampled = (await self._ask(token_ids[:-1], last, part)).outputs[0].logprobs[0]
        rest = (
            await self._ask(token_ids, SamplingParams(prompt_logprobs=0, **common), part)
        ).prompt_logprobs
        scores = [
            entry[token].logprob for token, entry in zip(token_ids[1:], rest[1:], strict=True)
        ]
        return [*scores[:-1], sampled[token_ids[-1]].logprob]

    async def _sync(self, version: int) -> None:
        await self._llm.pause_generation(mode="keep", clear_cache=False)
        await self._llm.start_weight_update()
        await self._llm.update_weights(
            WeightTransferUpdateRequest({"path": str(self._folder / WEIGHTS)})
        )
        await self._llm.finish_weight_update(weight_version=str(version))
        if not await self._llm.reset_prefix_cache(reset_running_requests=True):
            raise RuntimeError("vLLM did not reset its prefix cache after a change of weights")
        await self._llm.resume_generation()

    async def _sync_adapter(
        self, tensors: Mapping[str, torch.Tensor], version: int, part: str
    ) -> None:
        before = self._loras.get(part)
        self._loras[part] = await self._new_lora(tensors, f"{part}@{version}", self._adapters[part])
        if (
            before is not None
        ):  # turns that wait may still ask for it; nobody does for the one that it had replaced
            if part in self._replaced:
                shutil.rmtree(self._replaced[part])
            self._replaced[part] = before.lora_path
        if BASE not in self._loras:
            # On a CPU, vLLM gives a request without an adapter another's where both are in one batch. So the model
            # itself has one that changes nothing.
            nothing = {k: torch.zeros_like(v) for k, v in tensors.items()}
            self._loras[BASE] = await self._new_lora(nothing, "none", self._adapters[part])

    async def _new_lora(
        self, tensors: Mapping[str, torch.Tensor], name: str, shape: LoraConfig
    ) -> LoRARequest:
        """Each version has a folder of its own: vLLM tells prefixes apart by it."""
        self._num_loras += 1
        folder = self._folder / f"adapter{self._num_loras}"
        folder.mkdir()
        save_file(
            {lora.PREFIX + k: v for k, v in tensors.items()},
            folder / lora.FILE,
            metadata={"format": "pt"},
        )
        shape = copy.deepcopy(shape)
        shape.task_type, shape.inference_mode = "CAUSAL_LM", True
        shape.save_pretrained(str(folder))
        fresh = LoRARequest(name, self._num_loras, str(folder))
        if not await self._llm.add_lora(fresh):
            raise RuntimeError(f"vLLM did not take the adapter '{name}'")
        return fresh


def _build(recipe: _Recipe) -> VllmEngine:
    engine = VllmEngine.__new__(VllmEngine)
    engine._open(recipe)
    return engine


def _arguments(folder: Path, recipe: _Recipe) -> AsyncEngineArgs:
    """vLLM's settings. Log-probs are those of the distribution that is sampled from, temperature applied."""
    shape, dtype, _, config, adapters = recipe
    cpu, window = not torch.cuda.is_available(), shape.max_position_embeddings
    defaults = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
    if cpu:  # as many threads as this process has, on any core: more would slow everybody down
        defaults |= {
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
        }
    for key, value in defaults.items():
        os.environ.setdefault(key, value)
    rank = next((r for r in LORA_RANKS if all(a.r <= r for a in adapters.values())), LORA_RANKS[-1])
    return AsyncEngineArgs(
        model=str(folder),
        skip_tokenizer_init=True,
        load_format="dummy",
        dtype=str(dtype).removeprefix("torch."),
        generation_config="vllm",
        logprobs_mode="processed_logprobs",
        enable_prefix_caching=True,
        enable_chunked_prefill=not cpu,  # on a CPU, vLLM cannot feed a prompt with a seed of its own in pieces
        max_model_len=-1,  # the model's own window, or as much of it as the cache holds
        block_size=BLOCK,
        kv_cache_memory_bytes=int(config.kv_cache_gb * 2**30),
        max_num_seqs=config.decode_rows,
        max_num_batched_tokens=max(config.prefill_tokens, window) if cpu else config.prefill_tokens,
        enforce_eager=cpu,
        enable_lora=bool(adapters),
        max_loras=len(adapters) + 1,
        max_lora_rank=rank,
        worker_extension_cls=f"{WorkerExtension.__module__}.{WorkerExtension.__name__}",
        weight_transfer_config=WeightTransferConfig(backend=TRANSFER),
        disable_log_stats=True,
    )


async def _start(arguments: AsyncEngineArgs) -> AsyncLLM:
    try:
        llm = AsyncLLM.from_engine_args(arguments)
    except (
        Exception
    ) as error:  # a model that it does not know, too little memory: its processes have said what
        raise ConfigError(
            f"vLLM does not start with this model ({error}). Its own messages are above. Correct the policy's engine "
            "(docs/how-to/use-vllm.md), or set engine.type: torch."
        ) from error
    await llm.init_weight_transfer_engine(WeightTransferInitRequest({}))
    return llm


def _stop(llm: AsyncLLM, loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    async def end() -> None:
        llm.shutdown()
        llm.shutdown = lambda timeout=None: (
            None
        )  # it is called again when the interpreter ends, and would fail there
        await asyncio.sleep(0)  # its own tasks, now cancelled, end before the loop does
        loop.stop()

    asyncio.run_coroutine_threadsafe(end(), loop)
    thread.join()
    loop.close()
