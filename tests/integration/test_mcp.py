"""Tools of real MCP servers, over stdio and HTTP: results, errors as texts, typed failures, and no process left."""

from __future__ import annotations

import contextlib
import copy
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import psutil
import pytest

from parl.config import load
from parl.config.rollout import Rollout
from parl.config.tools import McpConfig
from parl.core.errors import ConfigError, EnvFailure
from parl.core.types import Task
from parl.env import registry as plugins
from parl.env.base import AgentEnv
from parl.env.registry import make_env
from parl.env.toolsets.calculator import Calculator
from parl.env.toolsets.mcp import Mcp
from parl.rewards.scorer import Scorer
from parl.rollout.pool.local import LocalPool
from parl.runs.folder import RunFolder, read_episodes
from tests.support.helpers import (
    ROOT,
    TASK,
    WordsEnv,
    assign,
    call,
    create,
    jobs,
    run,
    runner,
    script,
    turns,
)

pytestmark = pytest.mark.integration

SERVER = (sys.executable, str(ROOT / "tests" / "support" / "mcp_server.py"))
TIME = (sys.executable, "-m", "mcp_server_time", "--local-timezone", "UTC")


def mcp(**changes: Any) -> Mcp:
    return Mcp(McpConfig(**{"command": SERVER, "deadline_s": 20.0, **changes}))


def with_tools(*toolsets: Mcp) -> WordsEnv:
    env = WordsEnv()
    env.add_tools(*toolsets)
    return env


def running(marker: str) -> list[int]:
    """Processes, descendants of this one, whose command line holds a text."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended in between
            if marker in " ".join(process.cmdline()):
                found.append(process.pid)
    return found


def wait_for_none(marker: str, seconds: float = 10.0) -> None:
    ends = time.monotonic() + seconds
    while running(marker):
        gc.collect()
        assert time.monotonic() < ends, f"{running(marker)} still run"
        time.sleep(0.05)


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    wait_for_none("mcp_server")


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def http() -> Iterator[str]:
    """The URL of the naughty server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([*SERVER, str(port)], stderr=subprocess.DEVNULL)
    try:
        ends = time.monotonic() + 30
        while not listens(port):
            assert time.monotonic() < ends
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


# --- a public server in an episode -----------------------------------------------------------------------------------


class Clocks(AgentEnv):
    """What time is it elsewhere? It has no tool of its own."""

    def __init__(self, **_: Any) -> None:
        """Takes the arguments that stand in the config which the test extends."""
        super().__init__()

    def generate_tasks(self, split: str, num: int, seed: int) -> list[Task]:
        return [TASK] * num

    def score(self, answer: str) -> Mapping[str, float]:
        return {"score": float(answer == "21:00")}


def test_a_public_server_is_a_tool_of_a_stored_scored_episode(tmp_path: Path) -> None:
    plugins.load()
    gymnasium.register(id="test/Clocks-v0", entry_point=Clocks)
    arguments = {"source_timezone": "UTC", "time": "12:00", "target_timezone": "Asia/Tokyo"}
    asked = call("convert_time", **arguments)
    wrong = call("convert_time", source_timezone="UTC", time="noon", target_timezone="Asia/Tokyo")
    play = script(
        [
            turns(create("clerk"), assign("clerk", "ask"), wrong),
            turns(asked, call("calculator", expression="12 + 9")),
            "21:00",
        ],
        ask=[asked, "21:00"],
    )
    (tmp_path / "c.yaml").write_text(
        f"""
extends: {ROOT / "configs" / "smoke.yaml"}
env:
  id: test/Clocks-v0
  tools:
    calculator: true
    mcp:
      time: {{command: [{", ".join(TIME)}], only: [convert_time]}}
"""
    )
    config = load(tmp_path / "c.yaml", [f"run_dir={tmp_path / 'run'}"])
    pool = LocalPool(lambda: make_env(config.env), Rollout())
    (episode,) = pool.run(runner(play), jobs(1))
    scored, _ = Scorer(config.reward).score([episode], 0, {})
    folder = RunFolder.create(tmp_path / "run", config)
    folder.write_episodes(0, scored, [])
    folder.close()
    gymnasium.registry.pop("test/Clocks-v0")

    (stored,) = (tmp_path / "run" / "episodes").glob("*.zst")
    (record,) = read_episodes(stored)
    main, child = record["traces"]
    assert (record["status"], record["outcome"], record["answer"]) == (
        "completed",
        {"score": 1.0},
        "21:00",
    )
    assert record["rewards"]["0"]["terms"]["outcome"] == 1.0
    refused = main["turns"][0]["observations"][2]
    assert refused.startswith("error: convert_time: ")
    assert "HH:MM" in refused
    for turn in (main["turns"][1], child["turns"][0]):
        asked_for = turn["tool_calls"][0]
        assert (asked_for["name"], asked_for["arguments"]) == ("convert_time", arguments)
        assert "T21:00:00+09:00" in turn["observations"][0]
    assert main["turns"][1]["observations"][1] == "21"


# --- results and errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["stdio", "http"])
def test_schemas_results_and_errors(transport: str, request: pytest.FixtureRequest) -> None:
    tools = (
        mcp(command=None, url=request.getfixturevalue("http"))
        if transport == "http"
        else mcp(max_chars=1000)
    )
    specs = {spec.name: spec for spec in tools.tool_specs()}
    assert specs["add"].description == "Add two numbers."
    assert specs["add"].parameters["properties"]["a"]["type"] == "integer"
    assert specs["add"].parameters["required"] == ["a", "b"]
    assert tools.call("add", {"a": 2, "b": 40}) == "42"
    assert (
        tools.call("add", {"a": "two", "b": 40}) == "error: add: a: 'two' is not of type 'integer'"
    )
    assert tools.call("add", {"a": 2}) == "error: add: 'b' is a required property"
    assert "out of order" in tools.call("fail", {})
    assert tools.call("fail", {}).startswith("error: fail: ")
    assert tools.call("ad", {}).startswith("error: no tool 'ad'. Did you mean 'add'?")
    assert tools.call("picture", {}) == "look\n(image that is not shown: image/png)"
    assert tools.call("long", {}).endswith(
        "x\n(cut at 1000 characters)" if transport == "stdio" else "x\n(cut at 20000 characters)"
    )


def test_calls_side_by_side_share_a_session() -> None:
    one, two = mcp(), mcp()
    seen: list[str] = []
    threads = [
        threading.Thread(target=lambda t=t: seen.append(t.call("count", {})))
        for t in (one, two) * 10
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(int(text.split()[0]) for text in seen) == list(range(1, 21))
    assert len(running("mcp_server.py")) == 1


def test_only_variables_that_are_named_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARL_TEST_A", "a")
    monkeypatch.setenv("PARL_TEST_B", "b")
    tools = mcp(pass_env=("PARL_TEST_A",))
    assert [tools.call("secret", {"name": f"PARL_TEST_{x}"}) for x in "AB"] == ["a", "(not set)"]
    monkeypatch.delenv("PARL_TEST_A")
    with pytest.raises(ConfigError, match="PARL_TEST_A, a variable that is not set"):
        mcp(pass_env=("PARL_TEST_A",), max_chars=7)


# --- sessions, forks -------------------------------------------------------------------------------------------------


def test_an_episode_has_its_own_session_which_its_agents_share() -> None:
    env, other = with_tools(mcp(session="episode")), with_tools(mcp(session="episode"))
    for _ in range(2):
        env.reset(options={"task": TASK})
        other.reset(options={"task": TASK})
        first = env.call("count", {}).split()
        child = env.fork("part")
        assert child.call("count", {}).split() == ["2", first[1]]
        assert copy.copy(env).call("count", {}).split() == ["3", first[1]]
        assert other.call("count", {}).split()[1] != first[1]
    env.step({"role": "assistant", "content": "blue", "tool_calls": []})
    other.step({"role": "assistant", "content": "blue", "tool_calls": []})
    wait_for_none("mcp_server.py")
    assert env.call("count", {}).split()[0] == "1"


def test_subagents_call_tools_through_the_runtime() -> None:
    play = script(
        [turns(create("a"), *(assign("a", p) for p in "xyz"), call("count")), "blue"],
        other=[call("count"), "done"],
    )
    episode = run(play, env=with_tools(mcp(session="episode")))
    texts = [t.turns[0].observations[-1].split() for t in episode.traces]
    assert sorted(n for n, _ in texts) == ["1", "2", "3", "4"]
    assert len({pid for _, pid in texts}) == 1


# --- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tool, kind", [("hang", "mcp_timeout"), ("freeze", "mcp_timeout"), ("die", "mcp_unavailable")]
)
def test_what_the_server_does_wrong_is_a_failure_of_the_episode(tool: str, kind: str) -> None:
    tools = mcp(deadline_s=3.0)
    before = tools.call("count", {}).split()[1]
    began = time.monotonic()
    episode = run(script([call(tool), "blue"]), env=with_tools(tools))
    assert time.monotonic() - began < 10  # it does not wait until the session is closed, too
    assert (episode.status, episode.failure) == ("failed", kind)
    assert tools.call("count", {}).split() != ["2", before]  # a new process
    assert tools.call("count", {}).split()[0] == "2"


def test_a_server_that_is_killed_in_mid_call() -> None:
    tools = mcp()
    pid = int(tools.call("count", {}).split()[1])
    threading.Timer(0.5, os.kill, (pid, signal.SIGKILL)).start()
    began = time.monotonic()
    with pytest.raises(EnvFailure, match="the server is gone") as caught:
        tools.call("hang", {})
    assert caught.value.kind == "mcp_unavailable"
    assert time.monotonic() - began < 5
    assert tools.call("add", {"a": 1, "b": 1}) == "2"


def test_a_call_that_hangs_costs_others_nothing() -> None:
    tools = mcp(deadline_s=4.0)
    kinds: list[str] = []

    def hang() -> None:
        with pytest.raises(EnvFailure) as caught:
            tools.call("hang", {})
        kinds.append(caught.value.kind)

    hanging = threading.Thread(target=hang)
    hanging.start()
    time.sleep(2.0)
    late = []
    slow = threading.Thread(target=lambda: late.append(tools.call("hang", {"seconds": 3.0})))
    slow.start()
    hanging.join()
    assert tools.call("add", {"a": 1, "b": 1}) == "2"  # in a new session
    slow.join()  # in the old one, which waits for it
    assert (kinds, late) == (["mcp_timeout"], ["late"])


def test_the_pool_tries_an_episode_again_with_a_new_server() -> None:
    pool = LocalPool(lambda: with_tools(mcp(session="episode")), Rollout(max_retries=1))
    (episode,) = pool.run(runner(script([call("die"), "blue"])), jobs(1))
    assert (episode.status, episode.failure, episode.id) == ("failed", "mcp_unavailable", "e0.1")
    (episode,) = pool.run(runner(script([call("count"), "blue"])), jobs(1))
    assert (episode.status, episode.orchestrator.turns[0].observations[0].split()[0]) == (
        "completed",
        "1",
    )


def test_an_http_server_that_goes_away(http: str) -> None:
    tools = mcp(command=None, url=http, deadline_s=4.0)
    pid = int(tools.call("count", {}).split()[1])
    with pytest.raises(EnvFailure) as caught:
        tools.call("hang", {})
    assert caught.value.kind == "mcp_timeout"
    assert tools.call("add", {"a": 1, "b": 1}) == "2"
    threading.Timer(0.5, os.kill, (pid, signal.SIGKILL)).start()
    with pytest.raises(EnvFailure) as caught:
        tools.call("hang", {})
    assert caught.value.kind in ("mcp_unavailable", "mcp_timeout")
    began = time.monotonic()
    with pytest.raises(EnvFailure) as caught:
        tools.call("add", {"a": 1, "b": 1})
    assert caught.value.kind == "mcp_unavailable"
    assert time.monotonic() - began < 6


def test_no_process_outlives_the_one_that_started_it(tmp_path: Path) -> None:
    code = f"""
import threading, sys, time
from parl.config.tools import McpConfig
from parl.env.toolsets import Mcp
tools = Mcp(McpConfig(command={SERVER!r}))
print(tools.call("count", {{}}).split()[1], flush=True)
def hang():
    try:
        tools.call("hang", {{}})
    except Exception:
        pass
threading.Thread(target=hang, daemon=True).start()
time.sleep(0.5)
"""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert time.monotonic() - began < 20
    assert not Path(f"/proc/{int(done.stdout)}").exists()
    assert done.stderr == ""


# --- wrong input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, why",
    [
        ({"command": ("no-such-program",)}, "No such file or directory"),
        (
            {"command": (sys.executable, "-m", "no_such_module")},
            "It wrote: .*No module named no_such_module",
        ),
        ({"command": ("sleep", "60"), "connect_s": 1.0}, "no connection within 1 s"),
        ({"command": ("cat",), "connect_s": 5.0}, "cannot be asked for its tools"),
        ({"command": None, "url": "http://127.0.0.1:9/mcp"}, "ConnectError"),
        ({"only": ("ad",)}, "has no tool 'ad' .*Did you mean 'add'"),
    ],
)
def test_a_server_that_cannot_be_asked(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        mcp(**changes)


def test_two_tools_of_one_name() -> None:
    env = with_tools(mcp(only=("add",)))
    with pytest.raises(
        ConfigError, match="WordsEnv has a tool 'add' already; leave out one of the two"
    ):
        env.add_tools(mcp(only=("count", "add")))
    env.add_tools(Calculator())
    assert [s.name for s in env.tool_specs()] == ["peek", "add", "calculator"]
