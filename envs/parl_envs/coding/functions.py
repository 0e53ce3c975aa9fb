"""Small functions with one mistake each: what the generated tasks are made of.

A function has one to three statements of the form `left OPERATOR right`. Its docstring says in
words what each of them should be. Texts are Python in one line, with blanks between the words, so
that a word-level tokenizer can read and write them; `tidy` lays them out as people do.

Example:
    def f7 ( a , b ) : ' a plus b then c times 3 ' ; c = a - b ; return c * 3        # mistake: -
    for +
"""

from __future__ import annotations

import ast
import hashlib
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from parl.core.errors import ConfigError, did_you_mean

T = TypeVar("T")

SYMBOLS = {"plus": "+", "minus": "-", "times": "*", "over": "//", "modulo": "%"}
COMPUTE: dict[str, Callable[[int, int], int]] = {
    "plus": operator.add,
    "minus": operator.sub,
    "times": operator.mul,
    "over": operator.floordiv,
    "modulo": operator.mod,
}
WORDS = tuple(SYMBOLS)
LETTERS = ("a", "b", "c", "d", "k", "n", "p", "q", "r", "s", "t", "x", "y", "z")
CONSTANTS = tuple(str(i) for i in range(2, 10))

# Arguments of the tests, both ends included. No zero: parameters may be right of `//`.
INPUTS = (1, 20)

SPLITS = {"train": range(8), "validation": range(8, 9), "test": range(9, 10)}
"""Buckets of a function's shape, of ten: no shape is in two splits."""

LEVELS = (1, 2, 3)
"""Numbers of statements."""

# Attempts for each input that is needed. A mistake that shows in fewer cases is drawn again.
ATTEMPTS_PER_INPUT = 12


@dataclass(frozen=True, slots=True)
class Step:
    """The right side of one statement. `word` is the operator's name in the docstring.

    Example: Step("a", "plus", "b").code == "a + b"
    """

    left: str
    word: str
    right: str

    @property
    def words(self) -> str:
        """As the docstring has it."""
        return f"{self.left} {self.word} {self.right}"

    @property
    def code(self) -> str:
        """As the program has it."""
        return f"{self.left} {SYMBOLS[self.word]} {self.right}"


@dataclass(frozen=True, slots=True)
class Function:
    """A function of two parameters. `locals_[i]` names the result of step i."""

    name: str
    params: tuple[str, str]
    locals_: tuple[str, ...]
    steps: tuple[Step, ...]

    @property
    def statements(self) -> list[str]:
        """`c = a + b` and so on, the last one a `return`."""
        targets = [f"{name} =" for name in self.locals_]
        statements = []
        for target, step in zip([*targets, "return"], self.steps, strict=True):
            statements.append(f"{target} {step.code}")
        return statements

    def text(self, doc: Function | None = None) -> str:
        """Return the source.

        Args:
            doc: the function that the docstring describes; None = this one.
        """
        described = doc or self
        words = " then ".join(step.words for step in described.steps)
        head = f"def {self.name} ( {' , '.join(self.params)} ) : ' {words} '"
        return " ; ".join([head, *self.statements])

    def __call__(self, *args: int) -> int:
        """Compute the value in this process: generated functions are not an agent's code.

        Raises:
            ZeroDivisionError: a divisor is 0.
        """
        values = dict(zip(self.params, args, strict=True))
        result = 0
        for i, step in enumerate(self.steps):
            operands = []
            for word in (step.left, step.right):
                operands.append(values[word] if word in values else int(word))
            result = COMPUTE[step.word](*operands)
            if i < len(self.locals_):
                values[self.locals_[i]] = result
        return result

    def shape(self) -> str:
        """Return what it computes, without its names: splits share no shape."""
        plain = {}
        for i, name in enumerate((*self.params, *self.locals_)):
            plain[name] = f"v{i}"
        parts = []
        for step in self.steps:
            words = (step.left, step.word, step.right)
            parts.append(" ".join(plain.get(word, word) for word in words))
        return " ; ".join(parts)


@dataclass(frozen=True, slots=True)
class Exercise:
    """A function, the same with a mistake, and arguments on which the two differ."""

    right: Function
    wrong: Function
    at: int
    """Index of the statement with the mistake."""
    inputs: tuple[tuple[int, int], ...]

    @property
    def source(self) -> str:
        """The text with the mistake, under the right docstring."""
        return self.wrong.text(doc=self.right)

    @property
    def solution(self) -> str:
        """The text without the mistake."""
        return self.right.text()


def draw(
    rng: np.random.Generator, name: str, levels: Sequence[int], split: str, num_inputs: int
) -> Exercise:
    """Draw an exercise of a split.

    Args:
        rng: where it comes from.
        name: the function's name.
        levels: numbers of statements, equally likely.
        split: one of SPLITS.
        num_inputs: number of arguments on which the mistake shows.
    Raises:
        ConfigError: there is no such split.
    """
    if split not in SPLITS:
        raise ConfigError(f"No split '{split}'.{did_you_mean(split, SPLITS)}")
    level = _pick(rng, levels)
    while True:
        right = _function(rng, name, level)
        # Drawn again until the shape is one of the split's.
        if _bucket(right) not in SPLITS[split]:
            continue
        wrong, at = _with_mistake(rng, right)
        inputs = _inputs_that_differ(rng, right, wrong, num_inputs)
        if inputs is not None:
            return Exercise(right, wrong, at, inputs)


def correct(source: str) -> str:
    """Write the text with its statements as the docstring has them. This is the expert's skill.

    It reads one-line texts of this module only. Names of results stay those of the statements.
    """
    head, *statements = source.split(" ; ")
    docstring = head.split(" ' ")[1].removesuffix(" '")
    corrected = []
    for statement, clause in zip(statements, docstring.split(" then "), strict=True):
        first, word, second = clause.split()
        first_word = statement.split()[0]
        target = "return" if first_word == "return" else f"{first_word} ="
        corrected.append(f"{target} {first} {SYMBOLS[word]} {second}")
    return " ; ".join([head, *corrected])


def tidy(source: str) -> str:
    """Lay a program out as people do."""
    return ast.unparse(ast.parse(source)) + "\n"


def _bucket(function: Function) -> int:
    # Python's `hash` of a text differs from process to process.
    return hashlib.blake2b(function.shape().encode(), digest_size=8).digest()[0] % 10


def _function(rng: np.random.Generator, name: str, level: int) -> Function:
    # Different names each time: a name must not tell what a function does.
    order = rng.permutation(len(LETTERS))
    names = [LETTERS[i] for i in order[: 1 + level]]
    params = (names[0], names[1])
    locals_ = tuple(names[2:])
    steps = []
    for i in range(level):
        if i == 0:
            first, second = params if rng.random() < 0.5 else params[::-1]
        else:
            # Each statement uses the result of the one before: none can be left out.
            first = locals_[i - 1]
            second = params[int(rng.integers(2))]
        right = second if rng.random() < 0.5 else _pick(rng, CONSTANTS)
        steps.append(Step(first, _pick(rng, WORDS), right))
    return Function(name, params, locals_, tuple(steps))


def _with_mistake(rng: np.random.Generator, right: Function) -> tuple[Function, int]:
    """Make one slot of one statement wrong: the operator, the constant, a name, or the order."""
    at = int(rng.integers(len(right.steps)))
    step = right.steps[at]
    kinds = ["operator", "name", "order"]
    if step.right in CONSTANTS:
        kinds.append("constant")
    kind = _pick(rng, kinds)
    if kind == "operator":
        bad = replace(step, word=_another(rng, WORDS, step.word))
    elif kind == "constant":
        bad = replace(step, right=_another(rng, CONSTANTS, step.right))
    elif kind == "name":
        scope = [*right.params, *right.locals_[:at]]
        bad = replace(step, left=_another(rng, scope, step.left))
    else:
        # Shows for minus, over and modulo; of plus and times the inputs refuse it.
        bad = Step(step.right, step.word, step.left)
    steps = (*right.steps[:at], bad, *right.steps[at + 1 :])
    return replace(right, steps=steps), at


def _another(rng: np.random.Generator, pool: Sequence[str], excluded: str) -> str:
    return _pick(rng, [item for item in pool if item != excluded])


def _pick(rng: np.random.Generator, pool: Sequence[T]) -> T:
    # Ten times as fast as `rng.choice`.
    return pool[int(rng.integers(len(pool)))]


def _inputs_that_differ(
    rng: np.random.Generator, right: Function, wrong: Function, num: int
) -> tuple[tuple[int, int], ...] | None:
    """Arguments on which the mistake shows, all different; None when there are hardly any."""
    inputs: dict[tuple[int, int], None] = {}
    low, high = INPUTS
    # All attempts are made, so that the generator ends at the same place whatever was found.
    for _ in range(ATTEMPTS_PER_INPUT * num):
        args = (int(rng.integers(low, high + 1)), int(rng.integers(low, high + 1)))
        if len(inputs) < num and _value(wrong, args) != right(*args):
            inputs[args] = None
    return tuple(inputs) if len(inputs) == num else None


def _value(function: Function, args: tuple[int, int]) -> int | None:
    try:
        return function(*args)
    except ZeroDivisionError:
        return None
