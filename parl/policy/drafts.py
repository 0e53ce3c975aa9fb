"""Guesses of what an agent writes next, read off what it and its like have written before.

In: tokens that were fed or sampled. Out: a few tokens that are likely to follow. The engine checks a guess in the pass
in which it would sample anyway: each token is drawn from the model's own distribution with its own random number, and
guesses are kept as far as they are what was drawn. So the text does not depend on them, only the number of passes.
(Speculative decoding without a draft model: prompt lookup, https://github.com/apoorvumang/prompt-lookup-decoding, over
the texts of all agents. Agents of one task write much the same.)
"""

from __future__ import annotations

from collections.abc import Sequence

CONTEXTS = (4, 2)
"""Tokens that a guess is looked up by: the longest context that is known decides."""
MOST = 1_000_000
"""Contexts that are remembered; then all is forgotten."""


class Drafts:
    """What last followed a few tokens.

    Args:
        num_tokens: most tokens of one guess; 0 guesses nothing and remembers nothing.
    """

    def __init__(self, num_tokens: int) -> None:
        self._num_tokens = num_tokens
        self._next: dict[tuple[int, ...], int] = {}

    def learn(self, tokens: Sequence[int], start: int) -> None:
        """Remember what the tokens from `start` on followed."""
        if not self._num_tokens:
            return
        if len(self._next) > MOST:
            self.clear()
        for i in range(start, len(tokens)):
            for size in CONTEXTS:
                if i >= size:
                    self._next[tuple(tokens[i - size : i])] = tokens[i]

    def guess(self, tokens: Sequence[int], room: int) -> list[int]:
        """At most `room` tokens that may follow."""
        tail = list(tokens[-max(CONTEXTS) :])
        known = len(tail)
        while len(tail) - known < min(room, self._num_tokens):
            found = (self._next.get(tuple(tail[-size:])) for size in CONTEXTS if len(tail) >= size)
            token = next((t for t in found if t is not None), None)
            if token is None:
                break
            tail.append(token)
        return tail[known:]

    def clear(self) -> None:
        """Forget everything."""
        self._next.clear()
