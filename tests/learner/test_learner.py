"""The losses as the learner runs them: micro-batches, an advantage for each token, the entropy floor."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from parl.config.loss import Loss  # noqa: E402


def learner(loss: Loss, tokens_per_batch: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    from parl.config.policy import Optimizer
    from parl.learner.learner import Learner

    torch.manual_seed(0)
    shape = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    model = LlamaForCausalLM(LlamaConfig(vocab_size=40, **shape)).double()
    return Learner("main", model, Optimizer(lr=1e-3, grad_clip=1e9), loss, tokens_per_batch)


def made_samples(shift: float = 0.0) -> list[Any]:
    """Traces of 5 to 9 tokens in a row with the log-probs of some other policy, one of them with turns of its own."""
    from parl.core.types import Sample

    generator = torch.Generator().manual_seed(3)
    out = []
    for i in range(6):
        n = 6 + i % 4
        ids = tuple(torch.randint(0, 40, (n,), generator=generator).tolist())
        mask = (0, 0, *[1] * (n - 3), i % 2)
        old = tuple(m * (-3.6 + shift + 0.3 * k / n) for k, m in enumerate(mask))
        per_token = tuple(m * (k - 3.0) for k, m in enumerate(mask)) if i == 5 else ()
        weight = 1.0 / (1 + i % 3)
        out.append(
            Sample(
                "e",
                str(i),
                "orchestrator",
                "main",
                ids,
                mask,
                old,
                i - 2.5,
                weight,
                (0,),
                per_token,
            )
        )
    return out


@pytest.mark.parametrize("type_", ["kimi_k2_5", "grpo", "dapo", "gspo"])
def test_a_step_is_the_same_in_one_micro_batch_or_many(type_: Any) -> None:
    results = []
    for budget in (1000, 18, 1):
        who = learner(Loss(type=type_), budget)
        metrics = who.update(made_samples(), {"orchestrator": 1.0}, 20.0, 0, 1, 1)
        results.append((metrics["policy/main/loss"], metrics["policy/main/grad_norm"]))
    assert results[0][1] > 0
    for other in results[1:]:
        assert other == pytest.approx(results[0], rel=1e-5)


def test_the_learner_gives_each_token_its_own_advantage() -> None:
    """On-policy kimi and grpo: the loss is minus the weighted sum of the advantages over N, whatever the model."""
    who = learner(Loss(type="grpo"), 1000)
    samples = [
        replace(s, logprobs=(0.0, *who.logprobs(s.token_ids).tolist())) for s in made_samples()
    ]
    expected = -sum(s.weight * a for s in samples for a in s.advantages) / 20.0
    metrics = who.update(samples, {"orchestrator": 1.0}, 20.0, 0, 1, 1)
    assert metrics["policy/main/loss"] == pytest.approx(expected, rel=1e-4)


def test_the_entropy_bonus_waits_for_the_floor() -> None:
    """The first step has no measurement; after it, the floor is above the entropy or below it."""
    plain = learner(Loss(type="grpo"), 1000)
    entropy = plain.update(made_samples(), {"orchestrator": 1.0}, 20.0, 0, 2, 1)[
        "policy/main/entropy"
    ]
    second = plain.update(made_samples(), {"orchestrator": 1.0}, 20.0, 1, 2, 1)["policy/main/loss"]
    losses = {}
    for name, floor in (("below", entropy - 0.1), ("above", entropy + 0.1)):
        who = learner(Loss(type="grpo", entropy_bonus=0.5, entropy_floor=floor), 1000)
        first = who.update(made_samples(), {"orchestrator": 1.0}, 20.0, 0, 2, 1)
        assert first["policy/main/entropy"] == entropy
        again = learner(Loss(type="grpo", entropy_bonus=0.5, entropy_floor=floor), 1000)  # resumed
        again.model.load_state_dict(who.weights())
        again.load_state_dict(who.state_dict())
        losses[name] = who.update(made_samples(), {"orchestrator": 1.0}, 20.0, 1, 2, 1)[
            "policy/main/loss"
        ]
        assert (
            again.update(made_samples(), {"orchestrator": 1.0}, 20.0, 1, 2, 1)["policy/main/loss"]
            == losses[name]
        )
    mass = sum(s.weight * sum(s.mask) for s in made_samples())
    assert losses["below"] == second
    assert losses["above"] == pytest.approx(second - 0.5 * entropy * mass / 20.0, rel=0.05)
