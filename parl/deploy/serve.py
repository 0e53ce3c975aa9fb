"""`parl serve`: the policies of a run behind an OpenAI-compatible endpoint.

A request has the client's whole history. Where it extends a conversation on record, the recorded
tokens go on, so that a turn is sampled after exactly the tokens that were sampled before. Any other
history is rendered again. The tokens and log-probs of each turn are kept and may go to a file.
"""

from __future__ import annotations

import itertools
import json
import secrets
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from parl.config import parse
from parl.core import manifest
from parl.core.errors import ConfigError, did_you_mean
from parl.core.machine import pin_threads
from parl.core.net import listen, own_names, url
from parl.core.seeds import seed_for
from parl.core.types import ROLES
from parl.env.registry import make_env
from parl.gateway.app import ServerLimits, make_app
from parl.gateway.chat import ApiError, ChatRequest, Reply
from parl.gateway.conversation import Conversation, check_images, history_key
from parl.policy.base import PolicyHandle
from parl.runs.folder import read_resolved

MAX_CONVERSATIONS = 256
"""Conversations on record, each with an engine's state. The one that was silent longest is dropped."""
DEFAULT_TEMPERATURE = 1.0


@dataclass(frozen=True, slots=True)
class ServedPolicy:
    """A policy, and the values that hold where a request has none."""

    policy: PolicyHandle
    window: int
    """Most tokens of a conversation."""
    max_tokens: int
    """Most tokens of a turn."""
    temperature: float


@dataclass(slots=True)
class _Recorded:
    """A conversation on record."""

    conversation: Conversation
    histories: list[str]
    """Keys of the histories that lead to it, one for each of its turns that a client got."""


class Service:
    """Answers requests for all policies, and keeps their conversations."""

    def __init__(self, served: Mapping[str, ServedPolicy], record: IO[str] | None = None) -> None:
        """Create a service.

        Args:
            served: name of a model in requests -> its policy.
            record: gets a line of JSON for each turn.
        """
        self._served = served
        self._record = record
        self._numbers = itertools.count()
        # By name of the conversation, the one that was silent longest first.
        self._recorded: OrderedDict[str, _Recorded] = OrderedDict()
        # Key of a history -> the conversation that has it, and how many of its turns belong to it.
        self._by_history: dict[str, tuple[Conversation, int]] = {}
        # Names of conversations in which a turn is being sampled.
        self._busy: set[str] = set()
        self.counts = Counter[str]()
        """`turns`, `conversations` (all that were begun), `branches` (of one on record), `resets`
        (a history with turns that are not on record was rendered again)."""

    @property
    def models(self) -> Sequence[str]:
        return tuple(self._served)

    def conversations(self) -> list[Conversation]:
        """Return the conversations on record, the one that spoke last at the end."""
        return [recorded.conversation for recorded in self._recorded.values()]

    async def chat(self, request: ChatRequest) -> Reply:
        """Sample one turn.

        Raises:
            ApiError: no such model, or a history that does not fit its window.
        """
        served = self._served.get(request.model)
        if served is None:
            hint = did_you_mean(request.model, self._served)
            raise ApiError(
                404, "model_not_found", f"There is no model '{request.model}'.{hint}", "model"
            )
        check_images(served.policy, request)
        conversation = self._continue(request) or self._begin(served.policy, request)
        num_tokens = len(conversation.tape.ids)
        room = served.window - num_tokens
        if room <= 0:
            message = f"The conversation has {num_tokens} tokens; the window is {served.window}."
            raise ApiError(400, "context_length_exceeded", message, "messages")

        max_tokens = min(room, request.max_tokens or served.max_tokens)
        temperature = served.temperature if request.temperature is None else request.temperature
        seed = secrets.randbits(63) if request.seed is None else seed_for("serve", request.seed)
        # A branch repeats the tokens of its origin; its first line in the file has them all.
        is_recorded = conversation.id in self._recorded
        num_written = conversation.turns[-1].end if is_recorded else 0
        self._busy.add(conversation.id)
        try:
            reply = await conversation.sample_turn(max_tokens, temperature, seed)
        except BaseException:
            # A deadline as well: the engine's state may end in the middle of a turn.
            served.policy.engine.release(conversation.session)
            raise
        finally:
            self._busy.discard(conversation.id)
        history = history_key(request.model, request.tools, (*request.messages, reply.message))
        self._keep(conversation, history)
        self._write(request.model, conversation, num_written)
        return reply

    def _continue(self, request: ChatRequest) -> Conversation | None:
        """Return the conversation that the request extends, with the new messages fed.

        None where no conversation on record has the request's history.
        """
        num_known = request.history_length
        if num_known == 0:
            return None
        history = history_key(request.model, request.tools, request.messages[:num_known])
        if history not in self._by_history:
            self.counts["resets"] += 1
            return None

        conversation, num_turns = self._by_history[history]
        is_last_turn = num_turns == len(conversation.turns)
        # After its last turn it may have been fed already, by a request whose turn failed.
        is_at_end = is_last_turn and len(conversation.tape.ids) == conversation.turns[-1].end
        if not is_at_end or conversation.id in self._busy:
            conversation = conversation.branch(*self._new_name(), num_turns)
            self.counts["branches"] += 1
        new_messages = request.messages[num_known:]
        texts, token_ids = conversation.render_observations(new_messages)
        conversation.record_observations(texts, env_calls=0)
        conversation.feed(new_messages, token_ids)
        return conversation

    def _begin(self, policy: PolicyHandle, request: ChatRequest) -> Conversation:
        name, session = self._new_name()
        return Conversation.begin(name, session, policy, request)

    def _new_name(self) -> tuple[str, str]:
        """Return the name of a new conversation, and of its session in the engine."""
        self.counts["conversations"] += 1
        name = str(next(self._numbers))
        return name, f"serve/{name}"

    def _keep(self, conversation: Conversation, history: str) -> None:
        """Put the conversation on record after a turn, and drop one where there are too many."""
        self.counts["turns"] += 1
        recorded = self._recorded.pop(conversation.id, None) or _Recorded(conversation, [])
        recorded.histories.append(history)
        self._recorded[conversation.id] = recorded
        self._by_history[history] = conversation, len(conversation.turns)
        while len(self._recorded) > MAX_CONVERSATIONS:
            self._drop(next(name for name in self._recorded if name not in self._busy))

    def _drop(self, name: str) -> None:
        dropped = self._recorded.pop(name)
        conversation = dropped.conversation
        conversation.policy.engine.release(conversation.session)
        for history in dropped.histories:
            # Another conversation may have come to the same history later; it keeps the entry.
            owner, _ = self._by_history.get(history, (None, 0))
            if owner is conversation:
                del self._by_history[history]

    def _write(self, model: str, conversation: Conversation, start: int) -> None:
        """Write the tokens from `start` on, as a line of JSON.

        The lines of a conversation one after another are all of its tokens.
        """
        if self._record is None:
            return
        turn = conversation.turns[-1]
        tape = conversation.tape
        line = {
            "conversation": conversation.id,
            "model": model,
            "turn": len(conversation.turns) - 1,
            "token_ids": tape.ids[start:],
            "mask": tape.mask[start:],
            "logprobs": tape.logprobs[start:],
            "policy_versions": list(turn.policy_versions),
            "text": turn.text,
        }
        self._record.write(json.dumps(line) + "\n")
        self._record.flush()


def serve(
    run: Path, checkpoint: str | None, host: str, port: int | None, record: Path | None
) -> None:
    """Serve a run's policies until Ctrl-C.

    Args:
        run: the run folder.
        checkpoint: its name; None = the newest.
        host: address to listen at.
        port: None = any free one.
        record: a file that gets a line of JSON for each turn.
    Raises:
        CheckpointError: no run, no such checkpoint, or a damaged one.
        ConfigError: host, port or record cannot be used.
    """
    import uvicorn

    served, checkpoint_name = _policies(run, checkpoint)
    with ExitStack() as stack:
        listening = stack.enter_context(listen(host, port))
        file = stack.enter_context(_open(record)) if record else None
        service = Service(served, file)
        app = make_app(lambda path, key: service, ServerLimits(), own_names(host))
        print(
            f"{run} ({checkpoint_name}) serves {', '.join(served)} at {url(host, listening)}/v1 "
            "(Ctrl-C ends it)",
            flush=True,
        )
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)
        with suppress(KeyboardInterrupt):  # uvicorn has closed everything when it raises it
            uvicorn.Server(config).run(sockets=[listening])
    counts = service.counts
    print(
        f"{counts['turns']} turns in {counts['conversations']} conversations; "
        f"{counts['branches']} branches, "
        f"{counts['resets']} resets (histories that were not on record)."
    )


def _policies(run: Path, checkpoint: str | None) -> tuple[dict[str, ServedPolicy], str]:
    """Load the policies of a checkpoint.

    Returns:
        Name -> policy, each with the limits of the first role that it plays, and the checkpoint's
        name.
    """
    # Here, after the command line was checked: the learner loads torch.
    from parl.learner import checkpoint as checkpoints
    from parl.learner.policies import PolicySet

    config = parse(read_resolved(run), source=str(run))
    folder = checkpoints.find(run, checkpoint)
    manifest.verify(folder)
    pin_threads(config.threads)
    policies = PolicySet(config, make_env(config.env), folder)
    policies.engines.start()
    handles = policies.handles()
    served: dict[str, ServedPolicy] = {}
    for role in ROLES:
        handle = handles[role]
        if handle.name in policies.remote or handle.name in served:
            continue  # a remote policy has an endpoint already
        served[handle.name] = ServedPolicy(
            policy=handle,
            window=policies.models[handle.name].config.max_position_embeddings,
            max_tokens=config.roles.of(role).sampling.max_tokens,
            temperature=DEFAULT_TEMPERATURE,
        )
    return served, folder.name


def _open(path: Path) -> IO[str]:
    try:
        return path.open("a", encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"--record {path}: {error.strerror}. Name a file in a folder that exists."
        ) from None
