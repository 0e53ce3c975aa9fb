"""`parl train` on a small random model of a pretrained family: Qwen3's mixture of experts and its chat format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from parl.config import load
from parl.runs.folder import read_episodes
from parl.training.trainer import train
from tests.support.helpers import ROOT
from tests.support.tokenizers import qwen3

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.usefixtures("some_number")]
LONG = "{limits: {context_tokens: 4000}, sampling: {max_tokens: 500}}"
SHAPE = [
    "baseline=null",
    "policies.main.gradient_checkpointing=true",
    f"roles={{orchestrator: {LONG}, subagent: {LONG}}}",
    "reward.terms={outcome: {weight: 1}, some_number: {weight: 1}}",
    "train={num_steps: 2, tasks_per_step: 1, group_size: 2}",
    "eval={num_tasks: 1, every: null}",
]


def test_a_qwen3_mixture_trains(tmp_path: Path) -> None:
    tokenizer = qwen3()
    torch.manual_seed(0)
    shape = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "moe_intermediate_size": 16,
        "num_hidden_layers": 2,
    }
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    config = Qwen3MoeConfig(
        vocab_size=len(tokenizer), **shape, **heads, num_experts=8, num_experts_per_tok=2
    )
    Qwen3MoeForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    run = tmp_path / "run"
    where = [f"policies.main.model={tmp_path}/model", f"run_dir={run}"]
    train(load(ROOT / "configs" / "smoke.yaml", [*SHAPE, *where]), None, False)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [r["policy/main/weight_version"] for r in rows] == [1, 2]
    for row in rows:
        assert row["policy/main/router_agreement"] == 1.0
        assert row["policy/main/logp_mismatch_p99"] <= row["policy/main/logp_mismatch_max"] < 1e-4
    (episode, *_) = read_episodes(run / "episodes" / "step_000001.jsonl.zst")
    prompt = tokenizer.decode(episode["traces"][0]["token_ids"])
    assert '<tools>\n{"type": "function"' in prompt  # listed as Qwen3's own template does
    assert "create_subagent" in prompt
