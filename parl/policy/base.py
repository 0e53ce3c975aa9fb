"""What the swarm runtime knows of a policy: token ids in; ids, log-probs and weight versions out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from parl.core.messages import Message
from parl.core.types import ToolCall
from parl.env.tools import ToolSpec


@dataclass(frozen=True, slots=True)
class Request:
    """One turn to generate.

    `session` names the agent whose context `token_ids` is: an engine keeps its key-value state between turns, so
    only what is new is fed. `messages` is the same context as text, for engines that do not read tokens.
    """

    session: str
    token_ids: tuple[int, ...]
    messages: tuple[Message, ...]
    max_tokens: int
    temperature: float
    seed: int
    adapter: str = ""
    """Which of the engine's adapters samples; empty: the model itself."""
    tools: tuple[ToolSpec, ...] = ()
    """What the agent may call, likewise for engines that do not read tokens."""
    images: tuple[str, ...] = ()
    """Data URIs of the images whose spans are in `token_ids`, in their order."""


@dataclass(frozen=True, slots=True)
class TextGeneration:
    """A turn as text, of an engine that only counts tokens."""

    text: str
    calls: tuple[ToolCall, ...]
    num_prompt: int
    """Tokens of the context that it answered, by the engine's count."""


class WindowFull(Exception):
    """An engine that does not tell tokens says that the context does not fit."""


@dataclass(frozen=True, slots=True)
class Generation:
    """Ids that were sampled, with their log-probs at sampling (temperature applied), stop token included.

    `versions` is the weight version that sampled them, or one per token where the weights changed on the way. `mask` is
    None but for demonstrations, where it marks the tokens that carry loss. `written` is there where the renderer cannot
    read the ids: they are UNKNOWN_TOKEN then, and the mask is 0.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: Literal["stop", "length"]
    versions: tuple[int, ...]
    mask: tuple[int, ...] | None = None
    written: TextGeneration | None = None


class Engine(Protocol):
    """Where generation runs is the engine's business."""

    async def generate(self, request: Request) -> Generation:
        """Sample one turn. Raises WindowFull, EndpointFailure: only engines that are asked over a network."""
        ...

    def release(self, session: str) -> None:
        """The agent has ended: its state may be dropped."""
        ...


def cast(model: Any, dtype: Any) -> Any:
    """The model with parameters of another type, in place. Buffers stay as they are: the frequencies of a rotary
    embedding would lose most of their digits."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


Blueprint = Callable[[], Any]
"""A picklable recipe of an engine without its weights, for a worker in another process."""


class WeightedEngine(Engine, Protocol):
    """An engine with weights: of the model itself (the part "") and of adapters on it (by name)."""

    versions: dict[str, int]
    """Weight version of each part."""
    serial: str
    """Tells engines apart, whatever their versions."""

    @property
    def version(self) -> int:
        """Of all parts together: it grows with each change of any."""
        ...

    def load_weights(self, weights: Mapping[str, Any], version: int, part: str = "") -> None:
        """Replace the weights of a part. Raises RuntimeError when a name or shape does not fit."""
        ...

    def export_weights(self, part: str = "") -> dict[str, Any]:
        """A part's weights as numpy arrays."""
        ...

    def blueprint(self) -> Blueprint:
        """How to build this engine in another process, to which `load_weights` then gives its weights."""
        ...

    def score(self, token_ids: Sequence[int], part: str = "", images: Sequence[str] = ()) -> Any:
        """Log-probs (T-1,) of a sequence's tokens, by the path that sampling takes: what a sync is checked with."""
        ...

    def probe(self, token_ids: Sequence[int]) -> Any:
        """`score` by each part, one row each: what another process's engine with these weights says."""
        ...


class Renderer(Protocol):
    """Messages <-> tokens, append-only: what was fed or sampled is never rendered again."""

    @property
    def stop_ids(self) -> tuple[int, ...]: ...

    def start(self, system: str, tools: Sequence[ToolSpec], user: str) -> list[int]:
        """The prompt, up to and including the header of the assistant's first turn."""
        ...

    def observe(self, observations: Sequence[str], said: Sequence[int] = ()) -> list[int]:
        """What follows the assistant's stop token: the tool messages and the next assistant header.

        `said` is the turn that they answer: some formats name each call again beside its answer.
        """
        ...

    def parse(self, token_ids: Sequence[int]) -> tuple[str, tuple[ToolCall, ...]]:
        """A sampled turn as text (without thinking) and tool calls; a call that is not valid has an `error`."""
        ...

    def encode(self, text: str) -> list[int]:
        """The assistant's own text as tokens (markup allowed): demonstrations and forced prefixes.

        Calls in it are written `<tool_call>{"name": NAME, "arguments": {...}}</tool_call>`, whatever the model's own
        form is.
        """
        ...

    def show(self, text: str) -> list[int]:
        """A text from outside as tokens, its images among them."""
        ...

    def images(self, text: str) -> tuple[str, ...]:
        """The images of a text from outside that the model is shown, in order; none where it reads `[image]`."""
        ...


@dataclass(frozen=True, slots=True)
class PolicyHandle:
    """A named policy: how to speak with it and who samples."""

    name: str
    renderer: Renderer
    engine: Engine
    tools_in_prompt: bool = True
    """Whether the system message lists the tools."""
    adapter: str = ""
    """Of the engine, in each request."""
    base: str = ""
    """The policy whose engine it is, where that is another one."""
