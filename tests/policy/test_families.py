"""Renderers of pretrained families, over small tokenizers with the families' own tokens.

Qwen3 and Llama 3.2 are compared with the models' own chat templates, which TRL ships.
"""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

import numpy as np
import pytest
import torch

from parl.config import load
from parl.config.roles import Limits, RoleConfig, Roles, Sampling, Swarm
from parl.core.errors import ConfigError
from parl.core.types import AgentTrace, ToolCall
from parl.env.base import Demonstration
from parl.env.tools import ToolSpec
from parl.evaluation.evaluator import FORCED
from parl.policy.base import Generation, PolicyHandle, Renderer, Request
from parl.policy.engines.scripted import ScriptedEngine, call_text
from parl.policy.renderers.families import FamilyRenderer, detect, make_renderer
from parl.rollout.agent import AgentSpec, ToolResults, run_agent
from parl.rollout.swarm import SwarmRunner
from parl.training.demonstrator import Demonstrator
from parl_envs.search.wide_search import WideSearch
from tests.support.helpers import ROOT, env_section
from tests.support.tokenizers import (
    CALL,
    KIMI,
    LLAMA3,
    MEDIA,
    QWEN3,
    SECTION,
    kimi,
    llama3,
    qwen2_5,
    qwen3,
    tokenizer_with,
)

MADE = {"qwen3": qwen3(), "llama3": llama3(), "kimi_k2_5": kimi(), "chatml": qwen2_5()}
STOPS = {
    "qwen3": ["<|im_end|>", "<|endoftext|>"],
    "llama3": ["<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"],
    "kimi_k2_5": ["<|im_end|>"],
    "chatml": ["<|im_end|>"],
}
KENYA, TOGO = ToolCall("search", {"query": "Kenya"}), ToolCall("search", {"query": "Togo, é"})
BOTH = f"Two.\n{call_text(KENYA)}\n{call_text(TOGO)}"


@pytest.fixture(params=MADE)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def renderer_of(family: str) -> Renderer:
    return make_renderer("main", "auto", MADE[family])


def decoded(family: str, ids: Sequence[int]) -> str:
    return str(MADE[family].backend_tokenizer.decode(list(ids), skip_special_tokens=False))


def said(family: str, text: str) -> list[int]:
    """Text in the family's own form, as sampled: with the stop token."""
    encoded = MADE[family].encode(text, add_special_tokens=False)
    return [*encoded, renderer_of(family).stop_ids[0]]


def test_a_tokenizer_tells_its_family(family: str) -> None:
    assert detect(MADE[family]) == family


def test_stop_ids_are_the_models_own(family: str) -> None:
    assert list(renderer_of(family).stop_ids) == MADE[family].convert_tokens_to_ids(STOPS[family])


# --- the models' own templates ---------------------------------------------------------------------------------------


DATE = "26 Jul 2024"  # the one that Llama's template has where none is given


def specs(tools: Sequence[ToolSpec]) -> list[dict[str, Any]]:
    return [{"type": "function", "function": t.model_dump()} for t in tools]


def hermes(call: ToolCall) -> dict[str, Any]:
    return {"type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}


@pytest.mark.parametrize(
    "family, template",
    [
        ("qwen3", "qwen3"),
        ("qwen3", "qwen3_instruct_2507"),
        ("llama3", "llama3_1"),
        ("llama3", "llama3_2"),
    ],
)
@pytest.mark.parametrize("tools", [WideSearch.own_tool_specs(), ()])
@pytest.mark.parametrize("system", ["be good", ""])
def test_a_conversation_has_the_tokens_of_the_models_template(
    family: str, template: str, tools: Any, system: str
) -> None:
    """Prompt, a turn with calls (Llama's template allows one), their answers, the last turn: all in one rendering."""
    calls = [KENYA, ToolCall("open", {"doc": "d1"})] if family == "qwen3" else [KENYA]
    heard = ["capital : Nairobi.", 'line\n"two".'][: len(calls)]
    tokenizer = copy.deepcopy(MADE[family])
    tokenizer.chat_template = (
        resources.files("trl") / "chat_templates" / f"{template}.jinja"
    ).read_text()
    renderer = make_renderer("main", "auto", tokenizer)
    ids = renderer.start(system, tools, "find it.")
    opening = [{"role": "system", "content": system}] if system else []
    messages: list[dict[str, Any]] = [*opening, {"role": "user", "content": "find it."}]
    how = {
        "tools": specs(tools) or None,
        "add_generation_prompt": True,
        "return_dict": False,
        "date_string": DATE,
    }
    assert ids == tokenizer.apply_chat_template(messages, **how)
    turn = [*renderer.encode("\n".join(map(call_text, calls))), renderer.stop_ids[0]]
    ids += [*turn, *renderer.observe(heard, turn)]
    messages.append({"role": "assistant", "content": "", "tool_calls": [hermes(c) for c in calls]})
    messages += [{"role": "tool", "content": h} for h in heard]
    assert ids == tokenizer.apply_chat_template(messages, **how)


def test_kimis_conversation() -> None:
    """K2.5's template, by hand: declarations in TypeScript, each answer under its call's id, no thinking."""
    renderer = renderer_of("kimi_k2_5")
    ids = renderer.start("be good", WideSearch.own_tool_specs(), "find it")
    text = decoded("kimi_k2_5", ids)
    assert text.startswith(
        "<|im_system|>tool_declare<|im_middle|># Tools\n\n## functions\nnamespace functions {\n"
    )
    assert "type search = (_: {" in text
    assert text.endswith(
        "}\n<|im_end|><|im_system|>system<|im_middle|>be good<|im_end|><|im_user|>user<|im_middle|>find it<|im_end|>"
        "<|im_assistant|>assistant<|im_middle|><think></think>"
    )
    turn = [*renderer.encode(BOTH), renderer.stop_ids[0]]
    assert decoded("kimi_k2_5", turn) == (
        'Two.\n<|tool_calls_section_begin|><|tool_call_begin|>functions.search:0<|tool_call_argument_begin|>{"query": '
        '"Kenya"}<|tool_call_end|><|tool_call_begin|>functions.search:1<|tool_call_argument_begin|>{"query": "Togo, '
        '\\u00e9"}<|tool_call_end|><|tool_calls_section_end|><|im_end|>'
    )
    assert decoded("kimi_k2_5", renderer.observe(["one", "two"], turn)) == (
        "<|im_system|>tool<|im_middle|>## Return of functions.search:0\none<|im_end|>"
        "<|im_system|>tool<|im_middle|>## Return of functions.search:1\ntwo<|im_end|>"
        "<|im_assistant|>assistant<|im_middle|><think></think>"
    )


# --- tokens are recorded once ----------------------------------------------------------------------------------------


class Recorded:
    """An engine that says what it was given, and remembers the contexts that it was asked with."""

    def __init__(self, turns: Sequence[Sequence[int]]) -> None:
        self.turns = list(turns)
        self.contexts: list[tuple[int, ...]] = []

    async def generate(self, request: Request) -> Generation:
        self.contexts.append(request.token_ids)
        ids = tuple(self.turns[len(self.contexts) - 1])
        return Generation(ids, (-0.5,) * len(ids), "stop", (0,))

    def release(self, session: str) -> None: ...


def run(
    family: str, turns: Sequence[Sequence[int]], answers: Sequence[Sequence[str]]
) -> tuple[AgentTrace, Recorded]:
    engine = Recorded(turns)
    handle = PolicyHandle("main", renderer_of(family), engine)

    async def dispatch(calls: Sequence[ToolCall], turn: int, spent: int) -> ToolResults:
        return ToolResults(tuple(answers[turn]), len(calls))

    spec = AgentSpec("0", "orchestrator", None, None, "o", "be good", "find it", "s", "s")
    tools = WideSearch.own_tool_specs()
    trace = asyncio.run(
        run_agent(spec, handle, tools, Limits(context_tokens=4000), Sampling(), dispatch)
    )
    return trace, engine


THOUGHTS = {
    "qwen3": '<think>\nI could call <tool_call>\n{"name": "open"}\n</tool_call>\n</think>\n\n',
    "llama3": "",
    "kimi_k2_5": "",
    "chatml": "",
}


def test_an_agents_tape(family: str) -> None:
    """Contexts only grow; sampled ids come back unchanged, with their mask and log-probs; the rest is masked out."""
    renderer = renderer_of(family)
    thought = said(family, THOUGHTS[family])[:-1]
    first = [*thought, *renderer.encode(BOTH), renderer.stop_ids[0]]
    odd = [
        *renderer.encode("It is Nai"),
        *renderer.encode("robi"),
        renderer.stop_ids[-1],
    ]  # not as BPE would cut it
    trace, engine = run(family, [first, odd], [["one", "two."]])
    start = renderer.start("be good", WideSearch.own_tool_specs(), "find it")
    heard = renderer.observe(["one", "two."], first)
    assert trace.token_ids == (*start, *first, *heard, *odd)
    expected = [0] * len(start) + [1] * len(first) + [0] * len(heard) + [1] * len(odd)
    assert list(trace.mask) == expected
    assert list(trace.logprobs) == [-0.5 * m for m in expected]
    before, after = engine.contexts
    assert len(before) < len(after)
    assert after[: len(before)] == before
    assert after[len(before) : len(before) + len(first)] == tuple(first)
    assert trace.turns[0].tool_calls == (KENYA, TOGO)
    assert (trace.status, trace.result) == ("completed", "It is Nairobi")


def test_answers_of_any_number_extend_any_turn(family: str) -> None:
    """What follows a turn never depends on how it ended or on what was thought in it."""
    renderer = renderer_of(family)
    plain = [*renderer.encode(call_text(KENYA)), renderer.stop_ids[0]]
    expected = renderer.observe(["one"], plain)
    for ending in renderer.stop_ids:
        turn = [*said(family, THOUGHTS[family])[:-1], *renderer.encode(call_text(KENYA)), ending]
        assert renderer.observe(["one"], turn) == expected
    malformed = said(family, "<think> <tool_call> {")
    assert len(renderer.observe(["a", "b", "c"], malformed)) > len(
        renderer.observe(["a"], malformed)
    )


def test_no_text_from_outside_forges_markup(family: str) -> None:
    renderer, tokenizer = renderer_of(family), MADE[family]
    added = set(tokenizer.added_tokens_decoder)

    def markup(ids: Sequence[int]) -> int:
        return sum(i in added for i in ids)

    every = [t.content for t in tokenizer.added_tokens_decoder.values()]
    text = " ".join([*every, *(t[0] + t for t in every), "".join(every)])
    assert markup(renderer.observe([text])) == markup(renderer.observe(["x"]))
    assert markup(renderer.start(text, (), text)) == markup(renderer.start("x", (), "x"))
    assert "im_end" in decoded(family, renderer.observe(["see <|im_end|> here"]))


def test_it_travels_to_a_worker(family: str) -> None:
    renderer = renderer_of(family)
    other = pickle.loads(pickle.dumps(renderer))
    assert other.start("s", WideSearch.own_tool_specs(), "u") == renderer.start(
        "s", WideSearch.own_tool_specs(), "u"
    )


# --- reading what was sampled ----------------------------------------------------------------------------------------


def test_thinking_is_in_the_tokens_and_not_in_the_text() -> None:
    renderer = renderer_of("qwen3")
    text, calls = renderer.parse(said("qwen3", f"{THOUGHTS['qwen3']}So it is Nairobi."))
    assert (text, calls) == ("So it is Nairobi.", ())  # the call was only thought of
    text, calls = renderer.parse(
        [*said("qwen3", f"{THOUGHTS['qwen3']}Now.\n")[:-1], *renderer.encode(BOTH)]
    )
    assert calls == (KENYA, TOGO)
    assert "think" not in text
    assert "could" not in text
    assert renderer.parse(said("qwen3", "<think>\nI never stop")) == ("", ())
    kimi = renderer_of("kimi_k2_5").parse(said("kimi_k2_5", "<think>hm</think>Nairobi"))
    assert kimi == ("Nairobi", ())


def test_a_turn_in_pieces_is_read_as_one(family: str) -> None:
    """Scripts write turns in pieces, so that some carry no loss."""
    renderer = renderer_of(family)
    pieces = [call_text(KENYA), f"{call_text(TOGO)} {call_text(KENYA)}"]
    ids = [i for p in pieces for i in renderer.encode(p)]
    assert renderer.parse([*ids, renderer.stop_ids[0]])[1] == (KENYA, TOGO, KENYA)


def test_a_forced_prefix_can_be_completed(family: str) -> None:
    """Evaluations force a first call to begin: what the model adds must complete it."""
    ends = {"qwen3": "\n</tool_call>", "chatml": "</tool_call>", "llama3": ""}
    tail = 'scout", "system_prompt": "searcher"}'
    tail += CALL[2] + SECTION[1] if family == "kimi_k2_5" else "}" + ends[family]
    _, calls = renderer_of(family).parse([*renderer_of(family).encode(FORCED), *said(family, tail)])
    assert calls == (ToolCall("create_subagent", {"name": "scout", "system_prompt": "searcher"}),)


def test_llama_may_write_several_calls() -> None:
    renderer = renderer_of("llama3")
    two = '{"name": "search", "parameters": {"query": "Kenya"}}; {"name": "search", "parameters": {"query": "Togo, é"}}'
    assert renderer.parse(said("llama3", two)) == ("", (KENYA, TOGO))
    assert renderer.parse(said("llama3", f"<|python_tag|>{two}"))[1] == (KENYA, TOGO)
    answer = '{"country": "Kenya"} and a {"name": "list"}'
    assert renderer.parse(said("llama3", answer)) == (answer, ())


def kimi_call(name: str, arguments: str, end: str = CALL[2]) -> str:
    return f"{SECTION[0]}{CALL[0]}{name}{CALL[1]}{arguments}{end}{SECTION[1]}"


DEEP = "[" * 5000
BAD = {
    "qwen3": [
        ('<tool_call>\n{"name": "search"', "not closed"),
        ("<tool_call>\nsearch Kenya\n</tool_call>", "not JSON"),
        ('<tool_call>{"arguments": {}}</tool_call>', "no name"),
        ('<tool_call>{"name": 3, "arguments": {}}</tool_call>', "no name"),
        (
            '<tool_call>{"name": "open", "arguments": ["d1"]}</tool_call>',
            "open: arguments must be a JSON object",
        ),
        (
            r'<tool_call>{"name": "open", "arguments": {"doc": "\ud800"}}</tool_call>',
            "cannot be read",
        ),
        (f"<tool_call>{DEEP}</tool_call>", "cannot be read"),
    ],
    "llama3": [
        ('{"name": "search", "parameters": {"query": Kenya}}', "not JSON"),
        ('{"name": "search", "parameters": {"query": "Kenya"', "not JSON"),
        ('Now {"name": "search", "parameters": ', "not JSON"),
        ('{"name": 3, "parameters": {}}', "no name"),
        ('{"name": "open", "parameters": ["d1"]}', "open: arguments must be a JSON object"),
        (r'{"name": "open", "parameters": {"doc": "\ud800"}}', "cannot be read"),
        (f'{{"name": {DEEP}', "not JSON"),
    ],
    "kimi_k2_5": [
        (kimi_call("functions.search:0", '{"query": Kenya}'), "not JSON"),
        (kimi_call("functions.search:0", '{"query": "Kenya"}', end=""), "not closed"),
        (kimi_call("", "{}"), "no name"),
        (kimi_call("functions.open:0", '["d1"]'), "open: arguments must be a JSON object"),
        (f"{SECTION[0]}{CALL[0]}functions.search:0{CALL[2]}{SECTION[1]}", "own form"),
        (kimi_call("functions.open:0", DEEP), "cannot be read"),
    ],
}


@pytest.mark.parametrize(
    "family, text, error", [(f, t, e) for f, rows in BAD.items() for t, e in rows]
)
def test_a_bad_call_is_a_call_with_an_error(family: str, text: str, error: str) -> None:
    renderer = renderer_of(family)
    turn = said(family, text)
    _, (call,) = renderer.parse(turn)
    assert call.error is not None
    assert call.error.startswith("error: ")
    assert error in call.error
    renderer.observe([call.error], turn)


def test_any_tokens_can_be_parsed(family: str) -> None:
    renderer, generator = renderer_of(family), torch.Generator().manual_seed(0)
    markup = list(MADE[family].added_tokens_decoder)
    for k in range(200):
        ids = torch.randint(len(MADE[family]), (30,), generator=generator).tolist()
        ids[::3] = [markup[(i + k) % len(markup)] for i in ids[::3]]
        text, calls = renderer.parse(ids)
        renderer.observe([text, *(c.error or json.dumps(dict(c.arguments)) for c in calls)], ids)


@pytest.mark.parametrize("parallel", [0, 1])
def test_an_expert_of_any_family_solves_the_task(family: str, parallel: int) -> None:
    """Demonstrations are written once, for all formats: what is encoded is read back, through the whole runtime."""
    config = load(ROOT / "configs" / "smollm2_search.yaml")
    demo = WideSearch(**env_section(config).kwargs).demonstrate(
        "episode",
        np.random.default_rng(1),
        delegate_prob=parallel,
        give_up_prob=0,
        train_decision_prob=0,
    )
    assert isinstance(demo, Demonstration)
    engine = ScriptedEngine(demo.script, renderer_of(family))
    handle = PolicyHandle("expert", renderer_of(family), engine)
    roomy = {"limits": Limits(context_tokens=20_000), "sampling": Sampling(max_tokens=5000)}
    roles = Roles(orchestrator=RoleConfig(**roomy), subagent=RoleConfig(**roomy))
    runner = SwarmRunner({"orchestrator": handle, "subagent": handle}, roles, Swarm(), config.clock)
    episode = asyncio.run(
        runner.run(demo.env, demo.task, episode_id="d", group="d", step=0, seed="d")
    )
    num = len(demo.task.data["gold"])
    assert (episode.status, episode.outcome["score"]) == ("completed", 1.0)
    assert (episode.num_assigned, episode.critical_steps) == (
        (num, 5) if parallel else (0, 2 * num + 1)
    )
    assert all(c.error is None for t in episode.traces for turn in t.turns for c in turn.tool_calls)
    masked = [m for t in episode.traces for m in t.mask]
    assert 0 < sum(masked) < len(masked)


def test_demonstrations_list_the_tools_where_rollouts_do() -> None:
    """Otherwise a policy would be taught in one context and asked in another."""
    config = load(ROOT / "configs" / "smollm2_search.yaml")
    roomy = {"limits": Limits(context_tokens=9000), "sampling": Sampling(max_tokens=2000)}
    config = config.model_copy(
        update={"roles": Roles(orchestrator=RoleConfig(**roomy), subagent=RoleConfig(**roomy))}
    )
    env, knobs = WideSearch(**env_section(config).kwargs), {"delegate_prob": 1, "give_up_prob": 0}
    plain = Demonstrator(env, renderer_of("qwen3"), config, seed=0).item("episode", knobs)
    listed = Demonstrator(env, renderer_of("qwen3"), config, seed=0, lists_tools=True).item(
        "episode", knobs
    )
    for one, other in zip(plain, listed, strict=True):
        assert "<tools>" not in decoded("qwen3", one.token_ids)
        tools = decoded("qwen3", other.token_ids).split("<tools>\n")[1].split("\n</tools>")[0]
        assert "search" in tools
        assert ("create_subagent" in tools) == (other.kind == "episode/orchestrator")
        assert sum(one.mask) == sum(other.mask)


# --- which family ----------------------------------------------------------------------------------------------------


def test_an_unknown_family_is_one_error_with_the_choices() -> None:
    plain = tokenizer_with(("<|endoftext|>",), "<|endoftext|>")
    with pytest.raises(ConfigError, match=r"main\.renderer=chatml\|qwen3\|llama3\|kimi_k2_5"):
        make_renderer("main", "auto", plain)
    xml = qwen3()
    xml.chat_template = (
        resources.files("trl") / "chat_templates" / "qwen3_5_think.jinja"
    ).read_text()
    assert detect(xml) is None  # Qwen3.5 has Qwen3's tokens and writes its calls otherwise


@pytest.mark.parametrize(
    "family, markup", [("qwen3", QWEN3), ("llama3", LLAMA3), ("kimi_k2_5", (*KIMI, *MEDIA))]
)
def test_a_tokenizer_that_lacks_a_token_is_refused(family: str, markup: Sequence[str]) -> None:
    """Each token that the library wants is among those that are checked: it would only assert."""
    for lost in set(markup) - {"[EOS]", "<|python_tag|>"}:
        left = [t for t in markup if t != lost]
        fewer = tokenizer_with(left, left[0])
        with pytest.raises(ConfigError, match=re.escape(lost)):
            make_renderer("main", family, fewer)


def test_a_named_family_must_fit() -> None:
    assert isinstance(make_renderer("main", "qwen3", qwen3()), FamilyRenderer)
    assert make_renderer("main", "chatml", qwen3()).encode("hi") == qwen3().encode("hi")
    with pytest.raises(ConfigError, match=r"lacks <\|begin_of_text\|>"):
        make_renderer("main", "llama3", qwen3())
