"""`calculator(expression)`: arithmetic, evaluated from its syntax tree. Nothing of Python runs but what stands here.

In: an expression as an agent wrote it. Out: its value as a text, or an error text. Numbers are bounded, so that no
expression takes long or much memory.
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
"""Of a whole number: 616 digits."""
MAX_ARGUMENT = 250
"""Of a factorial; also the most digits that `round` may be asked for."""


class _Wrong(ValueError):
    """What is wrong with an expression, in words for the agent."""


def _factorial(n: Any) -> int:
    if isinstance(n, int) and n > MAX_ARGUMENT:
        raise _Wrong(f"factorial of more than {MAX_ARGUMENT}")
    return math.factorial(n)


def _round(x: Any, digits: int = 0) -> Any:
    if abs(digits) > MAX_ARGUMENT:
        raise _Wrong(f"round to more than {MAX_ARGUMENT} digits")
    return round(x, digits) if digits else round(x)


def _power(base: Any, exponent: Any) -> Any:
    whole = isinstance(base, int) and isinstance(exponent, int)
    if whole and (base.bit_length() - 1) * exponent > MAX_BITS:  # a lower bound of the bits
        raise _Wrong("the number is too large")
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
        """Evaluate an expression: numbers, + - * / // % **, comparisons, functions such as sqrt, log, round, max."""
        return calculate(expression)


def calculate(expression: str) -> str:
    """The value of an expression (floats to 15 digits), or `error: ...`. Never raises for what the expression is."""
    if len(expression) > MAX_CHARS:
        return f"error: the expression is longer than {MAX_CHARS} characters"
    try:
        return _shown(_value(ast.parse(expression.strip(), mode="eval").body))
    except SyntaxError:
        return f"error: not an expression: {expression.strip()[:80]}"
    except (RecursionError, MemoryError):
        return "error: nested too deeply"
    except (ArithmeticError, TypeError, ValueError) as error:
        return f"error: {error}"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def _value(node: ast.AST) -> Any:
    value = _evaluated(node)
    if isinstance(value, complex) or (isinstance(value, float) and not math.isfinite(value)):
        raise _Wrong("the value is not a finite real number")
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise _Wrong("the number is too large")
    return value


def _evaluated(node: ast.AST) -> Any:
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
            values = [_value(left), *map(_value, others)]
            return all(
                OPERATORS[type(op)](*pair) for op, pair in zip(ops, pairwise(values), strict=True)
            )
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS:
            return FUNCTIONS[name](*map(_value, arguments))
        case ast.BinOp(op=ast.BitXor()):
            raise _Wrong("write ** for a power")
        case ast.Name(id=name) | ast.Call(func=ast.Name(id=name)):
            raise _Wrong(f"unknown: {name}. Known: {', '.join([*CONSTANTS, *FUNCTIONS])}")
        case _:
            raise _Wrong(f"not allowed here: {ast.unparse(node)[:80]}")
