"""A run: tasks, then examples, many requests at a time; what is saved decides what is left to do.

Which prompt comes next for a task or an example depends on its own rejected replies only, and which tasks are used on
the order of their numbers. So the order in which replies come, and any interruption, leaves no trace: with an endpoint
that always answers a prompt alike, the result is always the same set.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from thalweg.errors import EndpointError
from thalweg.storage.lines import Lines
from thalweg.synthesis.client import REQUEST_FAILED, ChatClient, Endpoint, Reply, Usage
from thalweg.synthesis.output import write_results
from thalweg.synthesis.pacing import Pace
from thalweg.synthesis.prompts import Prompt, brainstorm_prompt, example_prompt
from thalweg.synthesis.schema import Rejected, check_example, check_tasks, same_text
from thalweg.synthesis.settings import Settings
from thalweg.synthesis.store import Store
from thalweg.synthesis.tasks import KINDS, TaskType
from thalweg.system.words import counted

if TYPE_CHECKING:
    from thalweg.synthesis.mining import Mining

DUPLICATE = "duplicate"

FRUITLESS = "fruitless"
"""Marks a record that is no reply: a run ended because nothing could be used, so the next has all attempts again."""

_MOST_CALLS = 4
"""Times the calls that would do if no task came twice; then tasks are used more than once."""

_FRUITLESS_ROUNDS = 3
"""Rounds of the first step without a new task, after which none is expected any more."""

T = TypeVar("T")


@dataclass
class Status:
    """How far a run is; of its whole life unless it says otherwise.

    wanted, accepted, given_up: examples; before: those of earlier sittings; rejected: replies of both steps, by reason;
    prompt_tokens, reply_tokens: of all replies; estimated: replies whose tokens the endpoint did not count; tasks,
    tasks_wanted: of the first step, by type; step: "tasks", "examples", "writing", or what else goes on.
    """

    wanted: int
    step: str = "tasks"
    accepted: int = 0
    before: int = 0
    given_up: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    reply_tokens: int = 0
    estimated: int = 0
    replies: int = 0
    tasks: dict[TaskType, int] = field(default_factory=dict)
    tasks_wanted: dict[TaskType, int] = field(default_factory=dict)

    def cost(self, price: tuple[float, float] | None) -> float | None:
        """In the unit of the price, which is that of a million tokens of prompts and of replies."""
        if price is None:
            return None
        return (self.prompt_tokens * price[0] + self.reply_tokens * price[1]) / 1e6


def synthesize(
    settings: Settings,
    endpoint: Endpoint,
    folder: Path,
    *,
    pace: Pace | None = None,
    mining: Mining | None = None,
    overwrite: bool = False,
    on_status: Callable[[Status], None] = lambda status: None,
) -> Status:
    """Make examples until there are as many as wanted, or go on with the run that the folder holds.

    Args:
        folder: gets the result: `data/TYPE.jsonl` to train on, `pairs.jsonl`, `report.json`; and what it is made of.
        mining: of negatives, when all examples are there.
        on_status: called after every reply.

    Returns:
        The status at the end; `given_up` examples had no usable reply in `settings.attempts` attempts.

    Raises:
        EndpointError: the endpoint refuses, or does not answer any more; or no reply of a step can be used. The same
            call goes on once that is mended.
        CorpusError: the folder is in use, or was begun with other settings.
    """
    with closing(Store(folder, settings.identity(endpoint.model, endpoint.top_p), overwrite=overwrite)) as store:
        run = _Run(settings, store, on_status)
        asyncio.run(run.generate(endpoint, pace))
        run.status.step = "writing"
        on_status(run.status)

        def tell(name: TaskType, told: str) -> None:
            run.status.step = f"negatives for {name}: {told}"
            on_status(run.status)

        write_results(store, settings, run.places(), run.report(), mining, tell)
        return run.status


class _Run:
    def __init__(self, settings: Settings, store: Store, on_status: Callable[[Status], None]) -> None:
        self._settings = settings
        self._store = store
        self._on_status = on_status
        self._client: ChatClient
        self._attempts: Counter[str] = Counter()  # rejected ones by id: the number of the next
        self._forgiven: Counter[str] = Counter()  # those of them that do not count any more
        self._tasks: dict[str, list[str]] = {}  # by id
        self._examples: dict[str, tuple[int, int]] = {}  # id → attempt and place in the file
        self._queries: dict[str, bytes] = {}  # id → digest of what must not come twice
        self.status = Status(wanted=sum(settings.counts.values()))
        self._load()

    async def generate(self, endpoint: Endpoint, pace: Pace | None) -> None:
        """Both steps, for what is not there yet."""
        async with ChatClient(endpoint, pace) as self._client:
            tasks = {name: await self._brainstorm(name) for name in self._settings.counts if KINDS[name].brainstormed}
            self.status.step = "examples"
            while left := self._examples_left():
                await self._each(left, lambda slot: self._make_example(slot, tasks))
                self._reject_duplicates()
            if not self.status.accepted:
                counts = self._settings.counts
                ids = [f"{name}/{number}" for name, count in counts.items() for number in range(count)]
                raise self._fruitless(f"example of {self.status.wanted:,} wanted", ids)

    def places(self) -> dict[TaskType, list[int]]:
        """Where the examples of each type lie in the file, in the order of their numbers."""
        return {
            name: [self._examples[id][1] for number in range(count) if (id := f"{name}/{number}") in self._examples]
            for name, count in self._settings.counts.items()
        }

    def report(self) -> dict[str, Any]:
        status, settings = self.status, self._settings
        return {
            "wanted": dict(settings.counts),
            "accepted": {name: len(places) for name, places in self.places().items()},
            "tasks": status.tasks,
            "rejected": dict(sorted(status.rejected.items(), key=lambda each: (-each[1], each[0]))),
            "replies": status.replies,
            "prompt_tokens": status.prompt_tokens,
            "reply_tokens": status.reply_tokens,
            "replies_with_estimated_tokens": status.estimated,
            "cost": status.cost(settings.price),
        }

    # -- what is there -----------------------------------------------------------------------------------------------

    def _load(self) -> None:
        void = set()
        for _, record in self._store.rejected:
            if record["reason"] == FRUITLESS:
                self._forgiven[record["id"]] = record["attempt"]
                continue
            self._count(record)
            self.status.rejected[record["reason"]] += 1
            if record["reason"] == DUPLICATE:
                void.add((record["id"], record["attempt"]))
            if record["reason"] != REQUEST_FAILED:
                self._attempts[record["id"]] = max(self._attempts[record["id"]], record["attempt"] + 1)
        for _, record in self._store.tasks:
            self._count(record)
            self._tasks[record["id"]] = record["tasks"]
        for place, record in self._store.examples:
            self._count(record)
            if (record["id"], record["attempt"]) not in void:
                self._keep(record, place)
        self.status.before = self.status.accepted = sum(len(places) for places in self.places().values())
        self.status.given_up = self.status.wanted - self.status.accepted - len(self._examples_left())

    def _count(self, record: Mapping[str, Any]) -> None:
        if "usage" in record:  # not of a duplicate, whose reply was counted when it was accepted
            usage = Usage(**record["usage"])
            self.status.replies += 1
            self.status.prompt_tokens += usage.prompt
            self.status.reply_tokens += usage.reply
            self.status.estimated += not usage.counted

    def _keep(self, record: Mapping[str, Any], place: int) -> None:
        name = record["id"].partition("/")[0]
        query = next(field.name for field in KINDS[name].fields if field.role == "query")
        self._examples[record["id"]] = (record["attempt"], place)
        text = same_text(record["fields"][query])
        self._queries[record["id"]] = hashlib.blake2b(text.encode(), digest_size=16).digest()

    # -- step one ----------------------------------------------------------------------------------------------------

    async def _brainstorm(self, name: TaskType) -> list[str]:
        """Different tasks of a type, in the order of the calls: as many as wanted, or as there are.

        Calls go out in rounds of as many as could be enough; how many those are depends on the replies before only.
        """
        settings = self._settings
        wanted = -(-settings.counts[name] // settings.examples_per_task)
        most = _MOST_CALLS * -(-wanted // settings.tasks_per_call)
        self.status.tasks_wanted[name] = wanted
        tasks: dict[str, str] = {}
        calls = fruitless = 0
        while len(tasks) < wanted and calls < most and fruitless < _FRUITLESS_ROUNDS:
            more = min(-(-(wanted - len(tasks)) // settings.tasks_per_call), most - calls)
            numbers = range(calls, calls + more)
            await self._each(
                [n for n in numbers if f"tasks/{name}/{n}" not in self._tasks], lambda n: self._make_tasks(name, n)
            )
            before, calls = len(tasks), calls + more
            for number in numbers:
                for task in self._tasks.get(f"tasks/{name}/{number}", []):
                    tasks.setdefault(same_text(task), task)
            fruitless = fruitless + 1 if len(tasks) == before else 0
        if not tasks:
            raise self._fruitless(
                f"{name} task in {counted(calls, 'call')}", [f"tasks/{name}/{n}" for n in range(calls)]
            )
        found = list(tasks.values())[:wanted]
        self.status.tasks[name] = len(found)
        return found

    async def _make_tasks(self, name: TaskType, number: int) -> None:
        settings = self._settings

        def make(attempt: int) -> Prompt:
            return brainstorm_prompt(settings.seed, name, number, attempt, settings.tasks_per_call)

        def check(prompt: Prompt, reply: str) -> dict[str, Any]:
            tasks, unusable = check_tasks(reply)
            return {"tasks": tasks, "unusable": unusable}

        found = await self._obtain(make, settings.brainstorm_temperature, check, self._store.tasks)
        if found is not None:
            self._tasks[found[0]["id"]] = found[0]["tasks"]
        self._on_status(self.status)

    # -- step two ----------------------------------------------------------------------------------------------------

    def _examples_left(self) -> list[tuple[TaskType, int]]:
        """What is neither there nor given up, in an order of the seed's."""
        slots = [
            (name, number)
            for name, count in self._settings.counts.items()
            for number in range(count)
            if (id := f"{name}/{number}") not in self._examples and self._may_try(id)
        ]
        random.Random(self._settings.seed).shuffle(slots)
        return slots

    async def _make_example(self, slot: tuple[TaskType, int], tasks: Mapping[TaskType, list[str]]) -> None:
        name, number = slot
        settings = self._settings
        task = tasks[name][number % len(tasks[name])] if name in tasks else None

        def make(attempt: int) -> Prompt:
            return example_prompt(settings.seed, name, number, attempt, settings.languages, task)

        def check(prompt: Prompt, reply: str) -> dict[str, Any]:
            return {"task": task, "fields": check_example(name, prompt.attributes, reply)}

        found = await self._obtain(make, settings.temperature, check, self._store.examples)
        if found is not None:
            self._keep(*found)
            self.status.accepted += 1
        else:
            self.status.given_up += 1
        self._on_status(self.status)

    def _reject_duplicates(self) -> None:
        """No query comes twice in a type: of two examples with the same, that of the higher number is made again."""
        duplicates: list[dict[str, Any]] = []
        for name, count in self._settings.counts.items():
            seen: dict[bytes, str] = {}
            for id in (f"{name}/{number}" for number in range(count)):
                if id in self._examples and (first := seen.setdefault(self._queries[id], id)) != id:
                    attempt, _ = self._examples[id]
                    duplicates.append(
                        {"id": id, "attempt": attempt, "reason": DUPLICATE, "detail": f"query of {first}"}
                    )
        if not duplicates:
            return
        self._store.rejected.append(*duplicates)
        for record in duplicates:
            id = str(record["id"])
            self._attempts[id] = self._examples.pop(id)[0] + 1
            self.status.rejected[DUPLICATE] += 1
            self.status.accepted -= 1
            self.status.given_up += not self._may_try(id)

    # -- requests ----------------------------------------------------------------------------------------------------

    async def _obtain(
        self,
        make: Callable[[int], Prompt],
        temperature: float,
        check: Callable[[Prompt, str], dict[str, Any]],
        lines: Lines,
    ) -> tuple[dict[str, Any], int] | None:
        """Ask, with the next attempt's prompt after each rejected reply; the record that was saved, and its place."""
        id = make(0).id
        while self._may_try(id):
            prompt = make(self._attempts[id])
            reply = await self._client.ask(prompt.text, temperature, prompt.seed if self._settings.send_seed else None)
            record = {
                "id": id,
                "attempt": prompt.attempt,
                "attributes": dict(prompt.attributes),
                "usage": vars(reply.usage),
            }
            self._count(record)
            try:
                record |= self._checked(prompt, reply, check)
            except Rejected as rejected:
                record |= {"reason": rejected.reason, "detail": rejected.detail, "reply": reply.text}
                self._store.rejected.append(record)
                self._attempts[id] += 1
                self.status.rejected[rejected.reason] += 1
                self._on_status(self.status)
            else:
                return record, lines.append(record)
        return None

    def _may_try(self, id: str) -> bool:
        return self._attempts[id] - self._forgiven[id] < self._settings.attempts

    def _fruitless(self, what: str, ids: Sequence[str]) -> EndpointError:
        """Nothing could be used: the endpoint is to blame, and not the prompts, so all attempts are given anew."""
        self._store.rejected.append(
            *({"id": id, "attempt": self._attempts[id], "reason": FRUITLESS} for id in ids if self._attempts[id])
        )
        return EndpointError(
            f"the model gave no usable {what}; what it answered is in {self._store.folder / 'rejected.jsonl'}. "
            "Once the endpoint answers as it should, the same command continues"
        )

    @staticmethod
    def _checked(prompt: Prompt, reply: Reply, check: Callable[[Prompt, str], dict[str, Any]]) -> dict[str, Any]:
        if reply.problem is not None:
            raise Rejected(*reply.problem)
        return check(prompt, reply.text)

    async def _each(self, jobs: Iterable[T], work: Callable[[T], Awaitable[None]]) -> None:
        """All jobs, so many at a time; the first error ends the others."""
        jobs = list(jobs)
        queue = iter(jobs)

        async def worker() -> None:
            for job in queue:
                await work(job)

        workers = [asyncio.create_task(worker()) for _ in range(min(self._settings.concurrency, len(jobs)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for each in workers:
                each.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
