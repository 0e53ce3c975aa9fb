"""The scripted expert of VisualTools, through the swarm runtime, and the texts to practise on."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from parl.config.roles import ClockConfig, Limits, RoleConfig, Roles, Sampling, Swarm
from parl.core import images
from parl.core.errors import ConfigError
from parl.core.types import Episode
from parl.env.base import ANSWER_NOW, Demonstration
from parl.policy.base import PolicyHandle
from parl.policy.engines.scripted import CharRenderer, ScriptedEngine
from parl.rollout.swarm import SwarmRunner
from parl_envs.visual import practice
from parl_envs.visual.questions import DIGITS
from parl_envs.visual.visual_tools import VisualTools


def play(env: VisualTools, seed: int = 0, limits: Limits | None = None, **knobs: Any) -> Episode:
    demo = env.demonstrate("episode", np.random.default_rng(seed), **knobs)
    assert isinstance(demo, Demonstration)
    renderer = CharRenderer()
    handle = PolicyHandle("expert", renderer, ScriptedEngine(demo.script, renderer), False)
    wide = RoleConfig(
        limits=limits or Limits(context_tokens=10**6, env_calls_per_turn=1, turns=40),
        sampling=Sampling(max_tokens=10_000),
        system_prompt="orchestrator",
    )
    runner = SwarmRunner(
        {"orchestrator": handle, "subagent": handle},
        Roles(orchestrator=wide, subagent=wide),
        Swarm(),
        ClockConfig(),
    )
    return asyncio.run(runner.run(demo.env, demo.task, episode_id="e", group="g", step=0, seed="s"))


@pytest.mark.parametrize("question", DIGITS)
@pytest.mark.parametrize("unanswerable", [0.0, 1.0])
def test_the_expert_answers_everything_alone_and_in_a_swarm(
    question: str, unanswerable: float
) -> None:
    env = VisualTools(questions=[question], unanswerable=unanswerable)
    for seed in range(4):
        alone, swarm = play(env, seed, delegate_prob=0.0), play(env, seed, delegate_prob=1.0)
        for episode in (alone, swarm):
            assert (episode.status, episode.outcome["score"]) == ("completed", 1.0)
            assert episode.outcome["zoom_iou"] == pytest.approx(1.0)
        assert (len(alone.subagents), len(swarm.subagents)) == (0, swarm.facts["num_parts"])
        assert all(t.accepted and t.score == 1.0 for t in swarm.subagents)
        assert swarm.critical_steps == 4  # launch, zoom, read, answer


def test_pages_are_split_over_subagents() -> None:
    env = VisualTools(questions=["list", "max"], paged=True, n=[6, 6])
    swarm, alone = play(env, delegate_prob=1.0), play(env, delegate_prob=0.0)
    assert swarm.outcome["score"] == alone.outcome["score"] == 1.0
    assert [t.prompt.split()[1] for t in swarm.subagents] == [f"p{i}" for i in range(1, 7)]
    assert swarm.critical_steps == 5  # launch, open the page, zoom, read, answer
    assert len(alone.orchestrator.turns) == 13
    shown = max(
        len(images.find("".join(o for t in s.turns for o in t.observations)))
        for s in swarm.subagents
    )
    assert shown == 2  # no agent has all pages in its window


def test_with_a_full_window_the_expert_answers_with_what_it_has_seen() -> None:
    env = VisualTools(questions=["list"], paged=True, n=[6, 6])
    whole = play(env, delegate_prob=0.0)
    for window in range(600, len(whole.orchestrator.token_ids), 150):
        room = Limits(context_tokens=window, env_calls_per_turn=1, turns=40, on_overflow="answer")
        cut = play(env, limits=room, delegate_prob=0.0)
        assert cut.orchestrator.turns[-1].observations == ()
        assert cut.status == "completed"
        assert ANSWER_NOW in cut.orchestrator.turns[-2].observations[0]
        looked = (
            sum(bool(t.tool_calls) for t in cut.orchestrator.turns) - 1
        )  # the last look was not shown
        assert 0 < looked // 2 < 6
        full = whole.answer[
            whole.answer.index("answer:") :
        ].split()  # `answer:`, then `#1 5 #2 9 ...`
        assert cut.answer.split() == full[: 1 + 2 * (looked // 2)]
        assert cut.outcome["score"] == pytest.approx((looked // 2) / 6)


def test_a_lazy_expert_does_not_look() -> None:
    env = VisualTools(questions=["read"])
    lazy = [play(env, seed, delegate_prob=0.0, give_up_prob=1.0) for seed in range(20)]
    assert all(e.outcome["tool_use"] == 0.0 for e in lazy)
    assert np.mean([e.outcome["score"] for e in lazy]) < 0.4


def test_without_tools_the_expert_says_the_answer() -> None:
    episode = play(VisualTools(questions=["read"], tools=False), delegate_prob=0.0)
    assert (
        episode.outcome["score"],
        episode.outcome["tool_use"],
        len(episode.orchestrator.turns),
    ) == (1.0, 0.0, 1)


@pytest.mark.parametrize("paged", [False, True])
def test_the_vocabulary_has_every_word(paged: bool) -> None:
    env = VisualTools(
        questions=("list", "sum", "max") if paged else DIGITS, paged=paged, unanswerable=0.3
    )
    known = set(env.vocabulary())
    for seed in range(30):
        episode = play(env, seed)
        texts = [episode.task.prompt]
        for trace in episode.traces:
            texts += [trace.prompt, trace.result, *(o for t in trace.turns for o in t.observations)]
            texts += [
                str(v) for t in trace.turns for c in t.tool_calls for v in c.arguments.values()
            ]
        words = {
            w
            for text in texts
            for piece in images.split(text)
            if not images.is_image(piece)
            for w in piece.split()
        }
        assert words <= known - {"?"}, (
            words - known
        )  # `?` is what a tiny model reads for a word that it does not know
    assert len(known) < 260


@pytest.mark.parametrize("kind", practice.KINDS)
def test_practice_is_deterministic_and_trains_words_only(kind: str) -> None:
    env = VisualTools(questions=["list"], unanswerable=0.2)
    known = set(env.vocabulary())
    for seed in range(10):
        said = env.demonstrate(kind, np.random.default_rng(seed))
        assert said == env.demonstrate(kind, np.random.default_rng(seed))
        assert not isinstance(said, Demonstration)
        trained = [piece.text for piece in said if piece.train]
        assert trained
        assert all(set(text.split()) <= known for text in trained)
        assert bool(images.find("".join(p.text for p in said))) == (kind != "aggregate")


def test_documents_have_no_expert() -> None:
    env = VisualTools(questions=["cell"])
    with pytest.raises(ConfigError, match="questions to some of read"):
        env.demonstrate("episode", np.random.default_rng(0))
    with pytest.raises(ConfigError, match="questions to some of read"):
        env.vocabulary()
    with pytest.raises(
        ConfigError, match=r"No demonstrations of kind 'reed'\. Did you mean 'read'"
    ):
        VisualTools(questions=["read"]).demonstrate("reed", np.random.default_rng(0))
