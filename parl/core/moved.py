"""Old import paths, answered by errors that name the new ones.

`install` (called by `import parl`) puts a finder behind Python's own. Python asks it only for
modules that do not exist, so it costs nothing where paths are right. Packages that still exist
answer for their old names with `missing_name`. Only what a plugin or a script may import is in the
tables, not every helper that was renamed.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from parl.core.public import PUBLIC

MODULES: Mapping[str, str] = {
    "parl.ablate": "parl.evaluation.ablation.runner",
    "parl.alarms": "parl.runs.alarms",
    "parl.calibration": "parl.core.abstention",
    "parl.checks": "parl.testing",
    "parl.checks.calls": "parl.testing.calls",
    "parl.checks.promises": "parl.testing.contract",
    "parl.checks.runner": "parl.testing.check_env",
    "parl.cold_start": "parl.training.cold_start",
    "parl.config.objective": "parl.config.reward",
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
        "sft_command": "parl.training.trainer.run_cold_start_alone",
        "token_accuracy": "parl.training.sft.token_accuracy",
    },
    "parl.config.objective": {
        "Credit": "parl.config.credit.Credit",
        "EffortBudget": "parl.config.reward.EffortBudget",
        "Loss": "parl.config.loss.Loss",
        "Modifiers": "parl.config.reward.Modifiers",
        "Reward": "parl.config.reward.Reward",
        "Schedule": "parl.config.reward.Schedule",
        "Term": "parl.config.reward.Term",
        "Toggle": "parl.config.reward.Toggle",
    },
    "parl.config.schema": {
        "Engine": "parl.config.policy.Engine",
        "EngineConfig": "parl.config.policy.EngineConfig",
        "Limits": "parl.config.roles.Limits",
        "Optimizer": "parl.config.policy.Optimizer",
        "RoleConfig": "parl.config.roles.RoleConfig",
        "Sampling": "parl.config.roles.Sampling",
        "Stage": "parl.config.training.Stage",
        "Until": "parl.config.gate.StageGate",
        "Wandb": "parl.config.training.Wandb",
    },
    "parl.credit": {
        "drop_one": "parl.rewards.credit.leave_one_out",
        "learnable": "parl.rewards.credit.build_samples",
        "siblings": "parl.rewards.credit.resample",
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
        "plan_controls": "parl.evaluation.plan.plan_baselines",
        "plan_run": "parl.evaluation.plan.plan_run",
        "pooled": "parl.evaluation.plan.combine_runs",
        "run_plan": "parl.evaluation.plan.run_plan",
    },
    "parl.rollout.harness": {
        "load_harness": "parl.rollout.external_agent.load_external_agent",
        "run_harness": "parl.rollout.external_agent.run_external_agent",
    },
    "parl.rollout.world": {
        "normal": "parl.core.text.normalize_text",
    },
    "parl.rollout.pool": {
        "Job": "parl.rollout.pool.local.Job",
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
    "parl.train": {
        "Run": "parl.training.trainer.Trainer",
    },
}
"""Old module -> its names that went elsewhere than the rest or were renamed -> their paths."""


class OldPathError(ImportError):
    """An import of a module or a name that was moved; the message has the new path."""


class _MovedFinder(MetaPathFinder):
    """Raises OldPathError for a module that was moved."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if fullname in MODULES:
            raise OldPathError(
                f"There is no module {fullname} any more: it is {MODULES[fullname]} now."
                f"{_names_elsewhere(fullname)}",
                name=fullname,
            )
        return None


def install() -> None:
    """Answer imports of old modules, once in a process."""
    if not any(isinstance(finder, _MovedFinder) for finder in sys.meta_path):
        sys.meta_path.append(_MovedFinder())


def missing_name(module: str, name: str) -> AttributeError | OldPathError:
    """Return the error for a name that `module` does not have, for its `__getattr__`.

    A name that went elsewhere gets an ImportError, because Python would replace the text of an
    AttributeError in `from module import name` with its own.
    """
    new_path = NAMES.get(module, {}).get(name)
    if new_path is None:
        return AttributeError(f"module '{module}' has no attribute '{name}'")
    return OldPathError(
        f"{module} has no {name} any more. Type: {_import_line(name, new_path)}", name=module
    )


def _names_elsewhere(module: str) -> str:
    """Return import statements, one a line: public names, names that went elsewhere, submodules.

    Python imports a package before its submodules, so the error of `import parl.tools.sql` is that
    of `parl.tools`.
    """
    paths = dict(NAMES.get(module, {}))
    for name, home in PUBLIC.items():
        if home == MODULES[module]:
            paths.setdefault(name, f"{home}.{name}")
    lines = [_import_line(name, paths[name]) for name in sorted(paths)]
    for old_path, new_path in MODULES.items():
        if old_path.startswith(f"{module}."):
            lines.append(f"import {new_path}  (was {old_path})")
    return " Also moved:" + "".join(f"\n    {line}" for line in lines) if lines else ""


def _import_line(old_name: str, path: str) -> str:
    """Example: "from parl import Segment  (was Said)"."""
    home, _, name = path.rpartition(".")
    if PUBLIC.get(name) == home:
        home = "parl"
    renamed = f"  (was {old_name})" if name != old_name else ""
    return f"from {home} import {name}{renamed}"
