"""The configs that ship with PARL: they are used by name, from any folder.

Examples: `parl train quickstart`, `parl.load_config("ablations/grpo")`, `extends: quickstart`.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from parl.core.errors import ConfigError, did_you_mean

SUFFIX = ".yaml"
REFERENCE = re.compile(rf"^(extends|baseline): (\S+\{SUFFIX})", re.MULTILINE)
"""A line that names another config by its file."""
SENTENCE_END = re.compile(r"(?<!\bDr)\. (?=[A-Z])")


def shipped_folder() -> Path:
    """Return the folder of the configs.

    It is inside the installed package, or in the checkout that is installed editable.
    """
    package = Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def shipped_names() -> list[str]:
    """Return the names of all shipped configs, sorted.

    Example: ["ablations/abstain", ..., "quickstart", ...]
    """
    folder = shipped_folder().resolve()
    return sorted(name_of(path) for path in folder.rglob(f"*{SUFFIX}"))


def name_of(path: Path) -> str:
    """Return the name of a shipped config's file."""
    return path.relative_to(shipped_folder().resolve()).with_suffix("").as_posix()


def find_config(path: str | Path, folder: Path = Path()) -> Path:
    """Return the file that a path or a name means. A path wins over a name.

    Args:
        path: of a file, or the name of a shipped config.
        folder: what a relative path is relative to.
    Returns:
        A file; or, where there is none, the path that was asked for, for the error message.
    """
    file = folder / path
    if file.is_file():
        return file
    name = Path(path)
    if name.is_absolute() or name.suffix == SUFFIX or ".." in name.parts:
        return file
    shipped = (shipped_folder() / name).with_suffix(SUFFIX)
    return shipped if shipped.is_file() else file


def nearest_config(path: Path) -> str:
    """Return the end of the error for a config that is not there: what may have been meant.

    Args:
        path: the file that was looked for. Without the suffix of a config it was typed as a name.
    """
    names = shipped_names()
    for name in names:
        if Path(name).name == path.stem:
            return f" PARL ships a config of this name; type: {name}"
    if path.suffix == SUFFIX:
        return did_you_mean(path.name, [file.name for file in path.parent.glob(f"*{SUFFIX}")])
    near = difflib.get_close_matches(path.name, names, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"{hint} `parl configs list` shows the configs that ship with PARL."


def shipped_file(name: str) -> Path:
    """Return the file of a shipped config.

    Raises:
        ConfigError: none has this name.
    """
    file = (shipped_folder() / name).with_suffix(SUFFIX)
    if name not in shipped_names():
        raise ConfigError(f"No config called '{name}' ships with PARL.{nearest_config(Path(name))}")
    return file


def summary_of(name: str) -> str:
    """Return the first sentence of a shipped config's opening comment; "" without one."""
    comment = []
    for line in shipped_file(name).read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.removeprefix("#").strip())
    sentence, *rest = SENTENCE_END.split(" ".join(comment), maxsplit=1)
    return f"{sentence}." if rest else sentence


def portable_text(name: str) -> str:
    """Return the text of a shipped config for another folder.

    Configs that it stands on are given by name in place of a path.
    """
    file = shipped_file(name)

    def by_name(match: re.Match[str]) -> str:
        key, path = match.groups()
        return f"{key}: {name_of((file.parent / path).resolve())}"

    return REFERENCE.sub(by_name, file.read_text(encoding="utf-8"))
