"""PARL: reinforcement learning for agents that work in parallel.

An orchestrator learns to split a task, to launch subagents at the same time and to join their
results. The method is Parallel-Agent Reinforcement Learning, from "Kimi K2.5: Visual Agentic
Intelligence" (arXiv 2602.02276).

This module offers the names that plugins, scripts and notebooks need. Each is imported when it is
first used, so that `import parl` stays cheap: it loads no torch, ray or transformers.

Example:
    import parl

    config = parl.load_config("configs/smoke.yaml", ["seed=1"])
    summary = parl.train(config)
    parl.load_run(summary.path).metrics.plot(y="outcome/score")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from parl.core import moved
from parl.core.extras import missing_extra
from parl.core.public import PUBLIC

if TYPE_CHECKING:
    from parl.config import Config as Config
    from parl.config import load as load_config
    from parl.core.errors import CheckpointError as CheckpointError
    from parl.core.errors import ConfigError as ConfigError
    from parl.core.errors import EnvFailure as EnvFailure
    from parl.core.errors import Interrupted as Interrupted
    from parl.core.errors import ParlError as ParlError
    from parl.core.messages import Message as Message
    from parl.core.messages import assistant as assistant
    from parl.core.types import AgentTrace as AgentTrace
    from parl.core.types import Episode as Episode
    from parl.core.types import ScoredEpisode as ScoredEpisode
    from parl.core.types import Task as Task
    from parl.core.types import ToolCall as ToolCall
    from parl.core.types import Turn as Turn
    from parl.env.base import AgentEnv as AgentEnv
    from parl.env.base import Demonstration as Demonstration
    from parl.env.demonstrations import Segment as Segment
    from parl.env.demonstrations import written_call as written_call
    from parl.env.registry import make_env as make_env
    from parl.env.tools import Toolset as Toolset
    from parl.env.tools import ToolSpec as ToolSpec
    from parl.env.tools import tool as tool
    from parl.learner.loss.registry import policy_loss as policy_loss
    from parl.rewards.credit.rule import credit_rule as credit_rule
    from parl.rewards.terms import reward as reward
    from parl.runs.run import Run as Run
    from parl.runs.run import load_run as load_run
    from parl.training.api import ablate as ablate
    from parl.training.api import evaluate as evaluate
    from parl.training.api import train as train
    from parl.training.summary import Summary as Summary

__version__ = "0.1.0"
"""The one home of the version: the package takes it from here."""

# Written out: tools that read the source without running it (griffe, type checkers) want strings.
__all__ = [
    "AgentEnv",
    "AgentTrace",
    "CheckpointError",
    "Config",
    "ConfigError",
    "Demonstration",
    "EnvFailure",
    "Episode",
    "Interrupted",
    "Message",
    "ParlError",
    "Run",
    "ScoredEpisode",
    "Segment",
    "Summary",
    "Task",
    "ToolCall",
    "ToolSpec",
    "Toolset",
    "Turn",
    "__version__",
    "ablate",
    "assistant",
    "credit_rule",
    "evaluate",
    "load_config",
    "load_run",
    "make_env",
    "policy_loss",
    "reward",
    "tool",
    "train",
    "written_call",
]

# A plugin that was written against an old path is told the new one.
moved.install()

if not TYPE_CHECKING:  # with a module's __getattr__, a type checker would accept any name

    def __getattr__(name: str) -> Any:
        if name not in PUBLIC:
            raise AttributeError(f"module 'parl' has no attribute '{name}'")
        try:
            module = importlib.import_module(PUBLIC[name])
        except ModuleNotFoundError as error:
            # The light core has no torch: say which extra brings it.
            raise missing_extra(error, needed_by=f"parl.{name}") or error from None
        value = getattr(module, "load" if name == "load_config" else name)
        # The next use finds it without this function.
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
