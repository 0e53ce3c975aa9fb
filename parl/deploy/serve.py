"""`parl serve`: the policies of a run behind an OpenAI-compatible endpoint.

In: requests with a client's whole history. Out: sampled turns. A history that extends one we have on record goes on
with its recorded tokens; any other is rendered anew. Each turn's tokens and log-probs are kept and may go to a file.
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
from parl.gateway.conversation import Conversation, check_images, key
from parl.policy.base import PolicyHandle
from parl.runs.folder import read_resolved

MAX_CONVERSATIONS = 256
"""Conversations on record, those with an engine's state; of more, the one that was silent longest is forgotten."""


@dataclass(frozen=True, slots=True)
class ServedPolicy:
    """A policy, and what holds where a request says nothing."""

    policy: PolicyHandle
    window: int
    """Most tokens of a conversation."""
    max_tokens: int
    temperature: float


class Service:
    """Answers for all policies, and keeps the conversations."""

    def __init__(self, served: Mapping[str, ServedPolicy], record: IO[str] | None = None) -> None:
        self._served, self._record = served, record
        self._names = itertools.count()
        self._kept: OrderedDict[str, tuple[Conversation, list[str]]] = (
            OrderedDict()
        )  # and the keys that lead to it
        self._turns: dict[
            str, tuple[Conversation, int]
        ] = {}  # key of a history -> who has it, up to which turn
        self._busy: set[str] = set()
        self.counts = Counter[str]()
        """`turns`, `conversations` (all that were begun), `branches` (of one on record), `resets` (a history with turns
        that are not on record was rendered anew)."""

    @property
    def models(self) -> Sequence[str]:
        return tuple(self._served)

    def conversations(self) -> list[Conversation]:
        """Those on record, the one that spoke last at the end."""
        return [conversation for conversation, _ in self._kept.values()]

    async def chat(self, request: ChatRequest) -> Reply:
        """Sample one turn. Raises ApiError."""
        served = self._served.get(request.model)
        if served is None:
            hint = did_you_mean(request.model, self._served)
            raise ApiError(
                404, "model_not_found", f"There is no model '{request.model}'.{hint}", "model"
            )
        check_images(served.policy, request)
        talk = self._continue(request) or self._begin(served.policy, request)
        room = served.window - len(talk.tape.ids)
        if room <= 0:
            told = (
                f"The conversation has {len(talk.tape.ids)} tokens; the window is {served.window}."
            )
            raise ApiError(400, "context_length_exceeded", told, "messages")
        seed = secrets.randbits(63) if request.seed is None else seed_for("serve", request.seed)
        temperature = served.temperature if request.temperature is None else request.temperature
        written = talk.turns[-1].end if talk.id in self._kept else 0
        self._busy.add(talk.id)
        try:
            reply = await talk.speak(
                min(room, request.max_tokens or served.max_tokens), temperature, seed
            )
        except BaseException:  # a deadline, too: the engine's state may end in the middle of a turn
            served.policy.engine.release(talk.session)
            raise
        finally:
            self._busy.discard(talk.id)
        self._keep(talk, key(request.model, request.tools, (*request.messages, reply.message)))
        self._write(request.model, talk, written)
        return reply

    def _continue(self, request: ChatRequest) -> Conversation | None:
        """The conversation that the request extends, with what is new fed; None where none is on record."""
        said = request.num_said
        found = (
            self._turns.get(key(request.model, request.tools, request.messages[:said]))
            if said
            else None
        )
        if found is None:
            self.counts["resets"] += bool(said)
            return None
        talk, num_turns = found
        tip = num_turns == len(talk.turns) and len(talk.tape.ids) == talk.turns[-1].end
        if not tip or talk.id in self._busy:
            talk = talk.branch(*self._name(), num_turns)
            self.counts["branches"] += 1
        news = request.messages[said:]
        texts, ids = talk.observation(news)
        talk.note(texts, env_calls=0)
        talk.hear(news, ids)
        return talk

    def _begin(self, policy: PolicyHandle, request: ChatRequest) -> Conversation:
        name, session = self._name()
        return Conversation.begin(name, session, policy, request)

    def _name(self) -> tuple[str, str]:
        self.counts["conversations"] += 1
        name = f"{next(self._names)}"
        return name, f"serve/{name}"

    def _keep(self, talk: Conversation, history: str) -> None:
        self.counts["turns"] += 1
        _, keys = self._kept.pop(talk.id, (talk, []))
        self._kept[talk.id] = talk, [*keys, history]
        self._turns[history] = talk, len(talk.turns)
        while len(self._kept) > MAX_CONVERSATIONS:
            silent = next(name for name in self._kept if name not in self._busy)
            forgotten, keys = self._kept.pop(silent)
            forgotten.policy.engine.release(forgotten.session)
            for lost in keys:
                if self._turns.get(lost, (None, 0))[0] is forgotten:
                    del self._turns[lost]

    def _write(self, model: str, talk: Conversation, since: int) -> None:
        """One line per turn. The lines of a conversation, one after the other, are all of its tokens."""
        if self._record is None:
            return
        turn, tape = talk.turns[-1], talk.tape
        line = {
            "conversation": talk.id,
            "model": model,
            "turn": len(talk.turns) - 1,
            "token_ids": tape.ids[since:],
            "mask": tape.mask[since:],
            "logprobs": tape.logprobs[since:],
            "policy_versions": list(turn.policy_versions),
            "text": turn.text,
        }
        self._record.write(json.dumps(line) + "\n")
        self._record.flush()


def serve(
    run: Path, checkpoint: str | None, host: str, port: int | None, record: Path | None
) -> None:
    """Serve a run's policies until Ctrl-C. Raises CheckpointError, ConfigError."""
    import uvicorn

    served, name = _policies(run, checkpoint)
    with ExitStack() as stack:
        listening = stack.enter_context(listen(host, port))
        file = stack.enter_context(_open(record)) if record else None
        service = Service(served, file)
        app = make_app(lambda path, key: service, ServerLimits(), own_names(host))
        print(
            f"{run} ({name}) serves {', '.join(served)} at {url(host, listening)}/v1 (Ctrl-C ends it)",
            flush=True,
        )
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)
        with suppress(KeyboardInterrupt):  # uvicorn has closed everything when it raises it
            uvicorn.Server(config).run(sockets=[listening])
    counts = service.counts
    print(
        f"{counts['turns']} turns in {counts['conversations']} conversations; {counts['branches']} branches, "
        f"{counts['resets']} resets (histories that were not on record)."
    )


def _policies(run: Path, checkpoint: str | None) -> tuple[dict[str, ServedPolicy], str]:
    """By name, each with the sampling of the role that it plays, and the name of the checkpoint."""
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
        if handle.name in policies.remote:
            continue  # it is served already
        sampling = config.roles.of(role).sampling
        window = policies.models[handle.name].config.max_position_embeddings
        served.setdefault(handle.name, ServedPolicy(handle, window, sampling.max_tokens, 1.0))
    return served, folder.name


def _open(path: Path) -> IO[str]:
    try:
        return path.open("a", encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"--record {path}: {error.strerror}. Name a file in a folder that exists."
        ) from None
