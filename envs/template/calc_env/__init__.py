"""Register the environment when this package is imported.

Every PARL process imports this module, so it imports nothing heavy.
"""

from __future__ import annotations

import gymnasium

# A string, so that the environment's own imports happen when it is made and not when it is listed.
gymnasium.register(id="calc/Calc-v0", entry_point="calc_env.env:CalcEnv")
