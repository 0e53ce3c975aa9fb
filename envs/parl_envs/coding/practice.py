"""Texts on which a model that starts from nothing learns the skills of repairing, one by one; and its vocabulary.

`recall` is copying as such, `enumerate` writes a list again as assignments, `copy` writes a file again, `locate` says
which statement of a file contradicts its docstring, `repair` writes that statement's words as they should be. Each is
measured on its own by `accuracy/KIND`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from parl.env.demonstrations import Segment, written_call
from parl_envs.coding.expert import AGENT_NAME, DONE, SUBAGENT_SYSTEM
from parl_envs.coding.functions import CONSTANTS, LETTERS, SYMBOLS, Exercise, draw
from parl_envs.coding.tasks import HIDDEN, MODULES, SHOWN, CodingKnobs, numbered

END, TO_TOOL, TO_AGENT = "<|im_end|>", "\n<|im_start|>tool\n", "\n<|im_start|>assistant\n"
PYTHON = tuple("def return ( ) , : ' ; = then".split())  # noqa: SIM905
COMMON = tuple(
    "fix ok merged nothing to merge passed of expected got wrong orchestrator error: duplicate task no file files : "  # noqa: SIM905
    "budget exhausted stopped (turns) at most 1 environment call(s) per turn".split()
)


@lru_cache(maxsize=8)
def vocabulary(most_files: int) -> tuple[str, ...]:
    """Every word of the `words` style."""
    numbers = [f"#{i}" for i in range(1, most_files + 1)]
    return tuple(
        dict.fromkeys(
            ["\n", *COMMON, AGENT_NAME, SUBAGENT_SYSTEM, DONE, *PYTHON, *numbers, *content_words()]
        )
    )


@lru_cache(maxsize=1)
def content_words() -> tuple[str, ...]:
    """Words that differ from file to file."""
    return (
        *(f"{m}.py" for m in MODULES),
        *MODULES,
        *LETTERS,
        *CONSTANTS,
        *SYMBOLS,
        *SYMBOLS.values(),
    )


def recall(rng: np.random.Generator, knobs: CodingKnobs) -> list[Segment]:
    """Pairs of words, then the keys again: the values, of one to three words, are to be copied."""
    words = content_words()
    order = rng.permutation(len(words))
    num = int(rng.integers(4, 15))
    keys = [words[i] for i in order[:num]]
    pool = [words[i] for i in order[num:]]
    longest = 1 if rng.random() < 0.5 else 3
    values = [" ".join(rng.choice(pool, size=int(rng.integers(1, longest + 1)))) for _ in keys]
    said = [Segment(" ".join(f"{k} {v}" for k, v in zip(keys, values, strict=True)), train=False)]
    in_order = rng.random() < 0.4
    for i in range(num) if in_order else rng.permutation(num):
        said += [Segment(keys[i], train=False), Segment(values[i])]
    return said


def enumerate_files(rng: np.random.Generator, knobs: CodingKnobs) -> list[Segment]:
    """A task, then one assignment for each of its files."""
    num = int(rng.integers(1, knobs.n[1] + 1))
    paths = [f"{m}.py" for m in rng.choice(MODULES, size=num, replace=False)]
    launches = " ".join(
        written_call("assign_task", agent=AGENT_NAME, prompt=file) for file in numbered(paths)
    )
    return [
        Segment(f"fix : {' ; '.join(numbered(paths))} {END}", train=False),
        Segment(f"{launches} {END}"),
    ]


def copy_file(rng: np.random.Generator, knobs: CodingKnobs) -> list[Segment]:
    """A file without a mistake is read and written again."""
    exercise = _draw(rng, knobs)
    return [
        _read(exercise, exercise.solution),
        Segment(written_call("write_file", path=_path(exercise), content=exercise.solution) + END),
    ]


def locate(rng: np.random.Generator, knobs: CodingKnobs) -> list[Segment]:
    """A file is read; the statement that contradicts the docstring is named."""
    exercise = _draw(rng, knobs)
    return [
        _read(exercise, exercise.source),
        Segment("wrong :", train=False),
        Segment(exercise.wrong.statements[exercise.at]),
    ]


def repair(rng: np.random.Generator, knobs: CodingKnobs) -> list[Segment]:
    """A file is read and written again; only the words that must change are asked for."""
    exercise = _draw(rng, knobs)
    before, after = exercise.source.split(), exercise.solution.split()
    said = [_read(exercise, exercise.source)]
    text = written_call("write_file", path=_path(exercise), content="\0")
    said.append(Segment(text.split("\0")[0], train=False))
    said += [Segment(new, train=old != new) for old, new in zip(before, after, strict=True)]
    return said


def _draw(rng: np.random.Generator, knobs: CodingKnobs) -> Exercise:
    return draw(rng, str(rng.choice(MODULES)), knobs.levels, "train", SHOWN + HIDDEN)


def _path(exercise: Exercise) -> str:
    return f"{exercise.right.name}.py"


def _read(exercise: Exercise, text: str) -> Segment:
    """The turn that reads a file, as in an episode, up to where the next turn begins."""
    return Segment(
        f"{written_call('read_file', path=_path(exercise))}{END}{TO_TOOL}{text}{END}{TO_AGENT}",
        train=False,
    )


KINDS: dict[str, Callable[[np.random.Generator, CodingKnobs], list[Segment]]] = {
    "recall": recall,
    "enumerate": enumerate_files,
    "copy": copy_file,
    "locate": locate,
    "repair": repair,
}
