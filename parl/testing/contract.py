"""The promises of an environment, one function each.

In: an environment, or a way to make more of them. Each function raises `Broken` with what was seen and what to change,
`Slow` for a warning, or whatever the environment raises; a text that it returns says what was measured.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from statistics import median
from types import FrameType
from typing import Any

import jsonschema
import numpy as np
from gymnasium.utils.env_checker import check_env

from parl.config.env import EnvConfig
from parl.config.roles import ClockConfig, Limits, RoleConfig, Roles, Sampling, Swarm
from parl.core.coroutines import run_coroutine
from parl.core.messages import Message, assistant
from parl.core.types import ToolCall
from parl.env.base import AgentEnv
from parl.env.demonstrations import Segment
from parl.env.registry import make_env
from parl.env.swarm_tools import ASSIGN, CREATE
from parl.policy.base import PolicyHandle
from parl.policy.engines.scripted import CharRenderer, ScriptedEngine, call_text
from parl.rollout.swarm import SwarmRunner
from parl.testing.calls import (
    SUBTASK,
    Lines,
    good_call,
    odd_calls,
    play,
    reset,
    shown,
    step,
    transcript,
)

MOST_RESET_MS, MOST_STEP_MS, LEAST_FORKS_PER_S = 100.0, 50.0, 500.0
"""Beyond these an environment is called slow: the other agents of its process wait meanwhile."""
TIMED_S = 0.3
"""How long each speed is measured."""


class Broken(Exception):
    """A promise that is not kept: what was seen, and what to change."""


class Slow(Exception):
    """Worth a warning."""


def raised(error: Exception, package: str) -> str:
    frames = list(traceback.walk_tb(error.__traceback__))[::-1]
    return (
        f"{type(error).__name__}: {error}\nraised in {place(frames, package)}; correct that code."
    )


def place(frames: Iterable[tuple[FrameType, int]], package: str) -> str:
    """The innermost frame in the environment's own package, else the innermost of all. `frames`: innermost first."""
    frames = list(frames)
    own = [f for f in frames if f[0].f_globals.get("__name__", "").partition(".")[0] == package]
    frame, line = (own or frames)[0]
    return f"{frame.f_code.co_name} ({frame.f_code.co_filename}:{line})"


def runs(env: AgentEnv) -> None:
    (task,) = env.generate_tasks("train", 1, 0)
    messages, _ = env.reset(options={"task": task})
    if [(m["role"], m["content"]) for m in messages] != [("user", task.prompt)]:
        raise Broken(f"reset() gave {messages!r}; give one user message, the task's prompt")
    _, _, terminated, _, info = env.step(assistant("42"))
    if not terminated or "outcome" not in info or "facts" not in info:
        raise Broken(
            "a message without tool calls is the final answer, but step() did not end the episode with info['outcome'] "
            "and info['facts']; leave step() to AgentEnv and give score() and facts()"
        )


def answers(env: AgentEnv) -> None:
    prompt = reset(env)
    rng = np.random.default_rng(0)
    sensible = [
        good_call(spec, rng, prompt.split() or ["word"])
        for spec in env.tool_specs()
        for _ in range(3)
    ]
    for call in [*sensible, *odd_calls(env.tool_specs(), prompt)]:
        action = assistant(calls=[call])
        try:
            step(env, action)
        except Exception as error:
            package = type(env).__module__.partition(".")[0]
            raise Broken(
                f"{shown(action)}: {raised(error, package)}\nAn exception costs the whole episode: "
                "answer what an agent did wrong with a text (return 'error: ...')."
            ) from error
    step(env, assistant(calls=sensible))


def tools(env: AgentEnv) -> None:
    wrong = []
    for spec in env.tool_specs():
        try:
            jsonschema.Draft202012Validator.check_schema(spec.parameters)
        except jsonschema.SchemaError as error:
            wrong.append(f"{spec.name}: its parameters are no JSON schema: {error.message}")
            continue
        if spec.parameters.get("type") != "object":
            wrong.append(f'{spec.name}: its parameters need "type": "object"')
        if not spec.description:
            wrong.append(f"{spec.name}: the model sees no description; give the method a docstring")
        for name, schema in spec.parameters.get("properties", {}).items():
            if not schema.keys() & {"type", "anyOf", "oneOf", "allOf", "enum", "const", "$ref"}:
                wrong.append(
                    f"{spec.name}({name}): has no type; give the argument a type hint other than Any"
                )
            if not schema.get("description"):
                wrong.append(
                    f"{spec.name}({name}): has no description; annotate it: "
                    f"{name}: Annotated[TYPE, pydantic.Field(description='...')]"
                )
    if wrong:
        raise Broken("\n".join(wrong))


def repeats(make: Callable[[], AgentEnv], config: EnvConfig, deadline_s: float) -> None:
    env = make()
    first = transcript(env)
    _compare(
        first,
        transcript(env),
        "the second time in the same environment",
        "Set up in start() whatever an episode changes, and draw randomness from self.np_random only.",
    )
    _compare(
        first,
        transcript(make()),
        "in another environment",
        "Draw randomness from self.np_random, or from a seed that was passed in; keep nothing in the class.",
    )
    _compare(
        first,
        in_fresh_process(config, deadline_s / 2),
        "in another process",
        "The order of a set of texts and hash() differ from process to process: sort, and use parl.core.seeds.seed_for.",
    )


def _compare(first: Lines, second: Lines, where: str, advice: str) -> None:
    for (what, one), (_, other) in zip(first, second, strict=True):
        if one != other:
            raise Broken(f"{what} gave {_short(one)}\n{where} {_short(other)}\n{advice}")


def in_fresh_process(config: EnvConfig, timeout_s: float) -> Lines:
    code = (
        "import sys; from parl.testing import contract; contract.print_transcript(sys.stdin.read())"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "random"}
    command = [sys.executable, "-c", code]
    given = config.model_dump_json()
    try:
        done = subprocess.run(
            command,
            input=given,
            env=env,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Broken(f"in another process it does not end within {timeout_s:g} s") from None
    if done.returncode:
        raise Broken(f"in another process it fails:\n{done.stderr.strip()[-1000:]}")
    return [(what, came) for what, came in json.loads(done.stdout.splitlines()[-1])]


def print_transcript(config: str) -> None:
    """What the fresh process does: the transcript of an environment (its config as JSON) as the last line on stdout."""
    print("\n" + json.dumps(transcript(make_env(EnvConfig.model_validate_json(config)))))


def splits(env: AgentEnv) -> None:
    seen: dict[str, str] = {}
    for split in ("train", "validation", "test"):
        for task in env.generate_tasks(split, 20, 0):
            if (other := seen.setdefault(repr((task.prompt, task.data)), split)) != split:
                raise Broken(
                    f"a task of {split} is in {other} too: {_short(task.prompt)}\nLet generate_tasks() give each "
                    "split things of its own, such as every third name."
                )


def scores(env: AgentEnv) -> None:
    keys: set[str] | None = None
    for answer in ("", "?", "42", reset(env), "x " * 5000):
        reset(env)
        outcome = dict(env.step(assistant(answer))[4]["outcome"])
        given = f"score({_short(answer)}) gave {outcome}"
        if not all(
            isinstance(v, int | float | np.number) and math.isfinite(v) for v in outcome.values()
        ):
            raise Broken(f"{given}; give finite numbers only")
        if not 0 <= outcome["score"] <= 1:
            raise Broken(f"{given}; the key 'score' has to be in 0..1")
        if keys is not None and set(outcome) != keys:
            raise Broken(f"{given}, other answers gave {sorted(keys)}; give always the same keys")
        keys = set(outcome)


def forks(make: Callable[[], AgentEnv]) -> None:
    """Each world has to read what it reads when nobody else acts, but by the tools that are there to merge forks."""

    def world() -> tuple[AgentEnv, AgentEnv, AgentEnv]:
        parent = make()
        reset(parent)
        return parent, _forked(parent, SUBTASK), _forked(parent, "another subtask")

    alone = make()
    played = [
        (action, heard)
        for action, heard in play(alone, reset(alone))
        if not {call["name"] for call in action["tool_calls"]} & set(alone.merges)
    ]
    actions, parent_reads = [a for a, _ in played], [h for _, h in played]
    child_reads = _read(world()[1], actions)

    parent, child, _ = world()
    _read(child, actions)
    child.check_result("42")
    child.subtask_score("42")
    _same(
        "what a subagent did changed what its parent reads",
        actions,
        parent_reads,
        _read(parent, actions),
    )

    _, child, sibling = world()
    _read(sibling, actions)
    _same(
        "what a subagent did changed what its sibling reads",
        actions,
        child_reads,
        _read(child, actions),
    )

    parent, child, _ = world()
    _read(parent, actions)
    _same(
        "what the parent did changed what its subagent reads",
        actions,
        child_reads,
        _read(child, actions),
    )


def _forked(parent: AgentEnv, subtask: str) -> AgentEnv:
    child: object = parent.fork(subtask)
    if not isinstance(child, AgentEnv) or child is parent:
        what = "the parent itself" if child is parent else f"a {type(child).__name__}"
        raise Broken(f"fork() gave {what}; return a new environment, such as super().fork(subtask)")
    return child


def _read(env: AgentEnv, actions: Sequence[Message]) -> list[str]:
    return [step(env, action)[0] for action in actions]


def _same(
    what: str, actions: Sequence[Message], alone: Sequence[str], together: Sequence[str]
) -> None:
    for action, one, other in zip(actions, alone, together, strict=True):
        if one != other:
            raise Broken(
                f"{what}: {shown(action)} gave {_short(other)}, and {_short(one)} when nobody else acts\n"
                "In fork(), give the child a copy of its own of whatever tools change (the default copy is shallow)."
            )


def gymnasium(env: AgentEnv) -> None:
    try:
        check_env(env, skip_render_check=True)
    except Exception as error:
        raise Broken(
            f"{type(error).__name__}: {error}\n"
            "Call super().__init__() in __init__(), and leave reset(), step() and the spaces to AgentEnv."
        ) from error


def swarm(env: AgentEnv) -> str:
    """An episode through the real runtime: the orchestrator calls tools and launches two subagents, which do, too."""
    (task,) = env.generate_tasks("train", 1, 0)
    try:
        json.dumps([task.id, task.prompt, dict(task.data)])
    except (TypeError, ValueError) as error:
        raise Broken(f"a task's data are no JSON, in which episodes are stored: {error}") from None
    renderer = CharRenderer()
    handle = PolicyHandle("scripted", renderer, ScriptedEngine(_Script(env), renderer), False)
    wide = RoleConfig(limits=Limits(context_tokens=10**9), sampling=Sampling(max_tokens=10**9))
    runner = SwarmRunner(
        {"orchestrator": handle, "subagent": handle},
        Roles(orchestrator=wide, subagent=wide),
        Swarm(),
        ClockConfig(),
    )
    episode = run_coroutine(
        runner.run(env, task, episode_id="check", group="check", step=0, seed="check")
    )
    if episode.status != "completed":
        raise Broken(
            f"the runtime counts the episode as {episode.status}: {episode.orchestrator.stop_reason}"
        )
    assert len(episode.subagents) == _Script.WIDTH
    return f"{len(episode.subagents)} subagents, {episode.critical_steps} critical steps"


class _Script:
    """Everybody calls each tool once and answers; the orchestrator launches subagents in the same turn."""

    WIDTH = 2

    def __init__(self, env: AgentEnv) -> None:
        self._specs = env.tool_specs()

    def __call__(self, messages: Sequence[Message], rng: np.random.Generator) -> Sequence[Segment]:
        prompt = next(m["content"] for m in messages if m["role"] == "user")
        if any(m["role"] == "assistant" for m in messages):
            return [Segment("42")]
        calls = [good_call(spec, rng, prompt.split() or ["word"]) for spec in self._specs]
        if messages[0]["role"] != "system":
            calls.append(ToolCall(CREATE, {"name": "worker", "system_prompt": "worker"}))
            parts = [
                {"agent": "worker", "prompt": f"{prompt} (part {i})"} for i in range(self.WIDTH)
            ]
            calls += [ToolCall(ASSIGN, part) for part in parts]
        return [Segment(call_text(c)) for c in calls] or [Segment("42")]


def speed(env: AgentEnv) -> str:
    prompt = reset(env)
    reset_ms = 1000 * _seconds(lambda: reset(env))
    actions = [action for action, _ in play(env, prompt)]
    steps = iter(actions * 1000)
    step_ms = 1000 * _seconds(lambda: step(env, next(steps))) if actions else 0.0
    forks = 1 / _seconds(lambda: env.fork(SUBTASK))
    text = f"reset {reset_ms:.2g} ms, step {step_ms:.2g} ms, {forks:,.0f} forks a second"
    slow = [
        f"a reset should take at most {MOST_RESET_MS:g} ms: load what does not change once, when the module needs it"
        * (reset_ms > MOST_RESET_MS),
        f"a step should take at most {MOST_STEP_MS:g} ms: all other agents of the process wait meanwhile (a tool that "
        "waits for a process or a network wants `blocking = True`)" * (step_ms > MOST_STEP_MS),
        f"there should be at least {LEAST_FORKS_PER_S:g} forks a second: copy only what a subagent may change"
        * (forks < LEAST_FORKS_PER_S),
    ]
    if any(slow):
        raise Slow("\n".join([text, *filter(None, slow)]))
    return text


def _seconds(work: Callable[[], Any]) -> float:
    """Median of one call."""
    seen: list[float] = []
    while sum(seen) < TIMED_S and len(seen) < 1000:
        began = time.perf_counter()
        work()
        seen.append(time.perf_counter() - began)
    return median(seen)


def _short(text: str) -> str:
    return repr(text if len(text) <= 200 else text[:200] + "...")
