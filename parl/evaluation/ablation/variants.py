"""The variants of an ablation: values of a config's keys, or several config files.

The others are compared with the first variant.
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

# Keys that the ablation sets itself, and the answer to someone who varies them.
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
    """Its name in tables, such as `tau=0.1`."""
    folder: str
    """The name of its folder in that of the ablation."""
    config: Config


def vary_values(path: Path, vary: Sequence[str]) -> list[Variant]:
    """Make a variant for each combination of values.

    Args:
        path: the base config.
        vary: axes `key.path=v1,v2`. The first value of each makes variant 0.
    Raises:
        ConfigError: an axis that cannot be read, a reserved key, or fewer than two variants.
    """
    values_by_key: dict[str, list[str]] = {}
    for item in vary:
        key, values = _parse_axis(item)
        if key in values_by_key:
            raise ConfigError(
                f"--vary {key} is given twice; write all its values at once: --vary {key}=v1,v2."
            )
        values_by_key[key] = values

    short_names = _short_names(list(values_by_key))
    variants: list[Variant] = []
    for combination in itertools.product(*values_by_key.values()):
        overrides: list[str] = []
        labels: list[str] = []
        for key, value in zip(values_by_key, combination, strict=True):
            overrides.append(f"{key}={value}")
            labels.append(f"{short_names[key]}={value}")
        folder = _folder_name(",".join(overrides))
        variants.append(Variant(", ".join(labels), folder, load(path, overrides)))
    if len(variants) < 2:
        raise ConfigError(
            f"--vary {vary[0]} makes one variant: nothing to compare. "
            "Give two values or more: v1,v2."
        )
    return variants


def vary_configs(path: Path, configs: Sequence[Path]) -> list[Variant]:
    """Make a variant of each config file, named after it; the base config is variant 0.

    Raises:
        ConfigError: two files have the same name.
    """
    files = [path, *configs]
    names = [file.stem for file in files]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ConfigError(
            f"Two configs are named {', '.join(repeated)}; variants go by their file names, so name "
            "each file differently (the base config is variant 0 already)."
        )
    return [Variant(file.stem, _folder_name(file.stem), load(file)) for file in files]


def _parse_axis(item: str) -> tuple[str, list[str]]:
    """Return the key and the values of `key.path=v1,v2`, each value as JSON."""
    key, separator, text = item.partition("=")
    if not separator or not all(key.split(".")) or not text.strip():
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
    # JSON is YAML, so it can be an override again, and 0.1 and 0.10 become the same text.
    texts = [json.dumps(value, default=str) for value in values]
    if len(set(texts)) < len(texts):
        raise ConfigError(f"'{item}' holds a value twice; write each once.")
    return key, texts


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    """Return the shortest ends of the keys, of equally many parts, that are different.

    Example: loss.tau, credit.type -> tau, type
    """
    for num_parts in itertools.count(1):
        names = [".".join(key.split(".")[-num_parts:]) for key in keys]
        if len(set(names)) == len(keys):
            return dict(zip(keys, names, strict=True))
    raise AssertionError("different keys have different ends")


def _folder_name(text: str) -> str:
    """Return the text if it can name a folder, else its harmless characters and a hash."""
    clean = re.sub(r"[^A-Za-z0-9._=,+-]+", "-", text).strip("-.") or "variant"
    if clean == text and len(clean) <= 100:
        return clean
    # Two texts may have the same harmless characters; the hash keeps their folders apart.
    return f"{clean[:80]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
