"""Small functions with one mistake each: what the procedural tasks are made of.

In: a random generator. Out: a function as data, its reference text, a text with a mistake, and inputs on which the two
differ. A function is one to three statements of the form `left OPERATOR right`; its docstring says in words what each
of them should be. Texts are Python in one line, with blanks between the words, so that a word-level tokenizer reads
and writes them; `tidy` lays them out as people do.

Example:
    def f7 ( a , b ) : ' a plus b then c times 3 ' ; c = a - b ; return c * 3        # the mistake: - for +
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
INPUTS = (1, 20)
"""Arguments of the tests, both ends included. No zero: parameters may stand right of `//`."""
SPLITS = {"train": range(8), "validation": range(8, 9), "test": range(9, 10)}
"""Buckets of a function's shape, of ten: no shape is in two splits."""
LEVELS = (1, 2, 3)


@dataclass(frozen=True, slots=True)
class Step:
    """One statement's right side. `word` is the operator's name in the docstring."""

    left: str
    word: str
    right: str

    @property
    def words(self) -> str:
        return f"{self.left} {self.word} {self.right}"

    @property
    def code(self) -> str:
        return f"{self.left} {SYMBOLS[self.word]} {self.right}"


@dataclass(frozen=True, slots=True)
class Function:
    """A function of two parameters. `locals_[i]` names the result of step i; the last step is returned."""

    name: str
    params: tuple[str, str]
    locals_: tuple[str, ...]
    steps: tuple[Step, ...]

    @property
    def statements(self) -> list[str]:
        """`c = a + b` and so on, the last one a `return`."""
        heads = [*(f"{name} =" for name in self.locals_), "return"]
        return [f"{head} {step.code}" for head, step in zip(heads, self.steps, strict=True)]

    def text(self, doc: Function | None = None) -> str:
        """Its source, with the docstring of `doc` (of the function that it should be)."""
        words = " then ".join(s.words for s in (doc or self).steps)
        start = f"def {self.name} ( {' , '.join(self.params)} ) : ' {words} '"
        return " ; ".join([start, *self.statements])

    def __call__(self, *args: int) -> int:
        """Its value, computed here: generated functions are ours. Raises ZeroDivisionError."""
        known = dict(zip(self.params, args, strict=True))
        value = 0
        for i, step in enumerate(self.steps):
            left, right = (known[w] if w in known else int(w) for w in (step.left, step.right))
            value = COMPUTE[step.word](left, right)
            if i < len(self.locals_):
                known[self.locals_[i]] = value
        return value

    def shape(self) -> str:
        """What it computes, without its names: splits share no shape."""
        order = {name: f"v{i}" for i, name in enumerate((*self.params, *self.locals_))}
        return " ; ".join(
            f"{order.get(s.left, s.left)} {s.word} {order.get(s.right, s.right)}"
            for s in self.steps
        )


@dataclass(frozen=True, slots=True)
class Exercise:
    """A function, the same with a mistake, and arguments on which the two differ."""

    right: Function
    wrong: Function
    at: int
    """The statement with the mistake."""
    inputs: tuple[tuple[int, int], ...]

    @property
    def source(self) -> str:
        """What the agent finds."""
        return self.wrong.text(doc=self.right)

    @property
    def solution(self) -> str:
        return self.right.text()


def draw(
    rng: np.random.Generator, name: str, levels: Sequence[int], split: str, num_inputs: int
) -> Exercise:
    """An exercise of a split: `levels` are numbers of statements, equally likely."""
    if split not in SPLITS:
        raise ConfigError(f"No split '{split}'.{did_you_mean(split, SPLITS)}")
    level = _pick(rng, levels)
    while True:
        right = _function(rng, name, level)
        if _bucket(right) not in SPLITS[split]:
            continue
        wrong, at = _with_mistake(rng, right)
        inputs = _telling_inputs(rng, right, wrong, num_inputs)
        if inputs is not None:
            return Exercise(right, wrong, at, inputs)


def correct(source: str) -> str:
    """The text that a careful reader would write: statements as the docstring has them. The expert's skill.

    Reads one-line texts of this module only; names of results are those of the statements.
    """
    head, doc, body = _parts(source)
    clauses = [clause.split() for clause in doc.split(" then ")]
    fixed = []
    for statement, (left, word, right) in zip(body, clauses, strict=True):
        target = statement.split()
        start = "return" if target[0] == "return" else f"{target[0]} ="
        fixed.append(f"{start} {left} {SYMBOLS[word]} {right}")
    return " ; ".join([head, *fixed])


def tidy(source: str) -> str:
    """The same program as people lay it out."""
    return ast.unparse(ast.parse(source)) + "\n"


def _parts(source: str) -> tuple[str, str, list[str]]:
    """(head with docstring, docstring, statements)."""
    head, *body = source.split(" ; ")
    return head, head.split(" ' ")[1].removesuffix(" '"), body


def _bucket(function: Function) -> int:
    return hashlib.blake2b(function.shape().encode(), digest_size=8).digest()[0] % 10


def _function(rng: np.random.Generator, name: str, level: int) -> Function:
    names = [LETTERS[i] for i in rng.permutation(len(LETTERS))[: 1 + level]]
    params, locals_ = (names[0], names[1]), tuple(names[2:])
    steps = []
    for i in range(level):
        if i == 0:
            first, second = params if rng.random() < 0.5 else params[::-1]
        else:
            first, second = locals_[i - 1], params[int(rng.integers(2))]
        right = second if rng.random() < 0.5 else _pick(rng, CONSTANTS)
        steps.append(Step(first, _pick(rng, WORDS), right))
    return Function(name, params, locals_, tuple(steps))


def _with_mistake(rng: np.random.Generator, right: Function) -> tuple[Function, int]:
    """One slot of one statement is wrong: the operator, the constant, a name, or the order."""
    at = int(rng.integers(len(right.steps)))
    step = right.steps[at]
    scope = [*right.params, *right.locals_[:at]]
    kinds = ["operator", "name", "order"] + (["constant"] if step.right in CONSTANTS else [])
    kind = _pick(rng, kinds)
    if kind == "operator":
        bad = replace(step, word=_other(rng, WORDS, step.word))
    elif kind == "constant":
        bad = replace(step, right=_other(rng, CONSTANTS, step.right))
    elif kind == "name":
        bad = replace(step, left=_other(rng, scope, step.left))
    else:
        bad = Step(step.right, step.word, step.left)
    return replace(right, steps=(*right.steps[:at], bad, *right.steps[at + 1 :])), at


def _other(rng: np.random.Generator, pool: Sequence[str], than: str) -> str:
    return _pick(rng, [p for p in pool if p != than])


def _pick(rng: np.random.Generator, pool: Sequence[T]) -> T:
    """Ten times as fast as `rng.choice`."""
    return pool[int(rng.integers(len(pool)))]


def _telling_inputs(
    rng: np.random.Generator, right: Function, wrong: Function, num: int
) -> tuple[tuple[int, int], ...] | None:
    """Arguments on which the mistake shows, all different; None when there are hardly any."""
    found: dict[tuple[int, int], None] = {}
    low, high = INPUTS
    for _ in range(12 * num):
        args = (int(rng.integers(low, high + 1)), int(rng.integers(low, high + 1)))
        if len(found) < num and _value(wrong, args) != right(*args):
            found[args] = None
    return tuple(found) if len(found) == num else None


def _value(function: Function, args: tuple[int, int]) -> int | None:
    try:
        return function(*args)
    except ZeroDivisionError:
        return None
