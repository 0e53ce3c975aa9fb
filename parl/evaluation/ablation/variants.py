"""The variants of an ablation: values of a config's keys, or whole configs.

In: a base config and what to vary. Out: named configs, the first of which the others are compared with.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from parl.config import Config, load
from parl.core.errors import ConfigError

RESERVED = {
    "seed": "use --seeds N",
    "run_dir": "each run has its own",
    "name": "each run is named after its variant",
    "baseline": "ablations run without a baseline",
}


@dataclass(frozen=True, slots=True)
class Variant:
    """One of the configs that are compared."""

    label: str
    folder: str
    config: Config


def vary_values(path: Path, vary: Sequence[str]) -> list[Variant]:
    """A variant for each combination of the values; the first values make variant 0. Raises ConfigError."""
    axes: dict[str, list[str]] = {}
    for item in vary:
        key, values = _axis(item)
        if key in axes:
            raise ConfigError(
                f"--vary {key} is given twice; write all its values at once: --vary {key}=v1,v2."
            )
        axes[key] = values
    short = _short(list(axes))
    variants = []
    for chosen in itertools.product(*axes.values()):
        settings = [f"{key}={value}" for key, value in zip(axes, chosen, strict=True)]
        label = ", ".join(f"{short[key]}={value}" for key, value in zip(axes, chosen, strict=True))
        variants.append(Variant(label, _folder_name(",".join(settings)), load(path, settings)))
    if len(variants) < 2:
        raise ConfigError(
            f"--vary {vary[0]} makes one variant: nothing to compare. Give two values or more: v1,v2."
        )
    return variants


def vary_configs(path: Path, configs: Sequence[Path]) -> list[Variant]:
    """The base config as variant 0, then the others, by their file names. Raises ConfigError."""
    files = [path, *configs]
    names = [file.stem for file in files]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(
            f"Two configs are named {', '.join(twice)}; variants go by their file names, so name each file differently "
            "(the base config is variant 0 already)."
        )
    return [
        Variant(name, _folder_name(name), load(file))
        for name, file in zip(names, files, strict=True)
    ]


def _axis(item: str) -> tuple[str, list[str]]:
    """`key.path=v1,v2` -> the key and its values as JSON, which is YAML as well."""
    key, sep, text = item.partition("=")
    if not sep or not all(key.split(".")) or not text.strip():
        raise ConfigError(
            f"'{item}' says nothing to vary; write key.path=v1,v2, such as loss.tau=0.01,0.1."
        )
    if key in RESERVED:
        raise ConfigError(f"'{key}' cannot be varied: {RESERVED[key]}.")
    try:
        values = yaml.safe_load(f"[{text}]")
    except yaml.YAMLError:
        raise ConfigError(
            f"The values in '{item}' are not YAML; write key.path=v1,v2 (a mapping: {{a: 1}})."
        ) from None
    shown = [json.dumps(value, default=str) for value in values]
    if len(set(shown)) < len(shown):
        raise ConfigError(f"'{item}' holds a value twice; write each once.")
    return key, shown


def _short(keys: Sequence[str]) -> dict[str, str]:
    """Keys without the part of their path that tells nobody anything."""
    for num in itertools.count(1):
        tails = [".".join(key.split(".")[-num:]) for key in keys]
        if len(set(tails)) == len(keys):
            return dict(zip(keys, tails, strict=True))
    raise AssertionError


def _folder_name(text: str) -> str:
    """The text where it can be a folder's name, else what is left of it and a hash."""
    clean = re.sub(r"[^A-Za-z0-9._=,+-]+", "-", text).strip("-.") or "variant"
    if clean == text and len(clean) <= 100:
        return clean
    return f"{clean[:80]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
