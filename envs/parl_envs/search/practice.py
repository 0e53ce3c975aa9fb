"""Texts on which a model that starts from nothing learns to copy, and its vocabulary.

Copying goes through a phase transition within a hundred steps when it is practised alone, and never
when it is mixed into demonstrations from the start: hence stages of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from parl.env.demonstrations import Segment, written_call
from parl_envs.search.expert import AGENT_NAME, SUBAGENT_SYSTEM
from parl_envs.search.tasks import SearchKnobs
from parl_envs.search.world import HOP, SIZES, WorldSpec, short_rows

_COMMON_TEXT = (
    ": ; , > find for unknown error: ok duplicate task budget exhausted orchestrator country "
    "stopped (turns) The window is full. Answer now with what you have. "
    "at most 1 environment call(s) per turn"
)
COMMON = tuple(_COMMON_TEXT.split())
"""Words of prompts and of what tools and the runtime write."""

# Two pages an entity. The training split is the largest, and all splits draw from its range of ids.
DOC_IDS = tuple(f"d{i}" for i in range(1, 2 * SIZES["train"] + 1))


@lru_cache(maxsize=8)
def vocabulary(spec: WorldSpec, knobs: SearchKnobs) -> tuple[str, ...]:
    """Every word of the records profile: scaffolding, row numbers, ids, names and values."""
    numbers = [f"#{i}" for i in range(1, knobs.largest + 1)]
    distractors = ["neighbour", "partner", "visitor"] if spec.distractors else []
    scaffolding = ["\n", *COMMON, AGENT_NAME, SUBAGENT_SYSTEM]
    columns = [*spec.attributes, *HOP, *distractors]
    words = [*scaffolding, *columns, *numbers, *DOC_IDS, *content_words(spec)]
    # A dict drops what occurs twice and keeps the order: a token's id is its place.
    return tuple(dict.fromkeys(words))


@lru_cache(maxsize=8)
def content_words(spec: WorldSpec) -> tuple[str, ...]:
    """Words of names and values, sorted."""
    words: set[str] = set()
    for row in short_rows():
        words.update(row.name.split())
        for column in dict.fromkeys([*spec.attributes, *HOP]):
            words.update(row.facts[column].split())
    return tuple(sorted(words))


def recall(rng: np.random.Generator, spec: WorldSpec, knobs: SearchKnobs) -> list[Segment]:
    """Write pairs of key and value, then the keys again, whose values are to be copied.

    Keys are document ids or words, values one to three words or an id. A colon may stand between
    the two, as on pages.
    """
    words = content_words(spec)
    num_pairs = int(rng.integers(4, 15))
    order = rng.permutation(len(words))
    pool: tuple[str, ...]
    # Ids and words as keys in turn: an episode copies both.
    if rng.random() < 0.5:
        keys = [DOC_IDS[i] for i in rng.permutation(len(DOC_IDS))[:num_pairs]]
        pool = words
    else:
        keys = [words[i] for i in order[:num_pairs]]
        # The other words, so that no value is also a key.
        pool = DOC_IDS if rng.random() < 0.3 else tuple(words[i] for i in order[num_pairs:])
    colon = " :" if rng.random() < 0.5 else ""
    longest = 1 if rng.random() < 0.5 else 3
    values = [_random_text(rng, pool, longest) for _ in keys]

    gap = " \n " if colon else " "
    pairs = [f"{key}{colon} {value}" for key, value in zip(keys, values, strict=True)]
    segments = [Segment(gap.join(pairs), train=False)]

    in_order = rng.random() < 0.4
    question_order = np.arange(num_pairs) if in_order else rng.permutation(num_pairs)
    for place, i in enumerate(question_order):
        # In order, the next key can be told from the pairs, so it is trained, too.
        is_key_known = in_order and place > 0 and not colon
        segments.append(Segment(keys[i] + colon, train=is_key_known))
        segments.append(Segment(values[i]))
    return segments


def _random_text(rng: np.random.Generator, pool: tuple[str, ...], longest: int) -> str:
    """One to three words of the pool; one word when `longest` is 1."""
    length = 1 if longest == 1 else int(rng.choice([1, 1, 1, 2, 3]))
    words = []
    for _ in range(length):
        words.append(pool[int(rng.integers(len(pool)))])
    return " ".join(words)


def enumerate_rows(rng: np.random.Generator, spec: WorldSpec, knobs: SearchKnobs) -> list[Segment]:
    """Write a numbered list of random names, then one assignment for each of them."""
    words = content_words(spec)
    num_rows = int(rng.integers(2, knobs.largest + 1))
    names = [_random_text(rng, words, 3) for _ in range(num_rows)]
    attributes = [*spec.attributes, *HOP]
    first = attributes[int(rng.integers(len(attributes)))]
    second = attributes[int(rng.integers(len(attributes)))]
    columns = f"{first} {',' if rng.random() < 0.7 else '>'} {second}"

    rows = []
    launches = []
    for i, name in enumerate(names, 1):
        row = f"#{i} {name}"
        rows.append(row)
        launches.append(written_call("assign_task", agent=AGENT_NAME, prompt=f"{row} : {columns}"))
    return [
        Segment(f"find {columns} for : {' ; '.join(rows)} <|im_end|>", train=False),
        Segment(" ".join(launches) + " <|im_end|>"),
    ]


Practice = Callable[[np.random.Generator, WorldSpec, SearchKnobs], list[Segment]]
KINDS: dict[str, Practice] = {"recall": recall, "enumerate": enumerate_rows}
"""Kind of demonstration -> the function that writes one text."""
