"""A policy on another device than the CPU: it samples, learns and is checked there, and the numbers are the same."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from parl.config.loss import Loss
from parl.config.policy import EngineConfig, Optimizer
from parl.core.types import Sample
from parl.learner.learner import Learner, check_engine
from parl.policy.base import Request
from parl.policy.engines.torch import TorchEngine
from parl.policy.renderers.families import make_renderer
from parl.training.demonstrator import SftExample
from parl.training.sft import loss_on_labels, token_accuracy
from tests.policy.test_torch_engine import MODELS, STOP
from tests.policy.test_vision import SAID, talk
from tests.support.elsewhere import ELSEWHERE, Elsewhere, move
from tests.support.factories import make_sample
from tests.support.vision_models import NAMES, model_that_sees

Told = tuple[list[tuple[int, ...]], dict[str, float], float, float, float]
TEXT = [
    name for name in MODELS if name != "qwen3_moe"
]  # its experts are counted by another kernel on a GPU
PROMPTS = (list(range(8, 50)), list(range(8, 45)), [9, 8] * 5)
"""Ids: the first two begin alike, so that pages are copied."""


def test_tensors_on_two_devices_do_not_mix() -> None:
    with Elsewhere():
        there = torch.ones(3, device=ELSEWHERE)
        assert there.device == ELSEWHERE
        assert (2 * there + torch.tensor(1.0)).tolist() == [3.0] * 3
        assert torch.equal(there.cpu(), torch.ones(3))
        with pytest.raises(RuntimeError, match="two devices"):
            there + torch.ones(3)
        with pytest.raises(RuntimeError, match="two devices"):
            torch.ones(3)[there > 0]


async def write(engine: TorchEngine, name: str, ids: list[int]) -> Sample:
    """An agent of a model of text: two turns."""
    mask, logps = [0] * len(ids), [0.0] * len(ids)
    for turn in range(2):
        made = await engine.generate(Request(name, tuple(ids), (), 6, 1.0, turn + len(ids)))
        ids, logps = [*ids, *made.token_ids, 11, 12], [*logps, *made.logprobs, 0.0, 0.0]
        mask += [*[1] * len(made.token_ids), 0, 0]
    return make_sample(ids, mask, logps, agent=name)


def played(
    model: Any, place: Callable[[Any], Any], stop_ids: Sequence[int], agents: Callable[..., Any]
) -> Told:
    """Agents of several turns, an update, a sync and its check, the cold start's measures; where `place` puts it."""
    engine = TorchEngine(place(copy.deepcopy(model)), stop_ids, EngineConfig())
    learner = Learner("main", place(copy.deepcopy(model)), Optimizer(lr=1e-2), Loss(), 400)

    async def all_of_them() -> list[Sample]:
        return await asyncio.gather(*agents(engine))

    samples = asyncio.run(all_of_them())
    metrics = learner.update(samples, {"orchestrator": 1.0}, 100.0, 0, 1, 1)
    engine.load_weights(learner.weights(), 1)
    off = check_engine(engine, learner, samples[0].token_ids, 1e-4, images=samples[0].images)
    ids = torch.tensor([samples[0].token_ids], device=learner.bare_model.device)
    loss = float(loss_on_labels(learner.bare_model, ids, ids, [samples[0].images]).detach())
    right = token_accuracy(
        learner.bare_model, [SftExample(s.token_ids, s.mask, "episode", s.images) for s in samples]
    )
    return [s.token_ids for s in samples], metrics, off, loss, right


@pytest.mark.parametrize(
    "name", [*TEXT, *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES)]
)
def test_a_policy_works_where_its_model_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in TEXT:
        model, stop_ids = MODELS[name]().eval(), [STOP]

        def agents(engine: TorchEngine) -> list[Any]:
            return [write(engine, str(i), ids) for i, ids in enumerate(PROMPTS)]
    else:
        model, tokenizer = model_that_sees(name)
        renderer = make_renderer("main", "chatml", tokenizer, model.image_adapter)
        stop_ids = list(renderer.stop_ids)

        def agents(engine: TorchEngine) -> list[Any]:
            return [talk(engine, renderer, "x" * (i + 1), said) for i, said in enumerate(SAID)]

    here = played(model, lambda own: own, stop_ids, agents)
    monkeypatch.setattr(
        Accelerator, "prepare_model", lambda self, own, **_: own
    )  # it would bring it back
    with Elsewhere():
        there = played(model, move, stop_ids, agents)
    assert there[0] == here[0]
    assert there[1] == pytest.approx(here[1], rel=1e-4, abs=1e-5)
    assert there[2:] == pytest.approx(here[2:], rel=1e-4, abs=1e-5)
