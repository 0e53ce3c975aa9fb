"""Terms about length, for the orchestrator.

Generated tokens count, tool calls included, observations not. The terms are never positive. (Toggle
is a modifier of the outcome, see `parl.rewards.scorer`.)
"""

from __future__ import annotations

from parl.config.base import PositiveInt
from parl.core.types import Episode
from parl.rewards.terms import reward


@reward
def tokens(episode: Episode, *, per: PositiveInt = 1000, tree: bool = False) -> float:
    """Minus the tokens, in units of `per`: a linear cost.

    Args:
        tree: count those of all agents, not those of the orchestrator alone.
    """
    return -_length(episode, tree) / per


@reward
def overlong(
    episode: Episode,
    *,
    max_tokens: PositiveInt = 20480,
    ramp: PositiveInt = 4096,
    tree: bool = False,
) -> float:
    """DAPO's soft overlong punishment (2503.14476, eq. 13): 0, then down to -1 over `ramp` tokens.

    Args:
        max_tokens: -1 from here on.
        ramp: tokens below `max_tokens` at which the punishment sets in.
        tree: count those of all agents, not those of the orchestrator alone.
    """
    # 0 or less as long as the ramp has not begun.
    over = _length(episode, tree) - (max_tokens - ramp)
    return -min(max(over / ramp, 0.0), 1.0)


def _length(episode: Episode, tree: bool) -> int:
    if tree:
        return episode.tokens()
    return episode.orchestrator.num_generated
