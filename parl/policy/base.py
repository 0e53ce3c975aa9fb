"""The interface between the runtime and a policy: what an engine and a renderer must offer.

A policy has two parts. Its *renderer* turns messages into token ids and sampled ids into text and
tool calls. Its *engine* samples: token ids go in; ids, log-probs and weight versions come out. The
runtime knows nothing else of a policy, so an engine may run in this process, in another one, or
behind an endpoint.

Example: the second turn of an agent. The ids are those of a small vocabulary in which 9 is the stop
token.

    request = Request(
        session="step3/task-17/0",
        token_ids=(1, 2, 7, 9, 3),  # prompt (1, 2), first turn (7, 9), observation (3)
        messages=(
            {"role": "user", "content": "Find it.", "tool_calls": []},
            {"role": "assistant", "content": "", "tool_calls": [{"name": "search", ...}]},
            {"role": "tool", "content": "Kenya", "tool_calls": []},
        ),
        max_tokens=64,
        temperature=1.0,
        seed=1234,
    )

    await engine.generate(request) == Generation(
        token_ids=(8, 9),
        logprobs=(-1.2, -0.3),
        finish="stop",
        versions=(5,),  # weight version 5 sampled all of them
    )

An engine that feeds a cache finds the first four ids in the state of the session and feeds the
fifth alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from parl.core.messages import Message
from parl.core.types import ToolCall
from parl.env.tools import ToolSpec

# At run time this module needs no torch: checks of an environment import it, and want to be quick.
if TYPE_CHECKING:
    import numpy as np
    import torch


@dataclass(frozen=True, slots=True)
class Request:
    """One turn to generate."""

    session: str
    """The agent whose context this is.

    An engine may keep the session's state between turns and feed only the ids that are new.
    """
    token_ids: tuple[int, ...]
    """The context, from the first token of the prompt."""
    messages: tuple[Message, ...]
    """The same context as messages, for engines that do not read tokens."""
    max_tokens: int
    """Most tokens to sample, the stop token included."""
    temperature: float
    """0 takes the most probable token."""
    seed: int
    """Seed of this turn's random draws."""
    adapter: str = ""
    """Name of the engine's adapter that samples; empty for the model itself."""
    tools: tuple[ToolSpec, ...] = ()
    """Tools that the agent may call, for engines that do not read tokens."""
    images: tuple[str, ...] = ()
    """Data URIs of the images whose placeholder ids are in `token_ids`, in their order."""


@dataclass(frozen=True, slots=True)
class TextGeneration:
    """A turn as text, from an engine that counts tokens and does not show them."""

    text: str
    calls: tuple[ToolCall, ...]
    num_prompt: int
    """Tokens of the context that it answered, as the engine counts them."""


class WindowFull(Exception):
    """Raised by an engine that does not show tokens when the context does not fit its window."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One sampled turn of N tokens."""

    token_ids: tuple[int, ...]
    """The N sampled ids, the stop token included."""
    logprobs: tuple[float, ...]
    """Log-prob of each id under the distribution it was drawn from, temperature applied."""
    finish: Literal["stop", "length"]
    """Whether a stop token or `max_tokens` ended the turn."""
    versions: tuple[int, ...]
    """The weight version that sampled the turn, or N versions where the weights changed in it."""
    mask: tuple[int, ...] | None = None
    """Demonstrations: 1 for tokens that carry loss. None where all do."""
    as_text: TextGeneration | None = None
    """The turn as text, from an engine that does not show tokens.

    Its `token_ids` are N times UNKNOWN_TOKEN then, and its `mask` is 0.
    """


class Engine(Protocol):
    """Samples turns. Many agents call it at once."""

    async def generate(self, request: Request) -> Generation:
        """Sample one turn.

        Requests of one session come one after the other; those of different sessions overlap.

        Raises:
            WindowFull: the context does not fit; only engines that do not show tokens.
            EndpointFailure: no turn came back; only engines behind a network.
        """
        ...

    def release(self, session: str) -> None:
        """Drop the state of an agent that has ended.

        Called once an agent has ended for any reason, also in the middle of a turn and for a
        session that was never used.
        """
        ...


class WeightedEngine(Engine, Protocol):
    """An engine whose weights can be replaced: those of the model and of adapters on it.

    A *part* is one of them: "" is the model itself, any other string the name of an adapter.
    """

    versions: dict[str, int]
    """Weight version of each part."""
    serial: str
    """Identifies this engine, whatever its versions are."""

    @property
    def version(self) -> int:
        """A number that grows with each change of any part."""
        ...

    def load_weights(self, weights: Mapping[str, Any], version: int, part: str = "") -> None:
        """Replace the weights of a part.

        Turns may be in progress: their later tokens are sampled by the new weights and carry the
        new version.

        Args:
            weights: parameter name -> array or tensor, all parameters of the part.
            version: the version that tokens sampled from now on carry.
            part: the part.

        Raises:
            RuntimeError: a name or shape does not fit.
        """
        ...

    def export_weights(self, part: str = "") -> dict[str, np.ndarray[Any, Any]]:
        """Return the weights of a part, by parameter name."""
        ...

    def blueprint(self) -> Blueprint:
        """Return a recipe of this engine for another process.

        The recipe holds no weights: `load_weights` gives them to the engine that it builds.
        """
        ...

    def score(
        self, token_ids: Sequence[int], part: str = "", images: Sequence[str] = ()
    ) -> torch.Tensor:
        """Return the log-probs (T-1,) of a sequence of T tokens after its first one.

        They are computed the way sampling computes them, cache included. A comparison with the
        learner's log-probs therefore shows an engine that samples with outdated weights.

        Args:
            token_ids: the sequence, T ids.
            part: the part that scores it.
            images: data URIs of the images in it.
        """
        ...

    def probe(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Return `score` by each part, as rows (parts, T-1) in the order of `versions`.

        An engine with the same weights in another process returns the same values.
        """
        ...


Blueprint = Callable[[], WeightedEngine]
"""A picklable recipe of an engine without its weights."""


class Renderer(Protocol):
    """Turns messages into token ids and sampled ids into messages.

    A renderer is append-only: what was fed or sampled is never rendered again. The ids of a
    conversation are

        start(...) + sampled turn + observe(...) + sampled turn + observe(...) + ...

    so a longer conversation always begins with the ids of the shorter one, and the ids that are
    trained are those that were sampled.
    """

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end a turn. The first one is appended where a turn must be closed."""
        ...

    def start(self, system: str, tools: Sequence[ToolSpec], user: str) -> list[int]:
        """Render the prompt, up to and including the header of the assistant's first turn.

        Args:
            system: system message; empty for none.
            tools: tools that the system message lists.
            user: the task.
        """
        ...

    def observe(self, observations: Sequence[str], turn_ids: Sequence[int] = ()) -> list[int]:
        """Render the tool messages that answer a turn, and the header of the next turn.

        The first id is the one after the stop token of the turn.

        Args:
            observations: one text for each call of the turn, in order.
            turn_ids: the sampled turn. Some formats name each call again in its answer.
        """
        ...

    def parse(self, token_ids: Sequence[int]) -> tuple[str, tuple[ToolCall, ...]]:
        """Read a sampled turn.

        Returns:
            Its text without thinking, and its tool calls in order. A call that cannot be read has
            an `error`; reading never raises.
        """
        ...

    def encode(self, text: str) -> list[int]:
        """Encode text in the assistant's name: demonstrations and forced prefixes.

        Markup is allowed. The renderer turns calls into the format of its model; in `text` each is
        written `<tool_call>{"name": NAME, "arguments": {...}}</tool_call>`.
        """
        ...

    def show(self, text: str) -> list[int]:
        """Encode text from outside and its images. It can form no markup."""
        ...

    def images(self, text: str) -> tuple[str, ...]:
        """Return the data URIs of the images in a text from outside that the model is shown.

        An image that the model is not shown is rendered as `[image]` and is not among them.
        """
        ...


@dataclass(frozen=True, slots=True)
class PolicyHandle:
    """A policy as the runtime uses it: how to talk to it and who samples."""

    name: str
    renderer: Renderer
    engine: Engine
    tools_in_prompt: bool = True
    """Whether the system message lists the tools."""
    adapter: str = ""
    """The engine's adapter that requests of this policy name; empty for the model itself."""
    base: str = ""
    """Name of the policy that the engine belongs to, where it is another one."""
