"""Checkpoints: whole or not there, checked on load, and enough to go on from."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from parl.config.loss import Loss
from parl.config.policy import Optimizer
from parl.config.tiny import TinyModel
from parl.core import manifest
from parl.core.errors import CheckpointError
from parl.learner import checkpoint
from parl.learner.checkpoint import State
from parl.learner.learner import Learner
from parl.learner.policies import PolicySet
from parl.policy.models.load import load_folder
from parl.policy.models.tiny import build_model, build_tokenizer
from tests.support.factories import make_config, make_sample
from tests.support.helpers import WordsEnv

STATE = State(7, {"task": 31.0}, [{"name": "copy", "steps": 3}], {"step": 5, "score": 0.5})
WORDS = [f"w{i}" for i in range(30)]


def policy(seed: int = 0) -> tuple[Any, Any]:
    tokenizer = build_tokenizer(WORDS, ())
    shape = TinyModel(hidden_size=16, num_heads=2, ff_size=16)
    return build_model(shape, len(tokenizer), tokenizer.eos_token_id, seed), tokenizer


def save(
    run: Path, step: int, state: State = STATE, learners: dict[str, Any] | None = None
) -> Path:
    folder = run / "checkpoints" / checkpoint.step_name(step)
    folder.parent.mkdir(exist_ok=True)
    checkpoint.save(folder, state, {"main": policy()}, learners or {})
    return folder


def test_a_round_trip(tmp_path: Path) -> None:
    learners = {
        "main": {"optimizer": {"state": {0: {"momentum": torch.arange(4.0)}}}, "version": 3}
    }
    folder = save(tmp_path, 7, learners=learners)
    state, loaded = checkpoint.load(folder)
    assert state == STATE
    assert loaded["main"]["version"] == 3
    assert torch.equal(loaded["main"]["optimizer"]["state"][0]["momentum"], torch.arange(4.0))
    model, tokenizer = load_folder(folder / "policies" / "main")
    weights = policy()[0].state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert tokenizer.get_vocab() == policy()[1].get_vocab()
    assert [p.name for p in folder.parent.iterdir()] == ["step_000007"]


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_every_file_is_in_the_manifest(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert sorted([*manifest, "manifest.json"]) == files(folder)
    assert {"learner.pt", "state.json", "policies/main/model.safetensors"} <= set(manifest)


@pytest.mark.parametrize("how", ["changed", "cut", "gone"])
@pytest.mark.parametrize("name", ["learner.pt", "state.json", "policies/main/model.safetensors"])
def test_a_damaged_file_is_named_with_the_way_out(tmp_path: Path, name: str, how: str) -> None:
    folder = save(tmp_path, 1)
    path = folder / name
    data = bytearray(path.read_bytes())
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(data[:-1])
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(folder)
    assert f"{folder} is damaged: {name} is missing or was changed" in str(caught.value)
    assert f"Delete {folder}" in str(caught.value)


@pytest.mark.parametrize("text", [None, "", "{", "[]", "3", "{}", '{"learner.pt": "0"}'])
def test_a_damaged_manifest(tmp_path: Path, text: str | None) -> None:
    folder = save(tmp_path, 1)
    if text is None:
        (folder / "manifest.json").unlink()
    else:
        (folder / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match="Delete"):
        checkpoint.load(folder)


def test_a_failure_while_saving_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tmp_path, 1)

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        save(tmp_path, 1, State(1, {}, []))
    with pytest.raises(OSError, match="no space"):
        save(tmp_path, 2)
    assert checkpoint.load(folder)[0] == STATE
    assert checkpoint.steps(tmp_path) == [folder]
    assert checkpoint.latest(tmp_path) == folder
    monkeypatch.undo()
    assert (
        checkpoint.load(save(tmp_path, 2))[0] == STATE
    )  # what was left half-written is in nobody's way
    assert [p.name for p in checkpoint.steps(tmp_path)] == ["step_000001", "step_000002"]


def test_saving_again_replaces(tmp_path: Path) -> None:
    save(tmp_path, 1)
    folder = save(tmp_path, 1, State(9, {}, []))
    assert checkpoint.load(folder)[0] == State(9, {}, [])


def test_latest_and_find(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path) is None
    with pytest.raises(CheckpointError, match="has no checkpoint 'latest'"):
        checkpoint.find(tmp_path, None)
    cold = tmp_path / "checkpoints" / manifest.COLD_START
    cold.parent.mkdir()
    checkpoint.save(cold, State(0, {}, []), {"main": policy()}, {})
    assert checkpoint.latest(tmp_path) == checkpoint.find(tmp_path, "cold-start") == cold
    assert checkpoint.find(tmp_path, "best") == cold
    five, seven = save(tmp_path, 5), save(tmp_path, 7)
    assert (
        checkpoint.latest(tmp_path)
        == checkpoint.find(tmp_path, None)
        == checkpoint.find(tmp_path, "7")
        == seven
    )
    assert checkpoint.find(tmp_path, "best") == checkpoint.find(tmp_path, "step_000005") == five
    with pytest.raises(
        CheckpointError, match=r"no checkpoint '6'\. Steps: step_000005, step_000007"
    ):
        checkpoint.find(tmp_path, "6")


def test_prune_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in range(1, 7):
        (tmp_path / "checkpoints" / checkpoint.step_name(step)).mkdir(parents=True)
    (tmp_path / "checkpoints" / manifest.COLD_START).mkdir()

    def left() -> list[int]:
        return [int(p.name[-6:]) for p in checkpoint.steps(tmp_path)]

    checkpoint.prune(tmp_path, keep=3, spare=2)
    assert left() == [2, 4, 5, 6]
    checkpoint.prune(tmp_path, keep=3, spare=5)
    assert left() == [4, 5, 6]
    checkpoint.prune(tmp_path, keep=1, spare=None)
    assert left() == [6]
    assert (tmp_path / "checkpoints" / manifest.COLD_START).is_dir()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_policies_are_loaded_in_their_dtype(tmp_path: Path, dtype: str) -> None:
    model, tokenizer = policy()
    folder = tmp_path / "step_000001"
    checkpoint.save(folder, STATE, {"main": (model, tokenizer)}, {})
    frozen = {"subagent": {"trainable": False}}
    config = make_config(policies={"main": {"dtype": dtype}}, roles=frozen)
    policies = PolicySet(config, WordsEnv(), folder)
    policies.engines.start()
    policies.engines.freeze(folder)
    roles = policies.handles(config.roles)
    assert {p.dtype for p in policies.models["main"].parameters()} == {torch.float32}  # it learns
    for role in roles.values():
        engine: Any = role.engine
        assert {p.dtype for p in engine.model.parameters()} == {getattr(torch, dtype)}
    assert roles["orchestrator"].engine is not roles["subagent"].engine


@pytest.mark.parametrize(
    "optimizer", [Optimizer(lr=1e-2), Optimizer(lr=1e-2, muon_lr=1e-2, embedding_lr_scale=5)]
)
def test_a_learner_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(
    tmp_path: Path, optimizer: Optimizer
) -> None:
    def learner(model: Any) -> Learner:
        return Learner("main", model, optimizer, Loss(), 64)

    def update(who: Learner, step: int) -> dict[str, float]:
        made = torch.Generator().manual_seed(step)
        samples = []
        for i in range(4):
            n = 9 + i
            ids = tuple(torch.randint(3, 33, (n,), generator=made).tolist())
            mask = (0, 0, *[1] * (n - 2))
            logp = tuple(-2.0 * m for m in mask)
            samples.append(make_sample(ids, mask, logp, i - 1.5, agent=str(i), version=step))
        return who.update(samples, {"orchestrator": 1.0}, 30.0, step, 6, 2)

    whole = learner(policy()[0])
    for step in range(3):
        update(whole, step)
    states = {"main": {"optimizer": whole.optimizer.state_dict(), "version": whole.version}}
    folder = tmp_path / "step_000003"
    checkpoint.save(folder, State(3, {}, []), {"main": (whole.bare_model, policy()[1])}, states)
    _, loaded = checkpoint.load(folder)
    again = learner(load_folder(folder / "policies" / "main")[0])
    again.optimizer.load_state_dict(loaded["main"]["optimizer"])
    again.version = loaded["main"]["version"]
    for step in range(3, 6):
        assert update(whole, step) == update(again, step)
    for name, value in whole.weights().items():
        assert torch.equal(value, again.weights()[name]), name
