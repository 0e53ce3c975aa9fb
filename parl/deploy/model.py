"""`parl export`: a trained policy as a folder that others can load, with a model card.

The result is a transformers folder, for an adapter a peft folder, and README.md, which says how the
policy was trained and what it reached.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from parl.config import Config, parse
from parl.core import manifest
from parl.core.errors import CheckpointError, ConfigError, did_you_mean
from parl.core.types import ROLES
from parl.learner import checkpoint as checkpoints
from parl.report import overview
from parl.report.summary import summary_table
from parl.runs.folder import read_resolved
from parl.runs.reader import RunReader

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CARD = "README.md"


def export(
    run: Path, output: Path, policy: str | None, checkpoint: str | None, merged: bool
) -> Path:
    """Write a policy of a checkpoint to a new folder.

    Args:
        run: the run folder; it is only read.
        output: the new folder.
        policy: its name; None where all roles have the same one.
        checkpoint: its name; None = the newest.
        merged: add an adapter's updates to the weights of its base.
    Returns:
        The folder.
    Raises:
        CheckpointError: no run, no such checkpoint, a damaged one, or a folder that is not empty.
        ConfigError: no such policy, or several of which none is named.
    """
    config = parse(read_resolved(run), source=str(run))
    name = _choose_policy(config, policy)
    source = checkpoints.find(run, checkpoint)
    manifest.verify(source)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise CheckpointError(
            f"{output} holds something already. Choose another folder, or delete it."
        )

    stored = source / "policies" / name
    base = config.base_of(name)
    dtype = config.policies[base].dtype
    is_adapter = base != name
    if is_adapter and merged:
        merge(source / "policies" / base, stored, output, dtype)
    elif is_adapter:
        shutil.copytree(stored, output, dirs_exist_ok=True)
        _set_base(output, _base_folder(config, source, base))
    elif dtype == "float32":
        shutil.copytree(stored, output, dirs_exist_ok=True)
    else:
        _convert(stored, output, dtype)
    text = card(RunReader(run), config, name, source, merged)
    (output / CARD).write_text(text, encoding="utf-8")
    return output


def _choose_policy(config: Config, requested: str | None) -> str:
    """Return the requested policy, or the one that all roles have."""
    names = dict.fromkeys(config.roles.of(role).policy for role in ROLES)
    # A policy behind an endpoint has no weights here, so it does not make the choice ambiguous.
    played = [name for name in names if config.policies[name].remote is None] or list(names)
    if requested is None and len(played) > 1:
        raise ConfigError(
            f"The roles have several policies; say which: --policy {' or --policy '.join(played)}."
        )
    name = requested or played[0]
    if name not in config.policies:
        raise ConfigError(f"The run has no policy '{name}'.{did_you_mean(name, config.policies)}")
    if config.policies[name].remote is not None:
        raise ConfigError(
            f"The policy '{name}' is served by an endpoint; the run has no weights of it to export."
        )
    return name


# --- weights -----------------------------------------------------------------------------


def _convert(stored: Path, output: Path, dtype: str) -> None:
    """Write the weights in `dtype`, the type that was sampled and evaluated.

    A checkpoint has the weights that learn, in float32.
    """
    model, tokenizer = _load(stored, dtype)
    _save(model, tokenizer, output)


def merge(base: Path, adapter: Path, output: Path, dtype: str) -> None:
    """Write a transformers folder of a base with an adapter's updates added to its weights.

    Args:
        base: folder of the base.
        adapter: peft folder of the adapter.
        output: the new folder.
        dtype: of the written weights, such as `bfloat16`.
    """
    from peft import PeftModel

    from parl.policy.models.vision import families

    model, tokenizer = _load(base, dtype)
    merged_model: Any = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    merged_model.save_pretrained(output)
    families.save(model, output)
    tokenizer.save_pretrained(output)


def _load(folder: Path, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    import torch

    from parl.policy.models.load import load_folder

    return load_folder(folder, getattr(torch, dtype))


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, output: Path) -> None:
    from parl.policy.models.vision import families

    model.save_pretrained(output)
    families.save(model, output)
    tokenizer.save_pretrained(output)


def _base_folder(config: Config, source: Path, base: str) -> str:
    """Return the folder of an adapter's base.

    It is the model that the run started from if that is still the base: RL trains adapters alone,
    while a cold start trains the base as well.
    """
    start_model = Path(config.policies[base].model)
    if config.cold_start is None and (start_model / "config.json").is_file():
        return str(start_model.resolve())
    return str((source / "policies" / base).resolve())


def _set_base(adapter: Path, base: str) -> None:
    """Write the folder of the base into adapter_config.json, where peft looks for it."""
    from peft import LoraConfig

    lora_config = LoraConfig.from_pretrained(str(adapter))
    lora_config.base_model_name_or_path = base
    lora_config.save_pretrained(str(adapter))


# --- the model card ----------------------------------------------------------------------


def card(reader: RunReader, config: Config, name: str, source: Path, merged: bool) -> str:
    """Return the text of README.md.

    Args:
        reader: of the run.
        config: of the run.
        name: of the policy.
        source: folder of the checkpoint.
        merged: see `export`.
    """
    is_adapter = config.base_of(name) != name and not merged
    tags = ["parl", "reinforcement-learning", "multi-agent"]
    if is_adapter:
        tags.append("lora")
    # Read by the hub.
    metadata: dict[str, Any] = {
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": tags,
    }
    # The run's folder is a path on the machine of whoever trained it: nobody else's business.
    tree = config.model_dump(mode="json", exclude={"run_dir"})
    config_text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    parts = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---\n",
        f"# {config.name}: {name}",
        _description(config, name, source, merged),
        "## Load it",
        _LOAD_ADAPTER if is_adapter else _LOAD_MODEL,
        "## How it was trained",
        *_training(reader, config, name),
        "## Held-out results",
        *_results(reader, config, source),
        "## The whole config",
        f"```yaml\n{config_text}```",
    ]
    return "\n\n".join(parts) + "\n"


def _description(config: Config, name: str, source: Path, merged: bool) -> str:
    adapter = config.policies[name].adapter
    kind = "A model"
    if adapter is not None:
        kind = (
            f"A LoRA adapter (rank {adapter.rank}, alpha {adapter.alpha}) "
            f"on the policy `{adapter.base}`"
        )
        if merged:
            kind += ", merged into it"

    roles = [role for role in ROLES if config.roles.of(role).policy == name]
    part = "Adapters stand on it; no role plays it alone"
    if roles:
        part = f"It plays the {' and the '.join(roles)}"

    dtype = config.policies[config.base_of(name)].dtype
    precision = ""
    if dtype != "float32" and adapter is None:
        precision = (
            f" Its weights are {dtype}, as they were sampled; "
            "the run's checkpoint has those that learned, in float32."
        )
    return (
        f"{kind}, trained with PARL, reinforcement learning for agents that work in parallel. "
        f"{part} in `{config.env.name}`. Checkpoint: `{source.name}`, seed {config.seed}.{precision}"
    )


_LOAD_ADAPTER = """```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("BASE")  # see adapter_config.json
model = PeftModel.from_pretrained(base, "FOLDER")
```"""
_LOAD_MODEL = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```"""


def _training(reader: RunReader, config: Config, name: str) -> Iterator[str]:
    """Yield the tables of settings, roles and reward terms."""
    optimizer = config.policies[name].optimizer
    settings = [
        ("Began", _start(config, name)),
        *overview.setup(reader.config, reader.tasks()),
        (
            "Optimizer",
            f"learning rate {optimizer.lr:g}, gradient norm at most {optimizer.grad_clip:g}",
        ),
    ]
    yield table(["", ""], settings)

    role_rows: list[list[str]] = []
    for role in overview.roles(reader.config):
        role_rows.append([role["role"], role["policy"], role["trainable"], role["limits"]])
    yield table(["role", "policy", "learns", "limits"], role_rows)

    term_rows: list[list[str]] = []
    for term in overview.terms(reader.config):
        term_rows.append([term["name"], term["weight"], term["knobs"]])
    yield table(["reward term", "weight", "knobs"], term_rows)


def _start(config: Config, name: str) -> str:
    """Say which weights training began with, and which cold start they had."""
    base = config.policies[config.base_of(name)]
    origin = f"from nothing (`{base.model}`)" if base.is_tiny else f"from `{base.model}`"
    stages = [stage.name for stage in config.cold_start.stages] if config.cold_start else []
    cold_start = f"supervised cold start ({', '.join(stages)})" if stages else "no cold start"
    return f"{origin}, {cold_start}"


def _results(reader: RunReader, config: Config, source: Path) -> Iterator[str]:
    """Yield the run's summary for its last step, or the evaluations of another checkpoint."""
    summary = reader.summary()
    # A summary speaks of the last step; under another checkpoint its numbers would be false.
    if summary and source.name == checkpoints.step_name(config.train.num_steps):
        titles, rows = summary_table(summary)
        yield f"Split `{summary['split']}`, tasks that were not trained on. Means over its tasks."
        yield table(["policy", "decoding", *titles], rows)
        return
    evaluations: dict[str, Any] = {}
    for file_name, content in reader.evaluations().items():
        if Path(file_name).stem.startswith(source.name):
            evaluations[file_name] = content
    if not evaluations:
        yield f"This checkpoint was not evaluated. `parl eval RUN --checkpoint {source.name}` does it."
        return
    shown = overview.evaluations(evaluations)
    yield table(["evaluation", *shown["titles"]], shown["rows"])


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [_table_line(titles), _table_line(["---"] * len(titles))]
    lines.extend(map(_table_line, rows))
    return "\n".join(lines)


def _table_line(cells: Sequence[str]) -> str:
    # A bar would start another cell, a line break another row.
    escaped = [str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells]
    return f"| {' | '.join(escaped)} |"
