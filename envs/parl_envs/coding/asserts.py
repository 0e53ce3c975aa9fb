"""Test files of plain asserts, taken apart: what runs beside the code under test, and what it should give.

In: Python text with imports and asserts (at the top, or in functions such as `test_add` or HumanEval's `check`). Out:
cases. `assert add(1, 2) == 3` becomes the call `add(1, 2)` and the value `3`; of `assert abs(root(2) - 1.41) < .01` the
call is `root(2)`, and the rest a check of its value.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator, Mapping, Sequence

from parl.core.errors import ConfigError
from parl_envs.coding.testing import Case


def read_asserts(text: str, files: Mapping[str, str], hidden: bool, source: str) -> list[Case]:
    """The cases of a test file whose imports say where the code under test is. Raises ConfigError, naming `source`."""
    tree = _parse(text, source)
    imports = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
    where = {name: file for node in imports for name, file in _imported(node) if file in files}
    if not where:
        raise ConfigError(
            f"{source}: no import names a file of the task ({', '.join(sorted(files)) or 'it has none'}). Begin with, "
            "say, `from calc import add`."
        )
    return _cases(tree, where, imports, hidden, source)


def read_check(text: str, entry: str, file: str, hidden: bool, source: str) -> list[Case]:
    """The cases of asserts about one function: HumanEval's `check(candidate)`, MBPP's lists. Raises ConfigError."""
    tree = _Rename("candidate", entry).visit(_parse(text, source))
    module = file.removesuffix(".py")
    imports = ast.parse(f"import math\nfrom {module} import {entry}").body
    return _cases(tree, {entry: file}, imports, hidden, source)


def _cases(
    tree: ast.Module,
    where: Mapping[str, str],
    imports: Sequence[ast.stmt],
    hidden: bool,
    source: str,
) -> list[Case]:
    cases = [
        case
        for node in _asserts(tree)
        if (case := _case(node.test, where, imports, hidden)) is not None
    ]
    if not cases:
        raise ConfigError(
            f"{source}: no assert calls {' or '.join(sorted(where))} exactly once. Write asserts such as "
            "`assert add(1, 2) == 3`, at the top or at the top of a function."
        )
    return cases


def _asserts(tree: ast.Module) -> Iterator[ast.Assert]:
    """Asserts that stand alone: not those in a loop, whose names have no value outside of it."""
    for node in tree.body:
        body = node.body if isinstance(node, ast.FunctionDef) else [node]
        yield from (n for n in body if isinstance(n, ast.Assert))


def _case(
    test: ast.expr, where: Mapping[str, str], imports: Sequence[ast.stmt], hidden: bool
) -> Case | None:
    calls = list(_calls(test, where))
    if len(calls) != 1:
        return None
    call, name = calls[0]
    text = ast.unparse(call)
    setup = _setup(imports, where, {n.id for n in ast.walk(call) if isinstance(n, ast.Name)})
    if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq):
        left, right = test.left, test.comparators[0]
        other = right if left is call else left if right is call else None
        if other is not None and _is_literal(other):
            return Case(where[name], setup, text, repr(ast.literal_eval(other)), hidden=hidden)
    check = ast.unparse(_Replace(call).visit(copy.deepcopy(test)))
    return Case(where[name], setup, text, "", check, hidden)


def _setup(imports: Sequence[ast.stmt], where: Mapping[str, str], used: set[str]) -> str:
    """The imports that a call needs: of the code under test, only what it uses, lest one file spoil another's tests."""
    kept = []
    for node in imports:
        names = {name for name, _ in _imported(node)}
        if not names & set(where) or names & used:
            kept.append(ast.unparse(node))
    return "\n".join(kept)


def _calls(node: ast.AST, where: Mapping[str, str]) -> Iterator[tuple[ast.Call, str]]:
    """Outermost calls of the code under test, each with the imported name that it goes through."""
    if isinstance(node, ast.Call):
        root = node.func
        while isinstance(root, ast.Attribute | ast.Call):
            root = root.value if isinstance(root, ast.Attribute) else root.func
        if isinstance(root, ast.Name) and root.id in where:
            yield node, root.id
            return
    for child in ast.iter_child_nodes(node):
        yield from _calls(child, where)


def _imported(node: ast.stmt) -> Iterator[tuple[str, str]]:
    """(name in the tests, file that it would come from)."""
    if isinstance(node, ast.ImportFrom):
        for alias in node.names:
            yield alias.asname or alias.name, f"{(node.module or '').replace('.', '/')}.py"
    elif isinstance(node, ast.Import):
        for alias in node.names:
            yield alias.asname or alias.name.split(".")[0], f"{alias.name.replace('.', '/')}.py"


def _is_literal(node: ast.expr) -> bool:
    try:
        ast.literal_eval(node)
    except ValueError:
        return False
    return True


def _parse(text: str, source: str) -> ast.Module:
    try:
        return ast.parse(text)
    except SyntaxError as error:
        raise ConfigError(f"{source} is not Python: {error}") from None


class _Rename(ast.NodeTransformer):
    def __init__(self, old: str, new: str) -> None:
        self.old, self.new = old, new

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.Name(self.new, node.ctx) if node.id == self.old else node


class _Replace(ast.NodeTransformer):
    """Put `got` in the place of the call (found by its text: the tree is a copy)."""

    def __init__(self, call: ast.Call) -> None:
        self.text = ast.dump(call)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if ast.dump(node) == self.text:
            return ast.Name("got", ast.Load())
        return self.generic_visit(node)
