"""A small generation engine for any transformers causal LM, also one that sees: continuous batching over slots.

In: `Request`s from many concurrent agents. Out: sampled ids with their log-probs and the weight version. An agent's
state stays in its slot between turns, so a turn feeds only what is new; an agent whose prompt begins like another's
copies that prefix instead of computing it. Adapters on one model share passes, pages and all but their own weights.
Three verbs: schedule, run, sample. Everything runs in one event loop and in a fixed order, so the same seed gives the
same tokens.
"""

from __future__ import annotations

import asyncio
import functools
import uuid
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from peft import LoraConfig

from parl.config.policy import EngineConfig
from parl.core.machine import device
from parl.policy.base import Blueprint, Generation, Request
from parl.policy.engines.paged_cache import PagedCache
from parl.policy.models import lora
from parl.policy.models.dtype import cast_parameters
from parl.policy.models.vision import forward as vision
from parl.policy.models.vision.families import ImageAdapter, image_adapter_of

BASE = ""
"""What a request without an adapter names: the model itself."""
PREFIX_BLOCK = 16
"""Prefixes are shared in whole blocks of this many tokens."""


@dataclass(eq=False)
class _Row:
    """A running request."""

    request: Request
    slot: int
    tokens: list[int]
    fed: int
    uniforms: np.ndarray[Any, Any]
    done: asyncio.Future[Generation]
    sampled: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    context: vision.Context | None = None
    """Where its images stand, of a model with eyes."""

    @property
    def pending(self) -> int:
        return len(self.tokens) - self.fed

    @property
    def read(self) -> Sequence[Hashable]:
        """Its tokens, and in the places of pads which image: two contexts that read the same have the same state."""
        return self.tokens if self.context is None else self.context.named(self.tokens)


@dataclass(eq=False)
class _Session:
    """What an agent's slot holds."""

    slot: int
    tokens: list[int]


class TorchEngine:
    """Samples from `model`, a copy of its own whose weights `load_weights` replaces, on the device that it is on.

    Args:
        adapters: name -> shape of adapters on the model. Each request names its own, or none.
    """

    def __init__(
        self,
        model: Any,
        stop_ids: Sequence[int],
        config: EngineConfig,
        adapters: Mapping[str, LoraConfig] | None = None,
    ) -> None:
        self._adapters = dict(adapters or {})
        self._slots = {
            name: f"adapter{i}" for i, name in enumerate(self._adapters)
        }  # names that torch takes
        lora.attach(model, {self._slots[name]: shape for name, shape in self._adapters.items()})
        self.model = model.eval().requires_grad_(False)
        self._row_adapters = lora.RowAdapters(model) if self._adapters else None
        self.versions: dict[str, int] = dict.fromkeys((BASE, *self._adapters), 0)
        """Weight version of each part: the model itself, and each adapter."""
        self.serial = uuid.uuid4().hex
        """Tells engines apart, whatever their versions."""
        self.tokens_generated = 0
        self.tokens_fed = 0
        self._stop = frozenset(stop_ids)
        self._config = config
        self._shape = vision.text_config(model)
        self._hybrid = "conv" in (getattr(self._shape, "layer_types", None) or ())
        self._cache = PagedCache(self._shape.num_hidden_layers, model.device)
        self._sight = vision.FeatureCache(model) if image_adapter_of(model) is not None else None
        self._num_slots = 0
        self._loop: asyncio.Task[None] | None = None
        self._reset_state()

    @property
    def version(self) -> int:
        """Of all parts together: it grows with each change of any."""
        return sum(self.versions.values())

    def blueprint(self) -> Blueprint:
        """How to build this engine in another process, to which `load_weights` then gives its weights."""
        shape = (type(self.model), self.model.config, str(self.model.dtype).removeprefix("torch."))
        return functools.partial(
            _build,
            *shape,
            tuple(self._stop),
            self._config,
            self._adapters,
            image_adapter_of(self.model),
        )

    def export_weights(self, part: str = BASE) -> dict[str, np.ndarray[Any, Any]]:
        """A part's weights as numpy arrays: five times faster through an object store than torch tensors."""
        own = (
            lora.base_state(self.model)
            if part == BASE
            else lora.adapter_state(self.model, self._slots[part])
        )
        return {k: to_numpy(v) for k, v in own.items()}

    def load_weights(self, weights: Mapping[str, Any], version: int, part: str = BASE) -> None:
        """Replace the weights of the model or of one adapter, between two passes.

        An agent that is in the middle of its work goes on with the state that it has; what it samples from here on has
        the new version, and the log-prob that it was sampled with. New agents share nothing that older weights have
        computed. Raises RuntimeError when a name or shape does not fit.
        """
        tensors = {k: to_tensor(v) for k, v in weights.items()}
        if part == BASE:
            lora.set_base_state(self.model, tensors)
            if self._sight is not None:
                self._sight.forget()
        else:
            lora.set_adapter_state(self.model, tensors, self._slots[part])
        self.versions[part] = version
        if self._sessions:
            self._prefixes.clear()
        else:
            self._reset_state()

    def _reset_state(self) -> None:
        """Forget all that is cached (its memory is kept)."""
        for slot in range(self._num_slots):
            self._cache.release(slot)
        self._sessions: dict[str, _Session] = {}
        self._free: list[int] = []
        self._num_slots = 0
        self._uses: list[
            int
        ] = []  # how often each slot has been taken: older prefixes in it are gone
        # hash -> (slot, use, adapter, what was read): what an adapter has computed is of no use to another
        self._prefixes: dict[int, tuple[int, int, str, tuple[Hashable, ...]]] = {}
        self._waiting: list[_Row] = []
        self._running: list[_Row] = []

    # --- the protocol ------------------------------------------------------------------------------------------------

    async def generate(self, request: Request) -> Generation:
        """Sample one turn: until a stop token or `max_tokens`."""
        session = self._sessions.get(request.session) or self._open(request)
        shared = len(session.tokens)
        grows = (
            shared < len(request.token_ids) and list(request.token_ids[:shared]) == session.tokens
        )
        assert grows, "an agent's context may only grow"
        uniforms = np.random.Generator(np.random.Philox(request.seed)).random(request.max_tokens)
        done: asyncio.Future[Generation] = asyncio.get_running_loop().create_future()
        row = _Row(request, session.slot, list(request.token_ids), shared, uniforms, done)
        row.context = (
            self._sight.context(request.token_ids, request.images)
            if self._sight is not None
            else None
        )
        self._waiting.append(row)
        if self._loop is None or self._loop.done():
            self._loop = asyncio.ensure_future(self._serve())
        return await done

    def release(self, session: str) -> None:
        """Free the agent's slot and pages; prefixes in it are gone."""
        entry = self._sessions.pop(session, None)
        if entry is not None:
            self._cache.release(entry.slot)
            self._uses[entry.slot] += 1
            self._free.append(entry.slot)

    @torch.inference_mode()
    def score(
        self, token_ids: Sequence[int], part: str = BASE, images: Sequence[str] = ()
    ) -> torch.Tensor:
        """Log-probs (T-1,) of a sequence's tokens, on the CPU: two passes through the same cached path as sampling."""
        asked = Request("", tuple(token_ids), (), 0, 1.0, 0, part)
        row = _Row(asked, 0, list(token_ids), 0, np.zeros(0), None)  # type: ignore[arg-type]
        row.context = self._sight.context(token_ids, images) if self._sight is not None else None
        cache, self._cache = (
            self._cache,
            PagedCache(self._shape.num_hidden_layers, self.model.device),
        )
        half = len(token_ids) // 2
        hidden = torch.cat(
            [self._forward([row], half)[0], self._forward([row], len(token_ids) - half)[0]]
        )
        self._cache = cache
        logp = torch.log_softmax(self._logits(hidden[:-1]), -1)
        return logp.gather(1, torch.tensor(token_ids[1:], device=logp.device)[:, None])[:, 0].cpu()

    def probe(self, token_ids: Sequence[int]) -> torch.Tensor:
        """`score` by each part, one row each: what another process's engine with these weights says."""
        return torch.stack([self.score(token_ids, part) for part in self.versions])

    def _open(self, request: Request) -> _Session:
        slot = self._free.pop() if self._free else self._num_slots
        if slot == self._num_slots:
            self._num_slots += 1
            self._uses.append(0)
        session = _Session(slot, [])
        self._sessions[request.session] = session
        return session

    # --- schedule ----------------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        try:
            while True:
                await asyncio.sleep(0)  # let agents whose turn just ended act and ask again
                await asyncio.sleep(0)
                # a request that was cancelled (a deadline) must not write: its slot may be another's by now
                self._running = [r for r in [*self._running, *self._waiting] if not r.done.done()]
                self._waiting = []
                if not self._running:
                    return
                self._step()
        except BaseException as error:
            for row in [*self._running, *self._waiting]:
                if not row.done.done():
                    row.done.set_exception(RuntimeError(f"the engine failed: {error!r}"))
            self._running, self._waiting = [], []
            raise

    @torch.inference_mode()
    def _step(self) -> None:
        """Feed the prompts that wait, or decode one token of every other row.

        Prompts wait until they are as many as the rows that decode: a pass over few rows costs almost as much as one
        over many, and agents that answer tools at the same time stay together.
        """
        self._share_prefixes([r for r in self._running if r.fed == 0 and not r.sampled])
        waiting = [r for r in self._running if r.pending > 1]
        decoding = sorted((r for r in self._running if r.pending == 1), key=lambda r: r.fed)
        if len(waiting) >= len(decoding):
            self._feed(waiting)
        else:
            for group in _by_length(decoding, self._config.decode_rows):
                self._run(group, 1)
        self._running = [r for r in self._running if not r.done.done()]

    def _feed(self, rows: Sequence[_Row]) -> None:
        """Passes over prompts of similar lengths, at most `prefill_tokens` (padded) each."""
        while rows := sorted((r for r in rows if r.pending > 1), key=lambda r: -r.pending):
            width = min(rows[0].pending, self._config.prefill_tokens)
            batch = rows[: max(1, self._config.prefill_tokens // width)]
            # rows much shorter than the longest have a pass of their own: padding costs as much as tokens
            self._run([r for r in batch if 2 * r.pending >= width], width)

    def _share_prefixes(self, rows: Sequence[_Row]) -> None:
        """Copy known prefixes into new rows; where several new rows begin alike, only the first computes."""
        chains = [_block_hashes(r.read, r.request.adapter) for r in rows]
        common = Counter(h for chain in chains for h in chain)
        for row, chain in zip(rows, chains, strict=True):
            known = next((i for i in range(len(chain), 0, -1) if self._valid(chain[i - 1], row)), 0)
            if known:
                source = self._prefixes[chain[known - 1]][0]
                self._cache.copy_prefix(source, row.slot, known * PREFIX_BLOCK)
                row.fed = known * PREFIX_BLOCK
            shared = sum(common[h] > 1 for h in chain)
            if shared > known:
                self._run(
                    [_prefix_row(row, shared * PREFIX_BLOCK)],
                    shared * PREFIX_BLOCK - row.fed,
                    sample=False,
                )
                row.fed = shared * PREFIX_BLOCK
            for i, h in enumerate(chain[: max(known, shared)], 1):
                if not self._valid(h, None):
                    read = tuple(row.read[: i * PREFIX_BLOCK])
                    self._prefixes[h] = (row.slot, self._uses[row.slot], row.request.adapter, read)

    def _valid(self, chain_hash: int, row: _Row | None) -> bool:
        """The prefix is still in its slot (and, given a row, is really the row's: hashes may collide)."""
        entry = self._prefixes.get(chain_hash)
        if entry is None or self._uses[entry[0]] != entry[1]:
            return False
        *_, adapter, read = entry
        return row is None or (
            row.request.adapter == adapter and tuple(row.read[: len(read)]) == read
        )

    # --- run ---------------------------------------------------------------------------------------------------------

    def _run(self, rows: Sequence[_Row], width: int, sample: bool = True) -> None:
        """Feed the next `width` tokens of each row (fewer where fewer wait), then sample where none is left."""
        counts = [min(width, r.pending) for r in rows]
        hidden = self._forward(rows, width)
        ready = [i for i, r in enumerate(rows) if r.pending == 0]
        if sample and ready:
            last = hidden[ready, [counts[i] - 1 for i in ready]]
            self._sample([rows[i] for i in ready], self._logits(last))

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return vision.logits(self.model, hidden)

    def _forward(self, rows: Sequence[_Row], width: int) -> torch.Tensor:
        """One pass over the model's body: hidden states (rows, width, d), padding included."""
        counts = [min(width, r.pending) for r in rows]
        ids = torch.zeros((len(rows), width), dtype=torch.long)
        for i, (row, count) in enumerate(zip(rows, counts, strict=True)):
            ids[i, :count] = torch.tensor(row.tokens[row.fed : row.fed + count])
            self._cache.extend(row.slot, row.fed + count)
        at = torch.tensor([r.fed for r in rows])[:, None] + torch.arange(width)
        span = self._cache.begin([r.slot for r in rows], at)
        ids, at = ids.to(self.model.device), at.to(self.model.device)
        mask = (torch.arange(span, device=at.device) <= at[..., None])[:, None]
        if self._row_adapters is not None:
            self._row_adapters.of([self._slots.get(r.request.adapter) for r in rows])
        options: dict[str, Any] = {
            "attention_mask": {"full_attention": mask, "conv": None} if self._hybrid else mask,
            "past_key_values": self._cache,
            "use_cache": True,
        }
        if self._sight is not None:
            hidden = self._sight.body(
                ids, [r.context for r in rows if r.context], [r.fed for r in rows], **options
            )
        else:
            hidden = self.model.base_model(
                input_ids=ids, position_ids=at, **options
            ).last_hidden_state
        for row, count in zip(rows, counts, strict=True):
            row.fed += count
        self.tokens_fed += sum(counts)
        return hidden

    # --- sample ------------------------------------------------------------------------------------------------------

    def _sample(self, rows: Sequence[_Row], logits_BV: torch.Tensor) -> None:
        here = logits_BV.device
        temperature = torch.tensor([r.request.temperature for r in rows], device=here)
        greedy = temperature == 0
        logp = torch.log_softmax(logits_BV / torch.where(greedy, 1.0, temperature)[:, None], dim=-1)
        uniform = torch.tensor([r.uniforms[len(r.sampled)] for r in rows], device=here)
        cumulative = logp.double().exp().cumsum(-1)
        drawn = (
            (cumulative < (uniform * cumulative[:, -1])[:, None])
            .sum(-1)
            .clamp(max=logp.shape[-1] - 1)
        )
        chosen = torch.where(greedy, logits_BV.argmax(-1), drawn)
        chosen_logp = logp.gather(1, chosen[:, None])[:, 0].tolist()
        for row, token, logprob in zip(rows, chosen.tolist(), chosen_logp, strict=True):
            row.tokens.append(token)
            row.sampled.append(token)
            row.logprobs.append(logprob)
            row.versions.append(self.versions[row.request.adapter])
            self.tokens_generated += 1
            if token in self._stop or len(row.sampled) == row.request.max_tokens:
                self._finish(row, token)

    def _finish(self, row: _Row, last: int) -> None:
        session = self._sessions.get(row.request.session)
        if session is not None:
            session.tokens = row.tokens[: row.fed]
        if not row.done.done():
            finish: Literal["stop", "length"] = "stop" if last in self._stop else "length"
            versions = row.versions if len(set(row.versions)) > 1 else row.versions[:1]
            row.done.set_result(
                Generation(tuple(row.sampled), tuple(row.logprobs), finish, tuple(versions))
            )


def _build(
    kind: Any,
    model_config: Any,
    dtype: str,
    stop_ids: Sequence[int],
    config: EngineConfig,
    adapters: Mapping[str, LoraConfig],
    eyes: ImageAdapter | None,
) -> TorchEngine:
    model = cast_parameters(kind(model_config), getattr(torch, dtype)).to(device())
    if eyes is not None:
        model.image_adapter = eyes
    return TorchEngine(model, stop_ids, config, adapters)


def to_numpy(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """bfloat16, which numpy lacks, travels as 16-bit integers."""
    plain = tensor.detach().cpu()
    array: np.ndarray[Any, Any] = (
        plain.view(torch.int16) if plain.dtype == torch.bfloat16 else plain
    ).numpy()
    return array


def to_tensor(value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value
    tensor = torch.tensor(value)
    return tensor.view(torch.bfloat16) if tensor.dtype == torch.int16 else tensor


def _prefix_row(row: _Row, length: int) -> _Row:
    return replace(row, tokens=row.tokens[:length])


def _block_hashes(tokens: Sequence[Hashable], adapter: str) -> list[int]:
    """One hash per whole block, each of everything up to its end; the last token is left to be fed."""
    hashes: list[int] = []
    for start in range(0, (len(tokens) - 1) // PREFIX_BLOCK * PREFIX_BLOCK, PREFIX_BLOCK):
        hashes.append(
            hash((hashes[-1] if hashes else adapter, *tokens[start : start + PREFIX_BLOCK]))
        )
    return hashes


def _by_length(rows: Sequence[_Row], most: int) -> list[list[_Row]]:
    """Cut rows (sorted by length) where the longest would more than double the attention span of the shortest."""
    groups: list[list[_Row]] = []
    for row in rows:
        if groups and len(groups[-1]) < most and row.fed <= 2 * groups[-1][0].fed + 64:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups
