"""A tiny model that sees begins with heads that look back, where it is told to."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from parl.config.tiny import TinyVlm
from parl.policy.models.vision import tiny
from tests.support.tokenizers import QWEN2_5, tokenizer_with


def model(copies: bool) -> Any:
    tokenizer = tokenizer_with((*QWEN2_5, *tiny.MARKS), "<|im_end|>", pad_token="<|endoftext|>")
    made = tiny.build_model(TinyVlm(copies=copies), tokenizer, seed=0).eval()
    made.set_attn_implementation("eager")
    return made


@pytest.mark.parametrize("copies", [True, False])
def test_two_heads_of_the_first_layer_attend_to_the_word_before(copies: bool) -> None:
    ids = torch.randint(0, 300, (4, 60), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first = model(copies)(input_ids=ids, output_attentions=True).attentions[0]
    before = first.diagonal(-1, dim1=-2, dim2=-1).mean((0, 2))  # by head
    assert (before[:2] > 0.5).all() == copies
    assert (before[2:] < 0.2).all()


def test_the_same_seed_gives_the_same_weights() -> None:
    one, two = model(True).state_dict(), model(True).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
