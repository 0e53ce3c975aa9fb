"""PARL's own environments. Importing this module registers them with Gymnasium."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gymnasium

if TYPE_CHECKING:
    from parl.core.finding import Finding

gymnasium.register(id="parl/WideSearch-v0", entry_point="parl_envs.search.wide_search:WideSearch")
gymnasium.register(id="parl/Coding-v0", entry_point="parl_envs.coding.coding_env:Coding")
gymnasium.register(id="parl/WideSearchSQL-v0", entry_point="parl_envs.search.sql:WideSearchSql")
gymnasium.register(
    id="parl/VisualTools-v0", entry_point="parl_envs.visual.visual_tools:VisualTools"
)


def doctor() -> list[Finding]:
    """The line of `parl doctor` about the sandbox of the coding environments."""
    from parl.core.finding import Finding
    from parl_envs.coding import sandbox

    if (problem := sandbox.problem()) is None:
        return [Finding("sandbox", sandbox.describe(), True)]
    return [
        Finding(
            "sandbox",
            f"none: {problem}",
            None,
            "only environments that run code need it: docs/reference/sandbox.md",
        )
    ]
