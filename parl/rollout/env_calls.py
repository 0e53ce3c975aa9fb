"""An environment as the runtime calls it: whatever escapes becomes a typed failure of the episode.

In: an environment of anybody. Out: observations, outcome and facts that are what they should be, or `EpisodeFailure`.
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
"""Characters of one observation: far above any context window, and not yet a danger to the machine."""


class EpisodeFailure(Exception):
    """Something outside the policy failed (environment, engine, deadline). Becomes a typed status, never a score."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


def failure_of(error: Exception, detail: str) -> EpisodeFailure:
    """What an environment raised, by its kind where it says one (a judge)."""
    return EpisodeFailure(error.kind if isinstance(error, EnvFailure) else "environment", detail)


async def reset_env(env: AgentEnv, task: Task) -> None:
    try:
        await call_env(env, env.reset, seed=None, options={"task": task})
    except Exception as error:
        raise failure_of(error, f"reset: {error!r}") from error


async def score_env(env: AgentEnv, answer: str) -> tuple[Mapping[str, float], Mapping[str, object]]:
    try:
        _, _, _, _, info = await call_env(env, env.step, assistant(answer))
        parts = env.num_parts()
        outcome = {str(k): require_finite(v, f"outcome '{k}'") for k, v in info["outcome"].items()}
        if not 0 <= outcome["score"] <= 1:
            raise ValueError(f"score is {outcome['score']}, outside of 0..1")
        facts = dict(info["facts"]) | ({} if parts is None else {"num_parts": int(parts)})
        json.dumps(facts)  # episodes are stored as JSON
    except Exception as error:
        raise failure_of(error, f"scoring: {error!r}") from error
    return outcome, facts


async def contradictions(env: AgentEnv, messages: Sequence[str]) -> dict[str, list[str]]:
    """The fact `contradictions`: keys to which messages of different subagents give different values, in order.

    No such fact where the environment does not say what messages state.
    """
    if type(env).claims is AgentEnv.claims:
        return {}
    values: dict[str, set[str]] = {}
    try:
        for message in messages:
            for key, value in (await call_env(env, env.claims, message)).items():
                values.setdefault(normalize_text(key), set()).add(normalize_text(value))
    except Exception as error:
        raise failure_of(error, f"claims: {error!r}") from error
    return {"contradictions": [key for key, given in values.items() if len(given) > 1]}


async def contributions(env: AgentEnv, answer: str, messages: Sequence[str]) -> list[float] | None:
    """What each subagent's message is worth to the answer; None where the environment cannot tell."""
    try:
        worth = await call_env(env, env.contributions, answer, messages)
        if worth is not None and len(worth) != len(messages):
            raise ValueError(f"{len(worth)} values for {len(messages)} messages")
        return None if worth is None else [require_finite(v, "contribution") for v in worth]
    except Exception as error:
        raise failure_of(error, f"contributions: {error!r}") from error


def require_finite(value: object, what: str) -> float:
    """A number that may enter a mean: one NaN would spread to the weights."""
    number = float(value)  # type: ignore[arg-type]
    if not math.isfinite(number):
        raise ValueError(f"{what} is {value!r}, not a finite number")
    return number


async def env_calls(env: AgentEnv, calls: Sequence[ToolCall]) -> list[str]:
    """Run calls in the environment, in a thread where it blocks. Whatever escapes is an `environment` failure."""
    if not calls:
        return []
    action = assistant(calls=calls)
    try:
        messages, *_ = await call_env(env, env.step, action)
        texts = [m["content"] for m in messages]
        if len(texts) != len(calls) or any(len(t) > MAX_OBSERVATION for t in texts):
            raise ValueError(
                f"{len(texts)} observations of {[len(t) for t in texts]} characters for {len(calls)} calls"
            )
        return [
            t.encode("utf-8", "replace").decode() for t in texts
        ]  # half of a surrogate pair is no text
    except Exception as error:
        raise failure_of(error, repr(error)) from error


async def call_env(env: AgentEnv, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a method of an environment; where it blocks, in a thread of its own.

    Not in `asyncio.to_thread`'s pool: calls that hang for ever would use up its threads.
    """
    if not env.blocking:
        return function(*args, **kwargs)
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if not done.done():  # else its deadline has passed
            done.set_result(result) if error is None else done.set_exception(error)

    def work() -> None:
        result, error = None, None
        try:
            result = function(*args, **kwargs)
        except Exception as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, daemon=True, name="environment").start()
    return await done
