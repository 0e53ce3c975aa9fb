"""A policy that sees, from nothing to a trained run: it learns to look, and to read what it sees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from parl.config import Config, parse
from parl.core import images
from parl.core.errors import ConfigError
from parl.deploy.model import export
from parl.learner.policies import PolicySet
from parl.policy.models.load import load_folder
from parl.runs.folder import read_episodes
from parl.runs.records import episode_of
from parl.training.trainer import train
from tests.support.shapes_env import Shapes
from tests.support.vision_models import model_that_sees, save_model

pytestmark = pytest.mark.integration


def config(folder: Path, **changes: Any) -> Config:
    """The cold start ends when the policy plays the game; a few steps of RL follow."""
    optimizer = {
        "lr": 3e-3,
        "muon_lr": 0.012,
        "embedding_lr_scale": 5,
        "betas": [0.9, 0.95],
        "warmup_steps": 10,
    }
    stage = {
        "name": "play",
        "data": {"episode": 0.7, "name": 0.3},
        "tokens_per_step": 600,
        "optimizer": optimizer,
        "until": {"metric": "accuracy/episode", "value": 0.97, "max_steps": 300, "every": 10},
    }
    raw: dict[str, Any] = {
        "name": "shapes",
        "run_dir": str(folder),
        "env": {
            "id": "tests.support.shapes_env:test/Shapes-v0",
            "tasks": {"train": {"num": 64}, "validation": {"num": 8}, "test": {"num": 24}},
        },
        "policies": {
            "main": {
                "model": "tiny_vlm",
                "tiny_vlm": {"hidden_size": 64, "ff_size": 64, "num_layers": 2},
            }
        },
        "roles": {
            "orchestrator": {
                "sampling": {"max_tokens": 12, "temperature": 2.0},
                "limits": {"turns": 3, "context_tokens": 96},
            },
        },
        "swarm": {"mode": "single"},
        "cold_start": {"stages": [stage]},
        "train": {"num_steps": 2, "tasks_per_step": 4, "group_size": 4, "checkpoint_every": 1},
        "eval": {"num_tasks": 24, "split": "test"},
        "tracking": {"wandb": {"mode": "disabled"}},
    }
    return parse(raw | changes)


@pytest.mark.slow
def test_it_learns_to_look_and_to_read(tmp_path: Path, some_number: None) -> None:
    run = tmp_path / "run"
    terms = {
        "outcome": {"weight": 1.0},
        "some_number": {"weight": 0.01},
    }  # where all answers are right, this differs
    train(config(run, reward={"terms": terms}), None, False)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert all(row["policy/main/sync_mismatch"] < 1e-5 for row in rows)
    assert all(row["policy/main/logp_mismatch_max"] < 1e-5 for row in rows)
    assert rows[-1]["eval/score"] > 0.9  # chance is a third
    records = read_episodes(next(iter(sorted((run / "episodes").glob("*.zst")))))
    traces = [episode_of(record).orchestrator for record in records]
    for trace in traces:
        texts = (trace.prompt, *(text for turn in trace.turns for text in turn.observations))
        assert trace.images == tuple(uri for text in texts for uri in images.find(text))
    assert {len(trace.images) for trace in traces} >= {1, 2}
    assert "data:image/png" in (run / "report.html").read_text()
    train(
        config(run, reward={"terms": terms}), run, False
    )  # nothing is left to do: the checkpoint is read
    out = tmp_path / "out"
    export(run, out, None, None, False)
    model, _ = load_folder(out)
    assert model.image_adapter.accepts(traces[0].images[0])


@pytest.mark.slow
def test_workers_on_ray_see_the_same(tmp_path: Path, some_number: None) -> None:
    """Images travel as texts: episodes of the same seed are those of this process."""
    small = {
        "cold_start": None,
        "train": {"num_steps": 1, "tasks_per_step": 2, "group_size": 2},
        "eval": {"num_tasks": 2},
    }
    told = []
    for name, rollout in (("here", {}), ("there", {"backend": "ray", "num_workers": 1})):
        train(config(tmp_path / name, rollout=rollout, **small), None, False)
        (stored,) = (tmp_path / name / "episodes").glob("*.zst")
        told.append(
            [
                (t["token_ids"], t["images"], t["logprobs"])
                for e in read_episodes(stored)
                for t in e["traces"]
            ]
        )
    assert told[0] == told[1]


def test_what_has_no_eyes_reads_that_there_was_an_image(tmp_path: Path) -> None:
    """The same environment and a policy that reads text alone: the no-picture baseline."""
    policies = PolicySet(
        config(tmp_path, policies={"main": {"tiny": {"hidden_size": 32, "ff_size": 32}}}), Shapes()
    )
    renderer: Any = policies.renderers["main"]
    task = Shapes().generate_tasks("train", 1, 0)[0]
    assert renderer.unknown_words(task.prompt) == []
    assert renderer.images(task.prompt) == ()
    assert renderer.start("", (), task.prompt) == renderer.start("", (), "[image] which colour")


def test_vllm_is_given_no_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="cannot serve a tiny model"):
        config(tmp_path, policies={"main": {"model": "tiny_vlm", "engine": {"type": "vllm"}}})
    save_model(*model_that_sees("llava"), tmp_path / "llava")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    policies = {"main": {"model": str(tmp_path / "llava"), "engine": {"type": "vllm"}}}
    with pytest.raises(
        ConfigError, match=r"given no images here, but the model \(llava\) sees.*engine.type: torch"
    ):
        PolicySet(config(tmp_path, policies=policies), Shapes())
