"""Calls of an environment's tools, made up from their schemas: what the checks of `parl envs check` play.

In: tool specs and the texts that an agent has read. Out: actions, and what came back. Everything is a function of one
seed, so two plays differ only where the environment does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from parl.core.messages import Message, assistant
from parl.core.types import Task, ToolCall
from parl.env.base import AgentEnv
from parl.env.tools import ToolSpec

SEED = 7
SUBTASK = "a subtask"
NUM_CALLS = 12
ODD_VALUES: tuple[Any, ...] = ("", "no such value", -1, None, ["x"], {"x": 1})

Lines = list[tuple[str, str]]
"""(what was asked, what came)."""


def reset(env: AgentEnv) -> str:
    """Start the episode that all plays are of; the task's prompt."""
    messages, _ = env.reset(seed=SEED)
    return messages[0]["content"]


def step(env: AgentEnv, action: Message) -> list[str]:
    """The texts that answer an action's calls. Raises TypeError when they are not one text for each."""
    messages, *_ = env.step(action)
    texts = [m["content"] for m in messages]
    if len(texts) != len(action["tool_calls"]) or not all(isinstance(t, str) for t in texts):
        raise TypeError(
            f"step() gave {texts!r} for {len(action['tool_calls'])} call(s); give one text for each"
        )
    return texts


def play(env: AgentEnv, prompt: str, num: int = NUM_CALLS) -> list[tuple[Message, str]]:
    """Calls that the schemas allow, and their answers. Texts in them are words that were read before."""
    specs = env.tool_specs()
    rng, words = np.random.default_rng(SEED), _words(prompt)
    played = []
    for i in range(num if specs else 0):
        action = assistant(calls=[good_call(specs[i % len(specs)], rng, words)])
        heard = step(env, action)[0]
        words += _words(heard)
        played.append((action, heard))
    return played


def good_call(spec: ToolSpec, rng: np.random.Generator, words: Sequence[str]) -> ToolCall:
    """A call that the schema allows; arguments that are not required come and go."""
    required = spec.parameters.get("required", ())
    chosen = {n: s for n, s in _properties(spec).items() if n in required or rng.random() < 0.5}
    return ToolCall(
        spec.name, {name: _value(schema, rng, words) for name, schema in chosen.items()}
    )


def odd_calls(specs: Sequence[ToolSpec], prompt: str) -> Iterator[ToolCall]:
    """What a model may write, too: no such tool, arguments that are missing, unknown, of a wrong type or senseless."""
    rng, words = np.random.default_rng(SEED), _words(prompt)
    yield ToolCall("no_such_tool", {})
    for spec in specs:
        good = dict(good_call(spec, rng, words).arguments)
        yield ToolCall(spec.name, {})
        yield ToolCall(spec.name, {**good, "no_such_argument": 1})
        for name in _properties(spec):
            for value in ODD_VALUES:
                yield ToolCall(spec.name, {**good, name: value})


def transcript(env: AgentEnv) -> Lines:
    """All that a seed has to determine: tasks, an episode, a fork."""
    lines = []
    for split in ("train", "validation", "test"):
        tasks = env.generate_tasks(split, 3, SEED)
        lines.append(
            (
                f"generate_tasks('{split}', 3, {SEED})",
                json.dumps([_plain(t) for t in tasks], default=repr),
            )
        )
    prompt = reset(env)
    lines.append((f"reset(seed={SEED})", prompt))
    lines += [(shown(action), heard) for action, heard in play(env, prompt)]
    lines += [
        (f"on a fork, {shown(action)}", heard) for action, heard in play(env.fork(SUBTASK), prompt)
    ]
    _, reward, _, _, info = env.step(assistant("42"))
    lines.append(
        ("the answer '42'", json.dumps([float(reward), info], sort_keys=True, default=repr))
    )
    return lines


def shown(action: Message) -> str:
    """Example: lookup(name='amber0')."""
    calls = [(c["name"], c["arguments"]) for c in action["tool_calls"]]
    return ", ".join(
        f"{name}({', '.join(f'{k}={v!r}' for k, v in given.items())})" for name, given in calls
    )


def _plain(task: Task) -> list[Any]:
    return [task.id, task.prompt, dict(task.data)]


def _words(text: str) -> list[str]:
    return [word for word in (w.strip(".,:;?!'\"()") for w in text.split()) if word][:100] or [
        "word"
    ]


def _properties(spec: ToolSpec) -> Mapping[str, Mapping[str, Any]]:
    properties: Mapping[str, Mapping[str, Any]] = spec.parameters.get("properties", {})
    return properties


def _value(schema: Mapping[str, Any], rng: np.random.Generator, words: Sequence[str]) -> Any:
    """A value of the schema; of one that this function does not know, a word."""
    if "enum" in schema:
        return schema["enum"][rng.integers(len(schema["enum"]))]
    if "anyOf" in schema:
        return _value(schema["anyOf"][0], rng, words)
    least = schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1)
    match schema.get("type"):
        case "integer":
            return int(least + rng.integers(5))
        case "number":
            return float(least + rng.random())
        case "boolean":
            return bool(rng.integers(2))
        case "array":
            return [_value(schema.get("items", {}), rng, words)]
        case "object":
            return {}
        case _:
            return words[int(rng.integers(len(words)))]
