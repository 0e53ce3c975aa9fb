"""What an environment's own tests should hold: Gymnasium's contract, an episode by hand, the splits, a fork."""

from __future__ import annotations

import pytest
from calc_env.env import SPLITS, CalcEnv
from gymnasium.utils.env_checker import check_env

from parl.config.env import EnvConfig
from parl.core.errors import ConfigError
from parl.core.messages import assistant
from parl.core.types import Task, ToolCall
from parl.env.registry import make_env

TASK = Task(
    "t", "calc/Calc-v0", "Sum of amber0 and delta1?", {"numbers": {"amber0": 3, "delta1": 4}}
)


def started() -> CalcEnv:
    env = CalcEnv(num=2)
    env.reset(options={"task": TASK})
    return env


def test_the_plugin_is_found_and_keeps_gymnasiums_contract() -> None:
    env = make_env(EnvConfig(id="calc/Calc-v0", kwargs={"num": 3}))
    check_env(env, skip_render_check=True)
    assert env.num_parts() == 3


def test_an_episode() -> None:
    env = started()
    calls = [ToolCall("lookup", {"name": name}) for name in ("amber0", "nobody")]
    observations, reward, terminated, _, _ = env.step(assistant(calls=calls))
    assert [o["content"] for o in observations] == ["3", "error: no name 'nobody'"]
    assert (reward, terminated) == (0.0, False)
    _, reward, terminated, _, info = env.step(assistant("3 + 4 = 7"))
    assert (reward, terminated) == (1.0, True)
    assert info == {"outcome": {"score": 1.0, "answered": 1.0}, "facts": {"num_lookups": 2}}


@pytest.mark.parametrize("answer, score", [("7", 1.0), ("8", 0.0), ("I do not know", 0.0)])
def test_score(answer: str, score: float) -> None:
    assert started().score(answer)["score"] == score


def test_splits_share_no_name() -> None:
    env = CalcEnv()
    names = [
        {n for task in env.generate_tasks(s, 50, 0) for n in task.data["numbers"]} for s in SPLITS
    ]
    assert sum(map(len, names)) == len(set.union(*names)) > 0


def test_tasks_are_repeatable_and_differ_by_seed() -> None:
    env = CalcEnv()
    assert env.generate_tasks("train", 5, 1) == CalcEnv().generate_tasks("train", 5, 1)
    assert env.generate_tasks("train", 5, 1) != env.generate_tasks("train", 5, 2)


def test_a_subagent_is_scored_on_its_own_part_and_leaves_its_parent_alone() -> None:
    env = started()
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
