"""New plugin packages: the templates, written under the user's name.

The templates are complete plugins that tests install (`envs/template`, `rewards/template`); a wheel
carries them inside `parl`. So a template cannot rot: it is tested as a plugin itself.
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
from parl.env import registry
from parl.rewards import terms

Kind = Literal["envs", "rewards"]

SUFFIXES = (".py", ".toml", ".md", ".yaml")
"""Files of a template; caches and build output next to them are none."""
SEPARATORS = r"[-_. ]+"


@dataclass(frozen=True, slots=True)
class Scaffold:
    """A package that was written."""

    folder: Path
    plugin: str
    """The environment's id, or the reward term's name."""


@dataclass(frozen=True, slots=True)
class _Names:
    plugin: str
    words: Mapping[str, str]
    """Word of the template -> its replacement, in texts and in paths."""


def new_plugin(kind: Kind, name: str, folder: Path | None = None) -> Scaffold:
    """Write a plugin package.

    Args:
        kind: which template.
        name: of the package; case and separators are free, as in `Dice Game`.
        folder: where to; by default a folder of the package's name, here.
    Raises:
        ConfigError: a bad or taken name, or a folder that is not empty or cannot be written;
            nothing was written.
    """
    package = re.sub(SEPARATORS, "-", name).lower()
    module = package.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", module):
        raise ConfigError(
            f"'{name}' cannot name a package: give letters, digits and hyphens between them, "
            f"a letter first, such as my-{kind[:-1]}."
        )
    folder = folder or Path(package)
    # An empty folder will do: it may be a fresh repository of the user's.
    is_empty = folder.is_dir() and not any(folder.iterdir())
    if folder.exists() and not is_empty:
        raise ConfigError(
            f"{folder} exists and is not an empty folder. Give another name, or --dir FOLDER."
        )
    names = _names(kind, name, package, module)
    _check_free(kind, package, module, names.plugin)
    _write(kind, folder, names.words)
    return Scaffold(folder, names.plugin)


def template(kind: Kind) -> Path:
    """Return a template's folder.

    It is inside the installed package, or in the checkout that is installed editable.
    """
    package = Path(__file__).parents[1]
    installed = package / "templates" / kind
    return installed if installed.is_dir() else package.parent / kind / "template"


def _names(kind: Kind, name: str, package: str, module: str) -> _Names:
    if kind == "envs":
        return _env_names(name, package, module)
    return _reward_names(package, module)


def _env_names(name: str, package: str, module: str) -> _Names:
    # "phone-book" -> "PhoneBook"; a capital inside a part stays, as in "myEnv".
    title = "".join(part[:1].upper() + part[1:] for part in re.split(SEPARATORS, name))
    env_id = f"{module}/{title}-v0"
    words = {
        "parl-env-calc": package,
        "calc-smoke": f"{package}-smoke",
        "calc_env": module,
        "calc/Calc-v0": env_id,
        # Of an environment called MyEnv, the class is not MyEnvEnv.
        "CalcEnv": title.removesuffix("Env") + "Env",
    }
    return _Names(env_id, words)


def _reward_names(package: str, module: str) -> _Names:
    words = {"parl-reward-brevity": package, "brevity_reward": module, "brevity": module}
    return _Names(module, words)


def _check_free(kind: Kind, package: str, module: str, plugin: str) -> None:
    """Raise ConfigError for a name that Python, a package or another plugin has already."""
    if keyword.iskeyword(module):
        raise ConfigError(
            f"'{module}' is a word of Python's own, so it cannot name a module. Give another name."
        )
    if module in sys.stdlib_module_names:
        raise ConfigError(
            f"'{module}' is the name of a module of Python, which yours would hide. "
            "Give another name."
        )
    if module == "tests":
        raise ConfigError("'tests' is the folder of the package's own tests. Give another name.")
    spec = importlib.util.find_spec(module)
    # Without an origin it is a namespace package: a mere folder of that name in the working
    # directory.
    if spec is not None and spec.origin is not None:
        raise ConfigError(
            f"The module '{module}' is installed already ({spec.origin}). Give another name."
        )
    # A package may have another name than its module.
    try:
        installed = distribution(package).name
    except PackageNotFoundError:
        installed = None
    if installed is not None:
        raise ConfigError(f"The package '{installed}' is installed already. Give another name.")
    # Registries are filled by importing the plugins.
    registry.load()
    registered = gymnasium.registry if kind == "envs" else terms.registered()
    if plugin in registered:
        raise ConfigError(
            f"'{plugin}' is registered already: `parl {kind} show {plugin}`. Give another name."
        )


def _write(kind: Kind, folder: Path, words: Mapping[str, str]) -> None:
    source = template(kind)
    # The longest first: `brevity` is also the beginning of `brevity_reward`.
    longest_first = sorted(words, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, longest_first)))

    def renamed(text: str) -> str:
        return pattern.sub(lambda match: words[match[0]], text)

    files = sorted(path for path in source.rglob("*") if path.suffix in SUFFIXES)
    try:
        for file in files:
            target = folder / renamed(file.relative_to(source).as_posix())
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(renamed(file.read_text("utf-8")), "utf-8")
    except OSError as error:
        raise ConfigError(
            f"The package cannot be written: {error}. Give another place: --dir FOLDER."
        ) from error
