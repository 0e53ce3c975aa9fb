"""The promises of an environment, one check each (docs/how-to/write-an-environment.md, section 4).

A check raises `Broken` with what was seen and what to change, `Slow` for a warning, or whatever the
environment raises. A text that it returns is a measurement.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from parl.env.tools import ToolSpec
from parl.policy.base import PolicyHandle
from parl.policy.engines.scripted import CharRenderer, ScriptedEngine, call_text
from parl.rollout.swarm import SwarmRunner
from parl.testing.calls import (
    SUBTASK,
    Lines,
    call_texts,
    good_call,
    odd_calls,
    play,
    reset,
    step,
    transcript,
)

MAX_RESET_MS, MAX_STEP_MS, MIN_FORKS_PER_S = 100.0, 50.0, 500.0
"""Limits beyond which an environment is called slow: the other agents of its process wait for
it."""
TIMED_S = 0.3
"""Time spent on measuring each speed."""
MAX_REPEATS = 1000
"""Most calls in one measurement."""
TYPE_KEYS = frozenset({"type", "anyOf", "oneOf", "allOf", "enum", "const", "$ref"})
"""Keys of a JSON schema that say which values it allows."""


class Broken(Exception):
    """A broken promise: what was seen, and what to change."""


class Slow(Exception):
    """A promise that is kept too slowly, which is worth a warning."""


# --- errors of the environment -------------------------------------------------------------------


def describe_error(error: Exception, package: str) -> str:
    """Return an error of an environment and the place in its code that raised it."""
    frames = list(traceback.walk_tb(error.__traceback__))
    frames.reverse()
    return (
        f"{type(error).__name__}: {error}\nraised in {place(frames, package)}; correct that code."
    )


def place(frames: Iterable[tuple[FrameType, int]], package: str) -> str:
    """Return the place of the innermost frame in a package, or of the innermost frame of all.

    The author can change the environment's code, but not the library that it called.

    Args:
        frames: (frame, line), innermost first.
        package: the environment's package.
    """
    frames = list(frames)
    in_package = []
    for frame, line in frames:
        module = frame.f_globals.get("__name__", "")
        if module.partition(".")[0] == package:
            in_package.append((frame, line))
    frame, line = (in_package or frames)[0]
    return f"{frame.f_code.co_name} ({frame.f_code.co_filename}:{line})"


# --- episodes ------------------------------------------------------------------------------------


def check_episode(env: AgentEnv) -> None:
    """Check that an episode starts with the prompt and ends with an answer."""
    (task,) = env.generate_tasks("train", 1, 0)
    messages, _ = env.reset(options={"task": task})
    if [(message["role"], message["content"]) for message in messages] != [("user", task.prompt)]:
        raise Broken(f"reset() gave {messages!r}; give one user message, the task's prompt")
    _, _, terminated, _, info = env.step(assistant("42"))
    if not terminated or "outcome" not in info or "facts" not in info:
        raise Broken(
            "a message without tool calls is the final answer, but step() did not end the episode "
            "with info['outcome'] and info['facts']; leave step() to AgentEnv and give score() and "
            "facts()"
        )


def check_answers(env: AgentEnv) -> None:
    """Check that every call, right or wrong, is answered with a text."""
    prompt = reset(env)
    rng = np.random.default_rng(0)
    words = prompt.split() or ["word"]
    good_calls = []
    for spec in env.tool_specs():
        good_calls += [good_call(spec, rng, words) for _ in range(3)]
    for call in [*good_calls, *odd_calls(env.tool_specs(), prompt)]:
        action = assistant(calls=[call])
        try:
            step(env, action)
        except Exception as error:
            package = type(env).__module__.partition(".")[0]
            raise Broken(
                f"{call_texts(action)}: {describe_error(error, package)}\n"
                "An exception costs the whole episode: answer what an agent did wrong with a text "
                "(return 'error: ...')."
            ) from error
    # Several calls in one turn, too.
    step(env, assistant(calls=good_calls))


def check_tools(env: AgentEnv) -> None:
    """Check that tools have types and descriptions, which are all that a model sees of them."""
    problems = []
    for spec in env.tool_specs():
        problems += _schema_problems(spec)
    if problems:
        raise Broken("\n".join(problems))


def _schema_problems(spec: ToolSpec) -> list[str]:
    try:
        jsonschema.Draft202012Validator.check_schema(spec.parameters)
    except jsonschema.SchemaError as error:
        return [f"{spec.name}: its parameters are no JSON schema: {error.message}"]
    problems = []
    if spec.parameters.get("type") != "object":
        problems.append(f'{spec.name}: its parameters need "type": "object"')
    if not spec.description:
        problems.append(f"{spec.name}: the model sees no description; give the method a docstring")
    for name, schema in spec.parameters.get("properties", {}).items():
        if not schema.keys() & TYPE_KEYS:
            problems.append(
                f"{spec.name}({name}): has no type; give the argument a type hint other than Any"
            )
        if not schema.get("description"):
            problems.append(
                f"{spec.name}({name}): has no description; annotate it: "
                f"{name}: Annotated[TYPE, pydantic.Field(description='...')]"
            )
    return problems


# --- reproducibility -----------------------------------------------------------------------------


def check_repeats(make: Callable[[], AgentEnv], config: EnvConfig, deadline_s: float) -> None:
    """Check that a seed determines the episode, in this process and in another one."""
    env = make()
    first = transcript(env)
    _compare(
        first,
        transcript(env),
        "the second time in the same environment",
        "Set up in start() whatever an episode changes, and draw randomness from self.np_random "
        "only.",
    )
    _compare(
        first,
        transcript(make()),
        "in another environment",
        "Draw randomness from self.np_random, or from a seed that was passed in; keep nothing in "
        "the class.",
    )
    _compare(
        first,
        in_fresh_process(config, deadline_s / 2),
        "in another process",
        "The order of a set of texts and hash() differ from process to process: sort, and use "
        "parl.core.seeds.seed_for.",
    )


def in_fresh_process(config: EnvConfig, timeout_s: float) -> Lines:
    """Return the transcript of an environment in a new process, whose hash seed is another one."""
    code = (
        "import sys; from parl.testing import contract; contract.print_transcript(sys.stdin.read())"
    )
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "random"}
    try:
        process = subprocess.run(
            [sys.executable, "-c", code],
            input=config.model_dump_json(),
            env=variables,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Broken(f"in another process it does not end within {timeout_s:g} s") from None
    if process.returncode:
        raise Broken(f"in another process it fails:\n{process.stderr.strip()[-1000:]}")
    # The last line: the environment may print, too.
    lines = json.loads(process.stdout.splitlines()[-1])
    return [(question, answer) for question, answer in lines]


def print_transcript(config: str) -> None:
    """Print an environment's transcript as the last line on stdout, for `in_fresh_process`.

    Args:
        config: the environment's config as JSON.
    """
    env = make_env(EnvConfig.model_validate_json(config))
    print("\n" + json.dumps(transcript(env)))


def _compare(first: Lines, second: Lines, where: str, advice: str) -> None:
    for (question, one), (_, other) in zip(first, second, strict=True):
        if one != other:
            raise Broken(f"{question} gave {_short(one)}\n{where} {_short(other)}\n{advice}")


# --- tasks and scores ----------------------------------------------------------------------------


def check_splits(env: AgentEnv) -> None:
    """Check that no task is in two splits."""
    split_of_task: dict[str, str] = {}
    for split in ("train", "validation", "test"):
        for task in env.generate_tasks(split, 20, 0):
            first_split = split_of_task.setdefault(repr((task.prompt, task.data)), split)
            if first_split != split:
                raise Broken(
                    f"a task of {split} is in {first_split} too: {_short(task.prompt)}\nLet "
                    "generate_tasks() give each split things of its own, such as every third name."
                )


def check_scores(env: AgentEnv) -> None:
    """Check that outcomes are finite numbers under the same keys, with `score` in 0..1."""
    keys: set[str] | None = None
    for answer in ("", "?", "42", reset(env), "x " * 5000):
        reset(env)
        outcome = dict(env.step(assistant(answer))[4]["outcome"])
        observed = f"score({_short(answer)}) gave {outcome}"
        if not _all_finite(outcome):
            raise Broken(f"{observed}; give finite numbers only")
        if not 0 <= outcome["score"] <= 1:
            raise Broken(f"{observed}; the key 'score' has to be in 0..1")
        # Metrics are means over episodes: a key that comes and goes would be a mean over some.
        if keys is not None and set(outcome) != keys:
            raise Broken(
                f"{observed}, other answers gave {sorted(keys)}; give always the same keys"
            )
        keys = set(outcome)


def _all_finite(outcome: Mapping[str, Any]) -> bool:
    for value in outcome.values():
        if not isinstance(value, int | float | np.number) or not math.isfinite(value):
            return False
    return True


# --- forks ---------------------------------------------------------------------------------------


def check_forks(make: Callable[[], AgentEnv]) -> None:
    """Check that each world reads the same whatever the others do.

    Tools that take over what forks did (`merges`) are left out.
    """

    def make_worlds() -> tuple[AgentEnv, AgentEnv, AgentEnv]:
        """Return a parent and two of its forks."""
        parent = make()
        reset(parent)
        return parent, _fork(parent, SUBTASK), _fork(parent, "another subtask")

    # What the parent and a child read when nobody else acts.
    alone = make()
    actions: list[Message] = []
    parent_texts: list[str] = []
    for action, text in play(alone, reset(alone)):
        names = {call["name"] for call in action["tool_calls"]}
        if not names & set(alone.merges):
            actions.append(action)
            parent_texts.append(text)
    child_texts = _read(make_worlds()[1], actions)

    parent, child, _ = make_worlds()
    _read(child, actions)
    child.check_result("42")
    child.subtask_score("42")
    what = "what a subagent did changed what its parent reads"
    _check_same(what, actions, parent_texts, _read(parent, actions))

    _, child, sibling = make_worlds()
    _read(sibling, actions)
    what = "what a subagent did changed what its sibling reads"
    _check_same(what, actions, child_texts, _read(child, actions))

    parent, child, _ = make_worlds()
    _read(parent, actions)
    what = "what the parent did changed what its subagent reads"
    _check_same(what, actions, child_texts, _read(child, actions))


def _fork(parent: AgentEnv, subtask: str) -> AgentEnv:
    child: object = parent.fork(subtask)
    if not isinstance(child, AgentEnv) or child is parent:
        what = "the parent itself" if child is parent else f"a {type(child).__name__}"
        raise Broken(f"fork() gave {what}; return a new environment, such as super().fork(subtask)")
    return child


def _read(env: AgentEnv, actions: Sequence[Message]) -> list[str]:
    return [step(env, action)[0] for action in actions]


def _check_same(
    what: str, actions: Sequence[Message], alone: Sequence[str], together: Sequence[str]
) -> None:
    for action, one, other in zip(actions, alone, together, strict=True):
        if one != other:
            raise Broken(
                f"{what}: {call_texts(action)} gave {_short(other)}, and {_short(one)} when nobody "
                "else acts\nIn fork(), give the child a copy of its own of whatever tools change "
                "(the default copy is shallow)."
            )


# --- Gymnasium, the swarm, speed -----------------------------------------------------------------


def check_gymnasium(env: AgentEnv) -> None:
    """Run Gymnasium's own checker."""
    try:
        check_env(env, skip_render_check=True)
    except Exception as error:
        raise Broken(
            f"{type(error).__name__}: {error}\n"
            "Call super().__init__() in __init__(), and leave reset(), step() and the spaces to "
            "AgentEnv."
        ) from error


def check_swarm(env: AgentEnv) -> str:
    """Play an episode through the swarm runtime, with a script in place of a model.

    The orchestrator calls each tool and launches two subagents, which call each tool as well.
    """
    (task,) = env.generate_tasks("train", 1, 0)
    try:
        json.dumps([task.id, task.prompt, dict(task.data)])
    except (TypeError, ValueError) as error:
        raise Broken(f"a task's data are no JSON, in which episodes are stored: {error}") from None
    renderer = CharRenderer()
    engine = ScriptedEngine(_Script(env), renderer)
    handle = PolicyHandle("scripted", renderer, engine, False)
    # Limits are the config's concern; here no episode may reach one.
    unlimited = RoleConfig(limits=Limits(context_tokens=10**9), sampling=Sampling(max_tokens=10**9))
    runner = SwarmRunner(
        {"orchestrator": handle, "subagent": handle},
        Roles(orchestrator=unlimited, subagent=unlimited),
        Swarm(),
        ClockConfig(),
    )
    episode = run_coroutine(
        runner.run(env, task, episode_id="check", group="check", step=0, seed="check")
    )
    if episode.status != "completed":
        reason = episode.orchestrator.stop_reason
        raise Broken(f"the runtime counts the episode as {episode.status}: {reason}")
    assert len(episode.subagents) == _Script.WIDTH
    return f"{len(episode.subagents)} subagents, {episode.critical_steps} critical steps"


class _Script:
    """Every agent calls each tool once and answers; the orchestrator also launches subagents."""

    WIDTH = 2

    def __init__(self, env: AgentEnv) -> None:
        self._specs = env.tool_specs()

    def __call__(self, messages: Sequence[Message], rng: np.random.Generator) -> Sequence[Segment]:
        if any(message["role"] == "assistant" for message in messages):
            return [Segment("42")]
        prompt = next(message["content"] for message in messages if message["role"] == "user")
        words = prompt.split() or ["word"]
        calls = [good_call(spec, rng, words) for spec in self._specs]
        # Only subagents have a system message here.
        if messages[0]["role"] != "system":
            calls.append(ToolCall(CREATE, {"name": "worker", "system_prompt": "worker"}))
            for i in range(self.WIDTH):
                # Different prompts: the runtime refuses duplicates.
                arguments = {"agent": "worker", "prompt": f"{prompt} (part {i})"}
                calls.append(ToolCall(ASSIGN, arguments))
        return [Segment(call_text(call)) for call in calls] or [Segment("42")]


def check_speed(env: AgentEnv) -> str:
    """Measure resets, steps and forks, and warn of slow ones."""
    prompt = reset(env)
    reset_ms = 1000 * _seconds(lambda: reset(env))
    actions = [action for action, _ in play(env, prompt)]
    step_ms = 0.0
    if actions:
        next_action = iter(actions * MAX_REPEATS)
        step_ms = 1000 * _seconds(lambda: step(env, next(next_action)))
    forks_per_s = 1 / _seconds(lambda: env.fork(SUBTASK))
    text = f"reset {reset_ms:.2g} ms, step {step_ms:.2g} ms, {forks_per_s:,.0f} forks a second"
    warnings = []
    if reset_ms > MAX_RESET_MS:
        warnings.append(
            f"a reset should take at most {MAX_RESET_MS:g} ms: load what does not change once, "
            "when the module needs it"
        )
    if step_ms > MAX_STEP_MS:
        warnings.append(
            f"a step should take at most {MAX_STEP_MS:g} ms: all other agents of the process wait "
            "meanwhile (a tool that waits for a process or a network wants `blocking = True`)"
        )
    if forks_per_s < MIN_FORKS_PER_S:
        warnings.append(
            f"there should be at least {MIN_FORKS_PER_S:g} forks a second: copy only what a "
            "subagent may change"
        )
    if warnings:
        raise Slow("\n".join([text, *warnings]))
    return text


def _seconds(work: Callable[[], Any]) -> float:
    """Return the median time of one call, in seconds.

    A median, because the first call of a step may load an index.
    """
    durations: list[float] = []
    while sum(durations) < TIMED_S and len(durations) < MAX_REPEATS:
        start = time.perf_counter()
        work()
        durations.append(time.perf_counter() - start)
    return median(durations)


def _short(text: str) -> str:
    return repr(text if len(text) <= 200 else text[:200] + "...")
