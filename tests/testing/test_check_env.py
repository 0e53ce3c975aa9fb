"""`parl envs check`: every promise has an environment that breaks it, and only the check of that promise says so."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from parl.config.env import EnvConfig
from parl.core.errors import ConfigError
from parl.core.messages import Message
from parl.env.registry import make_env
from parl.testing import contract as promises
from parl.testing.calls import transcript
from parl.testing.check_env import CheckResult, check

RUNS = "an episode starts and ends"
ANSWERS = "calls are answered with text"
TOOLS = "tools have valid and described schemas"
REPEATS = "the same seed gives the same episode"
SPLITS = "splits share no task"
SCORE = "score is in 0..1"
FORKS = "forks are isolated"
GYMNASIUM = "Gymnasium's check_env"
SWARM = "a swarm plays an episode"
SPEED = "speed"
ALL = [RUNS, ANSWERS, REPEATS, TOOLS, SPLITS, SCORE, FORKS, GYMNASIUM, SWARM, SPEED]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Short measurements, and the fresh process is this one. Returns the way to a real one."""
    real = promises.in_fresh_process
    monkeypatch.setattr(promises, "TIMED_S", 0.02)
    monkeypatch.setattr(
        promises, "in_fresh_process", lambda config, timeout_s: transcript(make_env(config))
    )
    return real


def config(name: str) -> EnvConfig:
    return EnvConfig(id=f"tests.support.broken_envs:broken/{name}-v0")


def checked(name: str, deadline_s: float = 20.0) -> dict[str, CheckResult]:
    found = {f.what: f for f in check(config(name), deadline_s)}
    assert list(found) == ALL
    return found


def bad(found: dict[str, CheckResult]) -> list[str]:
    return [what for what, finding in found.items() if finding.status == "BAD"]


def test_a_good_environment_passes() -> None:
    found = checked("Good")
    assert {f.status for f in found.values()} <= {"ok", "slow"}, found
    assert "2 subagents, 4 critical steps" in found[SWARM].text
    assert "forks a second" in found[SPEED].text


@pytest.mark.parametrize(
    "name, what, text",
    [
        ("ScoreRaises", RUNS, "KeyError: 'gold'\nraised in score ("),
        ("StepDoesNotEnd", RUNS, "leave step() to AgentEnv"),
        ("ToolRaises", ANSWERS, "KeyError: 'page'\nraised in find ("),
        ("ToolRaises", ANSWERS, "answer what an agent did wrong with a text"),
        ("CallIsNotValidated", ANSWERS, "no_such_tool"),
        (
            "NoDescription",
            TOOLS,
            "find: the model sees no description; give the method a docstring",
        ),
        ("ArgumentWithoutDescription", TOOLS, "find(text): has no description; annotate it"),
        ("ArgumentWithoutType", TOOLS, "find(text): has no type"),
        ("NoSchema", TOOLS, "note: its parameters are no JSON schema: 'txt'"),
        ("Unseeded", REPEATS, "draw randomness from self.np_random only"),
        ("KeepsItsNotes", REPEATS, "the second time in the same environment"),
        ("KeptInTheClass", REPEATS, "keep nothing in the class"),
        ("SplitsShare", SPLITS, "a task of validation is in train too: 'say 0'"),
        ("ScoreOfTwo", SCORE, "score('42') gave {'score': 2.0}"),
        ("ScoreIsNaN", SCORE, "give finite numbers only"),
        ("ScoreKeysVary", SCORE, "give always the same keys"),
        ("ForkIsItself", FORKS, "fork() gave the parent itself"),
        ("ForkIsShallow", FORKS, "what a subagent did changed what its parent reads: note(text='"),
        (
            "ForkIsMerged",
            FORKS,
            "what a subagent did changed what its parent reads: collect() gave",
        ),
        ("ForkSharesRandomness", FORKS, "what a subagent did changed what its parent reads"),
        ("SiblingsShare", FORKS, "what a subagent did changed what its sibling reads"),
        ("ChildReadsItsParent", FORKS, "what the parent did changed what its subagent reads"),
        ("SubtaskScoreRaises", FORKS, "raised in subtask_score ("),
        ("NoSuperInit", GYMNASIUM, "Call super().__init__() in __init__()"),
        ("FactsAreNoJSON", SWARM, "the runtime counts the episode as failed: environment: scoring"),
        ("DataAreNoJSON", SWARM, "a task's data are no JSON"),
    ],
)
def test_a_broken_promise_is_found_by_its_own_check(name: str, what: str, text: str) -> None:
    found = checked(name)
    assert bad(found) == [what]
    assert text in found[what].text


def test_a_tool_that_merges_forks_is_no_broken_promise() -> None:
    assert bad(checked("ForkMayBeMerged")) == []


@pytest.mark.slow
def test_another_process_is_another_process(quick: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bad(checked("OrderOfASet")) == []
    monkeypatch.setattr(promises, "in_fresh_process", quick)
    found = checked("OrderOfASet")
    assert bad(found) == [REPEATS]
    assert "in another process" in found[REPEATS].text
    assert bad(checked("Good")) == []


@pytest.mark.parametrize(
    "name, what, where", [("ScoreHangs", RUNS, "score ("), ("ToolHangs", ANSWERS, "wait (")]
)
def test_a_call_that_hangs_ends_the_check_and_says_where(name: str, what: str, where: str) -> None:
    found = checked(name, deadline_s=1.0)
    assert bad(found) == [what]
    assert f"no end within 1 s; it stands in {where}" in found[what].text
    assert "broken_envs.py:" in found[what].text
    assert {found[w].status for w in ALL[ALL.index(what) + 1 :]} == {"--"}


def test_what_a_broken_one_makes_senseless_is_not_checked() -> None:
    found = checked("ToolRaises")
    assert [found[w].status for w in (RUNS, ANSWERS, REPEATS, SWARM)] == ["ok", "BAD", "--", "--"]
    found = checked("ScoreOfTwo")
    assert [found[w].status for w in (SPLITS, SCORE, FORKS, SWARM)] == ["ok", "BAD", "ok", "--"]


def test_slow_is_a_warning() -> None:
    found = checked("SlowFork")
    assert bad(found) == []
    assert found[SPEED].status == "slow"
    assert "at least 500 forks a second" in found[SPEED].text


@pytest.mark.parametrize(
    "name, text", [("ConstructorRaises", "no server"), ("ConstructorHangs", "no end within 0.5 s")]
)
def test_an_environment_that_cannot_be_made_is_an_error(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=rf"broken/{name}-v0 cannot be made: .*{text}"):
        next(check(config(name), 0.5))


def test_a_check_leaves_the_main_thread_free() -> None:
    """An environment may hang: it is never called where the deadline is kept."""
    threads: list[threading.Thread] = []
    from tests.support.broken_envs import Good

    class Watched(Good):
        def step(self, action: Message) -> Any:
            threads.append(threading.current_thread())
            return super().step(action)

    import gymnasium

    gymnasium.register(id="broken/Watched-v0", entry_point=Watched)  # type: ignore[arg-type]
    assert bad({f.what: f for f in check(EnvConfig(id="broken/Watched-v0"))}) == []
    del gymnasium.registry["broken/Watched-v0"]
    assert threading.main_thread() not in threads
