"""The expert's demonstrations, played through the real runtime with the tiny tokenizer."""

from __future__ import annotations

import asyncio
from functools import lru_cache
from typing import Any

import numpy as np
import pytest

from parl.config import load
from parl.config.gate import StageGate
from parl.config.schema import Config
from parl.config.training import Stage
from parl.core.errors import ConfigError
from parl.core.types import Episode
from parl.env.base import Demonstration
from parl.env.swarm_tools import SWARM_TOOLS
from parl.policy.base import PolicyHandle
from parl.policy.engines.scripted import ScriptedEngine
from parl.policy.models.tiny import UNK, build_tokenizer
from parl.policy.renderers.chatml import ChatML
from parl.rollout.swarm import SwarmRunner
from parl.training.demonstrator import Demonstrator
from parl_envs.search.wide_search import WideSearch
from tests.support.helpers import ROOT, env_section


@lru_cache
def config() -> Config:
    return load(ROOT / "configs" / "quickstart.yaml")


@lru_cache
def tokenizer() -> Any:
    env = WideSearch(**env_section(config()).kwargs)
    return build_tokenizer(env.vocabulary(), [*env.tool_specs(), *SWARM_TOOLS])


@lru_cache
def renderer() -> ChatML:
    return ChatML(tokenizer())


def play(demo: Demonstration) -> Episode:
    handle = PolicyHandle("expert", renderer(), ScriptedEngine(demo.script, renderer()), False)
    swarm = config().swarm.model_copy(update={"critical_step_budget": None})
    runner = SwarmRunner(
        {"orchestrator": handle, "subagent": handle}, config().roles, swarm, config().clock
    )
    return asyncio.run(runner.run(demo.env, demo.task, episode_id="d", group="d", step=0, seed="d"))


def demonstration(seed: int, **knobs: Any) -> Demonstration:
    made = WideSearch(**env_section(config()).kwargs).demonstrate(
        "episode", np.random.default_rng(seed), **knobs
    )
    assert isinstance(made, Demonstration)
    return made


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("parallel", [0, 1])
def test_an_expert_that_is_not_lazy_solves_the_task_in_the_expected_steps(
    seed: int, parallel: int
) -> None:
    demo = demonstration(seed, delegate_prob=parallel, give_up_prob=0)
    episode = play(demo)
    num, hop = len(demo.task.data["gold"]), demo.task.data["two_hop"]
    assert (episode.status, episode.outcome["score"], episode.outcome["success"]) == (
        "completed",
        1.0,
        1.0,
    )
    if parallel:
        assert episode.critical_steps == (7 if hop else 5)
        assert (episode.num_assigned, episode.num_finished, episode.num_refused) == (num, num, 0)
        assert [t.score for t in episode.subagents] == [1.0] * num
    else:
        assert episode.critical_steps == (4 if hop else 2) * num + 1
        assert episode.num_assigned == 0


@pytest.mark.parametrize("parallel", [0, 1])
def test_the_expert_abstains_where_no_page_tells_and_only_after_it_has_looked(
    parallel: int,
) -> None:
    env = WideSearch(**env_section(config()).kwargs, unanswerable=0.4)
    rng = np.random.default_rng(0)
    unanswerable = 0
    for _ in range(6):
        demo = env.demonstrate("episode", rng, delegate_prob=parallel, give_up_prob=0)
        assert isinstance(demo, Demonstration)
        episode = play(demo)
        counts = episode.facts["calibration"]
        assert episode.outcome["success"] == 1.0
        assert counts["abstained"] == counts["abstained_right"] == counts["unanswerable"]
        assert counts["answered"] == counts["answered_right"]
        unanswerable += counts["unanswerable"]
        per_row = 2 if demo.task.data["two_hop"] else 1
        opened = [
            c
            for t in episode.traces
            for turn in t.turns
            for c in turn.tool_calls
            if c.name == "open"
        ]
        assert len(opened) == per_row * len(demo.task.data["gold"])
        assert episode.num_finished == episode.num_assigned
    assert unanswerable > 5


def test_both_kinds_of_task_are_among_them() -> None:
    assert {demonstration(seed).task.data["two_hop"] for seed in range(12)} == {True, False}


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_the_expert_solves_the_real_tasks_too(split: str) -> None:
    """What it reads is the page, never the gold: the facts of the demonstrations are shuffled, these are not."""
    from parl_envs.search.expert import SearchExpert

    env = WideSearch(**env_section(config()).kwargs)
    for task in env.generate_tasks(split, 4, 5):
        episode = play(
            Demonstration(
                env,
                task,
                SearchExpert(task, np.random.default_rng(0), delegate_prob=1, give_up_prob=0),
            )
        )
        assert episode.outcome["success"] == 1.0


def test_a_lazy_subagent_does_not_finish() -> None:
    episodes = [play(demonstration(seed, delegate_prob=1, give_up_prob=1.0)) for seed in range(4)]
    assert all(e.num_finished == 0 and e.outcome["success"] == 0.0 for e in episodes)
    assert all(t.result.endswith(" unknown") for e in episodes for t in e.subagents)


def test_no_token_of_a_demonstration_is_unknown() -> None:
    env = WideSearch(**env_section(config()).kwargs)
    source = Demonstrator(env, renderer(), config(), seed=0)
    unknown = tokenizer().convert_tokens_to_ids(UNK)
    for kind, num in (("episode", 30), ("recall", 20), ("enumerate", 20)):
        texts = [t for _ in range(num) for t in source.item(kind, {})]
        assert not any(unknown in t.token_ids for t in texts), kind
        assert all(
            len(t.token_ids) == len(t.mask) and 0 < sum(t.mask) < len(t.mask) for t in texts
        ), kind


def test_no_word_of_a_real_page_or_prompt_is_unknown() -> None:
    unknown = tokenizer().convert_tokens_to_ids(UNK)
    env = WideSearch(**env_section(config()).kwargs)
    for split in ("train", "validation", "test"):
        tasks = env.generate_tasks(split, 40, 0)
        env.reset(options={"task": tasks[0]})
        texts = [t.prompt for t in tasks] + [d.text for d in env.world.index.documents]
        assert unknown not in renderer().observe(texts)


def test_only_the_agents_own_tokens_carry_loss_and_the_decision_may_not() -> None:
    whole = play(demonstration(3, delegate_prob=1, train_decision_prob=1.0)).orchestrator
    masked = play(demonstration(3, delegate_prob=1, train_decision_prob=0.0)).orchestrator
    assert whole.token_ids == masked.token_ids
    own = {i for t in whole.turns for i in range(t.start, t.end)}
    assert {i for i, m in enumerate(whole.mask) if m} == own
    hidden = [i for i in sorted(own) if not masked.mask[i]]
    first = whole.turns[0].start
    assert hidden == list(range(first, first + len(hidden)))
    assert renderer().parse([whole.token_ids[i] for i in hidden])[1][0].name == "create_subagent"
    assert whole.num_generated == masked.num_generated


def test_the_same_seed_draws_the_same_texts() -> None:
    stage = Stage(
        name="s",
        data={"episode": 1, "recall": 1, "enumerate": 1},
        until=StageGate(metric="accuracy/recall", value=0, max_steps=1),
    )

    def draw(seed: int) -> list[Any]:
        source = Demonstrator(
            WideSearch(**env_section(config()).kwargs), renderer(), config(), seed
        )
        return [source.draw(stage) for _ in range(15)]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'episode'"):
        WideSearch().demonstrate("episodes", np.random.default_rng(0))
