"""A model that is served: its engine, its queue, and texts to vectors through both."""

from __future__ import annotations

import asyncio
import functools
import math
import queue
import time
from collections import Counter
from collections.abc import Callable, Generator, Hashable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from thalweg.checks import whole_number
from thalweg.embedder.documents import open_text
from thalweg.embedder.embedder import Embedder
from thalweg.embedder.prefixes import Prefixes, TextPrefixes
from thalweg.engine.engine import Engine
from thalweg.engine.results import DocumentState, Failure, Pooled
from thalweg.engine.schedule import Schedule
from thalweg.engine.sources import Ids as IdSource
from thalweg.engine.sources import TokenSource
from thalweg.errors import InvalidInputError
from thalweg.models.protocol import State
from thalweg.packing import Packing
from thalweg.pooling import Pooling
from thalweg.pooling.vectors import FloatArray, finish
from thalweg.serve.admission import Admission
from thalweg.serve.engine_thread import EngineThread
from thalweg.serve.settings import Settings
from thalweg.serve.texts import SHORT_CHARS, Ids, LongText, TextGroups

SLICE = 64
"""Texts of a request that are tokenised at a time."""

HIDDEN_TOKENS = 128
"""Tokens of a text whose hidden vectors are asked for that are run at a time."""

LEARNED_CHARS = 100_000
"""Characters over which the tokens of a character are measured."""

INLINE = 8
"""Vectors up to which a request's are finished in the event loop, at some 40 µs each."""

KEPT_PROMPT = (64, 1 << 14)
"""Characters of a prompt that may be worth a state, and up to which one is sought: it is tokenised several times."""


@dataclass(frozen=True)
class Wish:
    """What a vector is to be, and whose.

    prompt: put before the text; normalize, dimensions: None does what the model says; client: among whom the model is
    shared; owner: who else may use the state of this prompt; priority: of the engine.
    """

    prompt: str = ""
    normalize: bool | None = None
    dimensions: int | None = None
    client: Hashable = None
    owner: str | None = None
    priority: int = 0


class ServedModel:
    """One model. Made in the main thread, used in one event loop.

    Args:
        embedder: its tokenizer reads special tokens as it is told.
        names: under which it is served, the first of which answers show.
        settings: of the server.
        pool: tokenises.
        schedule: the bounds of its steps.
        on_step: see `EngineThread`.
        on_embedded: called with the texts of a request that was embedded, and the seconds for which it waited for room,
            was tokenised, and was in the engine.
    """

    def __init__(
        self,
        embedder: Embedder,
        names: Sequence[str],
        settings: Settings,
        pool: Executor,
        *,
        schedule: Schedule,
        on_step: Callable[[int, float, Counter[Hashable]], None] | None = None,
        on_embedded: Callable[[int, float, float, float], None] | None = None,
    ) -> None:
        self.embedder = embedder
        self.names = tuple(names)
        self.pool = pool
        self._on_embedded = on_embedded
        self.eos = embedder.probe_id
        engine = Engine(
            embedder.model,
            embedder.pooling,
            schedule,
            probe_id=self.eos,
            appends_eos=embedder.appends_eos,
        )
        self.thread = EngineThread(engine, self.names[0], on_step)
        self.admission = Admission(
            settings.max_queued_tokens, settings.max_queued_texts, settings.max_wait, lambda: self.thread.rate
        )
        self.prefixes = Prefixes(settings.prefix_memory)
        self._prefix_pool = ThreadPoolExecutor(2, "thalweg-prefixes")  # it waits for the engine
        self._hidden_lock = asyncio.Lock()
        self._groups = TextGroups(embedder.tokenizer, pool)
        self._chars, self._tokens = 1000.0, 300.0  # of texts of late
        self._warm_up()

    @property
    def name(self) -> str:
        """The name that answers show."""
        return self.names[0]

    def _warm_up(self) -> None:
        """One full step: the peak of the memory is reached, and there is a rate."""
        n = self.thread.engine.schedule.max_tokens_per_step
        ids = np.full(n, min(1, self.embedder.tokenizer.vocab_size - 1), dtype=np.int32)
        for result in ThreadedEmbedder(self).run_sources([IdSource(ids)]):
            if isinstance(result, Failure):
                raise result.error

    def close(self) -> None:
        """Drop what is under way and end the threads."""
        self.thread.close()
        self._prefix_pool.shutdown(wait=False, cancel_futures=True)

    # -- what is asked for -------------------------------------------------------------------------------------------

    def prompt(self, prompt: str | None, prompt_name: str | None) -> str:
        """See `Embedder.prompt`; with its errors."""
        return self.embedder.checked_prompt(prompt, prompt_name)

    def check_dimensions(self, dimensions: int | None) -> None:
        """Raises InvalidInputError."""
        if dimensions is not None:
            whole_number("dimensions", dimensions, 1, self.embedder.dimension)

    def checked_ids(self, ids: Sequence[int]) -> Ids:
        """Ids (n,) of this model's tokenizer.

        Raises:
            InvalidInputError: it does not have one of them.
        """
        most = self.embedder.tokenizer.vocab_size - 1
        given = np.array(ids, dtype=np.int64)
        outside = (given < 0) | (given > most)
        if outside.any():
            place = int(outside.argmax())
            raise InvalidInputError(
                f"token {place} is {given[place]}, but the ids of {self.name} are 0 to {most}: send texts, or ids of "
                "this model's own tokenizer (/tokenize)"
            )
        return given.astype(np.int32)

    def whole_ids(self, ids: Sequence[int], prompt: str) -> Ids:
        """The ids (n,) of a text as the model takes them: after the prompt's, with BOS and EOS, unless they are there.

        Raises as `checked_ids` does.
        """
        tokenizer, own = self.embedder.tokenizer, self.checked_ids(ids)
        prefix, suffix = (np.array(each, dtype=np.int32) for each in (tokenizer.prefix, tokenizer.suffix))
        if len(prefix) and np.array_equal(own[: len(prefix)], prefix):
            own = own[len(prefix) :]
        if len(suffix) and np.array_equal(own[len(own) - len(suffix) :], suffix):
            own = own[: len(own) - len(suffix)]
        if prompt:
            before = tokenizer.encode_batch([prompt])[0]
            prefix = before[: len(before) - len(suffix)]
        return np.concatenate([prefix, own, suffix])

    async def ids_of(self, texts: Sequence[str | list[int]], prompt: str) -> list[Ids]:
        """The ids (n,) of texts, none of them empty, as the model takes them; raises as `embed` does."""
        strings = [text for text in texts if isinstance(text, str)]
        found = iter(await self._groups.ids(strings, prompt) if strings else [])
        ids = [next(found) if isinstance(text, str) else self.whole_ids(text, prompt) for text in texts]
        empty = np.array([] if self.eos is None else [self.eos], dtype=np.int32)
        return [each if len(each) else empty for each in ids]

    def estimate(self, text: str | bytes | Ids) -> int:
        """About how many tokens a text has."""
        return int(len(text) * self._tokens / self._chars) + 2 if isinstance(text, str | bytes) else len(text)

    def finished(self, pooled: Sequence[FloatArray], wish: Wish) -> FloatArray:
        """(n, d) float32: vectors as they leave the engine, made what was wished for."""
        normalize = self.embedder.embedding_config.normalize if wish.normalize is None else wish.normalize
        joined = np.stack([self.embedder.after_pooling(vector) for vector in pooled])
        return finish(joined, normalize=normalize, truncate_dim=wish.dimensions)

    # -- texts to vectors --------------------------------------------------------------------------------------------

    async def embed(self, inputs: Sequence[str | Ids], wish: Wish, *, patient: bool = False) -> tuple[FloatArray, int]:
        """The vectors (n, d) of texts or ids, and how many tokens these are.

        Cancelling it takes the texts out of the engine.

        Raises:
            RequestError: 429.
            ThalwegError: of a text that cannot be embedded.
        """
        of_prompt = self.estimate(wish.prompt)
        tokens = sum(self.estimate(each) + of_prompt for each in inputs)
        times = [time.perf_counter()]
        ticket = await self.admission.enter(wish.client, tokens, len(inputs), patient=patient)
        with self.admission.held(ticket):
            times.append(time.perf_counter())
            prefixes = await self._prefixes(wish)
            batch = _Batch(len(inputs), self.thread)
            try:
                await self._add(
                    inputs, wish, batch, prefixes, lambda n, taken: self.admission.set_tokens(ticket, n, taken)
                )
                times.append(time.perf_counter())
                results = await batch.done
                times.append(time.perf_counter())
            finally:
                batch.remove_all()
        if self._on_embedded is not None:
            self._on_embedded(len(inputs), *(after - before for before, after in pairwise(times)))
        pooled = [result.vector for result in results]
        if len(pooled) <= INLINE:
            vectors = self.finished(pooled, wish)
        else:
            vectors = await asyncio.get_running_loop().run_in_executor(self.pool, self.finished, pooled, wish)
        total = sum(result.stop for result in results)
        if all(isinstance(text, str) for text in inputs):
            self._learn(sum(map(len, inputs)) + len(inputs) * len(wish.prompt), total, len(inputs))
        return vectors, total

    def _learn(self, chars: int, tokens: int, n_texts: int) -> None:
        """How many tokens a character has, by the texts of late."""
        ends = n_texts * (len(self.embedder.tokenizer.prefix) + len(self.embedder.tokenizer.suffix))
        kept = math.exp(-chars / LEARNED_CHARS)
        self._chars, self._tokens = kept * self._chars + chars, kept * self._tokens + max(0, tokens - ends)

    async def hidden(self, ids: Ids) -> FloatArray:
        """(n, D) float32: the hidden vector of each token, as it leaves the model.

        It is run between the steps of others, `HIDDEN_TOKENS` at a time and one text at a time.
        """
        async with self._hidden_lock:
            found: list[FloatArray] = []
            state: State | None = None
            for start in range(0, len(ids), HIDDEN_TOKENS):
                part = ids[start : start + HIDDEN_TOKENS]
                hidden, state = await self.thread.call(functools.partial(self._hidden, part, state))
                found.append(hidden)
            return np.concatenate(found)

    @torch.inference_mode()
    def _hidden(self, ids: Ids, state: State | None) -> tuple[FloatArray, State]:
        model = self.embedder.model
        packing = Packing([len(ids)], n_carried=int(state is not None), wanted=[0], device=model.device)
        hidden, after = model.forward(torch.from_numpy(ids.astype(np.int64)).to(model.device), packing, state)
        return hidden.float().cpu().numpy(), after

    async def _prefixes(self, wish: Wish) -> TextPrefixes | None:
        """What finds the states that texts begin with."""
        prefixes = self.prefixes_of(wish)
        least, most = KEPT_PROMPT
        if least <= len(wish.prompt) <= most:
            keep, tokenizer = prefixes.keep, self.embedder.tokenizer
            await asyncio.get_running_loop().run_in_executor(self._prefix_pool, keep, tokenizer, wish.prompt)
        return prefixes if len(self.prefixes.states) else None

    def prefixes_of(self, wish: Wish) -> TextPrefixes:
        """The prefixes of an owner; those of the model's own prompts are everybody's."""
        salt = None if wish.prompt in self.embedder.prompts.values() else wish.owner
        return TextPrefixes(self.prefixes, ThreadedEmbedder(self, wish.client), salt)

    async def _add(
        self,
        inputs: Sequence[str | Ids],
        wish: Wish,
        batch: _Batch,
        prefixes: TextPrefixes | None,
        known: Callable[[int, Callable[[], int] | None], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        longs: list[LongText] = []
        tokens = 0
        for start in range(0, len(inputs), SLICE):
            part = list(enumerate(inputs[start : start + SLICE], start))
            most = SHORT_CHARS - len(wish.prompt)
            short = [(n, text) for n, text in part if isinstance(text, str) and len(text) < most]
            ids = {n: given for n, given in part if not isinstance(given, str)}
            if short:
                found = await self._groups.ids([text for _, text in short], wish.prompt)
                ids |= {n: each for (n, _), each in zip(short, found, strict=True)}
            for number, given in part:
                if number in ids:
                    own = ids[number]
                    if not len(own) and self.eos is not None:
                        own = np.array([self.eos], dtype=np.int32)
                    n, state = (0, None) if prefixes is None else prefixes.of(own)
                    batch.add(number, IdSource(own[n:]), wish, state)
                    tokens += len(own)
                elif isinstance(given, str):
                    source = await loop.run_in_executor(self.pool, self._open, given, wish.prompt, prefixes)
                    longs.append(source)
                    batch.add(number, source, wish, source.text.state)
                    tokens += self.estimate(given) + self.estimate(wish.prompt)
            if batch.done.done():
                return  # one of them has failed
        known(tokens, (lambda: sum(each.taken for each in longs)) if longs else None)

    def _open(self, text: str, prompt: str, prefixes: TextPrefixes | None) -> LongText:
        source = open_text(
            text, self.embedder.tokenizer, prompt, None, None, self.eos, prefixes, blocks=False, threaded=False
        )
        return LongText(source, self.pool.submit)


class _Batch:
    """The documents of one request; see `Receiver`."""

    def __init__(self, n: int, thread: EngineThread) -> None:
        self.loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        self.done: asyncio.Future[list[Pooled]] = self.loop.create_future()
        self._thread = thread
        self._numbers: dict[int, int] = {}  # of documents under way, by key
        self._results: list[Any] = [None] * n
        self._n_left = n

    def add(self, number: int, source: TokenSource, wish: Wish, state: DocumentState | None) -> None:
        key = self._thread.add(
            source, self, state=state, shares_state=state is not None, client=wish.client, priority=wish.priority
        )
        self._numbers[key] = number

    def receive(self, result: Pooled | Failure) -> None:
        """See `Receiver`."""
        number = self._numbers.pop(result.key, None)
        if number is None or self.done.done():
            return
        if isinstance(result, Failure):
            self.done.set_exception(result.error)
            return
        self._results[number] = result
        self._n_left -= 1
        if not self._n_left:
            self.done.set_result(self._results)

    def remove_all(self) -> None:
        """Nothing more is wanted."""
        for key in self._numbers:
            self._thread.remove(key)
        if not self.done.done():
            self.done.cancel()
        elif not self.done.cancelled():
            self.done.exception()  # it was seen, or nobody asks any more


class ThreadedEmbedder:
    """The embedder for what runs its documents in a thread of its own: sessions and prefixes.

    client: whose they are.
    """

    def __init__(self, served: ServedModel, client: Hashable = None) -> None:
        self._served = served
        self._client = client
        self.model: Any = served.embedder.model
        self.tokenizer = served.embedder.tokenizer

    @property
    def pooling(self) -> Pooling:
        """See `Embedder`."""
        return self._served.embedder.pooling

    @property
    def appends_eos(self) -> bool:
        """See `Embedder`."""
        return self._served.embedder.appends_eos

    @property
    def probe_id(self) -> int | None:
        """See `Embedder`."""
        return self._served.eos

    @property
    def dimension(self) -> int:
        """See `Embedder`."""
        return self._served.embedder.dimension

    @property
    def state_identity(self) -> dict[str, str]:
        """See `Embedder`."""
        return self._served.embedder.state_identity

    def after_pooling(self, vector: FloatArray) -> FloatArray:
        """See `Embedder`."""
        return self._served.embedder.after_pooling(vector)

    def run_sources(self, sources: Sequence[TokenSource]) -> Generator[Pooled | Failure, None, None]:
        """See `Embedder`: documents through the model's engine, as they finish. Not in the engine's thread."""
        thread, receiver = self._served.thread, _Queue()
        numbers: dict[int, int] = {}
        try:
            for number, source in enumerate(sources):
                key = thread.add(
                    source,
                    receiver,
                    state=getattr(source, "state", None),
                    keep_state=getattr(source, "keep_state", False),
                    shares_state=getattr(source, "shares_state", False),
                    sections=getattr(source, "sections", None),
                    client=self._client,
                )
                numbers[key] = number
            while numbers:
                result = receiver.results.get()
                number = numbers[result.key]
                if isinstance(result, Failure) or result.last:
                    del numbers[result.key]
                yield replace(result, key=number)
        finally:
            for key in numbers:
                thread.remove(key)


class _Queue:
    """Results for another thread; see `Receiver`."""

    loop: asyncio.AbstractEventLoop | None = None

    def __init__(self) -> None:
        self.results: queue.SimpleQueue[Pooled | Failure] = queue.SimpleQueue()

    def receive(self, result: Pooled | Failure) -> None:
        self.results.put(result)
