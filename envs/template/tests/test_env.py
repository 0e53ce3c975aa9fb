"""Test an environment: Gymnasium's contract, an episode by hand, the splits, a fork."""

from __future__ import annotations

import pytest
from calc_env.env import SPLITS, CalcEnv
from gymnasium.utils.env_checker import check_env

from parl import ConfigError, Task, ToolCall, assistant, make_env
from parl.config.env import EnvConfig

TASK = Task(
    id="t",
    env="calc/Calc-v0",
    prompt="Sum of amber0 and delta1?",
    data={"numbers": {"amber0": 3, "delta1": 4}},
)


def make_started_env() -> CalcEnv:
    env = CalcEnv(num=2)
    env.reset(options={"task": TASK})
    return env


def test_the_plugin_is_found_and_keeps_gymnasiums_contract() -> None:
    env = make_env(EnvConfig(id="calc/Calc-v0", kwargs={"num": 3}))
    check_env(env, skip_render_check=True)
    assert env.num_parts() == 3


def test_an_episode() -> None:
    env = make_started_env()
    calls = [ToolCall("lookup", {"name": "amber0"}), ToolCall("lookup", {"name": "nobody"})]
    observations, reward, terminated, _, _ = env.step(assistant(calls=calls))
    assert [o["content"] for o in observations] == ["3", "error: no name 'nobody'"]
    assert (reward, terminated) == (0.0, False)

    _, reward, terminated, _, info = env.step(assistant("3 + 4 = 7"))
    assert (reward, terminated) == (1.0, True)
    assert info == {"outcome": {"score": 1.0, "answered": 1.0}, "facts": {"num_lookups": 2}}


@pytest.mark.parametrize("answer, score", [("7", 1.0), ("8", 0.0), ("I do not know", 0.0)])
def test_score(answer: str, score: float) -> None:
    assert make_started_env().score(answer)["score"] == score


def test_splits_share_no_name() -> None:
    env = CalcEnv()
    names_of_splits = []
    for split in SPLITS:
        tasks = env.generate_tasks(split, num=50, seed=0)
        names_of_splits.append({name for task in tasks for name in task.data["numbers"]})
    all_names = set.union(*names_of_splits)
    assert sum(map(len, names_of_splits)) == len(all_names) > 0


def test_tasks_are_repeatable_and_differ_by_seed() -> None:
    env = CalcEnv()
    tasks = env.generate_tasks("train", 5, 1)
    assert tasks == CalcEnv().generate_tasks("train", 5, 1)
    assert tasks != env.generate_tasks("train", 5, 2)


def test_a_subagent_is_scored_on_its_own_part_and_leaves_its_parent_alone() -> None:
    env = make_started_env()
    child = env.fork("Look up delta1 and report it.")
    child.step(assistant(calls=[ToolCall("lookup", {"name": "delta1"})]))
    assert (child.num_lookups, env.num_lookups) == (1, 0)
    assert child.subtask_score("it is 4") == 1.0
    assert child.subtask_score("it is 7") == 0.0
    assert env.fork("Do something.").subtask_score("4") is None
    assert not child.check_result("no idea")


def test_a_bad_argument_says_what_is_allowed() -> None:
    with pytest.raises(ConfigError, match="2 to 10"):
        CalcEnv(num=1)
