"""PARL's own environments. Importing this module registers them with Gymnasium."""

from __future__ import annotations

import gymnasium

gymnasium.register(id="parl/WideSearch-v0", entry_point="parl_envs.search.wide_search:WideSearch")
gymnasium.register(id="parl/Coding-v0", entry_point="parl_envs.coding.coding_env:Coding")
