"""configs/gpu: the recipe says what it is taken from, and its memory is what docs/explain/gpu-recipe.md says."""

from __future__ import annotations

import runpy

import pytest

from parl.config import load
from tests.support.helpers import ROOT, env_section

RECIPE = ROOT / "configs" / "gpu" / "qwen3_4b_widesearch.yaml"


def test_the_recipe_is_the_published_one_in_our_terms() -> None:
    config = load(RECIPE)
    policy, train = config.policies["main"], config.train
    assert config.roles.orchestrator.policy == config.roles.subagent.policy == "main"
    assert config.roles.orchestrator.ever_trainable
    assert config.roles.subagent.ever_trainable
    assert (policy.model, policy.dtype, policy.optimizer.lr) == ("Qwen/Qwen3-4B", "bfloat16", 1e-6)
    assert (config.credit.type, config.credit.normalize_std, config.loss.type) == (
        "trajectory",
        True,
        "grpo",
    )
    assert (config.loss.clip_low, config.loss.clip_high) == (0.2, 0.28)
    num_tasks = env_section(config).tasks.train.num
    assert num_tasks is not None
    # One epoch.
    assert 0 <= num_tasks - train.num_steps * train.tasks_per_step < train.tasks_per_step
    assert "NOT RUN HERE" in RECIPE.read_text().splitlines()[0]


def test_what_a_model_of_4_billion_takes() -> None:
    """20 bytes a parameter, the layers' inputs, three float32 matrices of logits; docs/explain/gpu-recipe.md has the numbers."""
    scale = runpy.run_path(str(ROOT / "scripts" / "scale.py"))
    parts = scale["memory"](4.02e9, **scale["MODEL"], written=0.4)
    assert sum(list(parts.values())[:5]) == pytest.approx(20 * 4.02e9)
    assert parts["inputs of the layers"] == 36 * 2560 * 32000 * 2
    assert parts["logits, their log-softmax and gradient"] == pytest.approx(12800 * 151936 * 12)
    page = (ROOT / "docs/explain/gpu-recipe.md").read_text()
    for name, size in {**parts, "in all": sum(parts.values())}.items():
        assert f"| {name} | {size / 1e9:.1f} |" in page
