"""Texts on which a model that starts from nothing learns to copy, and its vocabulary.

Copying goes through a phase transition within a hundred steps when practised alone, and never when it is mixed into
demonstrations from the start: hence stages of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from parl.env.demonstrations import Segment, written_call
from parl_envs.search.expert import AGENT_NAME, SUBAGENT_SYSTEM
from parl_envs.search.tasks import SearchKnobs
from parl_envs.search.world import HOP, SIZES, WorldSpec, short_rows

COMMON = tuple(
    ": ; , > find for unknown error: ok duplicate task budget exhausted orchestrator country stopped (turns) "  # noqa: SIM905
    "The window is full. Answer now with what you have. at most 1 environment call(s) per turn".split()
)

DOC_IDS = tuple(f"d{i}" for i in range(1, 2 * SIZES["train"] + 1))


@lru_cache(maxsize=8)
def vocabulary(spec: WorldSpec, knobs: SearchKnobs) -> tuple[str, ...]:
    """Every word of the records profile: scaffolding, row numbers, document ids, names and values."""
    numbers = [f"#{i}" for i in range(1, knobs.largest + 1)]
    extra = ["neighbour", "partner", "visitor"] if spec.distractors else []
    head = [
        "\n",
        *COMMON,
        AGENT_NAME,
        SUBAGENT_SYSTEM,
        *spec.attributes,
        *HOP,
        *extra,
        *numbers,
        *DOC_IDS,
    ]
    return tuple(dict.fromkeys([*head, *content_words(spec)]))


@lru_cache(maxsize=8)
def content_words(spec: WorldSpec) -> tuple[str, ...]:
    """Words of names and values."""
    columns = dict.fromkeys([*spec.attributes, *HOP])
    words = {
        w
        for row in short_rows()
        for text in (row.name, *(row.facts[c] for c in columns))
        for w in text.split()
    }
    return tuple(sorted(words))


def recall(rng: np.random.Generator, spec: WorldSpec, knobs: SearchKnobs) -> list[Segment]:
    """Pairs of key and value, then the keys again: the values are to be copied.

    Keys are document ids or words, values one to three words or an id; a colon may stand between, as on pages.
    """
    words = content_words(spec)
    num = int(rng.integers(4, 15))
    order = rng.permutation(len(words))
    if rng.random() < 0.5:
        keys, pool = [DOC_IDS[i] for i in rng.permutation(len(DOC_IDS))[:num]], words
    else:
        keys = [words[i] for i in order[:num]]
        pool = DOC_IDS if rng.random() < 0.3 else tuple(words[i] for i in order[num:])
    colon = " :" if rng.random() < 0.5 else ""
    longest = 1 if rng.random() < 0.5 else 3
    values = [
        " ".join(pool[int(rng.integers(len(pool)))] for _ in range(_length(rng, longest)))
        for _ in keys
    ]
    gap = " \n " if colon else " "
    said = [
        Segment(gap.join(f"{k}{colon} {v}" for k, v in zip(keys, values, strict=True)), train=False)
    ]
    in_order = rng.random() < 0.4
    order = np.arange(len(keys)) if in_order else rng.permutation(len(keys))
    for place, i in enumerate(order):
        said += [
            Segment(keys[i] + colon, train=in_order and place > 0 and not colon),
            Segment(values[i]),
        ]
    return said


def _length(rng: np.random.Generator, longest: int) -> int:
    return 1 if longest == 1 else int(rng.choice([1, 1, 1, 2, 3]))


def enumerate_rows(rng: np.random.Generator, spec: WorldSpec, knobs: SearchKnobs) -> list[Segment]:
    """A numbered list of random names, then one assignment for each: writing a list again in another form."""
    words = content_words(spec)
    num = int(rng.integers(2, knobs.largest + 1))
    names = [
        " ".join(words[int(rng.integers(len(words)))] for _ in range(_length(rng, 3)))
        for _ in range(num)
    ]
    attributes = [*spec.attributes, *HOP]
    first, second = (attributes[int(rng.integers(len(attributes)))] for _ in range(2))
    columns = f"{first} {',' if rng.random() < 0.7 else '>'} {second}"
    listed = " ; ".join(f"#{i} {name}" for i, name in enumerate(names, 1))
    launches = [
        written_call("assign_task", agent=AGENT_NAME, prompt=f"#{i} {name} : {columns}")
        for i, name in enumerate(names, 1)
    ]
    return [
        Segment(f"find {columns} for : {listed} <|im_end|>", train=False),
        Segment(" ".join(launches) + " <|im_end|>"),
    ]


KINDS: dict[str, Callable[[np.random.Generator, WorldSpec, SearchKnobs], list[Segment]]] = {
    "recall": recall,
    "enumerate": enumerate_rows,
}
