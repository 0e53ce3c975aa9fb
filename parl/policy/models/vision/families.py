"""How each family of vision-language models reads an image.

In: images as data URIs. Out: the ids that stand for an image in a context (its span), and what the model is given for
them. Three things differ between families, and only here: the span, the pixel tensors, and the positions. Images are
prepared by the family's own image processor with PIL: torchvision is not needed.

T positions of a context, R rows of position ids (1, or 3: time, height, width), N pads of one image, D hidden size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from parl.core import images
from parl.core.errors import ConfigError

Pixels = Mapping[str, np.ndarray[Any, Any]]
"""What the model's vision part takes for one image, by argument."""
CACHED_BYTES = 256 * 2**20
"""Most memory for images that were prepared: an image is read by the renderer, the engine and the learner."""


class ImageAdapter(ABC):
    """The eyes of one model. They travel with it (`model.image_adapter`) and with its renderer.

    Args:
        config: the model's.
        processor: its image processor (PIL).
        tokenizer: its tokenizer, whose tokens stand for images.
    """

    marks: ClassVar[tuple[str, ...]] = ()
    """Further tokens that the tokenizer must have: the frame around an image."""

    def __init__(self, config: Any, processor: Any, tokenizer: Any) -> None:
        self._arguments = (config, processor, tokenizer)
        self.config, self.processor, self._tokenizer = config, processor, tokenizer
        self.pad: int = config.image_token_id
        self.mark: str = tokenizer.convert_ids_to_tokens(self.pad)
        """The pad's text. One pad stands for N places, in each of which the model puts a piece of the image."""
        marks = (self.pad, getattr(config, "video_token_id", None))
        known = config.get_text_config().vocab_size
        self.forbidden: tuple[int, ...] = tuple(i for i in marks if i is not None and i < known)
        """Ids that the model takes for pieces of an image: they are never sampled."""
        missing = [t for t in self.marks if t not in tokenizer.get_vocab()]
        if missing or self.mark is None:
            raise ConfigError(
                f"The tokenizer lacks {', '.join(missing) or 'the image token'} of its model."
            )
        self._prepared: OrderedDict[str, Pixels | None] = OrderedDict()
        self._bytes = 0

    def __reduce__(self) -> tuple[type[ImageAdapter], tuple[Any, ...]]:
        return type(self), self._arguments

    def __deepcopy__(self, memo: Any) -> ImageAdapter:
        return self  # a model's copy sees as the model does

    # --- one image ---------------------------------------------------------------------------------------------------

    def accepts(self, uri: str) -> bool:
        """Whether it is an image that the model can be given."""
        return self._look(uri) is not None

    def pixels(self, uri: str) -> Pixels:
        """An image as the model's vision part takes it. Raises ValueError: it is none."""
        found = self._look(uri)
        if found is None:
            raise ValueError("What stands as an image in a context cannot be read as one.")
        return found

    def span(self, uri: str) -> tuple[int, ...]:
        """The ids that stand for an image. Raises ValueError: it is none."""
        return self._span(self.pixels(uri))

    def num_pads(self, uri: str) -> int:
        return self.span(uri).count(self.pad)

    def _look(self, uri: str) -> Pixels | None:
        if uri in self._prepared:
            self._prepared.move_to_end(uri)
            return self._prepared[uri]
        try:
            found: Pixels | None = self._prepare(images.from_uri(uri))
        except ValueError:  # no image, too large, or of a shape that the processor refuses
            found = None
        self._prepared[uri] = found
        self._bytes += _size(uri, found)
        while self._bytes > CACHED_BYTES and len(self._prepared) > 1:
            self._bytes -= _size(*self._prepared.popitem(last=False))
        return found

    def _prepare(self, image: Any) -> Pixels:
        return dict(self.processor(images=[image], return_tensors="np"))

    # --- what differs ------------------------------------------------------------------------------------------------

    @abstractmethod
    def _span(self, pixels: Pixels) -> tuple[int, ...]: ...

    def collate(self, many: Sequence[Pixels]) -> dict[str, torch.Tensor]:
        """The images of a pass together."""
        return {k: torch.from_numpy(np.concatenate([p[k] for p in many])) for k in many[0]}

    def positions(
        self, model: Any, token_ids: Sequence[int], many: Sequence[Pixels]
    ) -> torch.Tensor:
        """Position ids (R, T) of a context with these images."""
        return torch.arange(len(token_ids))[None]

    @abstractmethod
    def features(self, output: Any, many: Sequence[Pixels]) -> list[tuple[torch.Tensor, ...]]:
        """The vision part's output, image by image: (N, D) for the places of its pads, then what is added to these
        places after the first layers, if anything is."""


class Qwen(ImageAdapter):
    """Qwen2.5-VL and Qwen3-VL: any size; positions in time, height, width; features for several layers (DeepStack)."""

    marks = ("<|vision_start|>", "<|vision_end|>")

    def _span(self, pixels: Pixels) -> tuple[int, ...]:
        start, end = self._tokenizer.convert_tokens_to_ids(list(self.marks))
        num = (
            int(pixels["image_grid_thw"].prod()) // self.config.vision_config.spatial_merge_size**2
        )
        return (start, *[self.pad] * num, end)

    def positions(
        self, model: Any, token_ids: Sequence[int], many: Sequence[Pixels]
    ) -> torch.Tensor:
        if not many:
            return torch.arange(len(token_ids)).expand(3, -1)
        ids = torch.tensor([list(token_ids)])
        grids = torch.from_numpy(np.concatenate([p["image_grid_thw"] for p in many]))
        found: torch.Tensor = model.base_model.get_rope_index(ids, (ids == self.pad).int(), grids)[
            0
        ]
        return found[:, 0]

    def features(self, output: Any, many: Sequence[Pixels]) -> list[tuple[torch.Tensor, ...]]:
        return list(
            zip(
                output.pooler_output,
                *(getattr(output, "deepstack_features", None) or ()),
                strict=True,
            )
        )


class Llava(ImageAdapter):
    """LLaVA: every image has the same size."""

    def _span(self, pixels: Pixels) -> tuple[int, ...]:
        vision = self.config.vision_config
        height, width = pixels["pixel_values"].shape[-2:]
        num = int(height // vision.patch_size) * int(width // vision.patch_size)
        if (
            self.config.vision_feature_select_strategy == "full"
            and vision.model_type == "clip_vision_model"
        ):
            num += 1  # CLIP's first token, of the whole image
        return (self.pad,) * num

    def features(self, output: Any, many: Sequence[Pixels]) -> list[tuple[torch.Tensor, ...]]:
        return [(found,) for found in output.pooler_output]


class Idefics3(ImageAdapter):
    """Idefics3: a large image is cut into tiles of one size, and a small copy of the whole follows them."""

    marks = ("<fake_token_around_image>", "<global-img>")

    def _prepare(self, image: Any) -> Pixels:
        return dict(self.processor(images=[[image]], return_row_col_info=True, return_tensors="np"))

    def _span(self, pixels: Pixels) -> tuple[int, ...]:
        vision, (fake, whole) = self.config.vision_config, self.marks
        piece = self.mark * int(
            (vision.image_size // vision.patch_size) ** 2 / self.config.scale_factor**2
        )
        rows, columns = int(pixels["rows"][0][0]), int(pixels["cols"][0][0])
        text = ""
        for row in range(1, rows + 1):
            text += (
                "".join(
                    f"{fake}<row_{row}_col_{column}>{piece}" for column in range(1, columns + 1)
                )
                + "\n"
            )
        text += ("\n" if rows else "") + f"{fake}{whole}{piece}{fake}"
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))

    def collate(self, many: Sequence[Pixels]) -> dict[str, torch.Tensor]:
        names = ("pixel_values", "pixel_attention_mask")
        return {k: torch.from_numpy(np.concatenate([p[k] for p in many], axis=1)) for k in names}

    def features(self, output: Any, many: Sequence[Pixels]) -> list[tuple[torch.Tensor, ...]]:
        tiles = output.pooler_output.split([p["pixel_values"].shape[1] for p in many])
        return [(found.flatten(0, 1),) for found in tiles]


FAMILIES: dict[str, type[ImageAdapter]] = {
    "qwen3_vl": Qwen,
    "qwen2_5_vl": Qwen,
    "llava": Llava,
    "idefics3": Idefics3,
}
"""By the `model_type` of a model's config."""


def image_adapter_of(model: Any) -> ImageAdapter | None:
    """None: a model that reads text alone."""
    return getattr(model, "image_adapter", None)


def save(model: Any, folder: Path) -> None:
    """Write what `load` reads, beside the model and the tokenizer; nothing for a model that reads text alone."""
    if image_adapter_of(model) is not None:
        model.image_adapter.processor.save_pretrained(folder)


def load(folder: Path, config: Any, tokenizer: Any) -> ImageAdapter:
    """The eyes of a model in a transformers folder. Raises ConfigError: its image processor is missing or damaged."""
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
    except Exception as error:  # transformers raises many kinds for a bad folder
        raise ConfigError(
            f"{folder} has no image processor that can be loaded ({str(error).strip().partition(chr(10))[0]}). Put the "
            "model's preprocessor_config.json or processor_config.json there."
        ) from None
    return FAMILIES[config.model_type](config, processor, tokenizer)


def _size(uri: str, pixels: Pixels | None) -> int:
    return len(uri) + sum(int(np.asarray(a).nbytes) for a in (pixels or {}).values())
