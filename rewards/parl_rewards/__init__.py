"""The shipped reward terms. Importing this package registers them (entry point `parl.rewards`); it loads no torch.

- `outcome`: outcome, for both roles
- `parallelism`: parallel, finish, critical_steps, total_steps, for the orchestrator
- `tokens`: tokens, overlong, for the orchestrator
"""

from __future__ import annotations

from parl_rewards import outcome, parallelism, tokens

__all__ = ["outcome", "parallelism", "tokens"]
