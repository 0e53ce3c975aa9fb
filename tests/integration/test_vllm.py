"""vLLM as an engine, on small random models: log-probs, prefixes, weights that change, faults that must stop a run.

Runs in the environment that `make vllm` makes; anywhere else it is skipped.
"""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from parl.config import load
from parl.config.policy import EngineConfig
from parl.core.errors import ConfigError, EngineMismatch
from parl.core.machine import pin_threads
from parl.core.types import ROLES
from parl.learner.learner import check_engine, logprobs
from parl.learner.policies import TOLERANCE, PolicySet
from parl.policy.base import Generation, Request
from parl.policy.models.dtype import cast_parameters
from parl.training.trainer import train
from tests.support.factories import make_config
from tests.support.helpers import ROOT, WordsEnv
from tests.support.policies import samples
from tests.support.tokenizers import qwen3

pytest.importorskip(
    "vllm", reason="needs vLLM, in an environment of its own: make vllm (docs/how-to/use-vllm.md)"
)
pytestmark = [pytest.mark.integration, pytest.mark.slow]

EXACT = 1e-5
STOP = 5
VLLM = EngineConfig(type="vllm", kv_cache_gb=0.25)
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "max_position_embeddings": 4096,
}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}


def small_model(vocab: int = 300, seed: int = 0) -> Any:
    """Embedding and head share their weights, as in most small models."""
    torch.manual_seed(seed)
    config = Qwen3Config(vocab_size=vocab, tie_word_embeddings=True, **SHAPE, **HEADS)
    return Qwen3ForCausalLM(config).eval()


@torch.no_grad()
def changed(model: Any, seed: int) -> Any:
    """A copy with other weights."""
    torch.manual_seed(seed)
    other = copy.deepcopy(model)
    for p in other.parameters():
        p.add_(0.03 * torch.randn_like(p))
    return other


def prompt(length: int, seed: int) -> list[int]:
    made = torch.Generator().manual_seed(seed)
    return torch.randint(6, 300, (length,), generator=made).tolist()


def request(
    ids: Sequence[int], seed: int = 0, tokens: int = 16, temperature: float = 1.0, adapter: str = ""
) -> Request:
    return Request(f"{seed}", tuple(ids), (), tokens, temperature, seed, adapter)


def ask(engine: Any, *requests: Request) -> list[Generation]:
    async def all_of_them() -> list[Generation]:
        return await asyncio.gather(*(engine.generate(r) for r in requests))

    return asyncio.run(all_of_them())


@torch.no_grad()
def off(model: Any, asked: Request, made: Generation, of: slice = slice(None)) -> float:
    """Largest difference of the log-probs of a turn from those of one plain pass."""
    ids = [*asked.token_ids, *made.token_ids]
    logits = (
        model(input_ids=torch.tensor([ids]), use_cache=False)
        .logits[0, len(asked.token_ids) - 1 : -1]
        .float()
    )
    logp = torch.log_softmax(logits / (asked.temperature or 1.0), -1)
    plain = logp.gather(1, torch.tensor(made.token_ids)[:, None])[:, 0]
    return float((plain - torch.tensor(made.logprobs))[of].abs().max())


class Known:
    """A learner, as far as `check_engine` asks: the weights that an engine should have."""

    def __init__(self, model: Any, version: int) -> None:
        self.model, self.version = model, version

    def logprobs(self, token_ids: Sequence[int], images: Sequence[str] = ()) -> torch.Tensor:
        return logprobs(self.model, token_ids, images)


@pytest.fixture(scope="module")
def started() -> Iterator[Any]:
    from parl.policy.engines.vllm import VllmEngine

    pin_threads(1)
    engine = VllmEngine(small_model(), [STOP], VLLM)
    yield engine
    engine.close()


@pytest.fixture
def model() -> Any:
    return small_model()


@pytest.fixture
def engine(started: Any, model: Any) -> Any:
    """With the model's weights, as version 0."""
    started.load_weights(model.state_dict(), 0)
    return started


# --- sampling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.6, 0.0])
def test_ids_in_ids_and_log_probs_out(engine: Any, model: Any, temperature: float) -> None:
    """The log-probs are those of the distribution that was sampled from, and a turn ends at its stop token."""
    asked = [
        request(prompt(20 + 5 * k, k), seed=k, tokens=64, temperature=temperature)
        for k in range(12)
    ]
    made = ask(engine, *asked)
    for one, turn in zip(asked, made, strict=True):
        assert off(model, one, turn) < EXACT
        assert turn.versions == (0,)
        stopped = turn.token_ids[-1] == STOP
        assert STOP not in turn.token_ids[:-1]
        assert turn.finish == ("stop" if stopped else "length")
        assert stopped or len(turn.token_ids) == 64
    if temperature == 1.0:
        assert {t.finish for t in made} == {"stop", "length"}


def test_a_seed_gives_its_tokens_alone_and_in_company(engine: Any) -> None:
    asked = [request(prompt(30, k), seed=100 + k) for k in range(8)]
    together = ask(engine, *asked)
    assert [t.token_ids for t in together] == [ask(engine, one)[0].token_ids for one in asked]
    other = ask(engine, request(asked[0].token_ids, seed=7))[0]
    assert other.token_ids != together[0].token_ids


def test_a_known_prefix_is_not_fed_again(engine: Any, model: Any) -> None:
    begin = prompt(200, 50)
    before = engine.tokens_fed
    ask(engine, request(begin))
    assert engine.tokens_fed - before == 200
    asked = [request([*begin, *prompt(10, k)], seed=k) for k in range(6)]
    made = ask(engine, *asked)
    assert engine.tokens_fed - before - 200 == 6 * (
        210 - 192
    )  # all but the six whole blocks of the prefix
    assert max(off(model, one, turn) for one, turn in zip(asked, made, strict=True)) < EXACT


def test_a_turn_that_nobody_waits_for_ends(engine: Any) -> None:
    async def give_up() -> None:
        turn = asyncio.ensure_future(engine.generate(request(prompt(10, 1), tokens=3000)))
        await asyncio.sleep(0.2)
        turn.cancel()
        await asyncio.gather(turn, return_exceptions=True)

    asyncio.run(give_up())
    assert len(ask(engine, request(prompt(10, 2), tokens=4))[0].token_ids) <= 4


# --- weights ---------------------------------------------------------------------------------------------------------


def test_new_weights_sample_and_the_probe_agrees(engine: Any, model: Any) -> None:
    asked = request(prompt(40, 3), tokens=24)
    (before,) = ask(engine, asked)
    other = changed(model, 1)
    engine.load_weights(other.state_dict(), 1)
    assert check_engine(engine, Known(other, 1), prompt(64, 4), EXACT) < EXACT
    (after,) = ask(engine, asked)
    assert after.token_ids != before.token_ids
    assert after.versions == (1,)
    assert off(other, asked, after) < EXACT
    assert off(model, asked, after) > 0.1
    exported = engine.export_weights()
    assert all(
        (exported[k] == v.numpy()).all() for k, v in other.state_dict().items() if k in exported
    )
    assert set(other.state_dict()) - set(exported) == {"lm_head.weight"}


def test_weights_that_change_under_a_running_turn(engine: Any, model: Any) -> None:
    """Each token has the version that sampled it, and the log-prob under its weights."""
    other = changed(model, 2)
    asked = request(prompt(40, 5), tokens=600)
    engine._stop_ids = ()
    try:

        async def swap() -> Generation:
            turn = asyncio.ensure_future(engine.generate(asked))
            await asyncio.sleep(0.4)
            await asyncio.to_thread(engine.load_weights, other.state_dict(), 5)
            return await turn

        made = asyncio.run(swap())
    finally:
        engine._stop_ids = (STOP,)
    assert len(made.versions) == 600
    first = made.versions.count(0)
    assert 0 < first < 600
    assert made.versions == (0,) * first + (5,) * (600 - first)
    assert off(model, asked, made, slice(first)) < 10 * EXACT
    assert off(other, asked, made, slice(first, None)) < 10 * EXACT


def test_weights_that_do_not_fit_are_refused(engine: Any, model: Any) -> None:
    wrong = {k: v for k, v in model.state_dict().items() if "layers.1.mlp" not in k}
    with pytest.raises(RuntimeError, match=r"do not fit.*layers\.1\.mlp"):
        engine.load_weights(wrong, 1)
    ask(engine, request(prompt(10, 1), tokens=2))  # it goes on with what it has


# --- faults ----------------------------------------------------------------------------------------------------------


def stale_head(engine: Any, other: Any) -> None:
    """vLLM's own `reload_weights`, which answers OK and leaves the head of tied embeddings as it was (on a CPU)."""
    folder = engine._folder / "reload"
    other.save_pretrained(folder)
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
        ("update_config", ({"load_config": {"load_format": "safetensors"}},), {}),
        ("reload_weights", (), {"weights_path": str(folder)}),
    ]
    for method, args, kwargs in calls:
        engine._do(engine._llm.collective_rpc(method, args=args, kwargs=kwargs)).result()
    assert engine._do(engine._llm.reset_prefix_cache()).result()


def dropped(engine: Any, other: Any) -> None:
    """The update is lost on its way."""
    engine.versions[""] = 1


def stale_prefixes(engine: Any, other: Any) -> None:
    """The weights are new, what the old ones computed is still used."""

    async def no_reset(**_: Any) -> bool:
        return True

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine._llm, "reset_prefix_cache", no_reset)
        engine.load_weights(other.state_dict(), 1)


@pytest.mark.parametrize("fault", [stale_head, dropped, stale_prefixes])
def test_the_probe_finds_stale_weights(engine: Any, model: Any, fault: Any) -> None:
    other, probe = changed(model, 3), prompt(64, 6)
    ask(engine, request(probe))  # the probe of a step has been sampled before
    fault(engine, other)
    with pytest.raises(EngineMismatch, match="stale or other weights"):
        check_engine(engine, Known(other, 1), probe, TOLERANCE["float32"])
    engine.load_weights(other.state_dict(), 1)
    assert check_engine(engine, Known(other, 1), probe, TOLERANCE["float32"]) < EXACT


# --- other processes, adapters ---------------------------------------------------------------------------------------


def test_a_blueprint_and_weights_make_the_same_engine(engine: Any, model: Any) -> None:
    other = engine.blueprint()()
    try:
        for part, version in engine.versions.items():
            other.load_weights(engine.export_weights(part), version, part)
        ids = prompt(64, 8)
        assert other.versions == engine.versions
        assert torch.allclose(other.probe(ids), engine.probe(ids), atol=EXACT)
    finally:
        other.close()


def test_float32_weights_are_served_in_bfloat16(model: Any) -> None:
    """As a learner's come that computes in bfloat16 and learns in float32."""
    from parl.policy.engines.vllm import VllmEngine

    engine = VllmEngine(model, [STOP], VLLM, dtype=torch.bfloat16)
    try:
        other = changed(model, 4)
        engine.load_weights(other.state_dict(), 1)
        known = Known(cast_parameters(copy.deepcopy(other), torch.bfloat16), 1)
        assert check_engine(engine, known, prompt(64, 4), TOLERANCE["bfloat16"]) < 0.1
        assert {str(v.dtype) for v in engine.export_weights().values()} == {
            "int16"
        }  # as bfloat16 travels
    finally:
        engine.close()


def saved(tmp_path: Path) -> Path:
    tokenizer = qwen3()
    small_model(len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_adapters_are_served_on_one_base(tmp_path: Path) -> None:
    """Each request names its adapter; each adapter has weights and versions of its own."""
    policies = {
        "main": {"model": str(saved(tmp_path)), "engine": {"type": "vllm", "kv_cache_gb": 0.25}}
    }
    for role in ROLES:
        policies[role] = {"adapter": {"base": "main", "rank": 4}, "optimizer": {"lr": 0.02}}
    roles = {role: {"policy": role} for role in ROLES}
    pin_threads(1)
    both = PolicySet(make_config(policies=policies, roles=roles), WordsEnv())
    both.engines.start()
    both.learners.start()
    handles = both.handles()
    assert handles["orchestrator"].engine is handles["subagent"].engine
    engine: Any = handles["orchestrator"].engine
    probe = prompt(64, 9)
    for step, names in enumerate((ROLES, ("subagent",), ("subagent",)), 1):
        asked = [request(probe, k, adapter=name) for k, name in enumerate((*ROLES, ""))]
        before = ask(engine, *asked)
        both.update(samples(step, names), dict.fromkeys(names, 30.0), step)
        for name, mismatch in both.sync(probe).items():
            assert mismatch < EXACT, name
        after = ask(engine, *asked)
        for one, old, new in zip(asked, before, after, strict=True):
            plain = both.models[one.adapter or "main"].eval()
            assert off(plain, one, new) < EXACT
            assert (new.token_ids != old.token_ids) == (one.adapter in names)
    assert engine.versions == {"": 0, "orchestrator": 1, "subagent": 3}
    assert (
        len(list(engine._folder.glob("adapter*"))) == 5
    )  # what is served, and what each adapter had before it
    scores = engine.probe(probe)
    assert float((scores[1] - scores[2]).abs().max()) > 0.01
    engine.close()


# --- whole runs ------------------------------------------------------------------------------------------------------

LONG = "{limits: {context_tokens: 3500}, sampling: {max_tokens: 500}}"
RUN = [
    "baseline=null",
    "policies.main.engine={type: vllm, kv_cache_gb: 0.25}",
    f"roles={{orchestrator: {LONG}, subagent: {LONG}}}",
    "reward.terms={outcome: {weight: 1}, some_number: {weight: 1}}",
    "train={num_steps: 2, tasks_per_step: 1, group_size: 2}",
    "eval={num_tasks: 1, every: null}",
]


@pytest.mark.usefixtures("some_number")
def test_it_trains(tmp_path: Path) -> None:
    run = tmp_path / "run"
    where = [f"policies.main.model={saved(tmp_path)}", f"run_dir={run}"]
    train(load(ROOT / "configs" / "smoke.yaml", [*RUN, *where]), None, False)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [r["policy/main/weight_version"] for r in rows] == [1, 2]
    for row in rows:
        assert row["policy/main/sync_mismatch"] < EXACT
        assert row["policy/main/logp_mismatch_max"] < TOLERANCE["float32"]
        assert row["rollout/staleness_max"] == 0.0
    assert (run / "summary.json").is_file()


@pytest.mark.usefixtures("some_number")
def test_a_lost_update_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from parl.policy.engines.vllm import VllmEngine

    sync = VllmEngine._sync

    async def lossy(self: Any, version: int) -> None:
        if version == 0:
            await sync(self, version)

    monkeypatch.setattr(VllmEngine, "_sync", lossy)
    faster = "policies.main.optimizer={lr: 0.01}"
    where = [f"policies.main.model={saved(tmp_path)}", f"run_dir={tmp_path / 'run'}"]
    with pytest.raises(EngineMismatch, match="After syncing version 1"):
        train(load(ROOT / "configs" / "smoke.yaml", [*RUN, faster, *where]), None, False)


def test_a_model_that_vllm_cannot_serve_is_one_error(model: Any) -> None:
    from parl.policy.engines.vllm import VllmEngine

    with pytest.raises(ConfigError, match=r"vLLM does not start .* engine\.type: torch"):
        VllmEngine(model, [STOP], EngineConfig(type="vllm", kv_cache_gb=1e-6))
