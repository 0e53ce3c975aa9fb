"""Texts on which a model that starts from nothing learns to repair, and its vocabulary.

    recall      copying as such
    enumerate   writing a list again, as assignments
    copy        writing a file again
    locate      naming the statement of a file that contradicts its docstring
    repair      writing that statement's words as they should be

Each is measured by `accuracy/KIND`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from parl.env.demonstrations import Segment, written_call
from parl_envs.coding.expert import AGENT_NAME, DONE, SUBAGENT_SYSTEM
from parl_envs.coding.functions import CONSTANTS, LETTERS, SYMBOLS, Exercise, draw
from parl_envs.coding.tasks import HIDDEN, MODULES, SHOWN, CodingKnobs, numbered

# The chat format's marks, so that a practice text looks like a part of an episode.
END = "<|im_end|>"
TO_TOOL = "\n<|im_start|>tool\n"
TO_AGENT = "\n<|im_start|>assistant\n"

PYTHON = ("def", "return", "(", ")", ",", ":", "'", ";", "=", "then")
_COMMON_TEXT = (
    "fix ok merged nothing to merge passed of expected got wrong orchestrator error: duplicate "
    "task no file files : budget exhausted stopped (turns) at most 1 environment call(s) per turn"
)
COMMON = tuple(_COMMON_TEXT.split())
"""Words of prompts and of what tools and the runtime write."""


@lru_cache(maxsize=8)
def vocabulary(max_files: int) -> tuple[str, ...]:
    """Every word of the `words` style."""
    numbers = [f"#{i}" for i in range(1, max_files + 1)]
    scaffolding = ["\n", *COMMON, AGENT_NAME, SUBAGENT_SYSTEM, DONE]
    words = [*scaffolding, *PYTHON, *numbers, *content_words()]
    # A dict drops what occurs twice and keeps the order: a token's id is its place.
    return tuple(dict.fromkeys(words))


@lru_cache(maxsize=1)
def content_words() -> tuple[str, ...]:
    """Words that differ from file to file."""
    paths = [f"{module}.py" for module in MODULES]
    return (*paths, *MODULES, *LETTERS, *CONSTANTS, *SYMBOLS, *SYMBOLS.values())


def recall(rng: np.random.Generator, knobs: CodingKnobs) -> list[Segment]:
    """Write pairs of key and value, then the keys again, whose values are to be copied.

    A value has one to three words.
    """
    words = content_words()
    order = rng.permutation(len(words))
    num_pairs = int(rng.integers(4, 15))
    keys = [words[i] for i in order[:num_pairs]]
    # The other words, so that no value is also a key.
    pool = [words[i] for i in order[num_pairs:]]
    longest = 1 if rng.random() < 0.5 else 3
    values = []
    for _ in keys:
        length = int(rng.integers(1, longest + 1))
        values.append(" ".join(rng.choice(pool, size=length)))

    pairs = [f"{key} {value}" for key, value in zip(keys, values, strict=True)]
    segments = [Segment(" ".join(pairs), train=False)]
    in_order = rng.random() < 0.4
    question_order = np.arange(num_pairs) if in_order else rng.permutation(num_pairs)
    for i in question_order:
        segments.append(Segment(keys[i], train=False))
        segments.append(Segment(values[i]))
    return segments


def enumerate_files(rng: np.random.Generator, knobs: CodingKnobs) -> list[Segment]:
    """Write a task, then one assignment for each of its files."""
    num_files = int(rng.integers(1, knobs.n[1] + 1))
    modules = rng.choice(MODULES, size=num_files, replace=False)
    files = numbered([f"{module}.py" for module in modules])
    launches = []
    for file in files:
        launches.append(written_call("assign_task", agent=AGENT_NAME, prompt=file))
    return [
        Segment(f"fix : {' ; '.join(files)} {END}", train=False),
        Segment(f"{' '.join(launches)} {END}"),
    ]


def copy_file(rng: np.random.Generator, knobs: CodingKnobs) -> list[Segment]:
    """Read a file without a mistake and write it again."""
    exercise = _draw(rng, knobs)
    # Without a mistake: copying and repairing are different skills.
    write = written_call("write_file", path=_path(exercise), content=exercise.solution)
    return [_read(exercise, exercise.solution), Segment(write + END)]


def locate(rng: np.random.Generator, knobs: CodingKnobs) -> list[Segment]:
    """Read a file and name the statement that contradicts the docstring."""
    exercise = _draw(rng, knobs)
    return [
        _read(exercise, exercise.source),
        Segment("wrong :", train=False),
        Segment(exercise.wrong.statements[exercise.at]),
    ]


def repair(rng: np.random.Generator, knobs: CodingKnobs) -> list[Segment]:
    """Read a file and write it again. Only the words that must change are trained."""
    exercise = _draw(rng, knobs)
    write = written_call("write_file", path=_path(exercise), content="\0")
    call_up_to_content = write.split("\0")[0]
    segments = [
        _read(exercise, exercise.source),
        Segment(call_up_to_content, train=False),
    ]
    source_words = exercise.source.split()
    solution_words = exercise.solution.split()
    for before, after in zip(source_words, solution_words, strict=True):
        # A word that stays is copying, which `copy` teaches.
        segments.append(Segment(after, train=before != after))
    return segments


def _draw(rng: np.random.Generator, knobs: CodingKnobs) -> Exercise:
    module = str(rng.choice(MODULES))
    return draw(rng, module, knobs.levels, "train", SHOWN + HIDDEN)


def _path(exercise: Exercise) -> str:
    return f"{exercise.right.name}.py"


def _read(exercise: Exercise, text: str) -> Segment:
    """The turn that reads a file, as in an episode, up to where the next turn begins."""
    call = written_call("read_file", path=_path(exercise))
    return Segment(f"{call}{END}{TO_TOOL}{text}{END}{TO_AGENT}", train=False)


KINDS: dict[str, Callable[[np.random.Generator, CodingKnobs], list[Segment]]] = {
    "recall": recall,
    "enumerate": enumerate_files,
    "copy": copy_file,
    "locate": locate,
    "repair": repair,
}
"""Kind of demonstration -> the function that writes one text."""
