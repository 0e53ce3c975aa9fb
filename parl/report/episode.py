"""One episode as a page shows it: agents with their turns, tokens and rewards.

`episode_view` turns a stored episode into the context of the template `episode.html`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Record = Mapping[str, Any]
"""An episode as it is stored."""
Trace = Mapping[str, Any]
"""One agent of a stored episode."""
Decode = Callable[[str, Sequence[int]], list[str]]
"""(policy, token ids) -> the text of each token."""

# A call that a limit cut off has no end tag.
CALL = re.compile(r"<tool_call>.*?(?:</tool_call>|\Z)", re.DOTALL)


def episode_view(record: Record, decode: Decode) -> dict[str, Any]:
    """Return the context of the template `episode.html`."""
    critical_turns = set(critical_path(record))
    agents: list[dict[str, Any]] = []
    tokens: list[dict[str, Any]] = []
    for number, trace in enumerate(record["traces"]):
        agents.append(_agent(record, number, critical_turns))
        tokens.append(_tokens(trace, decode))
    return {
        "record": record,
        "row": index_row(record),
        "timeline": timeline(record),
        "stretches": stretches(record),
        "queued_s": queued_s(record),
        "longest": longest_launched(record),
        "agents": agents,
        "tokens": tokens,
        "data": _json(record["task"].get("data")),
        "facts": _json(record["facts"]) if record["facts"] else "",
    }


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False)


# --- tokens ------------------------------------------------------------------------------


def decoder(tokenizer: Callable[[str], Path | None]) -> Decode:
    """Return a decoder that uses the policies' own tokenizers.

    Args:
        tokenizer: policy -> its tokenizer.json. Without one (None), the text of a token is its id.
    """
    # A tokenizer takes a moment to load, and a report decodes thousands of turns.
    load = lru_cache(maxsize=None)(lambda policy: _load(tokenizer(policy)))

    def decode(policy: str, token_ids: Sequence[int]) -> list[str]:
        loaded = load(policy)
        return [_token_text(loaded, token_id) for token_id in token_ids]

    return decode


def _load(file: Path | None) -> Tokenizer | None:
    if file is None:
        return None
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(file))
    except Exception:
        # The library raises bare exceptions. A page without token texts is better than none.
        return None


def _token_text(tokenizer: Tokenizer | None, token_id: int) -> str:
    """Return the text of one token, with hidden characters made visible."""
    if token_id == UNKNOWN_TOKEN:
        return "?"
    if tokenizer is None:
        return str(token_id)
    text = tokenizer.decode([token_id], skip_special_tokens=False)
    # Some tokens are a part of a character, which has no text; the vocabulary has a name for them.
    if not text or "\ufffd" in text:
        text = tokenizer.id_to_token(token_id) or str(token_id)
    return visible(str(text))


def _tokens(trace: Trace, decode: Decode) -> dict[str, Any]:
    """Return an agent's tokens in columns, one entry per token."""
    return {
        "text": decode(trace["policy"], trace["token_ids"]),
        "id": trace["token_ids"],
        "mask": trace["mask"],
        "logprob": _rounded(trace["logprobs"]),
        "advantage": _rounded(trace["advantages"]),
    }


def _rounded(values: Sequence[float]) -> list[float]:
    """Round to three significant digits, which is enough to read and makes a report smaller."""
    return [float(f"{value:.3g}") for value in values]


# --- agents and turns --------------------------------------------------------------------


def _agent(record: Record, number: int, critical_turns: set[tuple[str, int]]) -> dict[str, Any]:
    """Return what the page shows of the agent `record["traces"][number]`."""
    traces = record["traces"]
    trace = traces[number]
    parent = None
    for index, other in enumerate(traces):
        if other["id"] == trace["parent"]:
            parent = index

    turns: list[dict[str, Any]] = []
    num_tokens = 0
    for index, turn in enumerate(trace["turns"]):
        turns.append(_turn(record, trace, index, (trace["id"], index) in critical_turns))
        num_tokens += turn["end"] - turn["start"]
    return {
        "trace": trace,
        "number": number,
        "parent": parent,
        "turns": turns,
        "critical": any(turn["critical"] for turn in turns),
        "num_tokens": num_tokens,
        "advantage": advantage_of(trace) if any(trace["mask"]) else None,
        "rewards": _rewards(record["rewards"].get(trace["id"])),
    }


def _turn(record: Record, trace: Trace, index: int, critical: bool) -> dict[str, Any]:
    turn = trace["turns"][index]
    calls = turn["tool_calls"]
    observations = turn["observations"]
    # Where there are fewer answers than calls, the record does not say which belongs to which:
    # they stand below the calls.
    is_paired = len(calls) == len(observations)
    answers = observations if is_paired else [None] * len(calls)
    children = _children_by_call(record, trace, index)

    shown_calls: list[dict[str, Any]] = []
    for position, (call, answer) in enumerate(zip(calls, answers, strict=True)):
        arguments = {name: _argument(value) for name, value in call["arguments"].items()}
        shown_calls.append(
            {
                **call,
                "arguments": arguments,
                "answer": None if answer is None else observation(answer),
                "child": children.get(position),
            }
        )

    versions = sorted(set(turn["policy_versions"]))
    # More than one where the weights changed within the turn.
    versions_text = f"{versions[0]} to {versions[-1]}" if len(versions) > 1 else str(*versions)
    return {
        "label": turn_label(turn),
        "critical": critical,
        "start_s": turn["t_start"],
        "end_s": turn["t_end"],
        "num_tokens": turn["end"] - turn["start"],
        "versions": versions_text,
        "calls": shown_calls,
        "observations": [] if is_paired else [observation(text) for text in observations],
        "prose": CALL.sub("", turn["text"]).strip() if calls else turn["text"],
        "raw": turn["text"],
    }


def _children_by_call(record: Record, trace: Trace, turn_index: int) -> dict[int, int]:
    """Find the subagents that a turn's calls launched.

    A record does not say which call launched which subagent, so they are matched by their prompts.
    Two assignments with one prompt are matched in order.

    Returns:
        position of the call in the turn -> index of the subagent in the record's traces.
    """
    traces = record["traces"]
    unmatched: list[int] = []
    for number, other in enumerate(traces):
        if other["parent"] == trace["id"] and other["spawned_at"] == turn_index:
            unmatched.append(number)

    children: dict[int, int] = {}
    for position, call in enumerate(trace["turns"][turn_index]["tool_calls"]):
        if call["name"] != "assign_task":
            continue
        prompt = call["arguments"].get("prompt")
        for number in unmatched:
            if traces[number]["prompt"] == prompt:
                children[position] = number
                unmatched.remove(number)
                break
    return children


def observation(text: str) -> dict[str, Any]:
    """Split an observation into its text and the images that stand in it as data.

    Images of other kinds, such as addresses, stay text: a page fetches nothing.
    """
    return {"text": IMAGE.sub("[image]", text), "images": list(find(text))}


def _argument(value: Any) -> str:
    return value if isinstance(value, str) else _json(value)


def _rewards(breakdown: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return each term with its weight and factor; None for an agent without a reward."""
    if breakdown is None:
        return None
    rows: list[dict[str, Any]] = []
    for name, raw in breakdown["terms"].items():
        weight = breakdown["weights"][name]
        factor = breakdown["factors"].get(name, 1.0)
        row = {
            "term": name,
            "raw": raw,
            "weight": weight,
            "factor": factor,
            "product": raw * weight * factor,
        }
        rows.append(row)
    return {"rows": rows, "total": breakdown["total"]}
