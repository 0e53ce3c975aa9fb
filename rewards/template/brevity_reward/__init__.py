"""A reward term that prefers short answers. Importing this package registers it."""

from __future__ import annotations

from parl import Episode, reward


@reward
def brevity(episode: Episode, *, limit: int = 400) -> float:
    """Score how far the answer stays below `limit` characters.

    Returns:
        1 for nearly nothing, falling to 0 at `limit` and above. An empty answer gets 0: otherwise
        saying nothing would be the best policy.
    """
    # Keyword-only arguments are knobs: a config sets them, and the type hints check its values.
    # A term is pure: it reads the episode and nothing else. A float is the orchestrator's reward.
    length = len(episode.answer.strip())
    if length == 0:
        return 0.0
    return max(0.0, 1.0 - length / limit)
