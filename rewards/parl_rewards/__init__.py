"""The shipped reward terms. Importing this package registers them; it loads no torch.

The entry point `parl.rewards` names it.

- `outcome`: outcome, for both roles
- `calibration`: calibration, for the orchestrator
- `judge`: judge, for the orchestrator
- `parallelism`: parallel, finish, critical_steps, total_steps, contradictions, for the orchestrator
- `tokens`: tokens, overlong, for the orchestrator
"""

from __future__ import annotations

from parl_rewards import calibration, judge, outcome, parallelism, tokens

__all__ = ["calibration", "judge", "outcome", "parallelism", "tokens"]
