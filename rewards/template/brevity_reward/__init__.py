"""A reward term: prefer short answers. Importing this module registers it."""

from __future__ import annotations

from parl.core.types import Episode
from parl.rewards.terms import reward


@reward
def brevity(episode: Episode, *, limit: int = 400) -> float:
    """How far the answer stays below `limit` characters: 1 for nearly nothing, 0 from `limit` on.

    An empty answer gets 0: otherwise saying nothing would be the best policy.
    """
    # Keyword-only arguments are knobs: a config sets them, and they are checked against these type hints.
    # A term is pure: it reads the episode and nothing else. A float is the orchestrator's.
    length = len(episode.answer.strip())
    return max(0.0, 1.0 - length / limit) if length else 0.0
