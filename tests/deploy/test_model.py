"""`parl export`: what others load computes what the engine served, and the card says where it comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from parl.core.errors import CheckpointError, ConfigError
from parl.core.types import ROLES
from parl.deploy.model import export
from parl.learner.policies import PolicySet
from parl.runs.folder import RunFolder
from tests.support.policies import PROBE, TOLERANCE, config, log_probs, save, started, update

RESULT = {"score": 0.625, "critical_steps": 4.5, "num_tasks": 8}
SUMMARY = {
    "seed": 0,
    "split": "validation",
    "heldout": {
        "cold_start": {"swarm": {"greedy": RESULT | {"score": 0.125}}},
        "trained": {"swarm": {"greedy": RESULT}},
    },
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PolicySet]:
    """A finished run of two steps, and its policies."""
    path = tmp_path_factory.mktemp("export") / "run"
    settings = config(train={"num_steps": 2}, reward={"terms": {"outcome": {"weight": 0.75}}})
    RunFolder.create(path, settings).close()
    policies = started(settings)
    update(policies, 0)
    save(policies, path, 1)
    update(policies, 1)
    save(policies, path, 2)
    (path / "summary.json").write_text(json.dumps(SUMMARY))
    return path, policies


def scored(policies: PolicySet, name: str) -> torch.Tensor:
    engine: Any = policies.handles()["orchestrator"].engine
    found: torch.Tensor = engine.score(PROBE, name)
    return found


def of_probe(model: Any) -> torch.Tensor:
    return log_probs(model, PROBE).gather(1, torch.tensor(PROBE[1:])[:, None])[:, 0]


def card(folder: Path) -> tuple[dict[str, Any], str]:
    """Its header and its text."""
    _, head, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(head), text


@pytest.mark.parametrize("name", ROLES)
def test_a_merged_model_computes_what_the_engine_served(
    run: tuple[Path, PolicySet], name: str, tmp_path: Path
) -> None:
    path, policies = run
    folder = export(path, tmp_path / "out", name, None, merged=True)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert not [k for k in model.state_dict() if "lora" in k]
    assert type(model) is type(policies.models["main"])
    assert torch.allclose(of_probe(model), scored(policies, name), atol=TOLERANCE)
    assert float((of_probe(model) - scored(policies, "")).abs().max()) > 100 * TOLERANCE
    assert (
        AutoTokenizer.from_pretrained(folder).get_vocab() == policies.tokenizers["main"].get_vocab()
    )
    head, text = card(folder)
    assert head["library_name"] == "transformers"
    assert "merged into it" in text


def test_an_adapter_folder_finds_its_base(run: tuple[Path, PolicySet], tmp_path: Path) -> None:
    path, policies = run
    folder = export(path, tmp_path / "out", "subagent", None, merged=False)
    shape = json.loads((folder / "adapter_config.json").read_text())
    assert shape["base_model_name_or_path"] == str(
        path / "checkpoints" / "step_000002" / "policies" / "main"
    )
    base = AutoModelForCausalLM.from_pretrained(shape["base_model_name_or_path"])
    model = PeftModel.from_pretrained(base, str(folder)).eval()
    assert torch.allclose(of_probe(model), scored(policies, "subagent"), atol=TOLERANCE)
    assert card(folder)[0]["library_name"] == "peft"
    assert not (folder / "model.safetensors").exists()


def test_an_earlier_checkpoint_is_another_model(
    run: tuple[Path, PolicySet], tmp_path: Path
) -> None:
    path, policies = run
    folder = export(path, tmp_path / "out", "orchestrator", "1", merged=True)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert not torch.allclose(of_probe(model), scored(policies, "orchestrator"), atol=TOLERANCE)
    text = card(folder)[1]
    assert "`step_000001`" in text
    assert "0.625" not in text  # the summary's figures are of the last step
    assert "parl eval RUN --checkpoint step_000001" in text
    (path / "eval" / "step_000001.json").write_text(json.dumps(RESULT | {"score": 0.375}))
    assert (
        "| step_000001 | 0.375 | 4.5 |"
        in card(export(path, tmp_path / "again", "orchestrator", "1", merged=True))[1]
    )


def test_a_full_policy_is_its_transformers_folder(
    run: tuple[Path, PolicySet], tmp_path: Path
) -> None:
    path, policies = run
    folder = export(path, tmp_path / "out", "main", None, merged=False)
    assert torch.equal(
        of_probe(AutoModelForCausalLM.from_pretrained(folder)), of_probe(policies.models["main"])
    )


def test_the_card_says_how_it_was_trained(run: tuple[Path, PolicySet], tmp_path: Path) -> None:
    text = card(export(run[0], tmp_path / "out", "orchestrator", None, merged=False))[1]
    for said in (
        "LoRA adapter (rank 4, alpha 32) on the policy `main`",
        "plays the orchestrator in `x`",
        "seed 0",
        "2 steps of 8 tasks × 8 attempts",
        "kimi_k2_5",
        "learning rate 0.02",
        "| outcome | 0.75 |",
        "| cold start | greedy | 0.125 |",
        "| trained swarm | greedy | 0.625 | 4.5 |",
        "Split `validation`",
    ):
        assert said in text
    shown = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    stored = yaml.safe_load((run[0] / "config.resolved.yaml").read_text())
    assert shown == {
        key: value for key, value in stored.items() if key not in ("schema_version", "run_dir")
    }


def test_what_is_refused(run: tuple[Path, PolicySet], tmp_path: Path) -> None:
    path, _ = run
    with pytest.raises(
        ConfigError, match="several policies; say which: --policy orchestrator or --policy subagent"
    ):
        export(path, tmp_path / "out", None, None, merged=False)
    with pytest.raises(
        ConfigError, match=r"no policy 'orchestrater'\. Did you mean 'orchestrator'"
    ):
        export(path, tmp_path / "out", "orchestrater", None, merged=False)
    with pytest.raises(CheckpointError, match="no checkpoint '7'"):
        export(path, tmp_path / "out", "main", "7", merged=False)
    (tmp_path / "mine").write_text("")
    with pytest.raises(CheckpointError, match="holds something already"):
        export(path, tmp_path, "main", None, merged=False)
    with pytest.raises(CheckpointError, match="is no run folder"):
        export(tmp_path, tmp_path / "out", None, None, merged=False)
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]
