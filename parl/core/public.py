"""The public names: what `parl` itself offers, and where each is defined."""

from __future__ import annotations

from collections.abc import Mapping

PUBLIC: Mapping[str, str] = {
    "AgentEnv": "parl.env.base",
    "AgentTrace": "parl.core.types",
    "CheckpointError": "parl.core.errors",
    "Config": "parl.config",
    "ConfigError": "parl.core.errors",
    "Demonstration": "parl.env.base",
    "EnvFailure": "parl.core.errors",
    "Episode": "parl.core.types",
    "Interrupted": "parl.core.errors",
    "Message": "parl.core.messages",
    "ParlError": "parl.core.errors",
    "Run": "parl.runs.run",
    "ScoredEpisode": "parl.core.types",
    "Segment": "parl.env.demonstrations",
    "Summary": "parl.training.summary",
    "Task": "parl.core.types",
    "ToolCall": "parl.core.types",
    "ToolSpec": "parl.env.tools",
    "Toolset": "parl.env.tools",
    "Turn": "parl.core.types",
    "ablate": "parl.training.api",
    "assistant": "parl.core.messages",
    "evaluate": "parl.training.api",
    "load_config": "parl.config",
    "load_run": "parl.runs.run",
    "credit_rule": "parl.rewards.credit.rule",
    "make_env": "parl.env.registry",
    "policy_loss": "parl.learner.loss.registry",
    "reward": "parl.rewards.terms",
    "tool": "parl.env.tools",
    "train": "parl.training.api",
    "written_call": "parl.env.demonstrations",
}
"""Public name -> the module that defines it. `load_config` is called `load` there."""
