"""`env.tools`: what a config adds to an environment, without a server."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from parl.config import load
from parl.config.tools import McpConfig
from parl.core.errors import ConfigError
from parl.core.messages import assistant
from parl.core.types import ToolCall
from parl.env.registry import make_env
from parl.env.tools import Toolset, tool
from tests.support.helpers import ROOT, TASK, WordsEnv


class Notes(Toolset):
    """Keeps what an episode wrote."""

    blocking = True

    def __init__(self) -> None:
        self.lines: list[str] = []

    def end_episode(self) -> None:
        self.lines = []

    @tool
    def note(self, line: str) -> str:
        """Write a line."""
        self.lines.append(line)
        return str(len(self.lines))


def test_a_config_adds_tools_to_an_environment(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "facts.db")
    connection.executescript("CREATE TABLE t(x); INSERT INTO t VALUES (7);")
    connection.close()
    tools = "{calculator: true, sql: {database: facts.db}}"
    (tmp_path / "c.yaml").write_text(
        f"extends: {ROOT}/configs/smoke.yaml\nenv: {{tools: {tools}}}\n"
    )
    env = make_env(load(tmp_path / "c.yaml").env)
    assert [s.name for s in env.tool_specs()] == ["open", "search", "calculator", "sql"]
    assert env.action_space.tools == ("open", "search", "calculator", "sql")  # type: ignore[attr-defined]
    env.reset(seed=0)
    calls = [
        ToolCall("calculator", {"expression": "6 * 7"}),
        ToolCall("sql", {"query": "SELECT x FROM t"}),
    ]
    heard = [m["content"] for m in env.step(assistant(calls=[*calls, ToolCall("seach", {})]))[0]]
    assert heard[:2] == ["42", "x\n7"]
    assert heard[2].startswith(
        "error: no tool 'seach'. Did you mean 'search'? Allowed: calculator, open, search, sql"
    )
    assert env.fork("part").call("calculator", {"expression": "1 + 1"}) == "2"
    assert not env.blocking
    assert [s.name for s in type(env).own_tool_specs()] == ["open", "search"]


def test_a_toolset_forgets_an_episode() -> None:
    env, other = WordsEnv(), WordsEnv()
    env.add_tools(Notes())
    assert (env.blocking, other.blocking, WordsEnv.blocking) == (True, False, False)
    assert [s.name for s in other.tool_specs()] == ["peek"]
    for _ in range(2):
        env.reset(options={"task": TASK})
        assert [env.call("note", {"line": "a"}), env.fork("p").call("note", {"line": "b"})] == [
            "1",
            "2",
        ]
    env.step(assistant("blue"))
    assert env.call("note", {"line": "a"}) == "1"
    with pytest.raises(ConfigError, match="WordsEnv has a tool 'note' already"):
        env.add_tools(Notes())


@pytest.mark.parametrize(
    "given, why",
    [
        ({}, "give `command`"),
        ({"command": ["x"], "url": "http://x"}, "one of the two"),
        ({"command": ["x"], "api_key_env": "K"}, "`api_key_env` goes with `url`"),
        ({"url": "http://x", "pass_env": ["K"]}, "`pass_env` goes with `command`"),
    ],
)
def test_a_server_is_a_program_or_a_url(given: dict[str, object], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        McpConfig.model_validate(given)
