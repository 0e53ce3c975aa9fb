"""TRL's GRPOTrainer runs the visual environment on the same completions: it trains the same tokens for the same reward.

The texts are given, because a small random model writes no calls. What each side makes of them is its own: the calls,
the tools' results and their images, the tokens of a context, the mask, the reward, the advantage.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from parl.config.credit import Credit
from parl.config.loss import Loss
from parl.config.reward import Reward
from parl.config.roles import ClockConfig, Limits, RoleConfig, Roles, Sampling, Swarm
from parl.core.messages import Message
from parl.core.types import AgentTrace, Episode, Task
from parl.env.demonstrations import Segment
from parl.env.registry import load, make_env
from parl.learner.loss import weighting_of
from parl.policy.base import PolicyHandle
from parl.policy.engines.scripted import ScriptedEngine
from parl.policy.models.vision.forward import hidden_states
from parl.policy.renderers.chatml import ChatML
from parl.rewards.credit import build_samples
from parl.rewards.scorer import Scorer
from parl.rollout.swarm import SwarmRunner
from parl_envs.visual.pictures import words
from parl_envs.visual.tasks import boxes_in_question
from tests.support.trl_looking import CONFIG, Trainer
from tests.support.vision_models import qwen3_vl

pytestmark = pytest.mark.integration


def call(name: str, **arguments: str) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def attempts(task: Task) -> list[list[str]]:
    """Right after looking, wrong after looking twice, wrong at once, and an error on the way."""
    right, (_, box) = task.data["gold"], boxes_in_question(task.data)[0]
    part = words(box.bbox)
    wrong = str((int(right) + 1) % 10)
    return [
        [call("zoom", bbox=part, image="p1"), right],
        [
            "a turn " + call("image_op", op="rotate", image="p1", value="90"),
            call("zoom", bbox=part, image="v1"),
            wrong,
        ],
        [wrong],
        [
            call("zoom", bbox="nowhere", image="p9"),
            call("zoom", bbox="0 0 50 50", image="p1"),
            right,
        ],
    ]


def ours(task: Task, texts: Sequence[str], name: str, renderer: Any) -> Episode:
    def script(messages: Sequence[Message], rng: np.random.Generator) -> list[Segment]:
        return [Segment(texts[sum(m["role"] == "assistant" for m in messages)])]

    role = RoleConfig(
        system_prompt="orchestrator",
        sampling=Sampling(),
        limits=Limits(turns=8, context_tokens=2048),
    )
    handle = PolicyHandle("main", renderer, ScriptedEngine(script, renderer), False)
    handles = {"orchestrator": handle, "subagent": handle}
    runner = SwarmRunner(handles, Roles(orchestrator=role), Swarm(mode="single"), ClockConfig())
    run = runner.run(make_env(CONFIG), task, episode_id=name, group=task.id, step=0, seed="0")
    return asyncio.run(run)


def raw_logps(model: Any, trace: AgentTrace) -> torch.Tensor:
    """Ours, but for the ban on tokens that stand for images, which TRL does not have."""
    ids = torch.tensor([trace.token_ids])
    with torch.no_grad():
        logits = model.get_output_embeddings()(hidden_states(model, ids, [trace.images]))[0, :-1]
    return torch.log_softmax(logits.float(), -1).gather(1, ids[0, 1:, None])[:, 0]


@pytest.mark.filterwarnings("ignore:You are using 'environment_factory'")
def test_trl_trains_the_same_tokens_for_the_same_reward(tmp_path: Path) -> None:
    load()
    model, tokenizer = qwen3_vl()
    renderer: Any = ChatML(tokenizer, model.image_adapter)
    tasks = make_env(CONFIG).generate_tasks("train", 2, 0)
    texts = {task.id: attempts(task) for task in tasks}
    groups = [
        [ours(t, x, f"{t.id}-{k}", renderer) for k, x in enumerate(texts[t.id])] for t in tasks
    ]
    episodes = [e for group in groups for e in group]
    scorer = Scorer(Reward.model_validate({"terms": {"outcome": {"weight": 1.0}}}))
    scored = [scorer.score(group, 0, {})[0] for group in groups]
    samples, _ = build_samples(scored, Credit(), weighting_of(Loss()), Roles(), 0)

    own_logps = [raw_logps(model, e.orchestrator) for e in episodes]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    trainer = Trainer(model, tokenizer, tasks, texts, tmp_path)
    kept: dict[
        tuple[int, ...], torch.Tensor
    ] = {}  # TRL shuffles the rows before it learns from them
    original = trainer._get_per_token_logps_and_entropies

    def keep(model: Any, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        found = original(model, input_ids, *args, **kwargs)
        kept.update(
            (tuple(row.tolist()), logps)
            for row, logps in zip(input_ids, found[0].detach(), strict=True)
        )
        return found

    trainer._get_per_token_logps_and_entropies = keep
    trainer.train()
    (made,) = trainer.learned

    assert made["tasks"] == [e.task.id for e in episodes]
    advantages = {s.episode: s.advantage for s in samples}
    shown = 0
    for i, episode in enumerate(episodes):
        trace = episode.orchestrator
        prompt = made["prompt_ids"][i][made["prompt_mask"][i].bool()].tolist()
        here = made["completion_mask"][i].bool()
        completion, mask = (
            made["completion_ids"][i][here].tolist(),
            made["tool_mask"][i][here].tolist(),
        )
        assert tuple(prompt + completion) == trace.token_ids
        assert tuple([0] * len(prompt) + mask) == trace.mask
        written = torch.tensor(mask, dtype=torch.bool)
        row = torch.cat([made["prompt_ids"][i], made["completion_ids"][i]])
        assert (kept[tuple(row.tolist())][here] - own_logps[i][len(prompt) - 1 :])[
            written
        ].abs().max() < 1e-5
        assert made["num_images"][i] == len(trace.images)
        for uri in trace.images:
            grid = made["image_grid_thw"][shown]
            own = model.image_adapter.pixels(uri)["image_grid_thw"]
            assert np.array_equal(np.asarray(own).reshape(-1), grid.numpy())
            shown += 1
        assert made["advantages"][i].item() == pytest.approx(
            advantages.get(episode.id, 0.0), abs=1e-6
        )
    assert {e.outcome["score"] for e in episodes} == {0.0, 1.0}
    assert shown == len(made["image_grid_thw"]) > len(episodes)
    assert any(
        not torch.equal(before[k], v) for k, v in model.state_dict().items()
    )  # it has taken its step
