"""A mix of environments: its config, whose turn it is, whose words, tools, tasks and demonstrations they are."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from parl.config import Config, load
from parl.config.env import EnvConfig, MixConfig
from parl.config.explain import derived
from parl.config.loader import parse
from parl.core.errors import ConfigError
from parl.core.messages import Message, assistant
from parl.core.types import Episode, Task
from parl.env.base import Demonstration
from parl.env.demonstrations import Segment
from parl.env.mixture import Mixture, env_of, interleave
from parl.env.registry import make_env
from parl.env.tasks import load_tasks
from parl.evaluation.ablation.runner import cold_start_key
from parl.evaluation.metrics import heldout_metrics, step_metrics
from parl.policy.base import PolicyHandle
from parl.policy.engines.scripted import ScriptedEngine
from parl.report.summary import summary_table
from parl.rewards.scorer import Scorer
from parl.rollout.swarm import SwarmRunner
from parl.runs.records import episode_of, episode_record, task_of
from parl.training.rollout_source import MixtureSampler, TaskSampler
from tests.support.helpers import END, ROOT, Characters

TASKS = {"train": {"num": 6}, "validation": {"num": 3}, "test": {"num": 3}}


def raw(**more: Any) -> dict[str, Any]:
    search = {"id": "parl/WideSearch-v0", "kwargs": {"n": [2, 2], "two_hop": 0}, "tasks": TASKS}
    visual = {"id": "parl/VisualTools-v0", "kwargs": {"questions": ["read"]}, "tasks": TASKS}
    mix = [
        {**search, "ability": "search", "weight": 3},
        {**visual, "ability": "visual", "weight": 1},
    ]
    terms = {"terms": {"outcome": {"weight": 1.0}}}
    return {
        "name": "mix",
        "env": {"mix": mix},
        "reward": terms,
        "swarm": {"mode": "single"},
        **more,
    }


def config(**more: Any) -> Config:
    return parse(raw(**more))


def mixture(made: Config) -> Mixture:
    env = make_env(made.env)
    assert isinstance(env, Mixture)
    return env


# --- whose turn it is ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "weights", [[1, 1], [9, 1], [0.8, 0.2], [1, 2, 3], [0.1, 0.3, 0.35, 0.25], [5, 1, 1, 1, 1]]
)
def test_each_has_its_share_of_any_number_of_problems_less_than_one_off(
    weights: list[float],
) -> None:
    shares = MixtureSampler({str(i): w for i, w in enumerate(weights)})
    had: Counter[str] = Counter()
    for number in range(400):
        ability, before = shares.at(number)
        assert before == had[ability]
        had[ability] += 1
        for i, weight in enumerate(weights):
            assert abs(had[str(i)] - weight / sum(weights) * (number + 1)) < 1 - 1e-9


def test_a_step_has_the_exact_ratio_where_it_divides() -> None:
    tasks = [Task(f"{a}/{i}", "x", "p", {}, a) for a in ("search", "visual") for i in range(7)]
    problems = TaskSampler(tasks, 0, 10, 2, {"search": 4, "visual": 1})
    for step in range(6):
        dealt = Counter(problems.task(10 * step + k).ability for k in range(10))
        assert dealt == {"search": 8, "visual": 2}


def test_each_ability_deals_its_tasks_once_before_any_comes_again() -> None:
    tasks = [Task(f"{a}/{i}", "x", "p", {}, a) for a in ("search", "visual") for i in range(5)]
    problems = TaskSampler(tasks, 0, 4, 2, {"search": 3, "visual": 1})
    order = [problems.task(n).id for n in range(40)]
    for ability, epochs in (("search", 6), ("visual", 2)):
        own = [task for task in order if task.startswith(ability)]
        assert len(own) == 5 * epochs
        for epoch in range(epochs):
            assert len(set(own[5 * epoch : 5 * epoch + 5])) == 5
    again = TaskSampler(tasks, 0, 4, 2, {"search": 3, "visual": 1})
    assert again.task(33).id == order[33]  # of a run that is resumed: by its number alone
    assert [
        TaskSampler(tasks, 1, 4, 2, {"search": 3, "visual": 1}).task(n).id for n in range(40)
    ] != order


# --- config ----------------------------------------------------------------------------------------------------------


def wrong(change: Any) -> str:
    given = raw()
    change(given["env"]["mix"], given)
    with pytest.raises(ConfigError) as error:
        make_env(parse(given).env)
    return str(error.value)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda mix, given: mix[1].pop("ability"), "env.mix.1.ability: missing"),
        (lambda mix, given: mix[1].update(ability="a/b"), "env.mix.1.ability"),
        (lambda mix, given: mix[1].update(ability="search"), "two parts have the ability 'search'"),
        (
            lambda mix, given: mix[1].update(weight=0),
            "env.mix.1.weight: Input should be greater than 0",
        ),
        (
            lambda mix, given: mix[1].update(wieght=1),
            "env.mix.1.wieght: unknown key. Did you mean 'weight'",
        ),
        (lambda mix, given: mix.clear(), "env.mix: Tuple should have at least 1 item"),
        (
            lambda mix, given: given["env"].update(tools={"calculator": True}),
            "`tools` belongs to one environment",
        ),
        (
            lambda mix, given: mix[1].update(id="parl/VisualTool-v0"),
            "env.mix, visual: No environment",
        ),
        (
            lambda mix, given: mix[1]["kwargs"].update(sise=1),
            "env.mix, visual: env.kwargs: parl/VisualTools-v0 has no",
        ),
        (
            lambda mix, given: given.update(eval={"num_tasks": 1}),
            "give each of ['search', 'visual'] a task",
        ),
        (
            lambda mix, given: given.update(
                roles={"orchestrator": {"system_prompt": {"search": "s"}}}
            ),
            "one for each ability (['search', 'visual'])",
        ),
    ],
)
def test_what_is_wrong_in_a_mix_is_said(change: Any, message: str) -> None:
    assert message in wrong(change)


def test_one_environment_takes_no_prompts_by_ability() -> None:
    given = raw(
        env={"id": "parl/WideSearch-v0"}, roles={"orchestrator": {"system_prompt": {"search": "s"}}}
    )
    with pytest.raises(ConfigError, match="give one text"):
        parse(given)


def test_an_override_reaches_a_part_by_its_number(tmp_path: Path) -> None:
    path = ROOT / "configs" / "joint.yaml"
    made = load(path, ["env.mix.0.weight=9", "env.mix.1.kwargs.size=96"]).env
    assert isinstance(made, MixConfig)
    assert made.weights == {"search": 9, "visual": 1}
    assert made.mix[1].kwargs == {"questions": ["read"], "boxes": [4, 8], "size": 96}
    with pytest.raises(ConfigError, match=r"'2' is no entry of a list of 2; count them from 0"):
        load(path, ["env.mix.2.weight=9"])


@pytest.mark.parametrize("ability", ["search", "visual"])
def test_a_specialist_is_its_part_of_the_mix_and_nothing_else(ability: str) -> None:
    joint = load(ROOT / "configs" / "joint.yaml")
    alone = load(ROOT / "configs" / "ablations" / "joint" / f"{ability}.yaml")
    assert isinstance(joint.env, MixConfig)
    assert isinstance(alone.env, MixConfig)
    own = [
        part.model_copy(update={"weight": 1.0}) for part in joint.env.mix if part.ability == ability
    ]
    assert list(alone.env.mix) == own
    assert alone.cold_start is not None
    assert joint.cold_start is not None
    assert {kind.split("/")[0] for stage in alone.cold_start.stages for kind in stage.data} == {
        ability
    }
    assert alone.cold_start.demonstrator == {ability: joint.cold_start.demonstrator[ability]}
    kept = ("policies", "roles", "swarm", "reward", "loss", "credit", "eval", "train")
    assert all(getattr(alone, key) == getattr(joint, key) for key in kept)
    assert all(task.ability == ability for task in load_tasks(alone, mixture(alone), "test"))


def test_files_of_a_part_are_relative_to_the_config(tmp_path: Path) -> None:
    given = raw()
    given["env"]["mix"][0]["tasks"] = {**TASKS, "test": {"path": "mine.jsonl"}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(given))
    made = load(tmp_path / "c.yaml").env
    assert isinstance(made, MixConfig)
    assert made.mix[0].tasks.test.path == tmp_path / "mine.jsonl"


def test_the_ratio_is_not_part_of_the_cold_start() -> None:
    path = ROOT / "configs" / "joint.yaml"
    keys = {cold_start_key(load(path, [f"env.mix.0.weight={w}"]), 0) for w in (1, 4, 9)}
    assert len(keys) == 1
    assert cold_start_key(load(path, ["env.mix.1.kwargs.size=96"]), 0) not in keys


def test_explain_counts_the_passes_of_each_ability() -> None:
    found = derived(config(train={"num_steps": 3, "tasks_per_step": 4}))
    assert found["passes over the train tasks (search)"] == "1.50"
    assert found["passes over the train tasks (visual)"] == "0.50"


# --- the environments as one -----------------------------------------------------------------------------------------


def test_words_and_tools_are_those_of_all_parts() -> None:
    env = mixture(config())
    parts = env.parts.values()
    assert {"search", "open", "zoom", "image_op"} == {spec.name for spec in env.tool_specs()}
    assert all(set(part.vocabulary()) <= set(env.vocabulary()) for part in parts)
    assert len(set(env.vocabulary())) == len(env.vocabulary())


def test_a_split_takes_turns_and_each_task_knows_its_environment() -> None:
    made = config()
    env = mixture(made)
    tasks = load_tasks(made, env, "test")
    assert [task.ability for task in tasks] == ["search", "visual"] * 3
    assert all(task.id.startswith(f"{task.ability}/") for task in tasks)
    assert {(t.ability, t.env) for t in tasks} == {
        ("search", "parl/WideSearch-v0"),
        ("visual", "parl/VisualTools-v0"),
    }
    for task in tasks:
        assert env_of(env, task) is env.parts[task.ability]
    alone = make_env(EnvConfig(id="parl/WideSearch-v0"))
    assert env_of(alone, tasks[0]) is alone
    a, b, c = (Task(name, "x", "p", {}) for name in "abc")
    assert interleave([[a], [b, c]]) == [a, b, c]


def test_it_is_an_environment_like_any() -> None:
    env = mixture(config())
    for task in env.generate_tasks("train", 1, 0):
        env.reset(seed=0, options={"task": task})
        name = {"search": "search", "visual": "zoom"}[task.ability]
        other = {"search": "zoom", "visual": "search"}[task.ability]
        arguments = {"search": {"query": "Kenya"}, "visual": {"bbox": "0 0 50 50", "image": "p1"}}[
            task.ability
        ]
        calls = [{"name": name, "arguments": arguments}, {"name": other, "arguments": {}}]
        action: Message = {"role": "assistant", "content": "", "tool_calls": calls}
        messages, *_ = env.step(action)
        assert not messages[0]["content"].startswith("error")
        assert messages[1]["content"].startswith(f"error: no tool '{other}'")
        assert env.fork("p1") is not env
        _, reward, terminated, _, info = env.step(assistant("nothing"))
        assert terminated
        assert reward == info["outcome"]["score"]
    env.reset(seed=1)
    assert env.task.ability in env.parts
    env.close()


def test_demonstrations_go_by_ability_and_so_do_their_knobs() -> None:
    env = mixture(config())
    rng = np.random.default_rng(0)
    assert not isinstance(env.demonstrate("search/recall", rng), Demonstration)
    demo = env.demonstrate(
        "visual/episode", rng, visual={"give_up_prob": 0.0}, search={"nonsense": 1}
    )
    assert isinstance(demo, Demonstration)
    assert demo.env is env.parts["visual"]
    assert demo.task.ability == "visual"
    with pytest.raises(
        ConfigError,
        match=r"'episode' names no ability of env.mix. Write ABILITY/KIND: search/episode or visual/",
    ):
        env.demonstrate("episode", rng)
    with pytest.raises(ConfigError, match="knobs go by ability"):
        env.demonstrate("visual/episode", rng, give_up_prob=0.1)


# --- an episode ------------------------------------------------------------------------------------------------------


def episodes(made: Config) -> tuple[list[Episode], list[Sequence[Message]]]:
    seen: list[Sequence[Message]] = []

    def script(messages: Sequence[Message], rng: np.random.Generator) -> list[Segment]:
        seen.append(messages)
        return [Segment("a" + END)]

    handle = PolicyHandle("main", Characters(), ScriptedEngine(script, Characters()), False)
    runner = SwarmRunner(
        {"orchestrator": handle, "subagent": handle}, made.roles, made.swarm, made.clock
    )
    env = mixture(made)
    tasks = load_tasks(made, env, "test")
    return [
        asyncio.run(runner.run(env, task, episode_id=task.id, group=task.id, step=0, seed="0"))
        for task in tasks
    ], seen


def test_an_episode_is_played_in_the_environment_of_its_task_under_its_prompt() -> None:
    prompts = {"search": "find facts", "visual": "look closely"}
    done, seen = episodes(config(roles={"orchestrator": {"system_prompt": prompts}}))
    assert [e.status for e in done] == ["completed"] * 6
    assert ["item_f1" in e.outcome for e in done] == [True, False] * 3
    assert ["zoom_iou" in e.outcome for e in done] == [False, True] * 3
    assert [messages[0]["content"] for messages in seen] == [prompts[e.task.ability] for e in done]
    record = episode_record(Scorer(config().reward).score(done[:1], 0, {})[0][0], {})
    assert episode_of(record) == done[0]
    assert task_of(record).ability == "search"


def test_metrics_say_how_each_ability_does() -> None:
    done, _ = episodes(config())
    scored = [s for e in done for s in Scorer(config().reward).score([e], 0, {})[0]]
    metrics = step_metrics(scored, done)
    assert metrics["ability/search/num_episodes"] == metrics["ability/visual/num_episodes"] == 3
    assert metrics["outcome/score"] == pytest.approx(
        (metrics["ability/search/score"] + metrics["ability/visual/score"]) / 2
    )
    assert "ability/search/item_f1" in metrics
    assert "ability/visual/item_f1" not in metrics
    assert "outcome/item_f1" not in metrics  # not every episode has it
    held = heldout_metrics(done)
    assert held["num_tasks"] == 6
    assert held["ability/visual/num_tasks"] == 3
    assert held["ability/search/total_steps"] == 1.0
    titles, rows = summary_table({"heldout": {"trained": {"single": {"greedy": held}}}})
    assert titles[:3] == ["score", "search", "visual"]
    assert rows[0][3:5] == [f"{held[f'ability/{a}/score']:.3f}" for a in ("search", "visual")]
