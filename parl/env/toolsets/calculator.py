"""The tool `calculator(expression)`: arithmetic, evaluated from the expression's syntax tree.

Only the functions and operators of the tables below can run: an expression is text from a policy,
and `eval` would give it the whole of Python. Numbers are bounded, so that no expression takes long
or much memory.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Annotated, Any

from pydantic import Field

from parl.env.tools import Toolset, tool

MAX_CHARS = 500
MAX_BITS = 2048
"""Most bits of an integer: 616 digits."""
MAX_ARGUMENT = 250
"""Largest argument of `factorial`, and most digits of `round`."""


class _ExpressionError(ValueError):
    """A problem of an expression, in words for the agent."""


def _factorial(n: Any) -> int:
    if isinstance(n, int) and n > MAX_ARGUMENT:
        raise _ExpressionError(f"factorial of more than {MAX_ARGUMENT}")
    return math.factorial(n)


def _round(x: Any, digits: int = 0) -> Any:
    if abs(digits) > MAX_ARGUMENT:
        raise _ExpressionError(f"round to more than {MAX_ARGUMENT} digits")
    return round(x, digits) if digits else round(x)


def _power(base: Any, exponent: Any) -> Any:
    both_int = isinstance(base, int) and isinstance(exponent, int)
    # A lower bound of the bits, before the power is computed: 9**9**9 would take minutes.
    if both_int and (base.bit_length() - 1) * exponent > MAX_BITS:
        raise _ExpressionError("the number is too large")
    return base**exponent


CONSTANTS: Mapping[str, float] = {"pi": math.pi, "e": math.e}
FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "abs": abs,
    "min": min,
    "max": max,
    "round": _round,
    "floor": math.floor,
    "ceil": math.ceil,
    "sqrt": math.sqrt,
    "exp": math.exp,
    "log": math.log,
    "log2": math.log2,
    "log10": math.log10,
    "sin": math.sin,
    "cos": math.cos,
    "tan": math.tan,
    "gcd": math.gcd,
    "lcm": math.lcm,
    "factorial": _factorial,
}
OPERATORS: Mapping[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


class Calculator(Toolset):
    """One tool, `calculator`."""

    @tool
    def calculator(
        self,
        expression: Annotated[
            str, Field(description="For example (3 + 4) * 2 ** 5 or max(sqrt(2), 7 / 5) > 1.4.")
        ],
    ) -> str:
        """Evaluate numbers, + - * / // % **, comparisons, functions like sqrt, log, round, max."""
        return calculate(expression)


def calculate(expression: str) -> str:
    """Return the value of an expression, or `error: ...`; no expression makes it raise.

    Floats have 15 digits, as many as every double keeps.

    Example:
        `calculate("2 ** 5 / 3")` -> `10.6666666666667`
    """
    if len(expression) > MAX_CHARS:
        return f"error: the expression is longer than {MAX_CHARS} characters"
    try:
        tree = ast.parse(expression.strip(), mode="eval")
        return _format(_value(tree.body))
    except SyntaxError:
        return f"error: not an expression: {expression.strip()[:80]}"
    except (RecursionError, MemoryError):
        # MemoryError is what Python's parser raises for too many brackets.
        return "error: nested too deeply"
    except (ArithmeticError, TypeError, ValueError) as error:
        return f"error: {error}"


def _format(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def _value(node: ast.AST) -> Any:
    """Return the value of a node; refuse one that is too large or no real number."""
    value = _evaluate(node)
    not_finite = isinstance(value, float) and not math.isfinite(value)
    if isinstance(value, complex) or not_finite:
        raise _ExpressionError("the value is not a finite real number")
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise _ExpressionError("the number is too large")
    return value


def _evaluate(node: ast.AST) -> Any:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return number
        case ast.Name(id=name) if name in CONSTANTS:
            return CONSTANTS[name]
        case ast.UnaryOp(op=op, operand=operand) if type(op) in OPERATORS:
            return OPERATORS[type(op)](_value(operand))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            return OPERATORS[type(op)](_value(left), _value(right))
        case ast.Compare(left=left, ops=ops, comparators=others) if all(
            type(op) in OPERATORS for op in ops
        ):
            # All parts are evaluated, so that an error in the last is reported; Python would stop.
            values = [_value(left), *map(_value, others)]
            pairs = zip(ops, pairwise(values), strict=True)
            return all(OPERATORS[type(op)](*pair) for op, pair in pairs)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS:
            return FUNCTIONS[name](*map(_value, arguments))
        case ast.BinOp(op=ast.BitXor()):
            # A common mistake for a power, and a bitwise operation to Python.
            raise _ExpressionError("write ** for a power")
        case ast.Name(id=name) | ast.Call(func=ast.Name(id=name)):
            raise _ExpressionError(f"unknown: {name}. Known: {', '.join([*CONSTANTS, *FUNCTIONS])}")
        case _:
            raise _ExpressionError(f"not allowed here: {ast.unparse(node)[:80]}")
