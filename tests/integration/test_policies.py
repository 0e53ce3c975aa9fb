"""A run in which each role has weights of its own: two adapters on one base, or two full models, learning by turns.

The orchestrator's words are a script's, since an untrained one delegates nothing; they are trained on all the same.
"""

from __future__ import annotations

import json
import signal
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parl.cli import main as cli
from parl.config import load
from parl.core.errors import ConfigError, Interrupted
from parl.core.messages import Message
from parl.core.types import ROLES, Episode, Sample, ToolCall
from parl.env.demonstrations import Segment
from parl.learner.policies import PolicySet
from parl.policy.engines.scripted import ScriptedEngine, call_text
from parl.rewards import terms
from parl.training.hooks import StepRecord
from parl.training.trainer import Trainer, train
from tests.support.helpers import ROOT

pytestmark = [pytest.mark.integration, pytest.mark.slow]
SMOKE = ROOT / "configs" / "smoke.yaml"
GATE = "until: {metric: swarm/num_subagents, value: 2, max_steps: 9}"
SETTINGS = [
    "baseline=null",
    "train.num_steps=4",
    "eval={num_tasks: 2, every: null}",
    "reward.terms={outcome: {weight: 1}, own_number: {weight: 1}}",
    f"roles.orchestrator.trainable=[{{{GATE}, value: false}}, {{value: {{steps: 1, first: true}}}}]",
    f"roles.subagent.trainable=[{{{GATE}, value: true}}, {{value: {{steps: 1, first: false}}}}]",
]
KINDS = {
    "adapters": [
        "policies.orchestrator={adapter: {base: main, rank: 4}, optimizer: {lr: 0.01}}",
        "policies.subagent={adapter: {base: main, rank: 2}, optimizer: {lr: 0.01}}",
        "roles.orchestrator.policy=orchestrator",
        "roles.subagent.policy=subagent",
    ],
    "full": [
        "policies.subagent={tiny: {hidden_size: 32, ff_size: 32}}",
        "roles.subagent.policy=subagent",
    ],
}


@pytest.fixture(autouse=True)
def own_number() -> Iterator[None]:
    """A reward that differs from agent to agent, so that all learn something."""

    @terms.reward(roles=ROLES)
    def own_number(episode: Episode) -> Mapping[str, float]:
        return {
            t.id: zlib.crc32(repr((episode.id, t.token_ids)).encode()) / 2**32
            for t in episode.traces
        }

    yield
    del terms._REGISTRY["own_number"]


def delegate(messages: Sequence[Message], rng: np.random.Generator) -> Sequence[Segment]:
    if sum(m["role"] == "assistant" for m in messages):
        return [Segment("#1 done")]
    calls = [ToolCall("create_subagent", {"name": "capital", "system_prompt": "find"})]
    calls += [ToolCall("assign_task", {"agent": "capital", "prompt": f"find #{i}"}) for i in (1, 2)]
    return [Segment("".join(map(call_text, calls)))]


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    handles = PolicySet.handles

    def with_script(self: PolicySet, roles: Any = None) -> Any:
        made = handles(self, roles)
        engine = ScriptedEngine(delegate, made["orchestrator"].renderer)
        return made | {"orchestrator": replace(made["orchestrator"], engine=engine)}

    monkeypatch.setattr(PolicySet, "handles", with_script)


def metrics(run: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    free = ("time/", "system/")
    return [
        {k: v for k, v in r.items() if not k.startswith(free) and not k.endswith("_per_s")}
        for r in rows
    ]


def weights(run: Path, step: int) -> dict[str, bytes]:
    folder = run / "checkpoints" / f"step_{step:06d}" / "policies"
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.safetensors"))
    }


@pytest.mark.parametrize("kind", KINDS)
def test_roles_learn_by_turns_and_a_stopped_run_goes_on_bit_for_bit(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def config(name: str) -> Any:
        return load(SMOKE, [*SETTINGS, *KINDS[kind], f"run_dir={tmp_path / name}"])

    train(config("whole"), None, False)
    rows = metrics(tmp_path / "whole")
    learned = [tuple(row[f"roles/{role}/trained"] for role in ROLES) for row in rows]
    assert learned == [(0, 1), (1, 0), (0, 1), (1, 0)]  # the gate opens after the first step
    names = [config("whole").roles.orchestrator.policy, "subagent"]
    for row, now in zip(rows, learned, strict=True):
        for name, trained in zip(names, now, strict=True):
            assert (row.get(f"policy/{name}/grad_norm", 0) > 0) == bool(trained)
            assert row[f"policy/{name}/sync_mismatch"] < 1e-4
    assert [rows[-1][f"policy/{name}/weight_version"] for name in names] == [2, 2]

    step = Trainer.step

    def stop(self: Trainer, number: int) -> StepRecord:
        if number == 1:
            signal.raise_signal(signal.SIGINT)  # Ctrl-C in the middle of the run
        return step(self, number)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", stop)
        with pytest.raises(Interrupted):
            train(config("stopped"), None, False)
    train(config("stopped"), tmp_path / "stopped", False)
    assert metrics(tmp_path / "stopped") == rows
    assert weights(tmp_path / "stopped", 4) == weights(tmp_path / "whole", 4)
    before, after = (weights(tmp_path / "whole", at) for at in (2, 4))
    same = {name for name in before if before[name] == after[name]}
    assert same == ({"main/model.safetensors"} if kind == "adapters" else set())


def test_a_run_with_adapters_is_evaluated_exported_and_rescored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    train(
        load(SMOKE, [*SETTINGS, *KINDS["adapters"], f"run_dir={run}", "train.num_steps=2"]),
        None,
        False,
    )

    def parl(*arguments: object) -> int:
        monkeypatch.setattr("sys.argv", ["parl", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0)

    assert parl("eval", run, "--tasks", 1, "--json") == 0
    assert parl("export", run, "-o", tmp_path / "merged", "--policy", "subagent", "--merged") == 0
    assert parl("export", run, "-o", tmp_path / "merged", "--policy", "subagent") == 2
    assert (tmp_path / "merged" / "README.md").is_file()
    capsys.readouterr()
    assert parl("rescore", run, run / "config.resolved.yaml") == 2
    assert "depends on swarm/num_subagents" in capsys.readouterr().err
    known = ["roles.orchestrator.trainable=true", "roles.subagent.trainable=true"]
    assert parl("rescore", run, run / "config.resolved.yaml", *known) == 0


def test_policies_begin_as_copies_of_the_one_that_had_the_cold_start(tmp_path: Path) -> None:
    tiny = "{tiny: {hidden_size: 32, ff_size: 32}}"
    settings = [
        "cold_start.policy=main",
        f"policies.subagent={tiny}",
        "roles.subagent.policy=subagent",
    ]
    run = tmp_path / "run"
    train(
        load(SMOKE, ["baseline=null", "train.num_steps=1", *settings, f"run_dir={run}"]),
        None,
        False,
    )
    found = {
        f.parent.name: f.read_bytes()
        for f in (run / "checkpoints/cold_start/policies").rglob("*.safetensors")
    }
    assert found["main"] == found["subagent"]
    assert len(json.loads((run / "summary.json").read_text())["cold_start_stages"]) == 1


def test_a_copy_of_another_shape_is_refused(tmp_path: Path) -> None:
    settings = ["cold_start.policy=main", "policies.subagent={}", "roles.subagent.policy=subagent"]
    with pytest.raises(ConfigError, match="subagent cannot begin as a copy of main"):
        train(load(SMOKE, ["baseline=null", *settings, f"run_dir={tmp_path / 'run'}"]), None, False)
    assert not (tmp_path / "run").exists()


def test_without_subagent_samples_the_orchestrators_tokens_alone_are_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = PolicySet.update
    seen: set[str] = set()

    def watched(
        self: PolicySet, samples: Sequence[Sample], mass: Mapping[str, float], step: int
    ) -> dict[str, float]:
        seen.update(s.role for s in samples)
        assert mass["main"] >= sum(s.weight * sum(s.mask) for s in samples) > 0
        return update(self, samples, mass, step)

    monkeypatch.setattr(PolicySet, "update", watched)
    run = tmp_path / "run"
    train(
        load(SMOKE, [*SETTINGS[:4], "train.max_subagent_samples=0", f"run_dir={run}"]), None, False
    )
    assert seen == {"orchestrator"}
    assert all(
        row["swarm/num_subagents"] == 2 and row["policy/main/grad_norm"] > 0 for row in metrics(run)
    )
