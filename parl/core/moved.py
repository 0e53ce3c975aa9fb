"""Old import paths, answered by errors that name the new ones.

`install` (called by `import parl`) puts a finder behind Python's own: it is asked only for modules that do not exist, so it
costs nothing where paths are right. Packages that still exist answer for their old names with `missing_name`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MODULES: Mapping[str, str] = {
    "parl.ablate": "parl.evaluation.ablation.runner",
    "parl.alarms": "parl.runs.alarms",
    "parl.calibration": "parl.core.abstention",
    "parl.checks": "parl.testing",
    "parl.checks.calls": "parl.testing.calls",
    "parl.checks.promises": "parl.testing.contract",
    "parl.checks.runner": "parl.testing.check_env",
    "parl.cold_start": "parl.training.cold_start",
    "parl.commands": "parl.cli",
    "parl.commands.common": "parl.cli.common",
    "parl.commands.config": "parl.cli.config",
    "parl.commands.export": "parl.cli.export",
    "parl.commands.models": "parl.cli.models",
    "parl.commands.pages": "parl.cli.pages",
    "parl.commands.plugins": "parl.cli.plugins",
    "parl.commands.rescore": "parl.cli.rescore",
    "parl.commands.runs": "parl.cli.runs",
    "parl.commands.serve": "parl.cli.serve",
    "parl.credit": "parl.rewards.credit",
    "parl.dataset": "parl.deploy.dataset",
    "parl.dataset_card": "parl.deploy.cards",
    "parl.doctor": "parl.cli.doctor",
    "parl.endpoint": "parl.env.chat_client",
    "parl.errors": "parl.core.errors",
    "parl.evaluate": "parl.evaluation.evaluator",
    "parl.export": "parl.deploy.model",
    "parl.images": "parl.core.images",
    "parl.judge": "parl.env.judge",
    "parl.learner.experts": "parl.policy.models.experts",
    "parl.learner.models": "parl.policy.models.load",
    "parl.metrics": "parl.evaluation.metrics",
    "parl.mixture": "parl.env.mixture",
    "parl.models_fetch": "parl.policy.models.fetch",
    "parl.plugins": "parl.env.registry",
    "parl.policy.chatml": "parl.policy.renderers.chatml",
    "parl.policy.endpoint": "parl.policy.engines.openai",
    "parl.policy.families": "parl.policy.renderers.families",
    "parl.policy.lora": "parl.policy.models.lora",
    "parl.policy.paged_cache": "parl.policy.engines.paged_cache",
    "parl.policy.pictures": "parl.policy.renderers.images",
    "parl.policy.scripted": "parl.policy.engines.scripted",
    "parl.policy.tiny": "parl.policy.models.tiny",
    "parl.policy.torch_engine": "parl.policy.engines.torch",
    "parl.policy.vision": "parl.policy.models.vision",
    "parl.policy.vision.copying": "parl.policy.models.vision.induction",
    "parl.policy.vision.eyes": "parl.policy.models.vision.families",
    "parl.policy.vision.passes": "parl.policy.models.vision.forward",
    "parl.policy.vision.tiny": "parl.policy.models.vision.tiny",
    "parl.policy.vllm_engine": "parl.policy.engines.vllm",
    "parl.policy.vllm_worker": "parl.policy.engines.vllm_worker",
    "parl.preflight": "parl.training.preflight",
    "parl.progress": "parl.core.progress",
    "parl.ray_session": "parl.core.ray_session",
    "parl.records": "parl.runs.records",
    "parl.report.ablation": "parl.evaluation.ablation.analysis",
    "parl.report.budgets": "parl.evaluation.budgets",
    "parl.report.control": "parl.training.baseline",
    "parl.rescore": "parl.evaluation.rescore",
    "parl.rollout.feed": "parl.training.rollout_source",
    "parl.rollout.harness": "parl.rollout.external_agent",
    "parl.rollout.inference": "parl.rollout.pool.inference",
    "parl.rollout.ray_pool": "parl.rollout.pool.ray",
    "parl.rollout.rllib": "parl.deploy.rllib",
    "parl.rollout.tools": "parl.env.swarm_tools",
    "parl.rollout.watchdog": "parl.rollout.pool.watchdog",
    "parl.rollout.worker": "parl.rollout.pool.worker",
    "parl.rollout.world": "parl.rollout.env_calls",
    "parl.run_folder": "parl.runs.folder",
    "parl.run_reader": "parl.runs.reader",
    "parl.scaffold": "parl.cli.scaffold",
    "parl.scoring": "parl.rewards.scorer",
    "parl.serve": "parl.deploy.serve",
    "parl.statistics": "parl.evaluation.statistics",
    "parl.system": "parl.core.machine",
    "parl.tools": "parl.env.toolsets",
    "parl.tools.calculator": "parl.env.toolsets.calculator",
    "parl.tools.mcp": "parl.env.toolsets.mcp",
    "parl.tools.mcp_session": "parl.env.toolsets.mcp_session",
    "parl.tools.sql": "parl.env.toolsets.sql",
    "parl.tracking": "parl.training.tracking",
    "parl.train": "parl.training.trainer",
    "parl.types": "parl.core.types",
    "parl.variants": "parl.evaluation.ablation.variants",
    "parl.web": "parl.core.net",
}
"""Old module -> the module in its place."""

NAMES: Mapping[str, Mapping[str, str]] = {
    "parl.ablate": {
        "ablate": "parl.training.ablation.run_ablation",
    },
    "parl.cold_start": {
        "Demonstrator": "parl.training.demonstrator.Demonstrator",
        "IGNORE": "parl.training.sft.IGNORE",
        "MICRO_BATCHES": "parl.training.sft.MICRO_BATCHES",
        "SUBAGENTS_PER_EPISODE": "parl.training.demonstrator.SUBAGENTS_PER_EPISODE",
        "Text": "parl.training.demonstrator.SftExample",
        "knobs_of": "parl.training.demonstrator.knobs_of",
        "loss_on_labels": "parl.training.sft.loss_on_labels",
        "token_accuracy": "parl.training.sft.token_accuracy",
    },
    "parl.config.adapters": {
        "FROM_THE_BASE": "parl.config.rules.FROM_THE_BASE",
        "check_adapters": "parl.config.rules.check_adapters",
        "check_turns": "parl.config.rules.check_turns",
    },
    "parl.config.endpoint": {
        "check_endpoints": "parl.config.rules.check_endpoints",
    },
    "parl.config.phases": {
        "Gate": "parl.config.roles.Gate",
        "Phase": "parl.config.roles.Phase",
        "Trainable": "parl.config.roles.Trainable",
        "Turns": "parl.config.roles.Turns",
    },
    "parl.config.rollout": {
        "check_rollout": "parl.config.rules.check_rollout",
    },
    "parl.config.schema": {
        "ClockConfig": "parl.config.roles.ClockConfig",
        "ColdStart": "parl.config.training.ColdStart",
        "Engine": "parl.config.policy.Engine",
        "EngineConfig": "parl.config.policy.EngineConfig",
        "Eval": "parl.config.training.Eval",
        "Limits": "parl.config.roles.Limits",
        "Optimizer": "parl.config.policy.Optimizer",
        "Policy": "parl.config.policy.Policy",
        "RoleConfig": "parl.config.roles.RoleConfig",
        "Roles": "parl.config.roles.Roles",
        "Sampling": "parl.config.roles.Sampling",
        "Stage": "parl.config.training.Stage",
        "Swarm": "parl.config.roles.Swarm",
        "Tracking": "parl.config.training.Tracking",
        "Train": "parl.config.training.Train",
        "Until": "parl.config.training.Until",
        "Wandb": "parl.config.training.Wandb",
    },
    "parl.doctor": {
        "Finding": "parl.core.finding.Finding",
    },
    "parl.env": {
        "ANSWER_NOW": "parl.env.base.ANSWER_NOW",
        "AgentEnv": "parl.env.base.AgentEnv",
        "Demonstration": "parl.env.base.Demonstration",
        "Message": "parl.core.messages.Message",
        "MessageSpace": "parl.env.spaces.MessageSpace",
        "MessagesSpace": "parl.env.spaces.MessagesSpace",
        "Said": "parl.env.demonstrations.Segment",
        "Script": "parl.env.demonstrations.Script",
        "ToolSpec": "parl.env.tools.ToolSpec",
        "Toolset": "parl.env.tools.Toolset",
        "assistant": "parl.core.messages.assistant",
        "seed_for": "parl.core.seeds.seed_for",
        "tool": "parl.env.tools.tool",
        "written_call": "parl.env.demonstrations.written_call",
    },
    "parl.evaluate": {
        "Asked": "parl.evaluation.plan.EvalRequest",
        "Decoding": "parl.core.types.Decoding",
        "Evaluated": "parl.evaluation.plan.EvalResult",
        "Mode": "parl.core.types.Mode",
        "Plan": "parl.evaluation.plan.EvalPlan",
        "Split": "parl.core.types.Split",
        "against": "parl.evaluation.plan.compare_with_baselines",
        "check_same_tasks": "parl.evaluation.plan.check_same_tasks",
        "check_seeds": "parl.evaluation.plan.check_seeds",
        "evaluate": "parl.evaluation.plan.evaluate",
        "evaluate_command": "parl.cli.eval.evaluate_command",
        "evaluate_run": "parl.evaluation.plan.evaluate_run",
        "fingerprint": "parl.env.tasks.fingerprint",
        "heldout_metrics": "parl.evaluation.metrics.heldout_metrics",
        "heldout_rows": "parl.evaluation.metrics.heldout_rows",
        "load_tasks": "parl.env.tasks.load_tasks",
        "make_pool": "parl.rollout.pool.make_pool",
        "plan_controls": "parl.evaluation.plan.plan_controls",
        "plan_run": "parl.evaluation.plan.plan_run",
        "pooled": "parl.evaluation.plan.combine_runs",
        "run_plan": "parl.evaluation.plan.run_plan",
    },
    "parl.learner.checkpoint": {
        "COLD_START": "parl.core.manifest.COLD_START",
        "verify": "parl.core.manifest.verify",
    },
    "parl.ray_session": {},
    "parl.rollout.agent": {
        "Tape": "parl.policy.tape.Tape",
        "seen": "parl.policy.tape.images_in",
    },
    "parl.rollout.world": {
        "normal": "parl.core.text.normalize_text",
    },
    "parl.rollout.pool": {
        "Job": "parl.rollout.pool.local.Job",
        "LocalPool": "parl.rollout.pool.local.LocalPool",
        "Pool": "parl.rollout.pool.local.Pool",
        "StreamPool": "parl.rollout.pool.local.StreamPool",
    },
    "parl.scoring": {
        "OVER_BUDGET": "parl.rewards.modifiers.OVER_BUDGET",
        "RewardTerm": "parl.rewards.terms.RewardTerm",
        "finished": "parl.rewards.terms.finished",
        "get": "parl.rewards.terms.get",
        "registered": "parl.rewards.terms.registered",
        "reward": "parl.rewards.terms.reward",
    },
}
"""Old module -> its names that went elsewhere than the rest of it -> where they are."""

PUBLIC = frozenset(
    [
        "AgentEnv",
        "ConfigError",
        "Demonstration",
        "EnvFailure",
        "Episode",
        "Message",
        "ScoredEpisode",
        "Segment",
        "Task",
        "ToolCall",
        "ToolSpec",
        "Toolset",
        "assistant",
        "load_config",
        "make_env",
        "reward",
        "tool",
        "written_call",
    ]
)
"""Names that plugins import from `parl` itself."""


class _MovedFinder(MetaPathFinder):
    """Raises ImportError for a module that was moved."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if fullname in MODULES:
            raise ImportError(
                f"There is no module {fullname} any more{hint(fullname)}", name=fullname
            )
        return None


def install() -> None:
    """Answer imports of old modules, once in a process."""
    if not any(isinstance(finder, _MovedFinder) for finder in sys.meta_path):
        sys.meta_path.append(_MovedFinder())


def hint(old_path: str) -> str:
    """Return where an old module or name is now, as the end of a sentence; "." when it is not known.

    Example: hint("parl.scoring") -> ": it is parl.rewards.scorer; its reward is parl.reward (from parl import reward), ..."
    """
    parent, _, name = old_path.rpartition(".")
    if old_path in MODULES:
        parts = [f"it is {MODULES[old_path]} now"]
        for old_name, new_path in NAMES.get(old_path, {}).items():
            parts.append(f"its {old_name} is {_public_path(new_path)}")
        return f": {'; '.join(parts)}."
    names = NAMES.get(parent, {})
    return f": it is {_public_path(names[name])} now." if name in names else "."


def missing_name(module: str, name: str) -> AttributeError | ImportError:
    """Return the error for a name that `module` does not have, for its `__getattr__`.

    A name that went elsewhere gets an ImportError, because Python would replace the text of an AttributeError in
    `from module import name` with its own.
    """
    if name in NAMES.get(module, {}):
        return ImportError(
            f"{module} has no {name} any more{hint(f'{module}.{name}')}", name=module
        )
    return AttributeError(f"module '{module}' has no attribute '{name}'")


def _public_path(path: str) -> str:
    name = path.rpartition(".")[2]
    return f"parl.{name} (from parl import {name})" if name in PUBLIC else path
