"""Importing this module registers the environment. Keep it light: it runs in every PARL process."""

from __future__ import annotations

import gymnasium

# A string, so that the environment's own imports happen when it is made, not when it is listed.
gymnasium.register(id="calc/Calc-v0", entry_point="calc_env.env:CalcEnv")
