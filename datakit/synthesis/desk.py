"""The desk of a step: it lets requests out while the budget allows them, keeps the answers, and counts."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from datakit import storage
from datakit.assets import Assets
from datakit.errors import BudgetExceeded
from datakit.recipe import AnyEngine, Budget, OpenAIEngine
from datakit.step import Step, Work
from datakit.synthesis.budget import Spent, check, from_notes, refusal, spent_by
from datakit.synthesis.engines import Answer, Batch, Engine, at_once, make, speed_digest
from datakit.synthesis.engines.loaded import let_go
from datakit.synthesis.request_cache import RequestCache


class StepDesk:
    """What engines ask and report to (engines.Desk). `spent` is what the whole build has spent so far.

    `told` is called with the number of requests that are answered, each time it changes. `asking_seconds` leave out the loading
    of a model. `proven` says that the engine has answered an earlier step of the build.
    """

    def __init__(
        self,
        cache: RequestCache,
        step: str,
        engine: AnyEngine,
        budget: Budget,
        spent: Spent,
        answered: int,
        told: Callable[[int], None],
        proven: bool = False,
    ) -> None:
        self._cache, self._step, self._engine, self._budget, self._told = cache, step, engine, budget, told
        self._spent = spent
        self._answered = answered
        self._proven = proven
        self._on_the_way = 0
        self._refusal: str | None = None
        self.sent = 0
        self.from_cache = 0
        self.asking_seconds = 0.0

    def may_ask(self, count: int) -> bool:
        spent = replace(self._spent, requests=self._spent.requests + self._on_the_way)
        self._refusal = refusal(self._budget, spent, count)
        if self._refusal is None:
            self._on_the_way += count
        return self._refusal is None

    def answered(self, answers: Sequence[tuple[str, Answer]]) -> None:
        # A server may send half of a surrogate pair, which no file can hold.
        clean = [(key, replace(each, text=each.text.encode("utf-8", "replace").decode())) for key, each in answers]
        self._cache.keep(clean)
        self._on_the_way -= len(answers)
        self.sent += len(answers)
        self._count([answer for _, answer in clean])

    def has_answers(self) -> bool:
        return self._proven or self._answered > 0

    def failed(self, key: str, kind: str) -> None:
        self._cache.count_failure(self._step, kind)

    def _count(self, answers: Sequence[Answer]) -> None:
        self._spent = self._spent.plus(spent_on(answers).priced(self._engine))
        self._answered += len(answers)
        self._told(self._answered)

    def answers(self, engine: Engine, batches: Sequence[Batch]) -> dict[str, Answer]:
        """The answers to all requests of the batches, by key: from the cache, and from the engine where they are not there.

        Raises BudgetExceeded when the budget does not reach; all that was answered is kept.
        """
        keys = list(dict.fromkeys(request.key for batch in batches for request in batch))
        known = self._cache.answers(keys)
        self.from_cache += len(known)
        self._count(list(known.values()))
        # Two equal requests are one.
        missing = {batch[0].key: batch for batch in batches if any(request.key not in known for request in batch)}
        del known
        if missing:
            started, loading = time.monotonic(), engine.loading_seconds
            engine.ask(list(missing.values()), self)
            self.asking_seconds += time.monotonic() - started - (engine.loading_seconds - loading)
        answers = self._cache.answers(keys)
        if len(answers) < len(keys):
            raise BudgetExceeded(
                f"The budget is spent: {self._refusal}, and {len(keys) - len(answers):,} requests of this part are not answered. "
                "All answers are kept. Raise 'budget' and run the same command again: it goes on from here."
            )
        return answers


def spent_on(answers: Sequence[Answer]) -> Spent:
    """Requests and tokens of some answers."""
    prompt, completion = sum(each.prompt_tokens for each in answers), sum(each.completion_tokens for each in answers)
    return Spent(len(answers), prompt, completion)


@dataclass(frozen=True)
class Asking:
    """How a step gets its answers; nothing here decides what comes out, beyond what the step's key covers.

    `name` is that of the engine in the recipe. `earlier` are the steps that ask before it in the same build: the budget is one
    for all of them.
    """

    name: str
    parameters: AnyEngine
    budget: Budget
    model_digest: str
    seed: int
    earlier: tuple[Step, ...]

    @property
    def model(self) -> str:
        return str(getattr(self.parameters.model, "raw", self.parameters.model))

    def engine(self) -> Engine:
        return make(self.name, self.parameters, self.model_digest, self.seed)

    @contextlib.contextmanager
    def desk(self, work: Work, phases: dict[str, int], total: int) -> Iterator[tuple[Engine, StepDesk]]:
        """An engine, and the desk of the step that is at work; in the end run.json tells what the asking took.

        `phases` are those that ask, with the number of their units; `total` is the number of requests in all of them.
        """
        spent, answered = spent_by(self.earlier, work.cache), 0
        alike = [step for step in self.earlier if getattr(step.parameters, "engine", None) == self.parameters]
        proven = spent_by(alike, work.cache).requests > 0
        for phase, units in phases.items():
            for number in range(units):
                if storage.exists(marker := work.files(phase, number, "unit.json")):
                    each = from_notes(storage.read_json(marker))
                    spent, answered = spent.plus(each.priced(self.parameters)), answered + each.requests
        cache = RequestCache(work.cache)
        engine = self.engine()
        started = time.monotonic()
        try:

            def told(done: int) -> None:
                work.watcher.units(done, total, 0, "answers")

            desk = StepDesk(cache, work.step.key, self.parameters, self.budget, spent, answered, told, proven)
            yield engine, desk
            failures = cache.failures(work.step.key)
        except BaseException:
            let_go()
            raise
        finally:
            engine.close()
            cache.close()
        facts = {
            "engine": speed_digest(self.parameters),
            "at_once": at_once(self.parameters),
            "sent": desk.sent,
            "from_cache": desk.from_cache,
            "failed_attempts": failures,
            "asking_seconds": round(desk.asking_seconds, 3),
            "seconds": round(time.monotonic() - started, 1),
        }
        storage.write_json(storage.join(work.folder, "run.json"), facts)


def asking(name: str, engine: AnyEngine, budget: Budget, seed: int, earlier: Sequence[Step], assets: Assets) -> Asking:
    """How a step asks the engine `name`. A budget that cannot be counted is a UserError."""
    check(budget, name, engine, earlier)
    if isinstance(engine, OpenAIEngine):
        # A folder of that name on this machine is not what the server runs.
        model_digest = f"named:{engine.model}@{engine.revision or 'latest'}"
    else:
        model_digest = assets.digest(engine.model, engine.revision)
    return Asking(name, engine, budget, model_digest, seed, tuple(earlier))
