"""A policy that uses tools, in the hands of the `openai` client: trained by it, then served to it.

The policy is a tiny one that has learned a single dialogue by heart, so it calls tools within seconds of training.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
import zstandard

from parl.config import Config, parse
from parl.core.types import Episode, ToolCall
from parl.env.base import AgentEnv
from parl.env.demonstrations import Segment
from parl.env.registry import make_env
from parl.policy.base import Generation, PolicyHandle, Request
from parl.policy.engines.scripted import ScriptedEngine, call_text
from parl.policy.engines.torch import TorchEngine
from parl.policy.models.load import load_policy
from parl.policy.renderers.chatml import ChatML
from parl.rollout.swarm import SwarmRunner
from parl.training.trainer import train
from tests.support.helpers import ROOT

pytestmark = [pytest.mark.integration, pytest.mark.slow]

TEMPLATE = ROOT / "envs" / "template"


def config(folder: Path, **more: Any) -> Config:
    return parse(
        {
            "name": "external_agent",
            "run_dir": str(folder / "run"),
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
                    "external_agent": "tests.support.external_agents:calls_tools",
                    "sampling": {"max_tokens": 24},
                    "limits": {"turns": 6, "context_tokens": 256},
                }
            },
            "swarm": {"mode": "single"},
            "reward": {
                "terms": {"outcome": {"weight": 1.0}, "tokens": {"weight": 1.0, "per": 100}}
            },
            "eval": {"num_tasks": 1, "every": None},
            "train": {"num_steps": 2, "tasks_per_step": 1, "group_size": 8},
            "tracking": {"wandb": {"mode": "disabled"}},
            **more,
        }
    )


def play(config: Config, env: AgentEnv, handle: PolicyHandle, seed: str) -> Episode:
    policies = {"orchestrator": handle, "subagent": handle}
    runner = SwarmRunner(policies, config.roles, config.swarm, config.clock)
    task = env.generate_tasks("train", 1, 0)[0]
    return asyncio.run(runner.run(env, task, episode_id=seed, group="g", step=0, seed=seed))


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A transformers folder of a policy that knows one dialogue: look up both numbers, say their sum."""
    folder = tmp_path_factory.mktemp("policy")
    sys.path.insert(0, str(TEMPLATE))
    made = config(folder)
    env = make_env(made.env)
    numbers = env.generate_tasks("train", 1, 0)[0].data["numbers"]
    said = [call_text(ToolCall("lookup", {"name": name})) for name in numbers] + [
        str(sum(numbers.values()))
    ]
    torch.manual_seed(0)
    model, tokenizer = load_policy("main", made.policies["main"], env, 0, torch.float32)
    renderer = ChatML(tokenizer)
    engine = ScriptedEngine(
        lambda messages, rng: [Segment(said[sum(m["role"] == "assistant" for m in messages)])],
        renderer,
    )
    episode = play(made, env, PolicyHandle("main", renderer, engine, False), "script")
    assert (episode.status, episode.outcome["score"]) == ("completed", 1.0)
    trace = episode.orchestrator
    ids, mask = torch.tensor([trace.token_ids]), torch.tensor([trace.mask])
    labels = torch.where(mask == 1, ids, -100)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    loss = torch.tensor(9.0)
    for _ in range(200):
        loss = model(input_ids=ids, labels=labels).loss
        if loss.item() < 0.12:  # not quite by heart: RL needs episodes that differ
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.12
    model.save_pretrained(folder / "policy")
    tokenizer.save_pretrained(folder / "policy")
    (folder / "learned.json").write_text(json.dumps([trace.token_ids, trace.mask]))
    yield folder / "policy"
    sys.path.remove(str(TEMPLATE))


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


@pytest.fixture(scope="module")
def run(policy: Path, sampled: dict[str, list[tuple[Request, Generation]]]) -> Path:
    """A run whose orchestrator is a harness, trained for two steps."""
    made = config(
        policy.parent, policies={"main": {"model": str(policy), "tools_in_prompt": False}}
    )
    train(made, None, False)
    return made.run_path


def episodes(run: Path, step: int) -> list[dict[str, Any]]:
    text = (
        zstandard.ZstdDecompressor()
        .stream_reader((run / f"episodes/step_{step:06d}.jsonl.zst").read_bytes())
        .read()
    )
    return [json.loads(line) for line in text.decode().splitlines()]


def test_the_trace_is_what_the_engine_sampled(
    run: Path, sampled: dict[str, list[tuple[Request, Generation]]]
) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    versions = [0, int(lines[0]["policy/main/weight_version"])]
    used_tools = 0
    for step in range(2):
        for episode in episodes(run, step):
            (trace,) = episode["traces"]
            record = sampled[f"{episode['id']}/0"]
            assert len(record) == len(trace["turns"])
            for turn, (request, generation) in zip(trace["turns"], record, strict=True):
                span = slice(turn["start"], turn["end"])
                assert tuple(trace["token_ids"][: turn["start"]]) == request.token_ids
                assert tuple(trace["token_ids"][span]) == generation.token_ids
                assert tuple(trace["logprobs"][span]) == generation.logprobs
                assert tuple(turn["policy_versions"]) == generation.versions == (versions[step],)
                assert (
                    request.temperature == 1.0
                )  # the harness asked for 0.3: the role's is what is trained on
            assert sum(trace["mask"]) == sum(len(g.token_ids) for _, g in record)
            used_tools += sum(turn["env_calls"] for turn in trace["turns"])
    assert used_tools > 16  # of 2 x 8 episodes with two look-ups each


def test_the_run_has_learned_from_them(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["policy/main/weight_version"] for line in lines] == [1.0, 2.0]
    for line in lines:
        assert line["policy/main/grad_norm"] > 0
        assert (
            line["policy/main/logp_mismatch_max"] < 1e-4
        )  # sampled with the weights that it trains
        assert line["failures/num_failed"] == 0


def test_a_harness_runs_on_ray(policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each worker has a gateway of its own, and imports the harness by itself."""
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join(map(str, (ROOT, ROOT / "envs", ROOT / "rewards", TEMPLATE)))
    )
    main = {"model": str(policy), "tools_in_prompt": False}
    on_ray = {"backend": "ray", "num_workers": 2}
    made = config(
        policy.parent, run_dir=str(policy.parent / "ray"), policies={"main": main}, rollout=on_ray
    )
    train(made, None, False)
    lines = [
        json.loads(line) for line in (made.run_path / "metrics.jsonl").read_text().splitlines()
    ]
    for line in lines:
        assert line["policy/main/grad_norm"] > 0
        assert line["policy/main/logp_mismatch_max"] < 1e-4
        assert line["failures/num_failed"] == 0
    calls = sum(t["env_calls"] for e in episodes(made.run_path, 0) for t in e["traces"][0]["turns"])
    assert calls > 8  # of 8 episodes with two look-ups each


# --- served ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(run: Path) -> Iterator[tuple[str, Path, subprocess.Popen[str]]]:
    record = run / "turns.jsonl"
    roots = os.pathsep.join(map(str, (ROOT, ROOT / "envs", ROOT / "rewards", TEMPLATE)))
    words = [sys.executable, "-m", "parl.cli", "serve", str(run), "--record", str(record)]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": roots}
    )
    assert process.stdout is not None
    told = process.stdout.readline()
    address = re.search(r"http://\S+/v1", told)
    assert address, told
    yield address.group(), record, process
    if process.poll() is None:
        process.kill()


TOOLS: Any = [
    {"type": "function", "function": {"name": "lookup", "description": "", "parameters": {}}}
]


def test_a_conversation_with_tools_goes_on_with_its_own_tokens(
    run: Path, served: tuple[str, Path, subprocess.Popen[str]]
) -> None:
    base, record, _ = served
    task = episodes(run, 0)[0]["task"]
    messages: list[Any] = [
        {"role": "system", "content": "solve"},
        {"role": "user", "content": task["prompt"]},
    ]
    with openai.OpenAI(base_url=base, api_key="none", max_retries=0) as client:
        assert [m.id for m in client.models.list()] == ["main"]
        for _ in range(6):
            done = client.chat.completions.create(
                model="main", messages=messages, tools=TOOLS, temperature=0, logprobs=True
            )
            said = done.choices[0].message
            messages.append(said)
            if not said.tool_calls:
                break
            for call in said.tool_calls:
                assert call.type == "function"
                name = json.loads(call.function.arguments)["name"]
                text = str(task["data"]["numbers"][name])
                messages.append({"role": "tool", "tool_call_id": call.id, "content": text})
        assert said.content == str(sum(task["data"]["numbers"].values()))
        lines = [json.loads(line) for line in record.read_text().splitlines()]
        assert [line["conversation"] for line in lines] == ["0"] * 3
        ids = [i for line in lines for i in line["token_ids"]]
        mask = [m for line in lines for m in line["mask"]]
        # the greedy conversation is the one that the policy has learned by heart, token by token
        assert [ids, mask] == json.loads((run.parent / "learned.json").read_text())
        logprobs = done.choices[0].logprobs
        assert logprobs is not None
        assert logprobs.content is not None
        tail = len(logprobs.content)
        assert [t.token for t in logprobs.content] == [f"token_id:{i}" for i in ids[-tail:]]
        assert [t.logprob for t in logprobs.content] == lines[-1]["logprobs"][-tail:]
        stream = client.chat.completions.create(
            model="main", messages=messages[:2], temperature=0, stream=True
        )
        pieces = [c.choices[0].delta for c in stream if c.choices]
        assert pieces[0].tool_calls
        with pytest.raises(openai.BadRequestError, match="top_p: only 1 is supported"):
            client.chat.completions.create(model="main", messages=messages[:2], top_p=0.9)


def test_ctrl_c_ends_it_well(served: tuple[str, Path, subprocess.Popen[str]]) -> None:
    *_, process = served
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "4 turns in 2 conversations; 0 branches, 0 resets" in out
