"""One episode as the page shows it: agents with their turns, tokens and rewards.

In: an episode as it stands on disk, and a way to turn token ids into text. Out: mappings for the template
`episode.html`, and the tokens as JSON for the page's script.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from parl.core.images import IMAGE, find
from parl.core.types import UNKNOWN_TOKEN
from parl.report.text import visible
from parl.report.timeline import (
    critical_path,
    longest_launched,
    queued_s,
    stretches,
    timeline,
    turn_label,
)
from parl.runs.folder import index_row
from parl.runs.records import advantage_of

Record = Mapping[str, Any]
Decode = Callable[[str, Sequence[int]], list[str]]
"""(policy, token ids) -> a text for each."""

CALL = re.compile(r"<tool_call>.*?(?:</tool_call>|\Z)", re.DOTALL)


def episode_view(record: Record, decode: Decode) -> dict[str, Any]:
    """Everything that `episode.html` shows of an episode."""
    critical = set(critical_path(record))
    numbers = {t["id"]: k for k, t in enumerate(record["traces"])}
    agents = [_agent(record, k, critical, numbers) for k in range(len(record["traces"]))]
    return {
        "record": record,
        "row": index_row(record),
        "timeline": timeline(record),
        "stretches": stretches(record),
        "queued_s": queued_s(record),
        "longest": longest_launched(record),
        "agents": agents,
        "tokens": [_tokens(t, decode) for t in record["traces"]],
        "data": json.dumps(record["task"].get("data"), indent=1, ensure_ascii=False),
        "facts": json.dumps(record["facts"], indent=1, ensure_ascii=False)
        if record["facts"]
        else "",
    }


def decoder(tokenizer: Callable[[str], Path | None]) -> Decode:
    """Decodes with the policies' own tokenizers, `tokenizer(policy)`; without one a token's text is its number."""
    load = lru_cache(maxsize=None)(lambda policy: _load(tokenizer(policy)))

    def decode(policy: str, ids: Sequence[int]) -> list[str]:
        known = load(policy)
        return [
            "?"
            if i == UNKNOWN_TOKEN
            else str(i)
            if known is None
            else visible(_token_text(known, i))
            for i in ids
        ]

    return decode


def _load(file: Path | None) -> Any:
    if file is None:
        return None
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(file))
    except (
        Exception
    ):  # the library raises bare ones; a page without token texts is better than none
        return None


def _token_text(tokenizer: Any, token: int) -> str:
    """A part of a character has no text of its own: then the vocabulary's name for it."""
    text = tokenizer.decode([token], skip_special_tokens=False)
    if text and "\ufffd" not in text:
        return str(text)
    return str(tokenizer.id_to_token(token) or token)


def _tokens(trace: Mapping[str, Any], decode: Decode) -> dict[str, Any]:
    """The agent's tokens in columns: text, mask, log-prob and advantage, rounded for the page."""
    return {
        "text": decode(trace["policy"], trace["token_ids"]),
        "id": trace["token_ids"],
        "mask": trace["mask"],
        "logprob": [float(f"{x:.3g}") for x in trace["logprobs"]],
        "advantage": [float(f"{x:.3g}") for x in trace["advantages"]],
    }


def _agent(
    record: Record, k: int, critical: set[tuple[str, int]], numbers: Mapping[str, int]
) -> dict[str, Any]:
    trace = record["traces"][k]
    turns = [
        _turn(record, trace, i, (trace["id"], i) in critical) for i in range(len(trace["turns"]))
    ]
    return {
        "trace": trace,
        "number": k,
        "parent": numbers.get(trace["parent"]),
        "turns": turns,
        "critical": any(turn["critical"] for turn in turns),
        "num_tokens": sum(t["end"] - t["start"] for t in trace["turns"]),
        "advantage": advantage_of(trace) if any(trace["mask"]) else None,
        "rewards": _rewards(record["rewards"].get(trace["id"])),
    }


def _turn(record: Record, trace: Mapping[str, Any], i: int, critical: bool) -> dict[str, Any]:
    turn = trace["turns"][i]
    calls, heard = turn["tool_calls"], turn["observations"]
    paired = len(calls) == len(heard)
    waiting = [
        k
        for k, t in enumerate(record["traces"])
        if t["parent"] == trace["id"] and t["spawned_at"] == i
    ]
    shown = []
    for call, answer in zip(calls, heard if paired else [None] * len(calls), strict=True):
        child = None
        if call["name"] == "assign_task" and waiting:
            prompt = call["arguments"].get("prompt")
            child = next((k for k in waiting if record["traces"][k]["prompt"] == prompt), None)
            waiting = [k for k in waiting if k != child]
        arguments = {name: _argument(value) for name, value in call["arguments"].items()}
        shown.append(
            {
                **call,
                "arguments": arguments,
                "answer": None if answer is None else observation(answer),
                "child": child,
            }
        )
    versions = sorted(set(turn["policy_versions"]))
    return {
        "label": turn_label(turn),
        "critical": critical,
        "start_s": turn["t_start"],
        "end_s": turn["t_end"],
        "num_tokens": turn["end"] - turn["start"],
        "versions": f"{versions[0]} to {versions[-1]}" if len(versions) > 1 else str(*versions),
        "calls": shown,
        "observations": [] if paired else [observation(text) for text in heard],
        "prose": CALL.sub("", turn["text"]).strip() if calls else turn["text"],
        "raw": turn["text"],
    }


def observation(text: str) -> dict[str, Any]:
    """What an agent read: the text, and images that stand in it as data (nothing is ever fetched)."""
    return {"text": IMAGE.sub("[image]", text), "images": list(find(text))}


def _argument(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, indent=1, ensure_ascii=False)


def _rewards(breakdown: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Each term with what it was multiplied by; None for an agent that was not scored."""
    if breakdown is None:
        return None
    rows = []
    for name, raw in breakdown["terms"].items():
        weight, factor = breakdown["weights"][name], breakdown["factors"].get(name, 1.0)
        rows.append(
            {
                "term": name,
                "raw": raw,
                "weight": weight,
                "factor": factor,
                "product": raw * weight * factor,
            }
        )
    return {"rows": rows, "total": breakdown["total"]}
