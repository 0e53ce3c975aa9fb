"""The engine against the model's plain forward pass: every log-prob, for a hybrid, two attention-only models, and a
mixture of experts."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from parl.config.policy import EngineConfig
from parl.config.tiny import TinyModel
from parl.policy.base import Generation, Request
from parl.policy.engines import paged_cache
from parl.policy.engines.torch import TorchEngine
from parl.policy.models.tiny import build_model

VOCAB, STOP = 60, 7
TOLERANCE = 1e-5


def lfm2(seed: int = 0) -> Any:
    return build_model(TinyModel(hidden_size=32, ff_size=32), VOCAB, STOP, seed)


def attention(kind: type, settings: type, seed: int = 0, **more: Any) -> Any:
    torch.manual_seed(seed)
    shape: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "vocab_size": VOCAB,
    }
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return kind(
        settings(**shape, **heads, max_position_embeddings=2048, initializer_range=0.2, **more)
    ).eval()


MODELS: dict[str, Callable[[], Any]] = {
    "lfm2": lfm2,
    "qwen3": lambda: attention(Qwen3ForCausalLM, Qwen3Config, head_dim=8),
    "llama": lambda: attention(LlamaForCausalLM, LlamaConfig, tie_word_embeddings=True),
    "qwen3_moe": lambda: attention(
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig,
        head_dim=8,
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    return MODELS[request.param]().eval()


def engine_of(model: Any, **config: Any) -> TorchEngine:
    return TorchEngine(copy.deepcopy(model), [STOP], EngineConfig(**config))


@torch.no_grad()
def plain(model: Any, ids: Sequence[int], temperature: float = 1.0) -> torch.Tensor:
    """Log-probs (T-1, V) by one pass without any cache."""
    logits = model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0, :-1].float()
    return torch.log_softmax(logits / temperature, -1)


def prompt(length: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(8, VOCAB, size=length).tolist()


def request(
    ids: Sequence[int], session: str = "a", tokens: int = 8, temperature: float = 1.0, seed: int = 0
) -> Request:
    return Request(session, tuple(ids), (), tokens, temperature, seed)


def ask(engine: TorchEngine, *requests: Request) -> list[Generation]:
    async def together() -> list[Generation]:
        return await asyncio.gather(*(engine.generate(r) for r in requests))

    return asyncio.run(together())


async def converse(
    engine: TorchEngine,
    session: str,
    lengths: Sequence[int],
    seed: int,
    temperature: float = 1.0,
    tokens: int = 9,
) -> tuple[list[int], list[tuple[int, Generation]]]:
    """An agent of several turns; its prompt and its observations have the given lengths."""
    ids: list[int] = []
    turns = []
    for turn, length in enumerate(lengths):
        ids += prompt(length, 1000 * seed + turn)
        made = await engine.generate(request(ids, session, tokens, temperature, 100 * seed + turn))
        turns.append((len(ids), made))
        ids += made.token_ids
    return ids, turns


def conversations(engine: TorchEngine, many: Sequence[Sequence[int]], **how: Any) -> list[Any]:
    async def all_of_them() -> list[Any]:
        return await asyncio.gather(
            *(converse(engine, f"s{i}", m, i, **how) for i, m in enumerate(many))
        )

    return asyncio.run(all_of_them())


RAGGED = [[3, 2, 2, 2], [40, 5], [70, 1, 33, 2], [1, 1, 1], [17, 90], [200, 3, 3], [2]]


def check(model: Any, talks: Sequence[Any], temperature: float = 1.0) -> None:
    for ids, turns in talks:
        expected = plain(model, ids, temperature)
        for start, made in turns:
            chosen = [
                float(expected[start + k - 1, token]) for k, token in enumerate(made.token_ids)
            ]
            assert made.logprobs == pytest.approx(chosen, abs=TOLERANCE)


@pytest.mark.parametrize(
    "config", [{}, {"prefill_tokens": 16, "decode_rows": 2}, {"prefill_tokens": 64}]
)
def test_logprobs_of_ragged_concurrent_conversations_are_the_models(
    model: Any, config: dict[str, int]
) -> None:
    talks = conversations(engine_of(model, **config), RAGGED)
    check(model, talks)
    assert sum(len(made.token_ids) for _, turns in talks for _, made in turns) > 60


def test_logprobs_are_those_of_the_sampling_temperature(model: Any) -> None:
    check(model, conversations(engine_of(model), RAGGED[:3], temperature=0.6), 0.6)


def test_greedy_is_argmax(model: Any) -> None:
    for ids, turns in conversations(engine_of(model), RAGGED, temperature=0.0):
        best = plain(model, ids).argmax(-1)
        for start, made in turns:
            assert made.token_ids == tuple(
                best[start - 1 : start - 1 + len(made.token_ids)].tolist()
            )


def test_a_stop_token_or_max_tokens_ends_a_turn(model: Any) -> None:
    talks = conversations(engine_of(model), [[5]] * 60, tokens=20)
    ends = [made for _, turns in talks for _, made in turns]
    assert {made.finish for made in ends} == {"stop", "length"}
    for made in ends:
        assert STOP not in made.token_ids[:-1]
        assert (made.token_ids[-1] == STOP) == (made.finish == "stop")
        assert made.finish == "stop" or len(made.token_ids) == 20
        assert len(made.logprobs) == len(made.token_ids)
    (one,) = ask(engine_of(model), request(prompt(4, 1), tokens=1))
    assert len(one.token_ids) == 1


def test_the_same_seed_gives_the_same_tokens_whoever_else_is_there(model: Any) -> None:
    alone = conversations(engine_of(model), RAGGED[:1])[0]
    crowd = conversations(engine_of(model), RAGGED)[0]
    assert alone[0] == crowd[0]
    again = conversations(engine_of(model), RAGGED)
    assert [a[0] for a in again] == [c[0] for c in conversations(engine_of(model), RAGGED)]
    one, two = ask(
        engine_of(model), request(prompt(9, 0), "a", seed=1), request(prompt(9, 0), "b", seed=2)
    )
    assert one.token_ids != two.token_ids


def test_sampling_follows_the_distribution() -> None:
    model = lfm2()
    ids = prompt(6, 3)
    made = ask(engine_of(model), *(request(ids, f"s{i}", tokens=1, seed=i) for i in range(4000)))
    counts = np.bincount([m.token_ids[0] for m in made], minlength=VOCAB) / len(made)
    expected = plain(model, [*ids, 0])[-1].exp().numpy()
    assert 0.5 * np.abs(counts - expected).sum() < 0.05


# --- prefixes --------------------------------------------------------------------------------------------------------


def test_a_shared_prefix_is_computed_once_and_changes_nothing(model: Any) -> None:
    common = prompt(100, 5)
    tails = [prompt(n, 50 + n) for n in (1, 4, 30)]
    apart = [
        ask(engine_of(model), request([*common, *tail], "a", seed=i))[0]
        for i, tail in enumerate(tails)
    ]
    engine = engine_of(model)
    shared = ask(
        engine, *(request([*common, *tail], f"s{i}", seed=i) for i, tail in enumerate(tails))
    )
    assert [m.token_ids for m in shared] == [m.token_ids for m in apart]
    for one, other in zip(shared, apart, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=TOLERANCE)
    prompts = sum(100 + len(t) for t in tails)
    assert engine.tokens_fed < prompts - 2 * 90 + sum(len(m.token_ids) for m in shared)


def test_a_later_agent_uses_the_prefix_of_running_ones(model: Any) -> None:
    engine = engine_of(model)
    common = prompt(64, 6)
    ask(engine, *(request([*common, *prompt(5, i)], f"s{i}") for i in range(2)))
    before = engine.tokens_fed
    late = request([*common, *prompt(7, 2)], "late", seed=4)
    (made,) = ask(engine, late)
    assert engine.tokens_fed - before <= 7 + len(made.token_ids)
    (fresh,) = ask(engine_of(model), late)
    assert made.token_ids == fresh.token_ids
    assert made.logprobs == pytest.approx(fresh.logprobs, abs=TOLERANCE)
    for session in ("s0", "s1", "late"):
        engine.release(session)
    assert ask(engine, late)[0].token_ids == fresh.token_ids  # their pages are gone


def test_a_turn_feeds_only_what_is_new(model: Any) -> None:
    engine = engine_of(model)

    async def talk() -> int:
        ids, _ = await converse(engine, "a", [120], 1)
        before = engine.tokens_fed
        made = await engine.generate(request([*ids, *prompt(3, 9)], "a", tokens=4))
        return engine.tokens_fed - before - len(made.token_ids)

    assert asyncio.run(talk()) <= 3 + 1


# --- slots and weights -----------------------------------------------------------------------------------------------


def test_a_released_slot_is_used_again_without_a_trace_of_the_old_agent(model: Any) -> None:
    engine = engine_of(model)
    for i in range(6):
        talks = conversations(engine, [[n + i for n in m] for m in RAGGED])
        check(model, talks)
        for k in range(len(RAGGED)):
            engine.release(f"s{k}")
    engine.release("nobody")


def test_a_longer_context_than_any_before_grows_the_state(model: Any) -> None:
    engine = engine_of(model)
    check(model, conversations(engine, [[5, 400, 3]]))


@pytest.mark.parametrize("most", [0, 60_000])
def test_gathered_windows_change_nothing(
    model: Any, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without room for them, or for a few only, the same tokens come out with the same log-probs, bit for bit."""

    def turns() -> list[Any]:
        return [
            made
            for _, made_at in conversations(engine_of(model), [*RAGGED, [90, 3]])
            for _, made in made_at
        ]

    with_room = turns()
    monkeypatch.setattr(paged_cache, "WINDOW_BYTES", most)
    assert turns() == with_room


def test_a_context_may_only_grow(model: Any) -> None:
    engine = engine_of(model)
    ask(engine, request(prompt(20, 1)))
    with pytest.raises(AssertionError, match="only grow"):
        ask(engine, request(prompt(20, 2)))


def test_a_cancelled_request_leaves_the_others_alone(model: Any) -> None:
    """A deadline ends an agent whose request is still queued; its slot is the next agent's before the next pass."""
    engine = engine_of(model)

    async def agent() -> None:
        try:
            await engine.generate(request(prompt(10, 1), "late", tokens=50))
        finally:
            engine.release("late")

    async def talk() -> Any:
        late = asyncio.ensure_future(agent())
        await asyncio.sleep(0)
        late.cancel()
        talks = await asyncio.gather(*(converse(engine, f"s{i}", [40, 2], i) for i in range(2)))
        assert late.cancelled()
        return talks

    check(model, asyncio.run(talk()))
    engine.load_weights(model.state_dict(), 1)


def test_new_weights_drop_the_state() -> None:
    old, new = lfm2(0).eval(), lfm2(1).eval()
    engine = engine_of(old)
    ids = prompt(50, 1)
    (first,) = ask(engine, request(ids, tokens=6))
    assert first.versions == (0,)
    engine.release("a")
    engine.load_weights(new.state_dict(), 3)
    (second,) = ask(engine, request(ids, tokens=6))
    assert second.versions == (3,)
    expected = plain(new, [*ids, *second.token_ids])
    chosen = [float(expected[len(ids) - 1 + k, t]) for k, t in enumerate(second.token_ids)]
    assert second.logprobs == pytest.approx(chosen, abs=TOLERANCE)
    assert ask(engine_of(new), request(ids, tokens=6))[0].token_ids == second.token_ids


def test_weights_are_copied_and_must_fit() -> None:
    model = lfm2(0)
    engine = engine_of(model)
    new = lfm2(1)
    weights = {k: v.detach() for k, v in new.state_dict().items()}
    engine.load_weights(weights, 1)
    ids = prompt(30, 2)
    before = engine.score(ids)
    with torch.no_grad():
        for p in new.parameters():
            p.zero_()  # the learner goes on training
    assert torch.equal(engine.score(ids), before)
    with pytest.raises(RuntimeError):
        engine.load_weights({"nonsense": torch.zeros(1)}, 2)


def test_weights_change_under_a_running_agent() -> None:
    """It goes on, and each token tells which weights sampled it; a new agent shares nothing of the old weights."""
    old, new = lfm2(0).eval(), lfm2(1).eval()
    engine = TorchEngine(
        copy.deepcopy(old), [], EngineConfig()
    )  # without a stop token: every turn is 8 tokens
    ids = prompt(40, 1)

    async def talk() -> tuple[Generation, Generation]:
        running = asyncio.ensure_future(engine.generate(request(ids, "a")))
        while engine.tokens_generated < 3:  # noqa: ASYNC110
            await asyncio.sleep(0)
        engine.load_weights(new.state_dict(), 5)
        late = await engine.generate(request(ids, "b"))
        return await running, late

    first, late = asyncio.run(talk())
    assert first.versions == (0,) * 3 + (5,) * 5
    before = plain(old, [*ids, *first.token_ids])
    assert first.logprobs[:3] == pytest.approx(
        [float(before[len(ids) - 1 + k, t]) for k, t in enumerate(first.token_ids[:3])],
        abs=TOLERANCE,
    )
    assert late.versions == (5,)
    after = plain(new, [*ids, *late.token_ids])
    assert late.logprobs == pytest.approx(
        [float(after[len(ids) - 1 + k, t]) for k, t in enumerate(late.token_ids)], abs=TOLERANCE
    )


def test_score_is_the_plain_forward_and_touches_no_agent(model: Any) -> None:
    engine = engine_of(model)
    ids = prompt(60, 8)

    async def talk() -> Any:
        said, turns = await converse(engine, "a", [40], 1)
        scored = engine.score(ids)
        made = await engine.generate(request([*said, *prompt(4, 4)], "a"))
        whole = [*said, *prompt(4, 4), *made.token_ids]
        return scored, (whole, [*turns, (len(said) + 4, made)])

    scored, talk_ = asyncio.run(talk())
    expected = plain(model, ids).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    assert torch.allclose(scored, expected, atol=TOLERANCE)
    check(model, [talk_])


def test_several_event_loops_after_each_other(model: Any) -> None:
    """The pool runs each step in a loop of its own; an agent's state outlives none, the engine does."""
    engine = engine_of(model)
    for i in range(3):
        check(model, conversations(engine, [[4 + i, 3], [9]]))
        engine.release("s0")
        engine.release("s1")
    assert engine.tokens_generated > 0
