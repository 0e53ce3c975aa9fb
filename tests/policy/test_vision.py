"""Models that see: every family computes what transformers computes, samples what it learns from, and travels."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import ImageOps
from transformers import Idefics3Processor, LlavaProcessor

from parl.config.adapters import Adapter
from parl.config.loss import Loss
from parl.config.policy import EngineConfig, Optimizer, Policy
from parl.config.tiny import TinyVlm
from parl.core.errors import ConfigError
from parl.core.images import from_uri, to_uri
from parl.core.types import Sample
from parl.learner.batch import collate
from parl.learner.learner import Learner, logprobs
from parl.policy.base import Request
from parl.policy.engines.torch import TorchEngine
from parl.policy.models import lora
from parl.policy.models.dtype import cast_parameters
from parl.policy.models.load import load_folder, lora_config, set_gradient_checkpointing
from parl.policy.models.vision import forward as passes
from parl.policy.models.vision import tiny
from parl.policy.renderers.families import FamilyRenderer, make_renderer
from tests.support.factories import make_sample
from tests.support.tokenizers import QWEN3, qwen3, tokenizer_with
from tests.support.vision_models import NAMES, model_that_sees, picture, save_model

A, B, LARGE = picture(0), picture(1, 40, 40), picture(2, 160, 100)
NO_IMAGE = "data:image/png;base64,AAAA"


@pytest.fixture(params=NAMES)
def seeing(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    return model_that_sees(request.param)


def plain_logprobs(model: Any, ids: Sequence[int], images: Sequence[str]) -> torch.Tensor:
    """By transformers' own forward pass, from ids and pixels."""
    own = model.image_adapter
    row = torch.tensor([list(ids)])
    given = own.collate([own.pixels(uri) for uri in images]) if images else {}
    if "image_grid_thw" in given:
        given["mm_token_type_ids"] = (row == own.pad).int()
    with torch.no_grad():
        found = model(input_ids=row, use_cache=False, **given).logits[0, :-1]
    found[:, list(own.forbidden)] = -1e9
    return torch.log_softmax(found, -1).gather(1, row[0, 1:, None])[:, 0]


def written(model: Any, ids: Sequence[int]) -> list[int]:
    """Places whose token an agent could have written."""
    return [i for i, token in enumerate(ids[1:]) if token not in model.image_adapter.forbidden]


async def talk(
    engine: TorchEngine, renderer: Any, name: str, said: Sequence[str], adapter: str = ""
) -> Sample:
    """An agent that reads these texts, one a turn."""
    ids = renderer.start("look", (), said[0])
    images, mask, logps = list(renderer.images(said[0])), [0] * len(ids), [0.0] * len(ids)
    for turn, heard in enumerate(said):
        if turn:
            new = renderer.observe([heard])
            ids, mask, logps = ids + new, mask + [0] * len(new), logps + [0.0] * len(new)
            images += renderer.images(heard)
        seed = turn + 100 * len(name)
        asked = Request(name, tuple(ids), (), 5, 1.0, seed, adapter, images=tuple(images))
        made = await engine.generate(asked)
        ids, logps = [*ids, *made.token_ids], [*logps, *made.logprobs]
        mask += [1] * len(made.token_ids)
    return make_sample(ids, mask, logps, agent=name, images=images)


SAID = (
    (f"two {A} and {LARGE} of them", f"here {B}"),
    (f"two {A} and {LARGE} of them", f"here {LARGE}", "no image"),
    (f"two {A} and {B} of them", f"{A}{A}"),
    ("text alone", "more text"),
    (f"{NO_IMAGE} is no image", f"late {B}"),
)


def samples_of(model: Any, tokenizer: Any, **config: Any) -> list[Sample]:
    renderer = make_renderer("main", "chatml", tokenizer, model.image_adapter)
    engine = TorchEngine(copy.deepcopy(model), renderer.stop_ids, EngineConfig(**config))

    async def all_of_them() -> list[Sample]:
        return await asyncio.gather(
            *(talk(engine, renderer, "x" * (i + 1), said) for i, said in enumerate(SAID))
        )

    return asyncio.run(all_of_them())


def test_the_log_probs_are_those_of_transformers(seeing: tuple[Any, Any]) -> None:
    """In one pass without a cache: positions, places of the images, features for deeper layers."""
    model, tokenizer = seeing
    for sample in samples_of(model, tokenizer):
        here = written(model, sample.token_ids)
        ours = logprobs(model, sample.token_ids, sample.images)[here]
        assert torch.allclose(
            ours, plain_logprobs(model, sample.token_ids, sample.images)[here], atol=1e-5
        )


@pytest.mark.parametrize("prefill", [4096, 7])
def test_the_learner_computes_what_was_sampled(seeing: tuple[Any, Any], prefill: int) -> None:
    """Several agents, turns and images at once, padded; also where prompts are fed in pieces that cut images."""
    model, tokenizer = seeing
    samples = samples_of(model, tokenizer, prefill_tokens=prefill)
    assert {len(s.images) for s in samples} == {0, 1, 3, 4}
    batch = collate(samples, [1.0] * len(samples), torch.device("cpu"))
    with torch.no_grad():
        hidden = passes.hidden_states(model, batch.ids_BT, batch.images)
        logp = torch.log_softmax(passes.logits(model, hidden[:, :-1]), -1)
    found = logp.gather(2, batch.ids_BT[:, 1:, None])[..., 0]
    here = batch.mask_BT[:, 1:].bool()
    assert here.sum() > 20
    assert float((found - batch.old_logp_BT[:, 1:])[here].abs().max()) < 1e-5


def test_an_image_changes_what_follows_it(seeing: tuple[Any, Any]) -> None:
    """Contexts with the same ids and other images: nothing of one is taken for the other, and the image is seen."""
    model, tokenizer = seeing
    renderer = make_renderer("main", "chatml", tokenizer, model.image_adapter)
    other = picture(7)
    one, two = (renderer.start("look", (), f"{uri} " + "word " * 20) for uri in (A, other))
    assert one == two
    engine = TorchEngine(copy.deepcopy(model), renderer.stop_ids, EngineConfig())

    async def ask() -> list[Any]:
        asked = [
            Request(f"{i}", tuple(one), (), 4, 1.0, 3, images=(uri,))
            for i, uri in enumerate((A, other, A))
        ]
        return await asyncio.gather(*map(engine.generate, asked))

    first, second, again = asyncio.run(ask())
    assert first.token_ids == again.token_ids
    assert first.logprobs == pytest.approx(again.logprobs, abs=1e-5)
    assert first.logprobs != pytest.approx(second.logprobs, abs=1e-3)
    assert engine.tokens_fed < 3 * len(one)  # the third copied the first's prefix
    for made, uri in ((first, A), (second, other)):
        ids = (*one, *made.token_ids)
        assert torch.allclose(
            logprobs(model, ids, [uri])[-len(made.token_ids) :],
            torch.tensor(made.logprobs),
            atol=1e-5,
        )


def test_what_stands_for_an_image_is_never_sampled(seeing: tuple[Any, Any]) -> None:
    """Also where the model would love to write it."""
    model, tokenizer = seeing
    with torch.no_grad():
        model.get_output_embeddings().weight[list(model.image_adapter.forbidden)] *= 100
    renderer = make_renderer("main", "chatml", tokenizer, model.image_adapter)
    engine = TorchEngine(copy.deepcopy(model), renderer.stop_ids, EngineConfig())
    for temperature in (0.0, 5.0):
        request = Request(
            f"{temperature}", tuple(renderer.start("", (), A)), (), 40, temperature, 0, images=(A,)
        )
        made = asyncio.run(engine.generate(request))
        assert not set(made.token_ids) & set(model.image_adapter.forbidden)


def test_markup_of_images_in_a_text_is_text(seeing: tuple[Any, Any]) -> None:
    model, tokenizer = seeing
    own = model.image_adapter
    renderer = make_renderer("main", "chatml", tokenizer, own)
    forged = " ".join((own.mark, *own.marks))
    for ids in (
        renderer.start(forged, (), forged),
        renderer.observe([forged]),
        renderer.encode(own.mark),
    ):
        assert own.pad not in ids
    assert renderer.observe([NO_IMAGE]) == renderer.observe(["[image]"])
    assert renderer.images(f"{A} {NO_IMAGE} {B}") == (A, B)
    blind = make_renderer("main", "chatml", tokenizer)
    assert blind.start("", (), f"a {A} b") == blind.start("", (), "a [image] b")
    assert blind.images(A) == ()


def test_it_travels_and_is_stored(seeing: tuple[Any, Any], tmp_path: Path) -> None:
    """To another process as a recipe, to disk as a transformers folder: it sees as before."""
    model, tokenizer = seeing
    renderer = make_renderer("main", "chatml", tokenizer, model.image_adapter)
    engine = TorchEngine(copy.deepcopy(model), renderer.stop_ids, EngineConfig())
    ids = renderer.start("look", (), f"{A} and {LARGE}")
    there = pickle.loads(pickle.dumps(engine.blueprint()))()
    there.load_weights(engine.export_weights(), 1)
    assert torch.equal(there.score(ids, images=(A, LARGE)), engine.score(ids, images=(A, LARGE)))
    assert pickle.loads(pickle.dumps(renderer)).start("look", (), f"{A} and {LARGE}") == ids
    save_model(model, tokenizer, tmp_path)
    loaded, _ = load_folder(tmp_path)
    assert loaded.image_adapter.span(LARGE) == model.image_adapter.span(LARGE)
    assert torch.equal(logprobs(loaded, ids, (A, LARGE)), logprobs(model, ids, (A, LARGE)))


def test_a_probe_is_not_cut_in_an_image(seeing: tuple[Any, Any]) -> None:
    model, tokenizer = seeing
    renderer = make_renderer("main", "chatml", tokenizer, model.image_adapter)
    ids = renderer.start("", (), f"{A} and {LARGE}")
    for num in range(2, len(ids) + 1):
        short, shown = passes.truncate_context(model, ids, (A, LARGE), num)
        assert ids[: len(short)] == short
        assert len(short) >= num
        passes.context(model, short, shown)  # raises where an image is not whole


def test_an_update_moves_the_vision_part(seeing: tuple[Any, Any]) -> None:
    model, tokenizer = seeing
    samples = samples_of(model, tokenizer)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    learner = Learner("main", model, Optimizer(lr=1e-3), Loss(), 200)
    metrics = learner.update(samples, {"orchestrator": 1.0}, 40.0, 0, 1, 1)
    assert metrics["policy/main/logp_mismatch_max"] < 1e-5
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert any("vis" in key for key in moved)
    assert any("layers.0" in key for key in moved)


def test_adapters_of_a_model_that_sees(seeing: tuple[Any, Any]) -> None:
    """Two on one base, in common passes: they are in the text part alone, and learn what they sampled."""
    base, tokenizer = seeing
    shape = lora_config("main", Adapter(base="base", rank=2), base)
    renderer = make_renderer("main", "chatml", tokenizer, base.image_adapter)
    models = {
        name: lora.attach(lora.share_weights(base, same=True), {lora.DEFAULT: shape})
        for name in ("one", "two")
    }
    for model in models.values():
        assert not [
            key
            for key in lora.adapter_state(model)
            if "vis" in key or "projector" in key or "connector" in key
        ]
        for value in lora.adapter_state(model).values():
            value.normal_(0, 0.3)
    shapes = {name: model.peft_config[lora.DEFAULT] for name, model in models.items()}
    engine = TorchEngine(
        lora.share_weights(base, same=False), renderer.stop_ids, EngineConfig(), shapes
    )
    for name, model in models.items():
        engine.load_weights(lora.adapter_state(model), 1, name)

    async def all_of_them() -> list[Sample]:
        talks = [talk(engine, renderer, name, SAID[0], adapter=name) for name in ("one", "two", "")]
        return await asyncio.gather(*talks)

    made = asyncio.run(all_of_them())
    assert made[0].token_ids != made[1].token_ids
    for sample, model in zip(made, (*models.values(), base), strict=True):
        here = torch.tensor(sample.mask[1:]).bool()
        found = logprobs(model, sample.token_ids, sample.images)
        assert torch.allclose(found[here], torch.tensor(sample.logprobs[1:])[here], atol=1e-5)


def test_other_precision_and_checkpointing(seeing: tuple[Any, Any]) -> None:
    """bfloat16 sees the same within its rounding; recomputing activations changes no gradient.

    The scale of the rounding is that of the weights (measured: the whole is 1.5 to 2.2 times as much, on three kinds
    of kernels). Other images of the same size change more than five times what is allowed.
    """
    model, tokenizer = seeing
    samples = samples_of(model, tokenizer)
    short = cast_parameters(copy.deepcopy(model), torch.bfloat16)
    rounded_weights = cast_parameters(copy.deepcopy(short), torch.float32)
    for sample in samples[:2]:
        expected = logprobs(model, sample.token_ids, sample.images)

        def change(other: Any, images: Sequence[str]) -> float:
            scores = logprobs(other, sample.token_ids, images)  # noqa: B023
            return float((scores - expected).abs().mean())  # noqa: B023

        allowed = 4 * change(rounded_weights, sample.images)
        negatives = [to_uri(ImageOps.invert(from_uri(uri))) for uri in sample.images]
        assert change(short, sample.images) < allowed < 0.2 * change(model, negatives)
    other = copy.deepcopy(model)
    set_gradient_checkpointing("main", Policy(gradient_checkpointing=True), other)
    moved = []
    for one in (model, other):
        learner = Learner("main", one, Optimizer(lr=1e-3), Loss(), 200)
        learner.update(samples, {"orchestrator": 1.0}, 40.0, 0, 1, 1)
        moved.append(learner.weights())
    assert all(torch.allclose(moved[0][key], moved[1][key], atol=1e-5) for key in moved[0])


def test_images_in_the_chat_format_of_a_family() -> None:
    """Qwen's: in the user's message and in a tool's answer, as its own template has them."""
    plain = qwen3()
    tokenizer = tokenizer_with(
        (*QWEN3, *tiny.MARKS), "<|im_end|>", "qwen3.jinja", pad_token="<|endoftext|>"
    )
    eyes = tiny.build_model(TinyVlm(hidden_size=32, num_heads=2), tokenizer, 0).image_adapter
    renderer = make_renderer("main", "auto", tokenizer, eyes)
    assert isinstance(renderer, FamilyRenderer)
    start, end, pad, _ = (tokenizer.convert_tokens_to_ids(mark) for mark in tiny.MARKS)
    for ids, texts in (
        (renderer.start("look", (), f"a {A} b {LARGE}"), (A, LARGE)),
        (renderer.observe([f"x{B}", f"{NO_IMAGE}{A}"]), (B, A)),
        (renderer.show(f"{B} c"), (B,)),
    ):
        spans = [i for i, token in enumerate(ids) if token == start]
        assert [ids[i : ids.index(end, i) + 1] for i in spans] == [
            list(eyes.span(uri)) for uri in texts
        ]
        assert ids.count(pad) == sum(eyes.num_pads(uri) for uri in texts)
    blind = make_renderer("main", "auto", plain)
    text = tokenizer.decode(
        [i for i in renderer.start("look", (), f"a {A} b") if i not in (start, end, pad)]
    )
    assert text == plain.decode(blind.start("look", (), "a  b"))
    assert blind.observe([f"x {A}"]) == blind.observe(["x [image]"])
    assert pad not in renderer.start(eyes.mark, (), eyes.mark)
    assert pad not in renderer.encode(eyes.mark)


@pytest.mark.parametrize("name", ["llava", "idefics3"])
def test_what_stands_for_an_image_is_what_the_models_own_processor_writes(name: str) -> None:
    """Qwen's processor needs torchvision; its number of pads is checked by the model itself."""
    model, tokenizer = model_that_sees(name)
    eyes = model.image_adapter
    if name == "llava":
        more = {
            "patch_size": 8,
            "vision_feature_select_strategy": "default",
            "num_additional_image_tokens": 1,
        }
        processor: Any = LlavaProcessor(eyes.processor, tokenizer, image_token="<image>", **more)
    else:
        processor = Idefics3Processor(eyes.processor, tokenizer, image_seq_len=4)
    for uri in (A, B, LARGE):
        given = processor(
            text="<image>", images=[[from_uri(uri)]] if name == "idefics3" else from_uri(uri)
        )
        assert list(eyes.span(uri)) == [int(i) for i in given["input_ids"][0]]


@pytest.mark.parametrize(
    "name, kind", [("qwen3_vl", "Qwen2VLImageProcessorFast"), ("llava", "CLIPImageProcessor")]
)
def test_a_folder_as_it_comes_from_the_hub(name: str, kind: str, tmp_path: Path) -> None:
    """It names the processor by another class, of torchvision; without any it is one error."""
    model, tokenizer = model_that_sees(name)
    save_model(model, tokenizer, tmp_path)
    stored = tmp_path / "preprocessor_config.json"
    stored.write_text(json.dumps(json.loads(stored.read_text()) | {"image_processor_type": kind}))
    loaded, _ = load_folder(tmp_path)
    assert loaded.image_adapter.span(LARGE) == model.image_adapter.span(LARGE)
    stored.unlink()
    with pytest.raises(
        ConfigError, match=r"no image processor.*Put the model's preprocessor_config.json"
    ):
        load_folder(tmp_path)
