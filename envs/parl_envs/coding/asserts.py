"""Test files of plain asserts, taken apart into cases.

A test file is Python text with imports and asserts, at the top or in functions such as `test_add`
or HumanEval's `check`. Each assert is split into what runs next to the code under test, and what it
should give. `assert add(1, 2) == 3` becomes the call `add(1, 2)` and the value `3`. Of
`assert abs(root(2) - 1.41) < .01` the call is `root(2)`, and the rest is a check of its value.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator, Mapping, Sequence

from parl.core.errors import ConfigError
from parl_envs.coding.testing import Case


def read_asserts(text: str, files: Mapping[str, str], hidden: bool, source: str) -> list[Case]:
    """Read the cases of a test file whose imports tell where the code under test is.

    Args:
        text: the test file.
        files: the files of the task.
        hidden: whether the cases score, or are shown to agents.
        source: what messages call the file.
    Raises:
        ConfigError: it is not Python, imports none of the files, or has no assert that can be used.
    """
    tree = _parse(text, source)
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    file_of_name = {}
    for node in imports:
        for name, file in _imported(node):
            if file in files:
                file_of_name[name] = file
    if not file_of_name:
        raise ConfigError(
            f"{source}: no import names a file of the task "
            f"({', '.join(sorted(files)) or 'it has none'}). Begin with, say, "
            "`from calc import add`."
        )
    return _cases(tree, file_of_name, imports, hidden, source)


def read_check(text: str, entry: str, file: str, hidden: bool, source: str) -> list[Case]:
    """Read the cases of asserts about one function: HumanEval's `check(candidate)`, MBPP's lists.

    Args:
        text: the asserts.
        entry: the function's name.
        file: the file that it is in.
        hidden: whether the cases score, or are shown to agents.
        source: what messages call the text.
    Raises:
        ConfigError: it is not Python, or has no assert that can be used.
    """
    # HumanEval calls the function `candidate`; MBPP calls it by its name.
    tree = _Rename("candidate", entry).visit(_parse(text, source))
    module = file.removesuffix(".py")
    imports = ast.parse(f"import math\nfrom {module} import {entry}").body
    return _cases(tree, {entry: file}, imports, hidden, source)


def _cases(
    tree: ast.Module,
    file_of_name: Mapping[str, str],
    imports: Sequence[ast.stmt],
    hidden: bool,
    source: str,
) -> list[Case]:
    cases = []
    for node in _asserts(tree):
        case = _case(node.test, file_of_name, imports, hidden)
        if case is not None:
            cases.append(case)
    if not cases:
        raise ConfigError(
            f"{source}: no assert calls {' or '.join(sorted(file_of_name))} exactly once. Write "
            "asserts such as `assert add(1, 2) == 3`, at the top or at the top of a function."
        )
    return cases


def _asserts(tree: ast.Module) -> Iterator[ast.Assert]:
    """Asserts that stand alone. Those in a loop use names that have no value outside of it."""
    for node in tree.body:
        body = node.body if isinstance(node, ast.FunctionDef) else [node]
        for statement in body:
            if isinstance(statement, ast.Assert):
                yield statement


def _case(
    test: ast.expr,
    file_of_name: Mapping[str, str],
    imports: Sequence[ast.stmt],
    hidden: bool,
) -> Case | None:
    """The case of one assert; None if it does not call the code under test exactly once."""
    calls = list(_calls(test, file_of_name))
    # With two calls there is no single value to compare.
    if len(calls) != 1:
        return None
    call, name = calls[0]
    file = file_of_name[name]
    call_text = ast.unparse(call)
    # Names inside the call need their imports; the rest of the assert runs elsewhere.
    used_names = {node.id for node in ast.walk(call) if isinstance(node, ast.Name)}
    setup = _setup(imports, file_of_name, used_names)

    expected = _compared_with(test, call)
    if expected is not None and _is_literal(expected):
        value = repr(ast.literal_eval(expected))
        return Case(file, setup, call_text, value, hidden=hidden)
    # Not an equation with a literal: the whole test becomes a check of the call's value.
    check = ast.unparse(_ReplaceCall(call).visit(copy.deepcopy(test)))
    return Case(file, setup, call_text, "", check, hidden)


def _compared_with(test: ast.expr, call: ast.Call) -> ast.expr | None:
    """The other side of `call == other` or `other == call`; None for any other test."""
    if not isinstance(test, ast.Compare) or len(test.ops) != 1:
        return None
    if not isinstance(test.ops[0], ast.Eq):
        return None
    if test.left is call:
        return test.comparators[0]
    if test.comparators[0] is call:
        return test.left
    return None


def _setup(
    imports: Sequence[ast.stmt], file_of_name: Mapping[str, str], used_names: set[str]
) -> str:
    """The imports that a call needs.

    Of the code under test only what the call uses, so that a broken file spoils no other file's
    tests.
    """
    lines = []
    for node in imports:
        names = {name for name, _ in _imported(node)}
        is_under_test = bool(names & set(file_of_name))
        if not is_under_test or names & used_names:
            lines.append(ast.unparse(node))
    return "\n".join(lines)


def _calls(node: ast.AST, file_of_name: Mapping[str, str]) -> Iterator[tuple[ast.Call, str]]:
    """Outermost calls of the code under test, each with the imported name that it goes through."""
    if isinstance(node, ast.Call):
        # `calc.add(1)` and `add(1)(2)` go through `calc` and `add`.
        root = node.func
        while isinstance(root, ast.Attribute | ast.Call):
            root = root.value if isinstance(root, ast.Attribute) else root.func
        if isinstance(root, ast.Name) and root.id in file_of_name:
            yield node, root.id
            return
    for child in ast.iter_child_nodes(node):
        yield from _calls(child, file_of_name)


def _imported(node: ast.stmt) -> Iterator[tuple[str, str]]:
    """Yield (name in the tests, file that it would come from)."""
    if isinstance(node, ast.ImportFrom):
        module = node.module or ""
        for alias in node.names:
            yield alias.asname or alias.name, f"{module.replace('.', '/')}.py"
    elif isinstance(node, ast.Import):
        for alias in node.names:
            name = alias.asname or alias.name.split(".")[0]
            yield name, f"{alias.name.replace('.', '/')}.py"


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
    """Rename a name."""

    def __init__(self, old: str, new: str) -> None:
        self.old = old
        self.new = new

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.Name(self.new, node.ctx) if node.id == self.old else node


class _ReplaceCall(ast.NodeTransformer):
    """Put `got` in the place of the call."""

    def __init__(self, call: ast.Call) -> None:
        # Compared as text: the tree that is changed is a copy, with other nodes.
        self.text = ast.dump(call)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if ast.dump(node) == self.text:
            return ast.Name("got", ast.Load())
        return self.generic_visit(node)
