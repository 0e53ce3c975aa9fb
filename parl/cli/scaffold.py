"""New plugin packages: the templates, under the user's name.

In: a name. Out: a folder with an installable package. The templates are complete plugins that tests install
(`envs/template`, `rewards/template`); a wheel carries them inside `parl`.
"""

from __future__ import annotations

import importlib.util
import keyword
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Literal

import gymnasium

from parl.core.errors import ConfigError
from parl.env import registry as plugins
from parl.rewards import terms

Kind = Literal["envs", "rewards"]

SUFFIXES = (".py", ".toml", ".md", ".yaml")


@dataclass(frozen=True, slots=True)
class Scaffold:
    """What was written."""

    folder: Path
    plugin: str
    """The environment's id, or the reward term's name."""


def new(kind: Kind, name: str, folder: Path | None = None) -> Scaffold:
    """Write a plugin package called `name` into `folder` (default: a folder of that name, here).

    Raises ConfigError, and writes nothing: a bad or taken name, a folder that is not empty or cannot be written.
    """
    package = re.sub(r"[-_. ]+", "-", name).lower()
    module = package.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", module):
        raise ConfigError(
            f"'{name}' cannot name a package: give letters, digits and hyphens between them, a letter first, such as "
            f"my-{kind[:-1]}."
        )
    folder = folder or Path(package)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(
            f"{folder} exists and is not an empty folder. Give another name, or --dir FOLDER."
        )
    names = _env_names(name, package, module) if kind == "envs" else _reward_names(package, module)
    _check_free(kind, package, module, names.plugin)
    _write(kind, folder, names.words)
    return Scaffold(folder, names.plugin)


@dataclass(frozen=True, slots=True)
class _Names:
    plugin: str
    words: Mapping[str, str]
    """Word of the template -> what stands in its place, in texts and in paths."""


def _env_names(name: str, package: str, module: str) -> _Names:
    title = "".join(part[:1].upper() + part[1:] for part in re.split(r"[-_. ]+", name))
    env_id = f"{module}/{title}-v0"
    words = {
        "parl-env-calc": package,
        "calc-smoke": f"{package}-smoke",
        "calc_env": module,
        "calc/Calc-v0": env_id,
        "CalcEnv": title.removesuffix("Env") + "Env",
    }
    return _Names(env_id, words)


def _reward_names(package: str, module: str) -> _Names:
    return _Names(
        module, {"parl-reward-brevity": package, "brevity_reward": module, "brevity": module}
    )


def _check_free(kind: Kind, package: str, module: str, plugin: str) -> None:
    if keyword.iskeyword(module):
        raise ConfigError(
            f"'{module}' is a word of Python's own, so it cannot name a module. Give another name."
        )
    if module in sys.stdlib_module_names:
        raise ConfigError(
            f"'{module}' is the name of a module of Python, which yours would hide. Give another name."
        )
    if module == "tests":
        raise ConfigError("'tests' is the folder of the package's own tests. Give another name.")
    spec = importlib.util.find_spec(module)
    if spec is not None and spec.origin is not None:  # without one it is a mere folder beside us
        raise ConfigError(
            f"The module '{module}' is installed already ({spec.origin}). Give another name."
        )
    try:
        raise ConfigError(
            f"The package '{distribution(package).name}' is installed already. Give another name."
        )
    except PackageNotFoundError:
        pass
    plugins.load()
    if plugin in (gymnasium.registry if kind == "envs" else terms.registered()):
        raise ConfigError(
            f"'{plugin}' is registered already: `parl {kind} show {plugin}`. Give another name."
        )


def template(kind: Kind) -> Path:
    """The folder of a template: inside the installed package, or in the checkout that is installed editable."""
    package = Path(__file__).parents[1]  # of the wheel: parl/
    shipped = package / "templates" / kind
    return shipped if shipped.is_dir() else package.parent / kind / "template"


def _write(kind: Kind, folder: Path, words: Mapping[str, str]) -> None:
    source = template(kind)
    pattern = re.compile("|".join(map(re.escape, sorted(words, key=len, reverse=True))))

    def renamed(text: str) -> str:
        return pattern.sub(lambda match: words[match[0]], text)

    try:
        for path in sorted(p for p in source.rglob("*") if p.suffix in SUFFIXES):
            target = folder / renamed(path.relative_to(source).as_posix())
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(renamed(path.read_text("utf-8")), "utf-8")
    except OSError as error:
        raise ConfigError(
            f"The package cannot be written: {error}. Give another place: --dir FOLDER."
        ) from error
