"""The token record of one agent: the ids that were sampled are the ids that are trained.

A conversation could be kept as messages and turned into tokens for each request, and once more for
training. The ids would then differ: a tokenizer may encode the sampled text in another way than it
was sampled, and chat templates drop thinking from earlier turns. The log-prob of a sampled id would
be compared with that of another id, and importance weights would be wrong without an error.

So an agent has one tape, which only grows. Ids from outside are appended when they are fed, sampled
ids are appended as the engine returned them, and the trace, the batch and the loss read the tape.

Example: prompt P = [1, 2], a turn A0 = [7, 9] with the stop token 9, an observation O = [3], and a
turn A1 = [8, 9]:

    tape = Tape([1, 2])
    tape.add_sampled([7, 9], [-0.5, -0.1], None)
    tape.feed([3])
    tape.add_sampled([8, 9], [-1.2, -0.3], None)

    tape.ids       == [1,   2,   7,    9,    3,   8,    9]
    tape.mask      == [0,   0,   1,    1,    0,   1,    1]
    tape.logprobs  == [0.0, 0.0, -0.5, -0.1, 0.0, -1.2, -0.3]
"""

from __future__ import annotations

from collections.abc import Sequence

from parl.core.types import UNKNOWN_TOKEN
from parl.policy.base import Renderer


class Tape:
    """Tokens of one agent in the order in which the model read or sampled them.

    `ids`, `mask` and `logprobs` always have equal lengths. `images` holds the data URIs of the
    images whose placeholder ids are among `ids`, in their order.

    Args:
        prompt: token ids that the agent starts with.
        images: data URIs of the images in the prompt.
    """

    def __init__(self, prompt: Sequence[int], images: Sequence[str] = ()) -> None:
        self.ids = list(prompt)
        self.mask = [0] * len(self.ids)
        """1 for tokens that carry loss."""
        self.logprobs = [0.0] * len(self.ids)
        """Log-prob at sampling; 0.0 for tokens that were fed."""
        self.images = list(images)

    def feed(self, ids: Sequence[int], images: Sequence[str] = ()) -> None:
        """Append tokens that the agent reads. They carry no loss."""
        self.ids += ids
        self.mask += [0] * len(ids)
        self.logprobs += [0.0] * len(ids)
        self.images += images

    def feed_counted(self, num_prompt: int, num_known: int) -> int:
        """Record the context of an engine that only counts its tokens.

        An endpoint says how many tokens it read only with its answer, and it may count the earlier
        turns differently than before. Everything after the last known turn is therefore replaced
        by unknown ids.

        Args:
            num_prompt: tokens of the context that the engine answered.
            num_known: tokens of the tape up to the end of the last turn.

        Returns:
            The length of the tape, where the new turn starts.
        """
        del self.ids[num_known:]
        del self.mask[num_known:]
        del self.logprobs[num_known:]
        # Where the engine counts less than before, the tape keeps its length: turns never overlap.
        num_unknown = max(0, num_prompt - num_known)
        self.feed([UNKNOWN_TOKEN] * num_unknown)
        return len(self.ids)

    def add_sampled(
        self, ids: Sequence[int], logprobs: Sequence[float], mask: Sequence[int] | None
    ) -> None:
        """Append a turn as the engine sampled it.

        Args:
            ids: sampled ids, the stop token included.
            logprobs: their log-probs at sampling.
            mask: which of them carry loss; None where all do.
        """
        self.ids += ids
        self.mask += [1] * len(ids) if mask is None else mask
        self.logprobs += logprobs


def images_in(renderer: Renderer, texts: Sequence[str]) -> tuple[str, ...]:
    """Return the data URIs of the images that a policy is shown in these texts, in order."""
    images: list[str] = []
    for text in texts:
        images += renderer.images(text)
    return tuple(images)
