"""The environment contract on a tiny AgentEnv: schemas, validation, Gymnasium's own checker, forks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pytest
from gymnasium.utils.env_checker import check_env
from pydantic import Field

from parl.core.errors import ConfigError
from parl.core.messages import assistant
from parl.core.seeds import seed_for
from parl.core.types import Task, ToolCall
from parl.env.base import AgentEnv
from parl.env.spaces import MessageSpace
from parl.env.tools import tool


class TinyEnv(AgentEnv):
    """Say the word that `peek` shows."""

    def generate_tasks(self, split: str, num: int, seed: int) -> list[Task]:
        return [
            Task(f"{split}-{seed}-{i}", "tiny", f"{split} {seed} {i}", {"word": f"w{i}"})
            for i in range(num)
        ]

    def score(self, answer: str) -> Mapping[str, float]:
        return {"score": float(answer == self.task.data["word"])}

    @tool
    def peek(
        self,
        times: Annotated[int, Field(ge=1, description="How often.")],
        style: Literal["plain", "loud"] = "plain",
    ) -> str:
        """Show the word."""
        word = " ".join([self.task.data["word"]] * times)
        return word.upper() if style == "loud" else word

    @tool
    def roll(self) -> str:
        """A random number."""
        return str(self.np_random.integers(10**9))

    def helper(self) -> str:
        return "not a tool"


def started() -> TinyEnv:
    env = TinyEnv()
    env.reset(seed=3)
    return env


def test_a_tools_schema_comes_from_hints_and_docstring() -> None:
    assert [spec.name for spec in TinyEnv.own_tool_specs()] == ["peek", "roll"]
    peek = TinyEnv.own_tool_specs()[0]
    assert peek.description == "Show the word."
    assert peek.parameters == {
        "type": "object",
        "properties": {
            "times": {"type": "integer", "minimum": 1, "description": "How often."},
            "style": {"type": "string", "enum": ["plain", "loud"], "default": "plain"},
        },
        "required": ["times"],
        "additionalProperties": False,
    }


def test_a_subclass_inherits_tools_and_adds_its_own() -> None:
    class More(TinyEnv):
        @tool
        def shout(self) -> str:
            """Shout."""
            return "!"

    assert [spec.name for spec in More.own_tool_specs()] == ["peek", "roll", "shout"]
    assert [spec.name for spec in TinyEnv.own_tool_specs()] == ["peek", "roll"]


def test_an_argument_without_type_hint_is_refused_when_the_class_is_made() -> None:
    with pytest.raises(TypeError, match=r"Bad\.find: argument 'query' has no type hint"):

        class Bad(TinyEnv):
            @tool
            def find(self, query) -> str:  # type: ignore[no-untyped-def]
                """Find."""
                return ""


@pytest.mark.parametrize(
    "name, arguments, text",
    [
        ("peek", {"times": 2}, "w0 w0"),
        ("peek", {"times": 1, "style": "loud"}, "W0"),
        ("peek", {"times": "2"}, "w0 w0"),
        ("peek", {}, "error: peek: times: Field required"),
        ("peek", {"times": "x"}, "error: peek: times: Input should be a valid integer"),
        ("peek", {"times": 0}, "error: peek: times: Input should be greater than or equal to 1"),
        (
            "peek",
            {"times": 1, "style": "odd"},
            "error: peek: style: Input should be 'plain' or 'loud'",
        ),
        ("peek", {"times": 1, "tmes": 2}, "error: peek: tmes: Extra inputs are not permitted"),
        ("peek", ["times"], "error: peek: Input should be a valid dictionary"),
        ("peak", {}, "error: no tool 'peak'. Did you mean 'peek'? Allowed: peek, roll."),
        ("helper", {}, "error: no tool 'helper'. Allowed: peek, roll."),
    ],
)
def test_a_call_is_validated_and_errors_are_answered_as_text(
    name: str, arguments: Any, text: str
) -> None:
    answer = started().call(name, arguments)
    assert answer.startswith(text)
    assert answer == text or text.startswith("error")


def test_step_answers_every_call_in_order() -> None:
    calls = [ToolCall("peek", {"times": 1}), ToolCall("nope", {}), ToolCall("peek", {"times": 2})]
    messages, reward, terminated, truncated, info = started().step(assistant("look", calls))
    assert [m["content"].split(".")[0] for m in messages] == [
        "w0",
        "error: no tool 'nope'",
        "w0 w0",
    ]
    assert {m["role"] for m in messages} == {"tool"}
    assert (reward, terminated, truncated, info) == (0.0, False, False, {})


@pytest.mark.parametrize("answer, score", [("w0", 1.0), ("w1", 0.0), ("", 0.0)])
def test_a_message_without_calls_ends_the_episode_with_its_score(answer: str, score: float) -> None:
    messages, reward, terminated, truncated, info = started().step(assistant(answer))
    assert (messages, reward, terminated, truncated) == ([], score, True, False)
    assert info == {"outcome": {"score": score}, "facts": {}}


def test_reset_takes_a_task_or_draws_one_by_the_seed() -> None:
    env = TinyEnv()
    task = Task("t", "tiny", "Which word?", {"word": "yes"})
    messages, _ = env.reset(options={"task": task})
    assert [(m["role"], m["content"]) for m in messages] == [("user", "Which word?")]
    assert env.score("yes") == {"score": 1.0}
    assert env.reset(seed=5) == TinyEnv().reset(seed=5) != env.reset(seed=6)


def test_gymnasiums_checker_accepts_it() -> None:
    check_env(TinyEnv(), skip_render_check=True)


def test_sampled_actions_are_in_the_action_space() -> None:
    env = started()
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(50)]
    assert all(action in env.action_space for action in actions)
    assert {bool(action["tool_calls"]) for action in actions} == {True, False}
    assert {"role": "user", "content": "", "tool_calls": []} not in MessageSpace("assistant")


def test_a_fork_has_the_task_and_a_random_stream_of_its_own() -> None:
    env, control = started(), started()
    child = env.fork("part one")
    assert child is not env
    assert child.call("peek", {"times": 1}) == "w0"
    rolls = [child.call("roll", {}) for _ in range(3)]
    assert env.call("roll", {}) == control.call("roll", {}), (
        "the child's draws moved the parent's stream"
    )
    assert [
        started().fork("part one").call("roll", {}),
        started().fork("part two").call("roll", {}),
    ] != rolls[:1] * 2
    assert started().fork("part one").call("roll", {}) == rolls[0]


def test_load_task_reads_a_row_and_names_what_is_missing() -> None:
    env = TinyEnv()
    assert env.load_task({"id": 7, "prompt": "p", "data": '{"word": "x"}'}) == Task(
        "7", "", "p", {"word": "x"}
    )
    with pytest.raises(ConfigError, match="missing: prompt"):
        env.load_task({"id": 7, "question": "p"})


def test_seed_for_is_stable_over_processes_and_differs_by_part() -> None:
    assert seed_for("episode", 1, 2) == 6402965494011045094
    assert len({seed_for(*parts) for parts in [("a", 1), ("a", 2), ("b", 1), ("a", 1, 0)]}) == 4
