"""The checks of an environment, in order, as `parl envs check` runs them.

Example, in a test of your own environment:
    results = list(check(EnvConfig(id="dice_game/DiceGame-v0")))
    assert [result for result in results if result.status == "BAD"] == []
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

from parl.config.env import EnvConfig
from parl.core.errors import ConfigError
from parl.env.base import AgentEnv
from parl.env.registry import make_env
from parl.testing import contract

DEADLINE_S = 60.0
"""Deadline of one check: an environment may hang."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of one check."""

    what: str
    status: Literal["ok", "BAD", "slow", "--"]
    """`slow` is a warning. `--`: it did not run, because an earlier check failed."""
    text: str = ""
    """What is wrong and what to change; of a good one, what was measured."""


class _Hang(Exception):
    """A call that does not return. The message says where it stands."""


def make_within(config: EnvConfig, deadline_s: float = DEADLINE_S) -> AgentEnv:
    """Make an environment.

    Raises:
        ConfigError: it cannot be made, its constructor raises, or does not return in time.
    """
    try:
        return _within(deadline_s, lambda: make_env(config), "")
    except ConfigError:
        raise
    except _Hang as hang:
        raise ConfigError(f"{config.id} cannot be made: {hang}") from None
    except Exception as error:
        reason = contract.describe_error(error, "")
        raise ConfigError(f"{config.id} cannot be made: {reason}") from error


def check(config: EnvConfig, deadline_s: float = DEADLINE_S) -> Iterator[CheckResult]:
    """Check an environment against its contract.

    The checks have stages. One runs when those of all earlier stages passed, so that one mistake is
    not reported ten times.

    Args:
        config: the environment and its arguments.
        deadline_s: seconds that each check may take.

    Yields:
        One result per check.

    Raises:
        ConfigError: the environment cannot be made.
    """
    package = type(make_within(config, deadline_s)).__module__.partition(".")[0]

    def make() -> AgentEnv:
        return make_env(config)

    def check_repeats() -> None:
        contract.check_repeats(make, config, deadline_s)

    checks: list[tuple[int, str, Callable[[], str | None]]] = [
        (0, "an episode starts and ends", lambda: contract.check_episode(make())),
        (1, "calls are answered with text", lambda: contract.check_answers(make())),
        (2, "the same seed gives the same episode", check_repeats),
        (3, "tools have valid and described schemas", lambda: contract.check_tools(make())),
        (3, "splits share no task", lambda: contract.check_splits(make())),
        (3, "score is in 0..1", lambda: contract.check_scores(make())),
        (3, "forks are isolated", lambda: contract.check_forks(make)),
        (4, "Gymnasium's check_env", lambda: contract.check_gymnasium(make())),
        (4, "a swarm plays an episode", lambda: contract.check_swarm(make())),
        (4, "speed", lambda: contract.check_speed(make())),
    ]
    last_stage = checks[-1][0]  # the last stage that may run
    for stage, what, function in checks:
        if stage > last_stage:
            yield CheckResult(what, "--", "not checked; correct the above first")
            continue
        result, hangs = _run(what, function, deadline_s, package)
        yield result
        if hangs:
            # The thread still holds whatever it waits for, and the next call would hang as well.
            last_stage = -1
        elif result.status == "BAD":
            last_stage = min(last_stage, stage)


def _run(
    what: str, function: Callable[[], str | None], deadline_s: float, package: str
) -> tuple[CheckResult, bool]:
    """Return the result of a check, and whether a call hangs."""
    try:
        return CheckResult(what, "ok", _within(deadline_s, function, package) or ""), False
    except _Hang as hang:
        return CheckResult(what, "BAD", str(hang)), True
    except contract.Broken as broken:
        return CheckResult(what, "BAD", str(broken)), False
    except contract.Slow as slow:
        return CheckResult(what, "slow", str(slow)), False
    except Exception as error:
        # Whatever the plugin raises is the result.
        return CheckResult(what, "BAD", contract.describe_error(error, package)), False


def _within(deadline_s: float, function: Callable[[], T], package: str) -> T:
    """Call a function in a thread of its own.

    Python cannot stop a thread: one that does not return in time is left alone.

    Raises:
        _Hang: the function does not return in time.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(deadline_s)
    if thread.is_alive():
        frames = list(traceback.walk_stack(sys._current_frames().get(thread.ident or 0)))
        raise _Hang(
            f"no end within {deadline_s:g} s; it stands in {contract.place(frames, package)}. "
            "Every call has to return: give whatever waits (a process, a network) a timeout, and "
            "answer with a text when it has passed."
        )
    if errors:
        raise errors[0]
    return results[0]
