"""Measure how dense the library reads: names, comprehensions, line lengths, comments.

    python scripts/density.py                  one table: each folder, and the whole
    python scripts/density.py parl/reward -v   each file as well
    python scripts/density.py --check          exit code 1 where the whole misses a limit (used by the tests)

A dialect name tells a history in place of the thing (`found`, `given`, `kept`). The limits are those that six
well-written codebases of the field meet; see docs/explain/adr/0008-rooms.md.
"""

from __future__ import annotations

import argparse
import ast
import io
import sys
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ("parl", "envs/parl_envs", "rewards/parl_rewards")
DIALECT = frozenset(
    [
        "above",
        "asked",
        "below",
        "beside",
        "chosen",
        "found",
        "given",
        "gone",
        "got",
        "heard",
        "held",
        "kept",
        "left",
        "made",
        "mine",
        "ours",
        "own",
        "said",
        "seen",
        "taken",
        "theirs",
        "told",
        "wanted",
        "whole",
    ]
)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
LONG_LINE = 100

LIMITS = {
    "dialect names per 1,000 names": ("<=", 10.0),
    "comprehensions per 1,000 statements": ("<=", 45.0),
    "nested comprehensions per 1,000 statements": ("<=", 3.0),
    "lines over 100 characters, %": ("<=", 2.0),
    "comments per 1,000 lines": (">=", 40.0),
}


@dataclass
class Counts:
    """What was counted in one or several files."""

    lines: int = 0
    long_lines: int = 0
    comment_lines: int = 0
    statements: int = 0
    comprehensions: int = 0
    nested_comprehensions: int = 0
    names: int = 0
    dialect_names: int = 0

    def add(self, other: Counts) -> None:
        for field, value in vars(other).items():
            setattr(self, field, getattr(self, field) + value)

    def rates(self) -> dict[str, float]:
        """Return the figures that have a limit, by name."""
        statements = max(1, self.statements)
        lines = max(1, self.lines)
        return {
            "dialect names per 1,000 names": 1000 * self.dialect_names / max(1, self.names),
            "comprehensions per 1,000 statements": 1000 * self.comprehensions / statements,
            "nested comprehensions per 1,000 statements": (
                1000 * self.nested_comprehensions / statements
            ),
            "lines over 100 characters, %": 100 * self.long_lines / lines,
            "comments per 1,000 lines": 1000 * self.comment_lines / lines,
        }


def count(source: str) -> Counts:
    """Count one file."""
    tree = ast.parse(source)
    lines = source.splitlines()
    counts = Counts(lines=len(lines))
    counts.long_lines = sum(len(line) > LONG_LINE for line in lines)
    counts.comment_lines = len(set(_comment_lines(source)))
    for name in _bound_names(tree):
        counts.names += 1
        counts.dialect_names += name.strip("_") in DIALECT
    nested: set[ast.AST] = set()
    for node in ast.walk(tree):
        counts.statements += isinstance(node, ast.stmt)
        if isinstance(node, COMPREHENSIONS):
            counts.comprehensions += 1
            nested.update(
                c for c in ast.walk(node) if c is not node and isinstance(c, COMPREHENSIONS)
            )
    counts.nested_comprehensions = len(nested)
    return counts


def _comment_lines(source: str) -> Iterator[int]:
    """Yield the numbers of lines with a comment that says something (no `# ---` rules, no tool directives)."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        text = token.string.lstrip("#: ")
        is_rule = text.startswith("---")
        is_directive = text.startswith(("type: ignore", "noqa", "pragma"))
        if token.type == tokenize.COMMENT and text and not is_rule and not is_directive:
            yield token.start[0]


def _bound_names(tree: ast.AST) -> Iterator[str]:
    """Yield every name that an assignment, loop, `with` or attribute assignment binds."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def python_files(paths: Iterable[Path]) -> list[Path]:
    """Return the Python files at or below the paths, sorted."""
    files: set[Path] = set()
    for path in paths:
        files.update([path] if path.is_file() else path.rglob("*.py"))
    return sorted(files)


def misses(counts: Counts) -> list[str]:
    """Return one line for each limit that is missed."""
    lines = []
    for name, value in counts.rates().items():
        sign, limit = LIMITS[name]
        if value > limit if sign == "<=" else value < limit:
            lines.append(f"{name}: {value:.1f}, limit {sign} {limit:g}")
    return lines


def _row(label: str, counts: Counts) -> str:
    values = " ".join(f"{value:>9.1f}" for value in counts.rates().values())
    return f"{label:<44} {counts.lines:>6} {values}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("paths", nargs="*", type=Path, default=[ROOT / part for part in LIBRARY])
    parser.add_argument("-v", "--verbose", action="store_true", help="a line for each file")
    parser.add_argument("--names", action="store_true", help="the dialect names, with their files")
    parser.add_argument("--check", action="store_true", help="exit code 1 where a limit is missed")
    args = parser.parse_args()
    total = Counts()
    folders: dict[str, Counts] = {}
    print(
        f"{'':<44} {'lines':>6} {'dialect':>9} {'compr.':>9} {'nested':>9} {'long %':>9} {'comments':>9}"
    )
    for file in python_files(path.resolve() for path in args.paths):
        source = file.read_text(encoding="utf-8")
        counts = count(source)
        total.add(counts)
        label = str(file.relative_to(ROOT)) if file.is_relative_to(ROOT) else str(file)
        folders.setdefault(str(Path(label).parent), Counts()).add(counts)
        if args.verbose:
            print(_row(label, counts))
        if args.names:
            names = [n for n in _bound_names(ast.parse(source)) if n.strip("_") in DIALECT]
            if names:
                print(f"    {label}: {' '.join(sorted(names))}")
    for folder, counts in sorted(folders.items()):
        print(_row(folder, counts))
    print(_row("whole", total))
    missed = misses(total)
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    return int(args.check and bool(missed))


if __name__ == "__main__":
    sys.exit(main())
