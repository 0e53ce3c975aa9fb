"""The exception tree.

    ParlError
    |-- ConfigError (ValueError)        the user's input is wrong: exit code 2, one clear message,
    |   |                               no traceback
    |   |-- ModelUnavailable            a model of the hub that could not be fetched
    |   `-- MissingExtra (ImportError)  an optional package is not installed; the message has the
    |                                   line to type
    |-- CheckpointError (ValueError)    a run folder or checkpoint cannot be used: exit code 2
    |-- NamedFailure (RuntimeError)     fails one episode; `kind` is the kind of its failure
    |   |-- EnvFailure                  an environment names what failed
    |   |   `-- JudgeFailure            a judge gave no verdict: `judge_timeout`,
    |   |                               `judge_unavailable`, `judge_malformed`
    |   `-- EndpointFailure             a policy's endpoint gave no turn: `endpoint_timeout`,
    |                                   `endpoint_unavailable`, `endpoint_malformed`
    |-- Interrupted                     Ctrl-C between two steps: exit code 1, says how to go on
    `-- EngineMismatch (RuntimeError)   sampler and learner disagree about log-probs: stop before
                                        training on them

After a NamedFailure the episode goes on as data: `Episode.status` and `Episode.failure`.
Each error also inherits the standard class that a caller would expect, and pickles: Ray sends it
from workers to the driver.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ParlError(Exception):
    """Base class of every error that PARL raises on purpose."""


class ConfigError(ParlError, ValueError):
    """The user's input is wrong.

    The message says what was given, what is allowed, and what to type next.
    """


class ModelUnavailable(ConfigError):
    """A model of the Hugging Face hub is not in the cache and could not be fetched."""


class MissingExtra(ConfigError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""


class CheckpointError(ParlError, ValueError):
    """A run folder or a checkpoint is missing, damaged, in use, or of another schema version."""


class EngineMismatch(ParlError, RuntimeError):
    """After a weight sync the engine's log-probs differ from the learner's."""


class NamedFailure(ParlError, RuntimeError):
    """Base class of errors that fail one episode: it is masked and counted, never scored.

    Args:
        kind: one word; the failure is counted as the metric `failures/KIND`.
        detail: what happened.
    """

    def __init__(self, kind: str, detail: str) -> None:
        # Both arguments go to the base class, because unpickling calls the constructor with them.
        super().__init__(kind, detail)
        self.kind = kind
        self.detail = detail


class EnvFailure(NamedFailure):
    """A failure that an environment raises, to name what failed.

    Example:
        ```python
        raise EnvFailure("database", "no connection to 127.0.0.1:5432")
        ```
    """

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}"


class JudgeFailure(EnvFailure):
    """A judge gave no verdict that can be used."""


class EndpointFailure(NamedFailure):
    """A policy's endpoint gave no turn that can be used."""

    def __str__(self) -> str:
        return self.detail


class Interrupted(ParlError):
    """Ctrl-C: the run stopped between two steps, with a checkpoint."""

    def __init__(self, step: int, run: str) -> None:
        super().__init__(step, run)
        self.step = step
        self.run = run

    def __str__(self) -> str:
        return (
            f"Stopped after step {self.step}; a checkpoint is written. Go on with: "
            f"parl train {self.run}/config.resolved.yaml --resume {self.run}"
        )


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """Return the end of an error message: the nearest allowed name, then all of them.

    Example:
        did_you_mean("grop", ["grpo", "kimi_k2_5"])
        == " Did you mean 'grpo'? Allowed: grpo, kimi_k2_5."
    """
    names = sorted(allowed)
    near = difflib.get_close_matches(given, names, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"{hint} Allowed: {', '.join(names) or '(none)'}."
