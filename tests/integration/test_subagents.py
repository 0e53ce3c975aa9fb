"""Subagents that are not our loop's, or not our weights: agents of another framework, and an endpoint.

The policy is a tiny one that has learned one swarm's dialogue by heart: the orchestrator hands each number's look-up to
a subagent and says the sum.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard

from parl.config import Config, parse
from parl.core.errors import ConfigError
from parl.core.messages import Message
from parl.core.types import UNKNOWN_TOKEN, Episode, ToolCall
from parl.deploy.model import export
from parl.deploy.serve import ServedPolicy, Service, _policies
from parl.env.demonstrations import Segment
from parl.env.registry import make_env
from parl.gateway.app import ServerLimits, make_app
from parl.policy.base import Generation, PolicyHandle, Request
from parl.policy.engines.scripted import ScriptedEngine, call_text
from parl.policy.engines.torch import TorchEngine
from parl.policy.models.load import load_policy
from parl.policy.renderers.chatml import ChatML
from parl.rollout.swarm import SwarmRunner
from parl.training.trainer import train
from tests.support.helpers import ROOT
from tests.support.servers import serving

pytestmark = [pytest.mark.integration, pytest.mark.slow]
TEMPLATE = ROOT / "envs" / "template"


def config(folder: Path, name: str, **more: Any) -> Config:
    roles = more.pop("roles", {})
    limits = {"turns": 6, "context_tokens": 256}
    return parse(
        {
            "name": name,
            "run_dir": str(folder / name),
            "env": {
                "id": "calc_env:calc/Calc-v0",
                "kwargs": {"num": 2},
                "tasks": {
                    "train": {"num": 1},
                    "validation": {"num": 1},
                    "test": {"num": 1, "seed": 0},
                },
            },
            "policies": {"main": {"model": "tiny", "tiny": {"hidden_size": 32, "ff_size": 32}}},
            "roles": {
                "orchestrator": {
                    "system_prompt": "solve",
                    "sampling": {"max_tokens": 48},
                    "limits": limits,
                },
                "subagent": {
                    "sampling": {"max_tokens": 24},
                    "limits": limits,
                    **roles.get("subagent", {}),
                },
            },
            "reward": {
                "terms": {"outcome": {"weight": 1.0}, "tokens": {"weight": 1.0, "per": 100}}
            },
            "eval": {"num_tasks": 1, "every": None},
            "train": {"num_steps": 2, "tasks_per_step": 1, "group_size": 8},
            "tracking": {"wandb": {"mode": "disabled"}},
            **more,
        }
    )


def expert(messages: Sequence[Message], rng: np.random.Generator) -> list[Segment]:
    """Both roles: by the prompt it is told what it is."""
    prompt = next(m["content"] for m in messages if m["role"] == "user")
    heard = [m["content"] for m in messages if m["role"] == "tool"]
    names = prompt.removeprefix("sum : ").split()
    if len(names) == 1:  # a subagent
        return [Segment(heard[0] if heard else call_text(ToolCall("lookup", {"name": names[0]})))]
    if heard:
        return [Segment(str(sum(map(int, heard[1:]))))]
    create = ToolCall("create_subagent", {"name": "task", "system_prompt": "solve"})
    assign = [
        ToolCall("assign_task", {"agent": "task", "prompt": f"sum : {name}"}) for name in names
    ]
    return [Segment("\n".join(map(call_text, (create, *assign))))]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A transformers folder of a policy that has nearly learned the expert's episode by heart."""
    folder = tmp_path_factory.mktemp("policy")
    sys.path.insert(0, str(TEMPLATE))
    made = config(folder, "learn")
    env = make_env(made.env)
    task = env.generate_tasks("train", 1, 0)[0]
    torch.manual_seed(0)
    model, tokenizer = load_policy("main", made.policies["main"], env, 0, torch.float32)
    handle = PolicyHandle(
        "main", ChatML(tokenizer), ScriptedEngine(expert, ChatML(tokenizer)), False
    )
    runner = SwarmRunner(
        {"orchestrator": handle, "subagent": handle}, made.roles, made.swarm, made.clock
    )
    episode: Episode = asyncio.run(
        runner.run(env, task, episode_id="e", group="g", step=0, seed="s")
    )
    assert (episode.status, episode.outcome["score"], len(episode.subagents)) == (
        "completed",
        1.0,
        2,
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    loss = torch.tensor(9.0)
    for _ in range(300):
        losses = []
        for trace in episode.traces:
            ids, mask = torch.tensor([trace.token_ids]), torch.tensor([trace.mask])
            losses.append(model(input_ids=ids, labels=torch.where(mask == 1, ids, -100)).loss)
        loss = torch.stack(losses).max()
        if loss.item() < 0.02:  # not quite by heart: RL needs episodes that differ
            break
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        optimizer.step()
    assert loss.item() < 0.02
    model.save_pretrained(folder / "policy")
    tokenizer.save_pretrained(folder / "policy")
    yield folder / "policy"
    sys.path.remove(str(TEMPLATE))


def main(policy: Path) -> dict[str, Any]:
    return {"model": str(policy), "tools_in_prompt": False}


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def episodes(run: Path, step: int) -> list[dict[str, Any]]:
    text = (
        zstandard.ZstdDecompressor()
        .stream_reader((run / f"episodes/step_{step:06d}.jsonl.zst").read_bytes())
        .read()
    )
    return [json.loads(line) for line in text.decode().splitlines()]


# --- agents of another framework -------------------------------------------------------------------------------------

HARNESS = {"subagent": {"external_agent": "tests.support.external_agents:calls_tools"}}


@pytest.fixture(scope="module")
def sampled() -> Iterator[dict[str, list[tuple[Request, Generation]]]]:
    """What the engines sampled, by session: their own record."""
    seen: dict[str, list[tuple[Request, Generation]]] = {}
    generate = TorchEngine.generate

    async def recorded(self: TorchEngine, request: Request) -> Generation:
        generation = await generate(self, request)
        seen.setdefault(request.session, []).append((request, generation))
        return generation

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TorchEngine, "generate", recorded)
        yield seen


def test_subagents_of_another_framework_are_trained_on_what_was_sampled(
    policy: Path, sampled: dict[str, list[tuple[Request, Generation]]]
) -> None:
    made = config(policy.parent, "external_agent", policies={"main": main(policy)}, roles=HARNESS)
    train(made, None, False)
    num_subagents = num_calls = 0
    for step in range(2):
        for episode in episodes(made.run_path, step):
            for trace in episode["traces"]:
                record = sampled[f"{episode['id']}/{trace['id']}"]
                assert len(record) == len(trace["turns"])
                for turn, (request, generation) in zip(trace["turns"], record, strict=True):
                    span = slice(turn["start"], turn["end"])
                    assert tuple(trace["token_ids"][: turn["start"]]) == request.token_ids
                    assert tuple(trace["token_ids"][span]) == generation.token_ids
                    assert tuple(trace["logprobs"][span]) == generation.logprobs
                    assert tuple(turn["policy_versions"]) == generation.versions == (step,)
                    assert request.temperature == 1.0
                assert sum(trace["mask"]) == sum(len(g.token_ids) for _, g in record)
                if trace["role"] == "subagent":
                    num_subagents += 1
                    num_calls += sum(turn["env_calls"] for turn in trace["turns"])
    assert num_subagents > 16  # of 2 x 8 episodes with two each
    assert num_calls > 16
    for line in lines(made.run_path):
        assert line["policy/main/grad_norm"] > 0
        assert line["policy/main/logp_mismatch_max"] < 1e-4
        assert line["failures/num_failed"] == 0
        assert line["tokens/subagent"] > 0


# --- an endpoint -----------------------------------------------------------------------------------------------------


def test_an_orchestrator_is_trained_with_subagents_behind_an_endpoint(policy: Path) -> None:
    """The endpoint is `parl serve`'s own application; a script stands behind it."""
    env = make_env(config(policy.parent, "learn").env)
    _, tokenizer = load_policy(
        "main", config(policy.parent, "learn").policies["main"], env, 0, torch.float32
    )
    renderer = ChatML(tokenizer)
    handle = PolicyHandle("expert", renderer, ScriptedEngine(expert, renderer), False)
    service = Service({"expert": ServedPolicy(handle, 256, 24, 1.0)})
    with serving(make_app(lambda path, key: service, ServerLimits(), ["127.0.0.1"])) as address:
        engine = {"type": "openai", "base_url": f"{address}/v1", "model": "expert"}
        made = config(
            policy.parent,
            "endpoint",
            policies={"main": main(policy), "far": {"engine": engine}},
            roles={"subagent": {"policy": "far", "trainable": False}},
        )
        train(made, None, False)
    finished = 0
    for episode in [e for step in range(2) for e in episodes(made.run_path, step)]:
        assert episode["traces"][0]["policy"] == "main"
        assert any(episode["traces"][0]["advantages"]) or not any(episode["traces"][0]["mask"])
        for trace in episode["traces"][1:]:
            assert trace["policy"] == "far"
            assert set(trace["token_ids"]) == {UNKNOWN_TOKEN}
            assert not any(trace["mask"])
            finished += trace["score"] == 1.0
    assert finished > 16
    assert sorted(p.name for p in made.run_path.glob("checkpoints/step_000002/policies/*")) == [
        "main"
    ]
    for line in lines(made.run_path):
        assert line["policy/main/grad_norm"] > 0
        assert line["policy/main/logp_mismatch_max"] < 1e-4
        assert line["failures/num_failed"] == 0
        assert line["tokens/subagent"] > 0
        assert "policy/far/loss" not in line
    with pytest.raises(ConfigError, match="no weights of it"):
        export(made.run_path, policy.parent / "exported", "far", None, False)
    served, _ = _policies(made.run_path, None)
    assert list(served) == ["main"]
    assert service.counts["resets"] == 0  # each turn went on where the last had ended


def test_an_endpoint_that_is_not_there_is_told_before_anything_starts(policy: Path) -> None:
    engine = {"type": "openai", "base_url": "http://127.0.0.1:9/v1", "model": "m", "max_retries": 0}
    made = config(
        policy.parent,
        "nowhere",
        policies={"main": main(policy), "far": {"engine": engine}},
        roles={"subagent": {"policy": "far", "trainable": False}},
    )
    with pytest.raises(
        ConfigError,
        match=r"policies\.far\.engine: the endpoint gave no turn \(endpoint_unavailable",
    ):
        train(made, None, False)
    assert not made.run_path.exists()
