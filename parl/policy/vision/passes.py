"""Passes of a model over ids with images among them: one way for sampling and for learning.

In: padded ids, and the images of each row. Out: hidden states. The vision part's features take the places of the pads
before the text part runs, with position ids that are always given: the state that some models keep of the last prompt
(`rope_deltas`) is never used, so contexts of many agents may be mixed. A model without eyes runs as it is.

B rows, C tokens of each in a pass (right-padded), T tokens of a context, R rows of position ids, D hidden size.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from parl.policy.vision.eyes import Eyes

Features = Mapping[str, tuple[torch.Tensor, ...]]
"""Image -> its pieces, as `Eyes.features` says."""
NEVER = -1e9
"""A logit that is never sampled; minus infinity would make the entropy no number."""


def eyes_of(model: Any) -> Eyes | None:
    """None: a model that reads text alone."""
    return getattr(model, "eyes", None)


def text_config(model: Any) -> Any:
    """The configuration of what generates: of a model with eyes, of its text part."""
    return model.config.get_text_config()


def forbid(model: Any, logits: torch.Tensor) -> torch.Tensor:
    """Logits (..., V) under which what stands for a piece of an image is never written."""
    eyes = eyes_of(model)
    if eyes is None:
        return logits
    return logits.index_fill(-1, torch.tensor(eyes.forbidden), NEVER)


@dataclass(frozen=True, slots=True)
class Context:
    """Where the images of one context stand."""

    images: tuple[str, ...]
    pads: tuple[int, ...]
    """Places in the context, in order; image by image."""
    owners: tuple[str, ...]
    """Of each pad, its image."""
    position_RT: torch.Tensor

    def position_at(self, start: int, count: int) -> torch.Tensor:
        """Position ids (R, count) from a place on; what was sampled after the context goes on counting."""
        known = self.position_RT[:, start : start + count]
        num, length = count - known.shape[1], self.position_RT.shape[1]
        first = int(self.position_RT.max()) + 1 + max(0, start - length)
        return torch.cat([known, (first + torch.arange(num)).expand(len(known), -1)], 1)

    def named(self, tokens: Sequence[int]) -> list[Hashable]:
        """The tokens, and in the places of pads their image."""
        out: list[Hashable] = list(tokens)
        for place, uri in zip(self.pads, self.owners, strict=True):
            if place < len(out):
                out[place] = uri
        return out

    def between(self, start: int, end: int) -> slice:
        """Which pieces of its images stand there."""
        return slice(bisect_left(self.pads, start), bisect_left(self.pads, end))


def context(model: Any, token_ids: Sequence[int], images: Sequence[str]) -> Context:
    """Look at a context of a model with eyes. Its pads must be those of its images."""
    eyes = eyes_of(model)
    assert eyes is not None
    pads = tuple(i for i, token in enumerate(token_ids) if token == eyes.pad)
    owners = tuple(uri for uri in images for _ in range(eyes.num_pads(uri)))
    assert len(pads) == len(owners), "a context has the spans of its images, whole"
    positions = eyes.positions(model, token_ids, [eyes.pixels(uri) for uri in images])
    return Context(tuple(images), pads, owners, positions)


def features(model: Any, images: Sequence[str]) -> dict[str, tuple[torch.Tensor, ...]]:
    """What the model sees of images, in one pass of its vision part."""
    eyes = eyes_of(model)
    assert eyes is not None
    many = [eyes.pixels(uri) for uri in images]
    if not many:
        return {}
    output = model.base_model.get_image_features(**eyes.collate(many), return_dict=True)
    return dict(zip(images, eyes.features(output, many), strict=True))


def body(
    model: Any, ids_BC: torch.Tensor, contexts: Sequence[Context], starts: Sequence[int], seen: Features, **options: Any
) -> torch.Tensor:
    """Hidden states (B, C, D) of the next C tokens of each context, from its place in `starts` on.

    `seen` has the images whose pieces are among them.
    """
    width, eyes = ids_BC.shape[1], eyes_of(model)
    assert eyes is not None
    embedded = model.get_input_embeddings()(ids_BC)
    pieces: list[tuple[torch.Tensor, ...]] = []
    for one, start in zip(contexts, starts, strict=True):
        where = one.between(start, start + width)
        if where.start < where.stop:
            layers = zip(*(seen[uri] for uri in one.images), strict=True)
            pieces.append(tuple(torch.cat(layer)[where] for layer in layers))
    extra: dict[str, Any] = {}
    if pieces:
        first, *deeper = (torch.cat(layer).to(embedded.dtype) for layer in zip(*pieces, strict=True))
        here_BC = ids_BC == eyes.pad
        embedded = embedded.masked_scatter(here_BC[..., None], first)
        if deeper:
            extra = {"visual_pos_masks": here_BC, "deepstack_visual_embeds": deeper}
    positions = torch.stack([one.position_at(s, width) for one, s in zip(contexts, starts, strict=True)], 1)
    hidden: torch.Tensor = model.get_decoder()(
        inputs_embeds=embedded, position_ids=positions if len(positions) == 3 else positions[0], **extra, **options
    ).last_hidden_state
    return hidden


class Sight:
    """What an engine keeps of images: their features, under the weights that it has."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._seen: dict[str, tuple[torch.Tensor, ...]] = {}

    def forget(self) -> None:
        """The weights have changed."""
        self._seen.clear()

    def context(self, token_ids: Sequence[int], images: Sequence[str]) -> Context:
        return context(self._model, token_ids, images)

    def body(
        self, ids_BC: torch.Tensor, contexts: Sequence[Context], starts: Sequence[int], **options: Any
    ) -> torch.Tensor:
        """As the function; images that are new are looked at first, all in one pass."""
        width = ids_BC.shape[1]
        needed = dict.fromkeys(u for one, start in zip(contexts, starts, strict=True) for u in one.near(start, width))
        new = [uri for uri in needed if uri not in self._seen]
        while len(self._seen) + len(new) > KEPT_IMAGES and self._seen:
            del self._seen[next(iter(self._seen))]
        self._seen |= features(self._model, new)
        return body(self._model, ids_BC, contexts, starts, self._seen, **options)


def hidden_states(model: Any, ids_BT: torch.Tensor, images: Sequence[Sequence[str]] = ()) -> torch.Tensor:
    """Hidden states (B, T, D) of whole contexts, right-padded, without a cache: what learns.

    Args:
        images: of each row, in the order of their spans. A model without eyes has none.
    """
    if eyes_of(model) is None:
        plain: torch.Tensor = model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
        return plain
    rows = images or [()] * len(ids_BT)
    contexts = [context(model, ids, own) for ids, own in zip(ids_BT.tolist(), rows, strict=True)]
    seen = features(model, list(dict.fromkeys(uri for own in rows for uri in own)))
    return body(model, ids_BT, contexts, [0] * len(contexts), seen, use_cache=False)
