"""`parl export`: a trained policy as a folder that others can load, with a model card that says how it was trained.

In: a run folder, which is only read. Out: a transformers folder, or of an adapter a peft folder, and README.md.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

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

CARD = "README.md"


def export(run: Path, output: Path, policy: str | None, which: str | None, merged: bool) -> Path:
    """Write a policy of a checkpoint (by default the newest) to a new folder.

    Raises:
        CheckpointError: no run, no such checkpoint, a damaged one, or a folder that holds something.
        ConfigError: no such policy, or several of which none is named.
    """
    config = parse(read_resolved(run), source=str(run))
    name = _policy(config, policy)
    source = checkpoints.find(run, which)
    manifest.verify(source)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise CheckpointError(
            f"{output} holds something already. Choose another folder, or delete it."
        )
    base = config.base_of(name)
    dtype = config.policies[base].dtype
    if base == name and dtype != "float32":
        _served(source / "policies" / name, output, dtype)
    elif base == name or not merged:
        shutil.copytree(source / "policies" / name, output, dirs_exist_ok=True)
        if base != name:
            _name_base(output, _base_folder(config, source, base))
    else:
        merge(source / "policies" / base, source / "policies" / name, output, dtype)
    (output / CARD).write_text(card(RunReader(run), config, name, source, merged), encoding="utf-8")
    return output


def _served(stored: Path, output: Path, dtype: str) -> None:
    """The weights in the type that was sampled and evaluated: a checkpoint has those that learn, in float32."""
    import torch

    from parl.policy.models.load import load_folder
    from parl.policy.models.vision import families as eyes

    model, tokenizer = load_folder(stored, getattr(torch, dtype))
    model.save_pretrained(output)
    eyes.save(model, output)
    tokenizer.save_pretrained(output)


def merge(base: Path, adapter: Path, output: Path, dtype: str) -> None:
    """A transformers folder of the base with the adapter's updates added to its weights."""
    import torch
    from peft import PeftModel

    from parl.policy.models.load import load_folder
    from parl.policy.models.vision import families as eyes

    model, tokenizer = load_folder(base, getattr(torch, dtype))
    whole: Any = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    whole.save_pretrained(output)
    eyes.save(model, output)
    tokenizer.save_pretrained(output)


def _policy(config: Config, asked: str | None) -> str:
    """The policy that was asked for, or the one that roles play."""
    names = dict.fromkeys(config.roles.of(role).policy for role in ROLES)
    played = [n for n in names if config.policies[n].remote is None] or list(names)
    if asked is None and len(played) > 1:
        raise ConfigError(
            f"The roles have several policies; say which: --policy {' or --policy '.join(played)}."
        )
    name = asked or played[0]
    if name not in config.policies:
        raise ConfigError(f"The run has no policy '{name}'.{did_you_mean(name, config.policies)}")
    if config.policies[name].remote is not None:
        raise ConfigError(
            f"The policy '{name}' is served by an endpoint; the run has no weights of it to export."
        )
    return name


def _base_folder(config: Config, source: Path, base: str) -> str:
    """Where an adapter's base is found: the model it was loaded from, as long as RL alone followed."""
    given = Path(config.policies[base].model)
    untouched = config.cold_start is None and (given / "config.json").is_file()
    return str((given if untouched else source / "policies" / base).resolve())


def _name_base(folder: Path, base: str) -> None:
    from peft import LoraConfig

    shape = LoraConfig.from_pretrained(str(folder))
    shape.base_model_name_or_path = base
    shape.save_pretrained(str(folder))


# --- the model card --------------------------------------------------------------------------------------------------


def card(reader: RunReader, config: Config, name: str, source: Path, merged: bool) -> str:
    """The text of README.md: what the policy is, how to load it, how it was trained, what it reached."""
    is_adapter = config.base_of(name) != name and not merged
    head: dict[str, Any] = {
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": [
            "parl",
            "reinforcement-learning",
            "multi-agent",
            *(["lora"] if is_adapter else []),
        ],
    }
    tree = config.model_dump(mode="json", exclude={"run_dir"})
    whole = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n",
        f"# {config.name}: {name}",
        _what(config, name, source, merged),
        "## Load it",
        _loading(is_adapter),
        "## How it was trained",
        *_training(reader, config, name),
        "## Held-out results",
        *_results(reader, config, source),
        "## The whole config",
        f"```yaml\n{whole}```",
    ]
    return "\n\n".join(parts) + "\n"


def _what(config: Config, name: str, source: Path, merged: bool) -> str:
    roles = [role for role in ROLES if config.roles.of(role).policy == name]
    adapter = config.policies[name].adapter
    kind = "A model"
    if adapter is not None:
        shape = f"LoRA adapter (rank {adapter.rank}, alpha {adapter.alpha}) on the policy `{adapter.base}`"
        kind = f"A {shape}, merged into it" if merged else f"A {shape}"
    plays = (
        f"It plays the {' and the '.join(roles)}"
        if roles
        else "Adapters stand on it; no role plays it alone"
    )
    dtype = config.policies[config.base_of(name)].dtype
    served = f" Its weights are {dtype}, as they were sampled; the run's checkpoint has those that learned, in float32."
    return (
        f"{kind}, trained with PARL, reinforcement learning for agents that work in parallel. {plays} in "
        f"`{config.env.name}`. Checkpoint: `{source.name}`, seed {config.seed}."
        f"{served if dtype != 'float32' and adapter is None else ''}"
    )


def _loading(is_adapter: bool) -> str:
    if is_adapter:
        return (
            "```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
            'base = AutoModelForCausalLM.from_pretrained("BASE")  # see adapter_config.json\n'
            'model = PeftModel.from_pretrained(base, "FOLDER")\n```'
        )
    return (
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("FOLDER")\n'
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")\n```'
    )


def _training(reader: RunReader, config: Config, name: str) -> Iterator[str]:
    policy, base = config.policies[name], config.policies[config.base_of(name)]
    stages = [s.name for s in config.cold_start.stages] if config.cold_start else []
    begin = f"from nothing (`{base.model}`)" if base.is_tiny else f"from `{base.model}`"
    cold = f"supervised cold start ({', '.join(stages)})" if stages else "no cold start"
    facts = [("Began", f"{begin}, {cold}"), *overview.setup(reader.config, reader.tasks())]
    facts.append(
        (
            "Optimizer",
            f"learning rate {policy.optimizer.lr:g}, gradient norm at most {policy.optimizer.grad_clip:g}",
        )
    )
    yield table(["", ""], facts)
    rows = overview.roles(reader.config)
    yield table(
        ["role", "policy", "learns", "limits"],
        [[r["role"], r["policy"], r["trainable"], r["limits"]] for r in rows],
    )
    terms = overview.terms(reader.config)
    yield table(
        ["reward term", "weight", "knobs"], [[t["name"], t["weight"], t["knobs"]] for t in terms]
    )


def _results(reader: RunReader, config: Config, source: Path) -> Iterator[str]:
    """The summary's table for the last step; for others the evaluation that was made there, if one was."""
    summary = reader.summary()
    if summary and source.name == checkpoints.step_name(config.train.num_steps):
        titles, rows = summary_table(summary)
        yield f"Split `{summary['split']}`, tasks that were not trained on. Means over its tasks."
        yield table(["policy", "decoding", *titles], rows)
        return
    found = {n: e for n, e in reader.evaluations().items() if Path(n).stem.startswith(source.name)}
    if found:
        shown = overview.evaluations(found)
        yield table(["evaluation", *shown["titles"]], shown["rows"])
    else:
        yield f"This checkpoint was not evaluated. `parl eval RUN --checkpoint {source.name}` does it."


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""

    def line(cells: Sequence[str]) -> str:
        return (
            "| " + " | ".join(str(c).replace("|", "\\|").replace("\n", " ") for c in cells) + " |"
        )

    return "\n".join([line(titles), line(["---"] * len(titles)), *map(line, rows)])
