"""The losses against independent computations: a loop over tokens in plain floats, and finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from parl.config.loss import Loss  # noqa: E402
from parl.learner.loss import grpo, gspo, kimi_k2_5  # noqa: E402

LossFunction = Callable[..., Any]

KIMI = {"alpha": -0.4, "beta": 0.3, "tau": 0.05}
GRPO = {"clip_low": 0.2, "clip_high": 0.28}

# Log-ratios below alpha, inside, and above beta, each with both signs of the advantage and with none.
LOG_RATIOS = [-0.9, -0.41, -0.2, 0.0, 0.1, 0.29, 0.31, 0.8]
ADVANTAGES = [1.5, -0.7, 0.0]


def grid() -> dict[str, Any]:
    pairs = [(x, a) for x in LOG_RATIOS for a in ADVANTAGES]
    generator = torch.Generator().manual_seed(0)
    old = -2 * torch.rand(len(pairs), generator=generator, dtype=torch.float64)
    ratios, advantages = (torch.tensor(v, dtype=torch.float64) for v in zip(*pairs, strict=True))
    mask = torch.tensor([i % 5 != 4 for i in range(len(pairs))])
    weights = torch.rand(len(pairs), generator=generator, dtype=torch.float64) + 0.1
    return {
        "logp": old + ratios,
        "old_logp": old,
        "advantages": advantages,
        "mask": mask,
        "weights": weights,
    }


def rows(t: dict[str, Any]) -> list[tuple[float, float, float]]:
    """(log-ratio, advantage, weight) of the tokens inside the mask, as floats."""
    columns = zip(
        *(t[k].tolist() for k in ("logp", "old_logp", "advantages", "weights", "mask")), strict=True
    )
    return [(new - old, a, w) for new, old, a, w, inside in columns if inside]


def gradient(loss_function: LossFunction, t: dict[str, Any], **knobs: float) -> Any:
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
    assert gradient(kimi_k2_5, t, **KIMI, denominator=7.0).tolist() == pytest.approx(
        expected, rel=1e-9, abs=1e-12
    )
    outside = [i for i, (x, *_) in enumerate(rows(t)) if not KIMI["alpha"] <= x <= KIMI["beta"]]
    assert len(outside) > 6, "the grid must clip on both sides"


@pytest.mark.parametrize("function,knobs", [(kimi_k2_5, KIMI), (grpo, GRPO)])
def test_gradient_equals_finite_differences(
    function: LossFunction, knobs: dict[str, float]
) -> None:
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
def test_micro_batches_add_up_to_the_batch(
    function: LossFunction, knobs: dict[str, float], cuts: tuple[int, ...]
) -> None:
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
def test_masked_tokens_have_no_influence_even_when_they_are_not_numbers(
    function: LossFunction, knobs: dict[str, float]
) -> None:
    t = grid()
    clean, clean_gradient = function(**t, **knobs)[0], gradient(function, t, **knobs)
    for key, junk in (
        ("logp", float("-inf")),
        ("old_logp", float("nan")),
        ("advantages", 9.0),
        ("weights", 9.0),
    ):
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
def test_grpo_in_each_quadrant(ratio: float, advantage: float, value: float, slope: float) -> None:
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
    a, zeros, mask = (
        torch.tensor([2.0, 4.0, 8.0]),
        torch.zeros(3),
        torch.tensor([True, True, False]),
    )
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


# --- gspo: traces of 5, 4, 8 and 7 tokens, ratios inside the window and outside of it, on either side ----------------

GSPO = {"clip_low": 0.1, "clip_high": 0.15}
BOUNDS = (0, 5, 9, 17, 24)
SHIFTS = (-0.3, 0.02, 0.3, 0.25)


def traces_grid(advantages: tuple[float, ...] = (1.0, -0.5, 1.5, -0.7)) -> dict[str, Any]:
    """Off-policy; the third trace is above the window with a good advantage, so it is clipped; the first is not."""
    t = grid()
    generator = torch.Generator().manual_seed(1)
    noise = 0.2 * torch.randn(24, generator=generator, dtype=torch.float64)
    t["traces"] = torch.cat(
        [torch.full((hi - lo,), k) for k, (lo, hi) in enumerate(pairwise(BOUNDS))]
    )
    t["logp"] = t["old_logp"] + noise + torch.tensor(SHIFTS, dtype=torch.float64)[t["traces"]]
    t["advantages"] = torch.tensor(advantages, dtype=torch.float64)[t["traces"]]
    return t


def by_trace(t: dict[str, Any]) -> list[tuple[float, list[int]]]:
    """(s, indices of the tokens inside the mask) of each trace, in plain floats: eq. 7."""
    found = []
    for k in range(len(BOUNDS) - 1):
        inside = [i for i in range(24) if t["traces"][i] == k and t["mask"][i]]
        logs = [float(t["logp"][i] - t["old_logp"][i]) for i in inside]
        found.append((math.exp(sum(logs) / len(logs)), inside))
    return found


def window(ratio: float) -> float:
    return min(max(ratio, 1 - GSPO["clip_low"]), 1 + GSPO["clip_high"])


def test_gspo_value_is_eq_5() -> None:
    """With weights 1/|y| and N = the number of traces: the mean over traces of min(s A, clip(s) A)."""
    t = traces_grid()
    made = by_trace(t)
    expected = 0.0
    for (s, inside), a in zip(made, (1.0, -0.5, 1.5, -0.7), strict=True):
        expected += min(s * a, window(s) * a) / len(made)
        for i in inside:
            t["weights"][i] = 1 / len(inside)
    loss, stats = gspo(**t, **GSPO, denominator=4)
    assert loss.item() == pytest.approx(-expected, rel=1e-12)
    assert [round(s, 2) for s, _ in made] != [round(window(s), 2) for s, _ in made], (
        "some trace must be outside"
    )
    assert stats["clipped_fraction"].item() == pytest.approx(
        len(made[2][1]) / sum(len(i) for _, i in made)
    )


def test_gspo_gradient_is_that_of_each_traces_ratio() -> None:
    """d/d logp_k of w s A summed over a trace's tokens is s A / |y| times the sum of weights; 0 where it is flat."""
    t = traces_grid()
    t["weights"] = torch.ones(24, dtype=torch.float64)  # equal in a trace, as they are in training
    expected = [0.0] * 24
    for (s, inside), a in zip(by_trace(t), (1.0, -0.5, 1.5, -0.7), strict=True):
        flat = (s > 1 + GSPO["clip_high"] and a > 0) or (s < 1 - GSPO["clip_low"] and a < 0)
        for i in inside:
            expected[i] = 0.0 if flat else -s * a / 7.0
    assert gradient(gspo, t, **GSPO, denominator=7.0).tolist() == pytest.approx(
        expected, rel=1e-9, abs=1e-12
    )
    assert sum(x == 0 for x in expected) > 8


def test_gspo_gradient_equals_finite_differences() -> None:
    t = traces_grid()
    t["weights"] = torch.tensor([0.5, 2.0, 1.0, 0.25], dtype=torch.float64)[t["traces"]]
    eps, numeric = 1e-6, []
    for i in range(24):
        step = torch.zeros(24, dtype=torch.float64)
        step[i] = eps
        up = gspo(**{**t, "logp": t["logp"] + step}, **GSPO)[0]
        down = gspo(**{**t, "logp": t["logp"] - step}, **GSPO)[0]
        numeric.append(((up - down) / (2 * eps)).item())
    assert gradient(gspo, t, **GSPO).tolist() == pytest.approx(numeric, rel=1e-5, abs=1e-9)


def test_gspo_token_takes_each_tokens_own_advantage() -> None:
    """Eqs. 13 and 14: the value has s in the place of each token's ratio, the gradient of a token is s A_t."""
    t = traces_grid()
    t["logp"] = t["old_logp"] + (t["logp"] - t["old_logp"]) * 0.1  # inside the window
    t["weights"] = torch.ones(24, dtype=torch.float64)
    t["advantages"] = torch.linspace(-1, 1, 24, dtype=torch.float64)
    value, expected = 0.0, [0.0] * 24
    for s, inside in by_trace(t):
        for i in inside:
            value -= s * float(t["advantages"][i]) / 5.0
            expected[i] = -s * float(t["advantages"][i]) / 5.0
    assert gspo(**t, **GSPO, denominator=5.0)[0].item() == pytest.approx(value, rel=1e-12)
    assert gradient(gspo, t, **GSPO, denominator=5.0).tolist() == pytest.approx(
        expected, rel=1e-9, abs=1e-12
    )


@pytest.mark.parametrize("cuts", [(1,), (2,), (1, 2, 3)])
def test_gspo_micro_batches_of_whole_traces_add_up_to_the_batch(cuts: tuple[int, ...]) -> None:
    t = traces_grid()
    norm = (t["weights"] * t["mask"]).sum()
    logp = t["logp"].clone().requires_grad_()
    total = 0.0
    for first, last in pairwise((0, *cuts, 4)):
        rows_of = slice(BOUNDS[first], BOUNDS[last])
        part = {k: (logp if k == "logp" else v)[rows_of] for k, v in t.items()}
        part["traces"] = part["traces"] - first
        loss = gspo(**part, **GSPO, denominator=norm)[0]
        loss.backward()
        total += loss.item()
    assert total == pytest.approx(gspo(**t, **GSPO)[0].item(), rel=1e-12)
    torch.testing.assert_close(logp.grad, gradient(gspo, t, **GSPO))


def test_gspo_looks_at_nothing_outside_the_mask() -> None:
    t = traces_grid()
    clean, clean_gradient = gspo(**t, **GSPO)[0], gradient(gspo, t, **GSPO)
    for key, junk in (
        ("logp", float("-inf")),
        ("old_logp", float("nan")),
        ("advantages", 9.0),
        ("weights", 9.0),
    ):
        t[key] = torch.where(t["mask"], t[key], torch.tensor(junk, dtype=torch.float64))
    assert gspo(**t, **GSPO)[0] == clean
    torch.testing.assert_close(gradient(gspo, t, **GSPO), clean_gradient)
    none = {**t, "mask": torch.zeros(24)}
    assert gspo(**none, **GSPO, denominator=3.0)[0] == 0
    with pytest.raises(ValueError, match=r"traces \(2,\)"):
        gspo(**{**t, "traces": torch.zeros(2, dtype=torch.long)}, **GSPO)


def test_gspo_on_policy_is_the_plain_policy_gradient() -> None:
    t = traces_grid()
    t["logp"] = t["old_logp"].clone()
    expected = -(t["advantages"] * t["weights"] * t["mask"]) / (t["weights"] * t["mask"]).sum()
    torch.testing.assert_close(gradient(gspo, t, **GSPO), expected)


# --- dapo, from rewards to the loss ----------------------------------------------------------------------------------


def test_dapo_is_eq_8_over_the_groups_that_differ() -> None:
    """Off-policy: sum over tokens of the clipped gain, over all tokens of the groups that are left (eqs. 8, 11 and 12).

    Two groups of orchestrators with 3 tokens each; in the first all rewards are equal, so neither its advantages nor
    its tokens count. In the second the advantages are .5 and -.5.
    """
    from parl.config.credit import Credit
    from parl.config.roles import Roles
    from parl.learner.loss import weighting_of
    from parl.rewards.credit import build_samples
    from tests.support.factories import make_scored

    even = [make_scored("a", 0.3), make_scored("b", 0.3)]
    different = [make_scored("c", 1.0), make_scored("d", 0.0)]
    groups = [even, different]
    samples, mass = build_samples(groups, Credit(), weighting_of(Loss(type="dapo")), Roles(), 0)
    ratios = {"c": (1.5, 0.5, 1.1), "d": (1.5, 0.5, 1.1)}
    value, gradients = 0.0, []
    for sample in samples:
        inside = torch.tensor(sample.mask).bool()
        old = torch.tensor(sample.logprobs, dtype=torch.float64)
        logp = old.clone()
        logp[inside] += torch.tensor(ratios[sample.episode], dtype=torch.float64).log()
        logp.requires_grad_()
        advantages = torch.tensor(sample.advantages, dtype=torch.float64)
        loss, _ = grpo(logp, old, advantages, inside, **GRPO, denominator=mass["main"])
        loss.backward()
        value += loss.item()
        gradients += logp.grad[inside].tolist()
    # c: min(1.5, 1.28) .5, .5 * .5, 1.1 * .5; d: 1.5 * -.5, max(.5, .8) * -.5, 1.1 * -.5
    expected = (1.28 + 0.5 + 1.1 - 1.5 - 0.8 - 1.1) * 0.5 / 6
    assert value == pytest.approx(-expected)
    slopes = [0.0, 0.5, 1.1, -1.5, 0.0, -1.1]
    assert gradients == pytest.approx([-0.5 * s / 6 for s in slopes])
