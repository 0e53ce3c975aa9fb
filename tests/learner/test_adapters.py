"""Adapters: one base under several, each trained, served, stored and loaded on its own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM

from parl.config import parse, phases
from parl.config.policy import EngineConfig
from parl.core import manifest
from parl.core.errors import ConfigError, EngineMismatch
from parl.core.types import ROLES
from parl.learner import checkpoint
from parl.learner.learner import check_engine
from parl.learner.policies import PolicySet
from parl.policy.base import Generation, Request
from parl.policy.engines.torch import TorchEngine
from parl.policy.models import lora
from parl.rollout.pool.inference import EngineState, EngineStore
from tests.policy.test_torch_engine import MODELS, STOP
from tests.support.policies import (
    PROBE,
    TOLERANCE,
    Wide,
    config,
    digest,
    log_probs,
    samples,
    save,
    started,
    update,
)


@pytest.fixture(scope="module")
def trained() -> PolicySet:
    policies = started()
    for step in range(2):
        update(policies, step)
    return policies


def test_a_fresh_adapter_changes_nothing() -> None:
    policies = started()
    expected = log_probs(policies.models["main"], PROBE)
    for name in ROLES:
        assert torch.equal(log_probs(policies.models[name], PROBE), expected)


def test_training_changes_the_adapters_and_not_a_byte_of_the_base() -> None:
    policies = started()
    assert set(policies.learners) == set(ROLES)
    before = digest(policies.models["main"])
    adapters = {
        n: {k: v.clone() for k, v in lora.adapter_state(policies.models[n]).items()} for n in ROLES
    }
    metrics = update(policies, 0)
    assert {
        f"policy/{n}/{k}" for n in ROLES for k in ("loss", "grad_norm", "lr", "entropy")
    } <= set(metrics)
    assert metrics["policy/orchestrator/grad_norm"] != metrics["policy/subagent/grad_norm"]
    for name in ROLES:
        after = lora.adapter_state(policies.models[name])
        assert all(not torch.equal(after[k], v) for k, v in adapters[name].items() if "lora_B" in k)
        assert digest(policies.models[name]) == before
        trainable = [k for k, p in policies.models[name].named_parameters() if p.requires_grad]
        assert trainable
        assert all(".lora_" in k for k in trainable)
        assert set(policies.learners[name].weights()) == set(after)
    assert digest(policies.handles()["subagent"].engine.model) == before  # type: ignore[attr-defined]
    assert digest(policies.models["main"]) == before


def test_one_adapter_learns_while_the_other_stays() -> None:
    policies = started()
    stays = {k: v.clone() for k, v in lora.adapter_state(policies.models["subagent"]).items()}
    metrics = update(policies, 0, ["orchestrator"])
    assert metrics["policy/orchestrator/weight_version"] == 1
    assert metrics["policy/subagent/weight_version"] == 0
    assert all(
        torch.equal(v, stays[k]) for k, v in lora.adapter_state(policies.models["subagent"]).items()
    )


def test_the_base_is_in_memory_once(trained: PolicySet) -> None:
    handles = trained.handles()
    assert handles["orchestrator"].engine is handles["subagent"].engine
    engine: Any = handles["orchestrator"].engine
    addresses = {p.data_ptr() for p in trained.models["main"].parameters()}
    for model in (*trained.models.values(), engine.model):
        assert {p.data_ptr() for k, p in model.named_parameters() if ".lora_" not in k} == addresses


def talk(engine: TorchEngine, requests: Sequence[Request]) -> list[Generation]:
    async def together() -> list[Generation]:
        return await asyncio.gather(*(engine.generate(r) for r in requests))

    return asyncio.run(together())


def prompt(length: int, seed: int) -> list[int]:
    return torch.randint(3, 60, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def test_adapters_share_a_batch_and_say_what_each_says_alone(trained: PolicySet) -> None:
    """Rows of two adapters and of the base, ragged, over prompts that begin alike."""
    engine: Any = trained.handles()["orchestrator"].engine
    passes: list[set[str]] = []
    of = engine._row_adapters.of

    def recorded(rows: Any) -> Any:
        passes.append(set(rows))
        return of(rows)

    engine._row_adapters.of = recorded
    begin = prompt(40, 0)
    requests = [
        Request(
            f"{part}{i}", (*begin, *prompt(1 + 7 * i, i)), (), 12, 1.0, 10 * i + len(part), part
        )
        for i in range(4)
        for part in ("orchestrator", "subagent", "")
    ]
    made = talk(engine, requests)
    engine._row_adapters.of = of
    assert {"adapter0", "adapter1", None} in passes
    said: dict[str, list[float]] = {}
    for request, generation in zip(requests, made, strict=True):
        ids = [*request.token_ids, *generation.token_ids]
        expected = log_probs(trained.models[request.adapter or "main"], ids)
        start = len(request.token_ids)
        chosen = [float(expected[start + k - 1, t]) for k, t in enumerate(generation.token_ids)]
        assert generation.logprobs == pytest.approx(chosen, abs=TOLERANCE)
        assert generation.versions == ((2,) if request.adapter else (0,))
        said.setdefault(request.adapter, []).extend(
            float(log_probs(trained.models["main"], ids)[start + k - 1, t]) - chosen[k]
            for k, t in enumerate(generation.token_ids)
        )
        engine.release(request.session)
    assert max(map(abs, said[""])) == 0
    assert (
        min(max(map(abs, said[name])) for name in ROLES) > 100 * TOLERANCE
    )  # the adapters do something


@pytest.mark.parametrize("kind", MODELS)
def test_adapters_in_models_of_any_layout(kind: str) -> None:
    """Of different ranks and targets, over several turns: each row's log-probs are those of its own model."""
    base = MODELS[kind]().eval()
    feedforward = {"lfm2": "w1", "qwen3_moe": "o_proj"}.get(
        kind, "up_proj"
    )  # experts take no adapter
    shapes = {
        "a": LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]),
        "b": LoraConfig(r=2, lora_alpha=8, target_modules=["k_proj", feedforward]),
    }
    engine = TorchEngine(lora.share_weights(base, same=False), [STOP], EngineConfig(), shapes)
    models = {"": base}
    for i, (name, shape) in enumerate(shapes.items()):
        models[name] = lora.attach(lora.share_weights(base, same=True), {lora.DEFAULT: shape})
        made = torch.Generator().manual_seed(i)
        drawn = {
            k: 0.3 * torch.randn(v.shape, generator=made)
            for k, v in lora.adapter_state(models[name]).items()
        }
        lora.set_adapter_state(models[name], drawn)
        engine.load_weights(drawn, i + 1, name)

    async def agent(i: int, name: str) -> None:
        ids: list[int] = []
        for turn in range(3):
            ids += prompt(3 + 11 * i, 10 * i + turn)
            made = await engine.generate(
                Request(f"s{i}", tuple(ids), (), 9, 1.0, 100 * i + turn, name)
            )
            start, ids = len(ids), [*ids, *made.token_ids]
            expected = log_probs(models[name], ids)
            chosen = [float(expected[start + k - 1, t]) for k, t in enumerate(made.token_ids)]
            assert made.logprobs == pytest.approx(chosen, abs=TOLERANCE)

    async def together() -> None:
        await asyncio.gather(*(agent(i, name) for i, name in enumerate(["a", "b", "", "a", "b"])))

    asyncio.run(together())
    assert float((engine.probe(PROBE)[0] - engine.probe(PROBE)[1]).abs().max()) > 0.01


def test_prefixes_are_shared_within_an_adapter_and_never_across(trained: PolicySet) -> None:
    ids = tuple(prompt(65, 5))  # four whole blocks and a token

    def fed(*adapters: str) -> int:
        engine: Any = started().handles()["orchestrator"].engine
        talk(
            engine, [Request(f"s{i}", ids, (), 1, 1.0, i, name) for i, name in enumerate(adapters)]
        )
        return int(engine.tokens_fed)

    assert fed("orchestrator", "orchestrator") == 65 + 1
    assert fed("orchestrator", "subagent") == 2 * 65
    assert fed("orchestrator", "") == 2 * 65
    assert fed("orchestrator", "subagent", "orchestrator", "subagent") == 2 * 66

    engine: Any = trained.handles()[
        "orchestrator"
    ].engine  # one after the other, the first still being there
    before = engine.tokens_fed
    talk(engine, [Request("one", ids, (), 1, 1.0, 0, "orchestrator")])
    talk(engine, [Request("two", ids, (), 1, 1.0, 0, "subagent")])
    assert engine.tokens_fed - before == 2 * 65
    engine.release("one")
    engine.release("two")


def test_the_probe_finds_stale_weights_of_one_adapter() -> None:
    policies = started()
    engine = policies.engines.of("subagent")
    policies.update(samples(0), dict.fromkeys(ROLES, 30.0), 0)
    with pytest.raises(EngineMismatch):
        check_engine(engine, policies.learners["subagent"], PROBE, TOLERANCE, "subagent")
    metrics = policies.sync(PROBE)
    assert all(0 <= metrics[f"policy/{n}/sync_mismatch"] < TOLERANCE for n in ROLES)
    with pytest.raises(EngineMismatch):
        check_engine(engine, policies.learners["subagent"], PROBE, TOLERANCE, "orchestrator")


def test_a_resumed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole = started()
    for step in range(2):
        update(whole, step)
    folder = save(whole, tmp_path, 2)
    _, learners = checkpoint.load(folder)
    again = PolicySet(config(), Wide(), folder)
    again.engines.start()
    again.learners.start()
    again.load_learners(learners)
    assert digest(again.models["main"]) == digest(whole.models["main"])
    assert again.learners.versions() == {"orchestrator": 2, "subagent": 2}
    for step in range(2, 4):
        assert update(whole, step) == update(again, step)
    for name in ROLES:
        for key, value in whole.learners[name].weights().items():
            assert torch.equal(value, again.learners[name].weights()[key])


def test_a_checkpoint_holds_peft_folders_and_the_base_once(
    trained: PolicySet, tmp_path: Path
) -> None:
    folder = save(trained, tmp_path, 2)
    assert sorted(p.name for p in (folder / "policies" / "orchestrator").glob("adapter*")) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert not (folder / "policies" / "orchestrator" / "model.safetensors").exists()
    cold = tmp_path / "checkpoints" / manifest.COLD_START
    weights = "policies/main/model.safetensors"
    assert os.stat(folder / weights).st_ino == os.stat(cold / weights).st_ino
    manifest.verify(folder)
    base = AutoModelForCausalLM.from_pretrained(folder / "policies" / "main")
    expected = {n: log_probs(trained.models[n], PROBE) for n in ROLES}
    for name in ROLES:
        with_peft = PeftModel.from_pretrained(base, str(folder / "policies" / name)).eval()
        assert torch.allclose(log_probs(with_peft, PROBE), expected[name], atol=1e-6)
        base = with_peft.unload()
        alone = AutoModelForCausalLM.from_pretrained(
            folder / "policies" / name
        )  # finds its base by itself
        assert torch.allclose(log_probs(alone, PROBE), expected[name], atol=1e-6)


def test_an_adapter_starts_from_a_peft_folder(trained: PolicySet, tmp_path: Path) -> None:
    folder = save(trained, tmp_path, 2)
    raw = config().model_dump(mode="json")
    raw["policies"]["main"]["model"] = str(folder / "policies" / "main")
    raw["policies"]["orchestrator"]["model"] = str(folder / "policies" / "orchestrator")
    policies = PolicySet(parse(raw), Wide())
    assert torch.equal(
        log_probs(policies.models["orchestrator"], PROBE),
        log_probs(trained.models["orchestrator"], PROBE),
    )
    raw["policies"]["orchestrator"]["adapter"]["rank"] = 5
    with pytest.raises(
        ConfigError,
        match=r"fits policies\.orchestrator\.adapter: rank 4 and alpha 32, here 5 and 32",
    ):
        PolicySet(parse(raw), Wide())
    raw["policies"]["main"]["model"] = str(folder / "policies" / "orchestrator")
    with pytest.raises(ConfigError, match=r"policies\.main\.model: .* is an adapter\. Merge it"):
        PolicySet(parse(raw), Wide())


def test_targets_must_be_linear_layers_of_the_base() -> None:
    raw = config().model_dump(mode="json")
    raw["policies"]["subagent"]["adapter"]["target_modules"] = ["q_prj"]
    with pytest.raises(
        ConfigError, match=r"'q_prj' is no linear layer of policies\.main\. Did you mean 'q_proj'\?"
    ):
        PolicySet(parse(raw), Wide())
    raw["policies"]["subagent"]["adapter"]["target_modules"] = ["lm_head"]
    with pytest.raises(ConfigError, match="'lm_head' is no linear layer"):
        PolicySet(parse(raw), Wide())


def test_a_frozen_role_on_the_others_adapter_keeps_the_cold_start(tmp_path: Path) -> None:
    roles = {
        "orchestrator": {"policy": "orchestrator"},
        "subagent": {"policy": "orchestrator", "trainable": False},
    }
    settings = config(roles=roles)
    policies = started(settings)
    save(policies, tmp_path, 0)
    policies.engines.freeze(tmp_path / "checkpoints" / manifest.COLD_START)
    update(policies, 0, ["orchestrator"])
    handles = policies.handles(settings.roles)
    assert handles["orchestrator"].engine is handles["subagent"].engine
    engine: Any = handles["orchestrator"].engine
    live, frozen = (engine.score(PROBE, handles[role].adapter) for role in ROLES)
    chosen = torch.tensor(PROBE[1:])[:, None]
    assert torch.allclose(
        frozen, log_probs(policies.models["main"], PROBE).gather(1, chosen)[:, 0], atol=TOLERANCE
    )
    assert torch.allclose(
        live,
        log_probs(policies.models["orchestrator"], PROBE).gather(1, chosen)[:, 0],
        atol=TOLERANCE,
    )
    assert float((live - frozen).abs().max()) > 100 * TOLERANCE


def test_a_frozen_role_plays_the_base_itself() -> None:
    roles = {
        "orchestrator": {"policy": "orchestrator"},
        "subagent": {"policy": "main", "trainable": False},
    }
    settings = config(roles=roles)
    policies = started(settings)
    assert set(policies.learners) == {"orchestrator"}
    update(policies, 0, ["orchestrator"])
    handles = policies.handles(settings.roles)
    assert handles["orchestrator"].engine is handles["subagent"].engine
    engine: Any = handles["subagent"].engine
    assert [(h.name, h.adapter) for h in handles.values()] == [
        ("orchestrator", "orchestrator"),
        ("main", ""),
    ]
    expected = log_probs(policies.models["main"], PROBE).gather(
        1, torch.tensor(PROBE[1:])[:, None]
    )[:, 0]
    assert torch.allclose(
        engine.score(PROBE, handles["subagent"].adapter), expected, atol=TOLERANCE
    )


def test_a_policy_of_its_own_stays_as_it_is_when_its_role_is_frozen_again() -> None:
    schedule = [{"until": 1, "value": True}, {"value": False}]
    settings = config(
        roles={
            "orchestrator": {"policy": "orchestrator", "trainable": schedule},
            "subagent": {"policy": "subagent"},
        }
    )
    policies = started(settings)
    update(policies, 0)
    for step in (0, 1):
        handle = policies.handles(phases.roles_at(settings.roles, {}, step))["orchestrator"]
        engine: Any = handle.engine
        expected = log_probs(policies.models["orchestrator"], PROBE).gather(
            1, torch.tensor(PROBE[1:])[:, None]
        )[:, 0]
        assert torch.allclose(engine.score(PROBE, handle.adapter), expected, atol=TOLERANCE)


def test_two_full_models_learn_each_with_its_own_optimizer(tmp_path: Path) -> None:
    full = {
        n: {"tiny": {"hidden_size": 32, "ff_size": 32}, "optimizer": {"lr": lr}}
        for n, lr in zip(ROLES, (1e-2, 1e-3), strict=True)
    }
    settings = config(policies=full)
    policies = started(settings)
    before = {n: digest(policies.models[n]) for n in ROLES}
    assert before["orchestrator"] != before["subagent"]
    metrics = update(policies, 0)
    assert metrics["policy/orchestrator/lr"] == 1e-2
    assert metrics["policy/subagent/lr"] == 1e-3
    for name in ROLES:
        assert metrics[f"policy/{name}/sync_mismatch"] < TOLERANCE
        assert metrics[f"policy/{name}/weight_version"] == 1
        assert all(digest(policies.models[name])[k] != v for k, v in before[name].items())
    engines = [policies.handles()[role].engine for role in ROLES]
    assert engines[0] is not engines[1]
    folder = save(policies, tmp_path, 1)
    again = started(settings, folder)
    again.learners.load(checkpoint.load(folder)[1])
    assert update(policies, 1) == update(again, 1)


def test_on_a_bfloat16_base_the_adapters_are_float32(tmp_path: Path) -> None:
    made = PolicySet(config(), Wide())
    made.models["main"].to(torch.bfloat16).save_pretrained(tmp_path)
    made.tokenizers["main"].save_pretrained(tmp_path)
    raw = config().model_dump(mode="json")
    raw["policies"]["main"] |= {"dtype": "bfloat16", "model": str(tmp_path)}
    policies = started(parse(raw))
    metrics = update(policies, 0)
    engine: Any = policies.handles()["subagent"].engine
    for model in (policies.models["subagent"], engine.model):
        assert {(".lora_" in k, p.dtype) for k, p in model.named_parameters()} == {
            (True, torch.float32),
            (False, torch.bfloat16),
        }
    # bfloat16 rounds a log-prob by about 0.05 here, whatever the kernel; a wrong adapter is off by 2.5 or more.
    for name in ROLES:
        effect = (engine.score(PROBE, name) - engine.score(PROBE, "")).abs().max()
        assert metrics[f"policy/{name}/sync_mismatch"] < 0.1 * effect


def test_an_engine_in_another_process_gets_the_base_and_each_adapter(trained: PolicySet) -> None:
    engine: Any = trained.handles()["orchestrator"].engine
    other = engine.blueprint()()
    for part, version in engine.versions.items():
        other.load_weights(engine.export_weights(part), version, part)
    assert other.version == engine.version == 4
    assert torch.equal(other.probe(PROBE), engine.probe(PROBE))
    with pytest.raises(RuntimeError, match="do not fit"):
        other.load_weights(engine.export_weights("orchestrator"), 9, "subagent")


def test_a_worker_takes_the_parts_that_are_new(trained: PolicySet) -> None:
    """As RayPool sends them: the base once, an adapter with each of its versions; the probe answers for all parts."""
    engine: Any = trained.handles()["orchestrator"].engine
    sent: list[str] = []

    async def stored(part: str) -> Any:
        sent.append(part)
        return engine.export_weights(part)

    async def follow(store: EngineStore, versions: dict[str, int]) -> Any:
        parts = {part: (version, stored(part)) for part, version in versions.items()}
        scores = await store.follow(
            {"e": EngineState(engine.blueprint(), sum(versions.values()), parts)}, PROBE
        )
        for _, reference in parts.values():
            reference.close()  # those that were not asked for
        return scores

    store = EngineStore()
    scores = asyncio.run(follow(store, {"": 0, "orchestrator": 2, "subagent": 2}))
    assert sent == ["", "orchestrator", "subagent"]
    assert scores["e", 4] == pytest.approx(engine.probe(PROBE).numpy(), abs=TOLERANCE)
    assert scores["e", 4].shape == (3, len(PROBE) - 1)
    asyncio.run(follow(store, {"": 0, "orchestrator": 2, "subagent": 3}))
    assert sent == ["", "orchestrator", "subagent", "subagent"]
    assert store.engines["e"].versions == {"": 0, "orchestrator": 2, "subagent": 3}
    assert not asyncio.run(
        follow(store, {"": 0, "orchestrator": 2, "subagent": 2})
    )  # older: ignored
    assert len(sent) == 4
