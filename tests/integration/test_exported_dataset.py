"""What `parl export --episodes` writes, in the hands of TRL's trainers: they take it, and train on what was meant."""

from __future__ import annotations

import asyncio
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import Qwen3Config, Qwen3ForCausalLM
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from parl.core.types import ScoredEpisode, ToolCall
from parl.deploy.dataset import DatasetRequest, export_episodes
from parl.policy.base import PolicyHandle
from parl.policy.engines.scripted import ScriptedEngine, call_text
from parl.policy.renderers.families import make_renderer
from parl.runs.folder import RunFolder, read_episodes
from tests.support.factories import make_config, with_rewards
from tests.support.helpers import TASK, WordsEnv, roles, runner, script
from tests.support.tokenizers import qwen3

pytestmark = [pytest.mark.integration, pytest.mark.slow]
TOKENIZER = qwen3()
ORDERS = "\n".join(
    call_text(c)
    for c in (
        ToolCall("create_subagent", {"name": "a", "system_prompt": "be quick"}),
        ToolCall("assign_task", {"agent": "a", "prompt": "red"}),
        ToolCall("peek", {"at": "here"}),
    )
)


def played(name: str, answer: str) -> ScoredEpisode:
    renderer: Any = make_renderer("main", "auto", TOKENIZER)
    play = script([f"Two.\n{ORDERS}", answer], red=["RED" if answer == "blue" else "no"])
    handle = PolicyHandle("main", renderer, ScriptedEngine(play, renderer))
    swarm = runner(play, who=roles()).with_policies({"orchestrator": handle, "subagent": handle})
    made = asyncio.run(swarm.run(WordsEnv(), TASK, episode_id=name, group="g", step=0, seed=name))
    episode = replace(made, id=name)
    assert (episode.status, len(episode.traces)) == ("completed", 2)
    return with_rewards(episode, 1.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = make_config("parl/WideSearch-v0")
    folder = RunFolder.create(tmp_path_factory.mktemp("trl") / "r", config)
    folder.write_episodes(0, [played("e1", "blue"), played("e2", "green")], [])
    folder.close()
    return folder.path


def exported(run: Path, folder: Path, kind: Any) -> datasets.Dataset:
    export_episodes(run, folder, DatasetRequest(kind))
    return datasets.load_dataset(str(folder), split="train", cache_dir=str(folder.parent / "cache"))


def tiny() -> Any:
    shape = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    heads = {
        "num_key_value_heads": 2,
        "head_dim": 8,
        "pad_token_id": 0,
        "tie_word_embeddings": True,
    }
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=len(TOKENIZER), **shape, **heads))


def arguments(folder: Path) -> dict[str, Any]:
    quiet = {"report_to": [], "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1}
    return {
        "output_dir": str(folder),
        "max_steps": 2,
        "use_cpu": True,
        "bf16": False,
        "max_length": 4096,
        **quiet,
    }


def trained(trainer: Any) -> list[float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def tokenizer() -> Any:
    TOKENIZER.pad_token = "<|endoftext|>"
    return TOKENIZER


def test_sft_trainer_takes_the_messages(run: Path, tmp_path: Path) -> None:
    rows = exported(run, tmp_path / "data", "sft")
    options = SFTConfig(**arguments(tmp_path / "sft"), per_device_train_batch_size=2)
    trainer = SFTTrainer(
        model=tiny(), args=options, processing_class=tokenizer(), train_dataset=rows
    )
    text = TOKENIZER.decode(trainer.train_dataset[0]["input_ids"])
    assert (
        '"name": "peek", "arguments": {"at": "here"}' in text
    )  # the call, once, with its own arguments
    assert text.count('"name": "assign_task", "arguments"') == 1
    assert "<tool_response>\nRED\n</tool_response>" in text
    assert all(loss > 0 for loss in trained(trainer))


def test_rendered_by_its_own_template_a_trace_has_the_tokens_that_were_sampled(
    run: Path, tmp_path: Path
) -> None:
    """The environment of the config lists other tools than the one that played, so without them."""
    for row in exported(run, tmp_path / "data", "sft"):
        ids = TOKENIZER.apply_chat_template(row["messages"], tools=row["tools"], return_dict=False)
        rendered, sampled = (
            TOKENIZER.decode(x).partition("<|im_start|>user\n")[2] for x in (ids, row["token_ids"])
        )
        assert rendered.replace("<think>\n\n</think>\n\n", "").rstrip("\n") == sampled


def test_the_exact_tokens_by_the_cards_own_code(run: Path, tmp_path: Path) -> None:
    rows = exported(run, tmp_path / "data", "sft")
    code = (tmp_path / "data" / "README.md").read_text().split("```python\n")[2].split("```")[0]
    scope: dict[str, Any] = {"dataset": rows}
    exec(code, scope)
    options = SFTConfig(**arguments(tmp_path / "sft"), per_device_train_batch_size=4)
    trainer = SFTTrainer(
        model=tiny(), args=options, processing_class=tokenizer(), train_dataset=scope["dataset"]
    )
    batch = next(iter(trainer.get_train_dataloader()))
    stored = [
        t for e in read_episodes(run / "episodes" / "step_000000.jsonl.zst") for t in e["traces"]
    ]
    assert int((batch["labels"] != -100).sum()) == sum(sum(t["mask"]) for t in stored) > 0
    whole = {tuple(t["token_ids"]) for t in stored}
    assert {tuple(r["input_ids"]) for r in trainer.train_dataset} == whole
    assert all(loss > 0 for loss in trained(trainer))


def test_dpo_trainer_takes_the_pairs(run: Path, tmp_path: Path) -> None:
    rows = exported(run, tmp_path / "data", "preferences")
    assert [r["role"] for r in rows] == ["orchestrator", "subagent"]
    options = DPOConfig(**arguments(tmp_path / "dpo"), per_device_train_batch_size=2)
    tiny().save_pretrained(tmp_path / "model")  # DPO loads its reference from there
    model = Qwen3ForCausalLM.from_pretrained(tmp_path / "model")
    trainer = DPOTrainer(
        model=model, args=options, processing_class=tokenizer(), train_dataset=rows
    )
    one = trainer.train_dataset[0]
    assert TOKENIZER.decode(one["chosen_ids"]).endswith("blue<|im_end|>\n")
    assert TOKENIZER.decode(one["rejected_ids"]).endswith("green<|im_end|>\n")
    assert "say the word" in TOKENIZER.decode(one["prompt_ids"])
    assert all(loss > 0 for loss in trained(trainer))
