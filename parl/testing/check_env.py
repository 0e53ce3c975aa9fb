"""What `parl envs check` does: the checks of an environment, in order.

In: an environment's config. Out: one `CheckResult` after another. A check runs when those of all earlier stages passed, so
that one mistake is not reported ten times; each has a deadline, since an environment may hang.
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
"""Of one check."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CheckResult:
    """Of one check. `--`: it did not run, for what an earlier one found."""

    what: str
    status: Literal["ok", "BAD", "slow", "--"]
    text: str = ""
    """What is wrong and what to change; of a good one, what was measured."""


class _Hang(Exception):
    """A call that does not return; says where it stands."""


def made(config: EnvConfig, deadline_s: float = DEADLINE_S) -> AgentEnv:
    """The environment. Raises ConfigError, also when its constructor raises or hangs."""
    try:
        return _within(deadline_s, lambda: make_env(config), "")
    except ConfigError:
        raise
    except _Hang as hang:
        raise ConfigError(f"{config.id} cannot be made: {hang}") from None
    except Exception as error:
        raise ConfigError(f"{config.id} cannot be made: {contract.raised(error, '')}") from error


def check(config: EnvConfig, deadline_s: float = DEADLINE_S) -> Iterator[CheckResult]:
    """Check an environment. Raises ConfigError when it cannot be made."""
    package = type(made(config, deadline_s)).__module__.partition(".")[0]

    def make() -> AgentEnv:
        return make_env(config)

    checks: list[tuple[int, str, Callable[[], str | None]]] = [
        (0, "an episode starts and ends", lambda: contract.runs(make())),
        (1, "calls are answered with text", lambda: contract.answers(make())),
        (
            2,
            "the same seed gives the same episode",
            lambda: contract.repeats(make, config, deadline_s),
        ),
        (3, "tools have valid and described schemas", lambda: contract.tools(make())),
        (3, "splits share no task", lambda: contract.splits(make())),
        (3, "score is in 0..1", lambda: contract.scores(make())),
        (3, "forks are isolated", lambda: contract.forks(make)),
        (4, "Gymnasium's check_env", lambda: contract.gymnasium(make())),
        (4, "a swarm plays an episode", lambda: contract.swarm(make())),
        (4, "speed", lambda: contract.speed(make())),
    ]
    passed = 9  # the last stage that may run
    for stage, what, function in checks:
        if stage > passed:
            yield CheckResult(what, "--", "not checked; correct the above first")
            continue
        finding, hangs = _run(what, function, deadline_s, package)
        yield finding
        if hangs:
            passed = -1
        elif finding.status == "BAD":
            passed = min(passed, stage)


def _run(
    what: str, function: Callable[[], str | None], deadline_s: float, package: str
) -> tuple[CheckResult, bool]:
    """The finding, and whether a call hangs."""
    try:
        return CheckResult(what, "ok", _within(deadline_s, function, package) or ""), False
    except _Hang as hang:
        return CheckResult(what, "BAD", str(hang)), True
    except contract.Broken as broken:
        return CheckResult(what, "BAD", str(broken)), False
    except contract.Slow as slow:
        return CheckResult(what, "slow", str(slow)), False
    except Exception as error:  # whatever the plugin raises is the finding
        return CheckResult(what, "BAD", contract.raised(error, package)), False


def _within(deadline_s: float, function: Callable[[], T], package: str) -> T:
    """Call in a thread of its own, which is left alone when it does not return in time."""
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
            f"no end within {deadline_s:g} s; it stands in {contract.place(frames, package)}. Every call has to "
            "return: give whatever waits (a process, a network) a timeout, and answer with a text when it has passed."
        )
    if errors:
        raise errors[0]
    return results[0]
