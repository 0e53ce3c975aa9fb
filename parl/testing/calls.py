"""Tool calls made up from the tools' schemas, with which `parl envs check` plays an environment.

Everything is a function of one seed, so two plays differ only where the environment does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from parl.core.messages import Message, assistant
from parl.core.types import ToolCall
from parl.env.base import AgentEnv
from parl.env.tools import ToolSpec

SEED = 7
SUBTASK = "a subtask"
NUM_CALLS = 12
ODD_VALUES: tuple[Any, ...] = ("", "no such value", -1, None, ["x"], {"x": 1})
"""Values that may be of a wrong type, or of no sense, for an argument."""
MAX_WORDS = 100
"""Most words of one text that calls may use."""

Lines = list[tuple[str, str]]
"""(a question to the environment, its answer)."""


def reset(env: AgentEnv) -> str:
    """Start the episode that all plays are of, and return the task's prompt."""
    messages, _ = env.reset(seed=SEED)
    return messages[0]["content"]


def step(env: AgentEnv, action: Message) -> list[str]:
    """Return the texts that answer an action's calls.

    Raises:
        TypeError: the environment does not answer each call with one text.
    """
    messages, *_ = env.step(action)
    texts = [message["content"] for message in messages]
    num_calls = len(action["tool_calls"])
    if len(texts) != num_calls or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"step() gave {texts!r} for {num_calls} call(s); give one text for each")
    return texts


def play(env: AgentEnv, prompt: str, num: int = NUM_CALLS) -> list[tuple[Message, str]]:
    """Play calls that the schemas allow.

    Args:
        env: an environment whose episode has begun.
        prompt: the task's prompt.
        num: number of calls; the tools take turns.

    Returns:
        Each action and the environment's answer.
    """
    specs = env.tool_specs()
    if not specs:
        return []
    rng = np.random.default_rng(SEED)
    # Texts in the calls are words that the environment wrote before: a made-up word would find
    # nothing, and an environment that changes nothing repeats itself trivially.
    words = _words(prompt)
    played = []
    for i in range(num):
        action = assistant(calls=[good_call(specs[i % len(specs)], rng, words)])
        answer = step(env, action)[0]
        words += _words(answer)
        played.append((action, answer))
    return played


def good_call(spec: ToolSpec, rng: np.random.Generator, words: Sequence[str]) -> ToolCall:
    """Return a call that the schema allows; optional arguments come and go."""
    required = spec.parameters.get("required", ())
    arguments: dict[str, Mapping[str, Any]] = {}
    for name, schema in _properties(spec).items():
        if name in required or rng.random() < 0.5:
            arguments[name] = schema
    values = {name: _value(schema, rng, words) for name, schema in arguments.items()}
    return ToolCall(spec.name, values)


def odd_calls(specs: Sequence[ToolSpec], prompt: str) -> Iterator[ToolCall]:
    """Yield wrong calls, as a model may write them.

    There is no such tool, or arguments are missing, unknown, of a wrong type or senseless.
    """
    rng = np.random.default_rng(SEED)
    words = _words(prompt)
    yield ToolCall("no_such_tool", {})
    for spec in specs:
        arguments = dict(good_call(spec, rng, words).arguments)
        yield ToolCall(spec.name, {})
        yield ToolCall(spec.name, {**arguments, "no_such_argument": 1})
        for name in _properties(spec):
            for value in ODD_VALUES:
                yield ToolCall(spec.name, {**arguments, name: value})


def transcript(env: AgentEnv) -> Lines:
    """Return everything that a seed has to determine: tasks, an episode, a fork."""
    lines: Lines = []
    for split in ("train", "validation", "test"):
        tasks = []
        for task in env.generate_tasks(split, 3, SEED):
            tasks.append([task.id, task.prompt, dict(task.data)])
        lines.append((f"generate_tasks('{split}', 3, {SEED})", json.dumps(tasks, default=repr)))
    prompt = reset(env)
    lines.append((f"reset(seed={SEED})", prompt))
    for action, answer in play(env, prompt):
        lines.append((call_texts(action), answer))
    for action, answer in play(env.fork(SUBTASK), prompt):
        lines.append((f"on a fork, {call_texts(action)}", answer))
    _, reward, _, _, info = env.step(assistant("42"))
    outcome = json.dumps([float(reward), info], sort_keys=True, default=repr)
    lines.append(("the answer '42'", outcome))
    return lines


def call_texts(action: Message) -> str:
    """Return an action's calls as text.

    Example:
        lookup(name='amber0')
    """
    texts = []
    for call in action["tool_calls"]:
        arguments = ", ".join(f"{name}={value!r}" for name, value in call["arguments"].items())
        texts.append(f"{call['name']}({arguments})")
    return ", ".join(texts)


def _words(text: str) -> list[str]:
    """Return the words of a text without punctuation, at least one and at most MAX_WORDS."""
    words = []
    for token in text.split():
        word = token.strip(".,:;?!'\"()")
        if word:
            words.append(word)
    return words[:MAX_WORDS] or ["word"]


def _properties(spec: ToolSpec) -> Mapping[str, Mapping[str, Any]]:
    properties: Mapping[str, Mapping[str, Any]] = spec.parameters.get("properties", {})
    return properties


def _value(schema: Mapping[str, Any], rng: np.random.Generator, words: Sequence[str]) -> Any:
    """Return a value of a schema; of a kind that this function does not know, a word."""
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
