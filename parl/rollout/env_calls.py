"""Calls of an environment: whatever a plugin raises or returns becomes a typed failure.

An environment may be anybody's. Its observations, outcome and facts are checked here, so that
nothing behind this file needs to ask what they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from parl.core.errors import EnvFailure
from parl.core.messages import assistant
from parl.core.text import normalize_text
from parl.core.types import Task, ToolCall
from parl.env.base import AgentEnv

MAX_OBSERVATION = 2_000_000
"""Characters of one observation: far above any context window, and no danger to the machine yet."""


class EpisodeFailure(Exception):
    """Something outside the policy failed (environment, engine, deadline).

    It becomes a typed status of the episode, never a score.
    """

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


def failure_of(error: Exception, detail: str) -> EpisodeFailure:
    """Return an environment's error as a failure, of the error's kind where it names one."""
    kind = error.kind if isinstance(error, EnvFailure) else "environment"
    return EpisodeFailure(kind, detail)


async def reset_env(env: AgentEnv, task: Task) -> None:
    """Begin a task.

    Raises:
        EpisodeFailure: the environment raised.
    """
    try:
        await call_env(env, env.reset, seed=None, options={"task": task})
    except Exception as error:
        raise failure_of(error, f"reset: {error!r}") from error


async def score_env(env: AgentEnv, answer: str) -> tuple[Mapping[str, float], Mapping[str, object]]:
    """Give the environment the answer, and return the outcome and the facts of the episode.

    Raises:
        EpisodeFailure: the environment raised, or gave a score outside of 0..1, a value that is not
            finite, or facts that are no JSON.
    """
    try:
        _, _, _, _, info = await call_env(env, env.step, assistant(answer))
        num_parts = env.num_parts()
        outcome: dict[str, float] = {}
        for name, value in info["outcome"].items():
            outcome[str(name)] = require_finite(value, f"outcome '{name}'")
        # The contract of every environment: thresholds of correctness rely on it.
        if not 0 <= outcome["score"] <= 1:
            raise ValueError(f"score is {outcome['score']}, outside of 0..1")
        facts = dict(info["facts"])
        if num_parts is not None:
            facts["num_parts"] = int(num_parts)
        # Episodes are stored as JSON. Found out here, it costs this episode and not the run.
        json.dumps(facts)
    except Exception as error:
        raise failure_of(error, f"scoring: {error!r}") from error
    return outcome, facts


async def contradictions(env: AgentEnv, messages: Sequence[str]) -> dict[str, list[str]]:
    """Return the fact `contradictions`: keys to which messages give different values, in order.

    Without it where the environment does not say what messages claim.

    Args:
        messages: of subagents, as the orchestrator read them.
    Raises:
        EpisodeFailure: the environment raised.
    """
    # Asked of the class: no message is read where `claims` is not implemented.
    if type(env).claims is AgentEnv.claims:
        return {}
    values: dict[str, set[str]] = {}
    try:
        for message in messages:
            claims = await call_env(env, env.claims, message)
            for key, value in claims.items():
                values.setdefault(normalize_text(key), set()).add(normalize_text(value))
    except Exception as error:
        raise failure_of(error, f"claims: {error!r}") from error
    keys = [key for key, values_of_key in values.items() if len(values_of_key) > 1]
    return {"contradictions": keys}


async def contributions(env: AgentEnv, answer: str, messages: Sequence[str]) -> list[float] | None:
    """Return what the answer would lose without each message; None if that cannot be told.

    Raises:
        EpisodeFailure: the environment raised, or gave other than one finite number per message.
    """
    try:
        values = await call_env(env, env.contributions, answer, messages)
        if values is None:
            return None
        # A value too few would give some subagents what others contributed.
        if len(values) != len(messages):
            raise ValueError(f"{len(values)} values for {len(messages)} messages")
        return [require_finite(value, "contribution") for value in values]
    except Exception as error:
        raise failure_of(error, f"contributions: {error!r}") from error


def require_finite(value: object, what: str) -> float:
    """Return a number that may enter a mean: one NaN would spread to the weights.

    Raises:
        ValueError: it is not finite.
    """
    number = float(value)  # type: ignore[arg-type]
    if not math.isfinite(number):
        raise ValueError(f"{what} is {value!r}, not a finite number")
    return number


async def env_calls(env: AgentEnv, calls: Sequence[ToolCall]) -> list[str]:
    """Run calls in the environment, and return their observations.

    Raises:
        EpisodeFailure: the environment raised, or its observations do not fit the calls.
    """
    if not calls:
        return []
    try:
        messages, *_ = await call_env(env, env.step, assistant(calls=calls))
        texts = [message["content"] for message in messages]
        lengths = [len(text) for text in texts]
        if len(texts) != len(calls) or max(lengths) > MAX_OBSERVATION:
            raise ValueError(
                f"{len(texts)} observations of {lengths} characters for {len(calls)} calls"
            )
        # Half of a surrogate pair is no text: it could be neither tokenized nor stored.
        return [text.encode("utf-8", "replace").decode() for text in texts]
    except Exception as error:
        raise failure_of(error, repr(error)) from error


async def call_env(env: AgentEnv, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a method of an environment; one that blocks, in a separate thread.

    Not in the pool of `asyncio.to_thread`, which has 6 threads on 2 cores: with six calls that
    hang, no other environment would get an answer. A new thread costs 0.1 ms.
    """
    if not env.blocking:
        return function(*args, **kwargs)
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        # The deadline may have passed: then nobody waits for it.
        if done.done():
            return
        if error is None:
            done.set_result(result)
        else:
            done.set_exception(error)

    def work() -> None:
        result = None
        error = None
        try:
            result = function(*args, **kwargs)
        except Exception as raised:
            error = raised
        # The loop may be closed: the call has outlived its episode.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, result, error)

    # A daemon, so that a call that hangs for ever does not keep the process alive.
    threading.Thread(target=work, daemon=True, name="environment").start()
    return await done
