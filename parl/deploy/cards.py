"""The dataset card of `parl export --episodes`: what the rows are, how to load them, how they were made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import yaml

from parl.config import Config
from parl.deploy.model import table
from parl.report import overview
from parl.runs.reader import RunReader

Kind = Literal["sft", "preferences"]

SCORE = (
    "0..1. Orchestrator: the episode's outcome. Subagent: its own `subtask_score`; "
    "where the environment has none, the outcome"
)
# The order is that of the columns in the files.
COLUMNS: Mapping[Kind, Mapping[str, str]] = {
    "sft": {
        "messages": (
            "the trace as a conversation: system (if any), user, assistant with `tool_calls`, "
            "tool answers"
        ),
        "tools": "the tools that the agent could call, as JSON schemas",
        "run": "name of the run's folder",
        "step": "the step that trained the episode",
        "task_id": "the task",
        "group": "attempts at the same task in the same step",
        "episode": "the episode in the run's folder",
        "agent": "the agent in its episode; 0 is the orchestrator",
        "role": "orchestrator or subagent",
        "policy": "the policy that played it, to whose tokenizer `token_ids` belong",
        "status": "completed, or truncated (a limit ended it)",
        "stop_reason": "`answer`, or the limit's name",
        "score": SCORE,
        "outcome": "the episode's outcome score, 0..1",
        "reward": (
            "the agent's total reward as it was trained on, shaping included; null if it had none"
        ),
        "token_ids": "what was fed and sampled, token by token",
        "mask": "1 where the agent wrote the token itself",
    },
    "preferences": {
        "prompt": "the messages that both agents got: system (if any), user",
        "chosen": "what the best of the group did: assistant with `tool_calls`, tool answers",
        "rejected": "what the worst of the group did",
        "tools": "the tools that both could call, as JSON schemas",
        "run": "name of the run's folder",
        "step": "the step that trained both",
        "task_id": "the task",
        "group": "attempts at the same task in the same step",
        "role": "orchestrator or subagent",
        "chosen_score": SCORE,
        "rejected_score": "the same of the other",
        "chosen_episode": "the episode in the run's folder",
        "chosen_agent": "the agent in its episode; 0 is the orchestrator",
        "rejected_episode": "the same of the other",
        "rejected_agent": "the same of the other",
        "rejected_status": (
            "completed, or truncated (a limit ended it); the chosen one is always completed"
        ),
    },
}


def card(reader: RunReader, config: Config, kind: Kind, facts: Mapping[str, str]) -> str:
    """Return the text of README.md.

    Args:
        reader: of the run.
        config: of the run.
        kind: of the dataset.
        facts: the request and the counts, in words.
    """
    # Read by the hub and by `datasets`: which files are the data.
    metadata = {
        "configs": [{"config_name": "default", "data_files": "*.parquet"}],
        "task_categories": ["text-generation"],
        "tags": ["parl", "agents", kind],
    }
    # The run's folder is a path on the machine of whoever trained it: nobody else's business.
    tree = config.model_dump(mode="json", exclude={"run_dir"})
    config_text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    parts = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---\n",
        f"# {config.name}: {kind}",
        f"{_ROWS[kind]} From the episodes of the PARL run `{reader.name}` in `{config.env.name}`, as "
        "they were sampled while it trained: early steps are of a worse policy than late ones.",
        "## Load it",
        _LOAD[kind],
        "## Columns",
        table(["column", ""], list(COLUMNS[kind].items())),
        "## How it was made",
        table(["", ""], list(facts.items())),
        "## The run",
        table(["", ""], overview.setup(reader.config, reader.tasks())),
        f"```yaml\n{config_text}```",
    ]
    return "\n\n".join(parts) + "\n"


_ROWS: Mapping[Kind, str] = {
    "sft": "One row for each agent's trace, good ones and bad ones.",
    "preferences": (
        "One row for each prompt that several agents of a group got: the best attempt and the worst."
    ),
}
_LOAD: Mapping[Kind, str] = {
    "sft": """```python
from datasets import load_dataset

dataset = load_dataset("FOLDER", split="train")
```

TRL's `SFTTrainer` takes it as it is, and renders `messages` by the chat template of the model that
it trains. For the tokens of the run itself, of which only the agent's own carry loss (a model with
the same tokenizer):

```python
def exact(row):
    labels = [t if m else -100 for t, m in zip(row["token_ids"], row["mask"])]
    return {"input_ids": row["token_ids"], "labels": labels}

dataset = dataset.map(exact, remove_columns=dataset.column_names)
```

Thinking is in `token_ids` alone, no message shows it.""",
    "preferences": """```python
from datasets import load_dataset

dataset = load_dataset("FOLDER", split="train")
```

TRL's `DPOTrainer` takes it as it is. It counts everything after the prompt as the model's own, also
the answers of tools.""",
}
