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

from parl.policy.models.vision.families import image_adapter_of

Features = Mapping[str, tuple[torch.Tensor, ...]]
"""Image -> its pieces, as `Eyes.features` says."""
KEPT_IMAGES = 256
"""Most images whose features an engine keeps; an image that is asked for again is looked at again."""
NEVER = -1e9
"""A logit that is never sampled; minus infinity would make the entropy no number."""


def text_config(model: Any) -> Any:
    """The configuration of what generates: of a model with eyes, of its text part."""
    return model.config.get_text_config()


def logits(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Logits (..., V) in float32, under which what stands for a piece of an image is never written."""
    found: torch.Tensor = model.get_output_embeddings()(hidden).float()
    eyes = image_adapter_of(model)
    return (
        found
        if eyes is None
        else found.index_fill(-1, torch.tensor(eyes.forbidden, device=found.device), NEVER)
    )


@dataclass(frozen=True, slots=True)
class Context:
    """Where the images of one context stand."""

    images: tuple[str, ...]
    pads: tuple[int, ...]
    """Places in the context, in order; image by image."""
    owners: tuple[int, ...]
    """Of each pad, which of the images it stands for."""
    position_RT: torch.Tensor
    next_position: int
    """Of what is sampled after the context."""

    def position_at(self, start: int, count: int) -> torch.Tensor:
        """Position ids (R, count) from a place on."""
        known = self.position_RT[:, start : start + count]
        rest = (
            torch.arange(count - known.shape[1])
            + self.next_position
            + max(0, start - self.position_RT.shape[1])
        )
        return torch.cat([known, rest.expand(len(known), -1)], 1)

    def named(self, tokens: Sequence[int]) -> list[Hashable]:
        """The tokens, and in the places of pads their image."""
        out: list[Hashable] = list(tokens)
        for place, owner in zip(self.pads, self.owners, strict=True):
            if place < len(out):
                out[place] = self.images[owner]
        return out

    def near(self, start: int, end: int) -> tuple[str, ...]:
        """Images with a pad among these places."""
        pads = self._between(start, end)
        return self.images[self.owners[pads[0]] : self.owners[pads[-1]] + 1] if pads else ()

    def pieces(self, start: int, end: int, seen: Features) -> list[torch.Tensor]:
        """What stands in the pads among these places, layer by layer; none without pads."""
        pads = self._between(start, end)
        if not pads:
            return []
        offset = pads[0] - bisect_left(self.owners, self.owners[pads[0]])
        layers = zip(*(seen[uri] for uri in self.near(start, end)), strict=True)
        return [torch.cat(layer)[offset : offset + len(pads)] for layer in layers]

    def _between(self, start: int, end: int) -> range:
        return range(bisect_left(self.pads, start), bisect_left(self.pads, end))


def context(model: Any, token_ids: Sequence[int], images: Sequence[str]) -> Context:
    """Look at a context of a model with eyes. Its pads must be those of its images."""
    eyes = image_adapter_of(model)
    assert eyes is not None
    pads = tuple(i for i, token in enumerate(token_ids) if token == eyes.pad)
    owners = tuple(i for i, uri in enumerate(images) for _ in range(eyes.num_pads(uri)))
    assert len(pads) == len(owners), "a context has the spans of its images, whole"
    positions = eyes.positions(model, token_ids, [eyes.pixels(uri) for uri in images])
    return Context(
        tuple(images), pads, owners, positions, int(positions.max()) + 1 if len(token_ids) else 0
    )


def truncate_context(
    model: Any, token_ids: Sequence[int], images: Sequence[str], num: int
) -> tuple[list[int], list[str]]:
    """The first `num` tokens of a context with their images, more where that would cut an image."""
    eyes = image_adapter_of(model)
    if eyes is None or not images:
        return list(token_ids[:num]), []
    end, kept, place = num, 0, 0
    for uri in images:
        first = list(token_ids).index(eyes.pad, place)
        if first >= end:
            break
        span = eyes.span(uri)
        place = first - span.index(eyes.pad) + len(span)
        end, kept = max(end, place), kept + 1
    return list(token_ids[:end]), list(images[:kept])


def features(model: Any, images: Sequence[str]) -> dict[str, tuple[torch.Tensor, ...]]:
    """What the model sees of images, in one pass of its vision part."""
    eyes = image_adapter_of(model)
    assert eyes is not None
    many = [eyes.pixels(uri) for uri in images]
    if not many:
        return {}
    plain = {k: v.to(model.device) for k, v in eyes.collate(many).items()}
    given = {k: v.to(model.dtype) if v.is_floating_point() else v for k, v in plain.items()}
    output = model.base_model.get_image_features(**given, return_dict=True)
    return dict(zip(images, eyes.features(output, many), strict=True))


def body(
    model: Any,
    ids_BC: torch.Tensor,
    contexts: Sequence[Context],
    starts: Sequence[int],
    seen: Features,
    **options: Any,
) -> torch.Tensor:
    """Hidden states (B, C, D) of the next C tokens of each context, from its place in `starts` on.

    `seen` has the images whose pieces are among them.
    """
    width, eyes = ids_BC.shape[1], image_adapter_of(model)
    assert eyes is not None
    embedded = model.get_input_embeddings()(ids_BC)
    rows = [
        one.pieces(start, start + width, seen) for one, start in zip(contexts, starts, strict=True)
    ]
    extra: dict[str, Any] = {}
    if any(rows):
        first, *deeper = (
            torch.cat(layer).to(embedded.dtype) for layer in zip(*filter(None, rows), strict=True)
        )
        here_BC = ids_BC == eyes.pad
        embedded = embedded.masked_scatter(here_BC[..., None], first)
        if deeper:
            extra = {"visual_pos_masks": here_BC, "deepstack_visual_embeds": deeper}
    positions = torch.stack(
        [one.position_at(s, width) for one, s in zip(contexts, starts, strict=True)], 1
    )
    positions = positions.to(embedded.device)
    hidden: torch.Tensor = model.get_decoder()(
        inputs_embeds=embedded,
        position_ids=positions if len(positions) == 3 else positions[0],
        **extra,
        **options,
    ).last_hidden_state
    return hidden


class FeatureCache:
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
        self,
        ids_BC: torch.Tensor,
        contexts: Sequence[Context],
        starts: Sequence[int],
        **options: Any,
    ) -> torch.Tensor:
        """As the function; images that are new are looked at first, all in one pass."""
        width = ids_BC.shape[1]
        needed = dict.fromkeys(
            u
            for one, start in zip(contexts, starts, strict=True)
            for u in one.near(start, start + width)
        )
        new = [uri for uri in needed if uri not in self._seen]
        if len(self._seen) + len(new) > KEPT_IMAGES:
            self._seen = {uri: found for uri, found in self._seen.items() if uri in needed}
        self._seen |= features(self._model, new)
        return body(self._model, ids_BC, contexts, starts, self._seen, **options)


def hidden_states(
    model: Any, ids_BT: torch.Tensor, images: Sequence[Sequence[str]] = ()
) -> torch.Tensor:
    """Hidden states (B, T, D) of whole contexts, right-padded, without a cache: what learns.

    Args:
        images: of each row, in the order of their spans. A model without eyes has none.
    """
    if image_adapter_of(model) is None:
        plain: torch.Tensor = model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
        return plain
    rows = images or [()] * len(ids_BT)
    contexts = [context(model, ids, own) for ids, own in zip(ids_BT.tolist(), rows, strict=True)]
    seen = features(model, list(dict.fromkeys(uri for own in rows for uri in own)))
    return body(model, ids_BT, contexts, [0] * len(contexts), seen, use_cache=False)
