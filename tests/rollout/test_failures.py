"""What goes wrong outside the policy is data: a failed episode with its kind, tried again, fatal to nobody."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from typing import Any

import pytest

from parl.config.rollout import Rollout
from parl.core.types import Episode, Task
from parl.env.base import AgentEnv
from parl.policy.base import Generation, Request
from parl.policy.engines.scripted import ScriptedEngine
from parl.rollout.pool.local import Job, LocalPool
from tests.support.helpers import (
    TASK,
    Characters,
    WordsEnv,
    answers,
    assign,
    call,
    create,
    jobs,
    run,
    runner,
    script,
    turns,
)

PEEK = call("peek", at="x")


class Broken(WordsEnv):
    """Raises in the method that `where` names, for the first `times` times over all its instances."""

    where = ""
    left = 10**9

    def _break(self, where: str) -> None:
        if where == type(self).where and type(self).left > 0:
            type(self).left -= 1
            raise OSError("the disk is gone")

    def start(self, task: object) -> None:
        self._break("start")
        super().start(TASK)

    def fork(self, subtask: str) -> AgentEnv:
        self._break("fork")
        return super().fork(subtask)

    def call(self, name: str, arguments: object) -> str:
        self._break("call")
        return "fine"

    def score(self, answer: str) -> dict[str, float]:
        self._break("score")
        return {"score": 1.0}

    def check_result(self, message: str) -> bool:
        self._break("check_result")
        return True

    def subtask_score(self, message: str) -> float:
        self._break("subtask_score")
        return 1.0

    def num_parts(self) -> int:
        self._break("num_parts")
        return 2


def broken(where: str, times: int = 10**9) -> type[Broken]:
    return type("BrokenEnv", (Broken,), {"where": where, "left": times})


DELEGATING = script(
    [turns(create("a"), assign("a", "red"), assign("a", "green")), "blue"], other=[PEEK, "x"]
)


@pytest.mark.parametrize(
    "where", ["start", "fork", "call", "score", "check_result", "subtask_score", "num_parts"]
)
def test_whatever_the_environment_raises_is_a_failed_episode(where: str) -> None:
    episode = run(DELEGATING, env=broken(where)())
    assert (episode.status, episode.failure, episode.outcome) == ("failed", "environment", {})
    assert "the disk is gone" in episode.orchestrator.stop_reason
    assert (episode.task, episode.orchestrator.token_ids) == (TASK, ())


class Garbage(WordsEnv):
    """Gives back what no environment should."""

    outcome: Mapping[str, Any] = {"score": 1.0}
    verdict: Mapping[str, Any] = {}
    child: Any = 1.0
    page = "fine"

    def call(self, name: str, arguments: object) -> str:
        return self.page

    def score(self, answer: str) -> Mapping[str, float]:
        return self.outcome

    def subtask_score(self, message: str) -> float:
        return self.child

    def facts(self) -> Mapping[str, Any]:
        return self.verdict


@pytest.mark.parametrize(
    "given, message",
    [
        ({"outcome": {"score": float("nan")}}, "outcome 'score' is nan"),
        ({"outcome": {"score": "good"}}, "could not convert string"),
        ({"outcome": {"score": 1.0, "extra": None}}, "TypeError"),
        ({"outcome": {"score": 7}}, "score is 7.0, outside of 0..1"),
        ({"outcome": {"f1": 1}}, "must give the key 'score'"),
        ({"outcome": None}, "TypeError"),
        ({"child": float("inf")}, "subtask_score is inf"),
        ({"verdict": {"judge": object()}}, "not JSON serializable"),
        ({"page": "x" * 2_000_001}, "2000001"),
    ],
)
def test_garbage_from_the_environment_is_a_failed_episode(
    given: dict[str, Any], message: str
) -> None:
    """One NaN among the outcomes would end in the weights."""
    episode = run(DELEGATING, env=type("GarbageEnv", (Garbage,), given)())
    assert (episode.status, episode.failure) == ("failed", "environment")
    assert message in episode.orchestrator.stop_reason


def test_half_a_surrogate_pair_is_replaced() -> None:
    episode = run(
        script([PEEK, "blue"]), env=type("GarbageEnv", (Garbage,), {"page": "a\ud800b"})()
    )
    assert answers(episode.orchestrator) == ("a?b",)


class Hanging(WordsEnv):
    """Waits for ever in its tool when the task says so."""

    blocking = True

    def call(self, name: str, arguments: object) -> str:
        if self.task.id == "hang":
            threading.Event().wait()
        return super().call(name, {"at": "x"})


def test_calls_that_hang_do_not_use_up_the_threads() -> None:
    """More of them than a thread pool has threads: the last episode still gets its answer."""
    pool = LocalPool(Hanging, Rollout(max_retries=0, episode_deadline_s=0.5))
    hang = Task("hang", TASK.env, TASK.prompt, TASK.data)
    todo = [Job(hang, f"h{i}", "g", 0, "s") for i in range(40)]
    episodes = pool.run(runner(script([PEEK, "blue"])), [*todo, Job(TASK, "good", "g", 0, "s")])
    assert {e.failure for e in episodes[:-1]} == {"timeout"}
    assert episodes[-1].status == "completed"


def test_the_pool_tries_a_failed_episode_again_and_then_returns_it() -> None:
    pool = LocalPool(broken("call", times=3), Rollout(max_retries=1, max_concurrent_episodes=1))
    done: list[Episode] = []
    episodes = pool.run(runner(script([PEEK, "blue"])), jobs(3), done.append)
    assert [e.status for e in episodes] == ["failed", "completed", "completed"]
    assert [e.id for e in episodes] == ["e0.1", "e1.1", "e2"]
    assert (episodes[0].failure, episodes[0].step, episodes[0].group) == ("environment", 3, "g")
    assert done == episodes


class Slow(ScriptedEngine):
    released: list[str]

    async def generate(self, request: Request) -> Generation:
        if "slow" in request.session:
            await asyncio.sleep(60)
        return await super().generate(request)

    def release(self, session: str) -> None:
        self.released.append(session)


def test_a_deadline_is_a_timeout_and_hurts_no_other_episode() -> None:
    play = script(["blue"])
    made = runner(play)
    engine = Slow(play, Characters())
    engine.released = []
    handles = {r: type(h)(h.name, h.renderer, engine) for r, h in made.policies.items()}
    pool = LocalPool(WordsEnv, Rollout(max_retries=0, episode_deadline_s=0.2))
    todo = [Job(TASK, name, "g", 0, name) for name in ("fast", "slow")]
    fast, slow = pool.run(type(made)(handles, made.roles, made.swarm, made.clock), todo)
    assert (fast.status, slow.status, slow.failure) == ("completed", "failed", "timeout")
    assert engine.released == ["fast/0", "slow/0"]
