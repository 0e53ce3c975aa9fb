"""Two learner processes make the step that one makes: the same gradient, the same weights, also after a resume."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import ray
import torch
from peft import LoraConfig

from parl.config.loss import Loss
from parl.config.policy import Optimizer
from parl.config.tiny import TinyModel
from parl.core.types import Sample
from parl.env import registry as plugins
from parl.learner.group import LearnerGroup
from parl.learner.learner import Learner
from parl.policy.models import lora
from parl.policy.models.tiny import build_model

pytestmark = [pytest.mark.integration, pytest.mark.slow]
TEMPERATURES = {"orchestrator": 1.0, "subagent": 1.0}


PLUGIN = """
import torch

import parl


@parl.policy_loss
def plugins_loss(
    logp, old_logp, advantages, mask, *, factor: float = 1.0, weights=None, denominator=None
):
    return -(factor * logp * advantages * weights).sum() / denominator, {}
"""


@pytest.fixture(scope="module", autouse=True)
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Ray session whose processes find an installed plugin with a loss."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "loss_plugin.py").write_text(PLUGIN)
    info = folder / "loss_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: loss-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[parl.rewards]\nloss_plugin = loss_plugin\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        yield
        ray.shutdown()


def samples(num: int, seed: int) -> list[Sample]:
    rng = np.random.default_rng(seed)
    made = []
    for i in range(num):
        length = int(rng.integers(6, 40))
        mask = (0, 0, *(int(x) for x in rng.integers(0, 2, length - 3)), 1)
        made.append(
            Sample(
                episode=f"e{i}",
                agent="0",
                role="orchestrator",
                policy="main",
                token_ids=tuple(int(x) for x in rng.integers(0, 60, length)),
                mask=mask,
                logprobs=tuple(-4.0 * m for m in mask),
                advantage=float(rng.normal()),
                weight=float(rng.random()),
                policy_versions=(0,),
            )
        )
    return made


def changes(before: Any, after: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([(after[k] - v).flatten() for k, v in lora.model_state(before).items()])


@pytest.mark.parametrize("num_samples, adapter", [(9, False), (1, False), (9, True)])
def test_two_processes_make_the_step_of_one(num_samples: int, adapter: bool) -> None:
    """With one sample the second process has none, and takes part all the same. Of an adapter only its own weights."""
    model = build_model(TinyModel(hidden_size=32, ff_size=32), 60, 7, 0)
    if adapter:
        lora.attach(
            model, {lora.DEFAULT: LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "w1"])}
        )
    shape = ("main", Optimizer(lr=1e-3), Loss(alpha=-9, beta=9), 120)
    one = Learner(shape[0], copy.deepcopy(model), *shape[1:])
    two = LearnerGroup(shape[0], copy.deepcopy(model), *shape[1:], num=2, threads=1, num_cpus=2)
    for step in range(2):
        todo = samples(num_samples, step)
        mass = sum(s.weight * sum(s.mask) for s in todo)
        alone = one.update(todo, TEMPERATURES, mass, step, 4, 2)
        shared = two.update(todo, TEMPERATURES, mass, step, 4, 2)
        assert shared == pytest.approx(alone, rel=1e-4, abs=1e-6)
    assert set(two.weights()) == set(lora.model_state(model))
    moved = changes(model, one.weights())
    assert float(moved.abs().max()) > 1e-4
    assert torch.allclose(changes(model, two.weights()), moved, atol=2e-5)
    probe = list(samples(1, 5)[0].token_ids)
    assert torch.allclose(two.logprobs(probe), one.logprobs(probe), atol=1e-4)
    assert (two.version, two.state_dict()["version"]) == (2, 2)
    two.close()


def test_a_group_goes_on_from_its_state() -> None:
    model = build_model(TinyModel(hidden_size=32, ff_size=32), 60, 7, 0)
    shape = ("main", Optimizer(lr=1e-3), Loss(), 120)

    def group(start: Any) -> LearnerGroup:
        return LearnerGroup(shape[0], start, *shape[1:], num=2, threads=1, num_cpus=2)

    whole = group(copy.deepcopy(model))
    first, second = samples(6, 0), samples(6, 1)
    whole.update(first, TEMPERATURES, 50.0, 0, 4, 1)
    state, stored = whole.state_dict(), copy.deepcopy(whole.model)
    whole.update(second, TEMPERATURES, 50.0, 1, 4, 1)
    whole.close()
    again = group(stored)
    again.load_state_dict(state)
    again.update(second, TEMPERATURES, 50.0, 1, 4, 1)
    again.close()
    assert again.version == 2
    for name, weights in whole.weights().items():
        assert torch.equal(weights, again.weights()[name])


def test_a_plugins_loss_is_known_in_all_processes() -> None:
    plugins.load()
    model = build_model(TinyModel(hidden_size=32, ff_size=32), 60, 7, 0)
    loss = Loss.model_validate({"type": "plugins_loss", "factor": 0.5})
    shape = ("main", Optimizer(lr=1e-3), loss, 120)
    one = Learner(shape[0], copy.deepcopy(model), *shape[1:])
    two = LearnerGroup(shape[0], copy.deepcopy(model), *shape[1:], num=2, threads=1, num_cpus=2)
    expected = one.update(samples(6, 0), TEMPERATURES, 50.0, 0, 4, 1)
    metrics = two.update(samples(6, 0), TEMPERATURES, 50.0, 0, 4, 1)
    two.close()
    assert metrics == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert expected["policy/main/loss"] != 0.0
