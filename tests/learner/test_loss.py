"""The losses against independent computations: a loop over tokens in plain floats, and finite differences."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

torch = pytest.importorskip("torch")

from parl.learner.loss import grpo, kimi_k2_5  # noqa: E402

KIMI = {"alpha": -0.4, "beta": 0.3, "tau": 0.05}
GRPO = {"clip_low": 0.2, "clip_high": 0.28}

# Log-ratios below alpha, inside, and above beta, each with both signs of the advantage and with none.
LOG_RATIOS = [-0.9, -0.41, -0.2, 0.0, 0.1, 0.29, 0.31, 0.8]
ADVANTAGES = [1.5, -0.7, 0.0]


def grid() -> dict:
    pairs = [(x, a) for x in LOG_RATIOS for a in ADVANTAGES]
    generator = torch.Generator().manual_seed(0)
    old = -2 * torch.rand(len(pairs), generator=generator, dtype=torch.float64)
    ratios, advantages = (torch.tensor(v, dtype=torch.float64) for v in zip(*pairs, strict=True))
    mask = torch.tensor([i % 5 != 4 for i in range(len(pairs))])
    weights = torch.rand(len(pairs), generator=generator, dtype=torch.float64) + 0.1
    return {"logp": old + ratios, "old_logp": old, "advantages": advantages, "mask": mask, "weights": weights}


def rows(t: dict) -> list[tuple[float, float, float]]:
    """(log-ratio, advantage, weight) of the tokens inside the mask, as floats."""
    columns = zip(*(t[k].tolist() for k in ("logp", "old_logp", "advantages", "weights", "mask")), strict=True)
    return [(new - old, a, w) for new, old, a, w, inside in columns if inside]


def gradient(loss_function, t: dict, **knobs):
    logp = t["logp"].clone().requires_grad_()
    loss_function(**{**t, "logp": logp}, **knobs)[0].backward()
    return logp.grad


def test_kimi_value_is_eq_1_token_by_token() -> None:
    t = grid()
    total = norm = 0.0
    for x, a, w in rows(t):
        clip = math.exp(min(max(x, KIMI["alpha"]), KIMI["beta"]))
        total += w * (clip * a - KIMI["tau"] * x**2)
        norm += w
    loss, _ = kimi_k2_5(**t, **KIMI)
    assert loss.item() == pytest.approx(-total / norm, rel=1e-12)


def test_kimi_gradient_is_masked_outside_the_window_whatever_the_sign() -> None:
    t = grid()
    expected = []
    for x, a, w, inside in zip(
        (t["logp"] - t["old_logp"]).tolist(),
        t["advantages"].tolist(),
        t["weights"].tolist(),
        t["mask"].tolist(),
        strict=True,
    ):
        policy = math.exp(x) * a if KIMI["alpha"] <= x <= KIMI["beta"] else 0.0
        squared = 2 * KIMI["tau"] * x  # stays on clipped tokens
        expected.append(-w * (policy - squared) / 7.0 if inside else 0.0)
    assert gradient(kimi_k2_5, t, **KIMI, denominator=7.0).tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    outside = [i for i, (x, *_) in enumerate(rows(t)) if not KIMI["alpha"] <= x <= KIMI["beta"]]
    assert len(outside) > 6, "the grid must clip on both sides"


@pytest.mark.parametrize("function,knobs", [(kimi_k2_5, KIMI), (grpo, GRPO)])
def test_gradient_equals_finite_differences(function, knobs) -> None:
    t = grid()
    eps, numeric = 1e-6, []
    for i in range(len(t["logp"])):
        step = torch.zeros_like(t["logp"])
        step[i] = eps
        up = function(**{**t, "logp": t["logp"] + step}, **knobs)[0]
        down = function(**{**t, "logp": t["logp"] - step}, **knobs)[0]
        numeric.append(((up - down) / (2 * eps)).item())
    assert gradient(function, t, **knobs).tolist() == pytest.approx(numeric, rel=1e-5, abs=1e-9)


def test_kimi_on_policy_is_the_plain_policy_gradient() -> None:
    t = grid()
    t["logp"] = t["old_logp"].clone()
    expected = -(t["advantages"] * t["weights"] * t["mask"]) / (t["weights"] * t["mask"]).sum()
    torch.testing.assert_close(gradient(kimi_k2_5, t, **KIMI), expected)
    _, stats = kimi_k2_5(**t, **KIMI)
    assert all(v == 0 for v in stats.values())


@pytest.mark.parametrize("function,knobs", [(kimi_k2_5, KIMI), (grpo, GRPO)])
@pytest.mark.parametrize("cuts", [(1,), (5, 11), (3, 4, 23)])
def test_micro_batches_add_up_to_the_batch(function, knobs, cuts) -> None:
    t = grid()
    norm = (t["weights"] * t["mask"]).sum()
    whole = function(**t, **knobs)[0]
    bounds = [0, *cuts, len(t["logp"])]
    logp = t["logp"].clone().requires_grad_()
    total = 0.0
    for lo, hi in pairwise(bounds):
        part = {k: (logp if k == "logp" else v)[lo:hi] for k, v in t.items()}
        loss = function(**part, **knobs, denominator=norm)[0]
        loss.backward()
        total += loss.item()
    assert total == pytest.approx(whole.item(), rel=1e-12)
    torch.testing.assert_close(logp.grad, gradient(function, t, **knobs))


@pytest.mark.parametrize("function,knobs", [(kimi_k2_5, KIMI), (grpo, GRPO)])
def test_masked_tokens_have_no_influence_even_when_they_are_not_numbers(function, knobs) -> None:
    t = grid()
    clean, clean_gradient = function(**t, **knobs)[0], gradient(function, t, **knobs)
    for key, junk in (("logp", float("-inf")), ("old_logp", float("nan")), ("advantages", 9.0), ("weights", 9.0)):
        t[key] = torch.where(t["mask"], t[key], torch.tensor(junk, dtype=torch.float64))
    assert function(**t, **knobs)[0] == clean
    torch.testing.assert_close(gradient(function, t, **knobs), clean_gradient)
    assert all(math.isfinite(v) for v in function(**t, **knobs)[1].values())


@pytest.mark.parametrize(
    "ratio,advantage,value,slope",
    [
        (1.5, 1.0, 1.28, 0.0),  # already better by more than the clip: flat
        (1.5, -1.0, -1.5, -1.5),  # got more likely although bad: pushed back (eq. 1 would not)
        (0.5, 1.0, 0.5, 0.5),
        (0.5, -1.0, -0.8, 0.0),
        (1.1, 2.0, 2.2, 2.2),
    ],
)
def test_grpo_in_each_quadrant(ratio, advantage, value, slope) -> None:
    logp = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    old, a = torch.zeros(1, dtype=torch.float64), torch.tensor([advantage], dtype=torch.float64)
    loss, stats = grpo(logp, old, a, torch.ones(1), **GRPO)
    loss.backward()
    assert loss.item() == pytest.approx(-value)
    assert logp.grad.item() == pytest.approx(-slope)
    assert stats["clipped_fraction"] == (slope == 0.0)


def test_stats_count_masked_in_tokens_once_each() -> None:
    logp = torch.tensor([0.5, -0.6, 0.1, 9.0], requires_grad=True)
    mask = torch.tensor([1, 1, 1, 0])
    zeros, heavy = torch.zeros(4), torch.tensor([100.0, 1.0, 1.0, 1.0])
    _, stats = kimi_k2_5(logp, zeros, zeros, mask, **KIMI, weights=heavy)
    assert stats["clipped_fraction"].item() == pytest.approx(2 / 3)
    assert stats["logp_mismatch_mean"].item() == pytest.approx(0.4)
    assert stats["logp_mismatch_max"].item() == pytest.approx(0.6)
    assert not any(v.requires_grad for v in stats.values())


def test_default_denominator_is_the_weighted_number_of_tokens() -> None:
    a, zeros, mask = torch.tensor([2.0, 4.0, 8.0]), torch.zeros(3), torch.tensor([True, True, False])
    plain, _ = kimi_k2_5(zeros, zeros, a, mask, **KIMI)
    weighted, _ = kimi_k2_5(zeros, zeros, a, mask, **KIMI, weights=torch.tensor([3.0, 1.0, 1.0]))
    assert plain.item() == pytest.approx(-3.0)
    assert weighted.item() == pytest.approx(-(3 * 2 + 4) / 4)


def test_bfloat16_log_ratios_are_taken_in_float32() -> None:
    logp = torch.tensor([-3.0], dtype=torch.bfloat16)
    _, stats = kimi_k2_5(logp, torch.tensor([-3.001]), torch.zeros(1), torch.ones(1), **KIMI)
    assert stats["logp_mismatch_max"].item() == pytest.approx(0.001, rel=1e-2)


def test_shapes_that_would_broadcast_are_refused() -> None:
    with pytest.raises(ValueError, match=r"advantages \(2, 1\)"):
        kimi_k2_5(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 1), torch.ones(2, 3), **KIMI)


def test_an_empty_mask_needs_a_denominator() -> None:
    zeros = torch.zeros(3)
    with pytest.raises(ValueError, match="mask empty"):
        kimi_k2_5(zeros, zeros, zeros, zeros, **KIMI)
    loss, stats = kimi_k2_5(zeros, zeros, zeros, zeros, **KIMI, denominator=10)
    assert loss == 0
    assert stats["logp_mismatch_mean"] == 0
