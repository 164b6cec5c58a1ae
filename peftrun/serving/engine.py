"""One thread that owns the model: between two steps requests join the running batch, leave it, and adapters come and go."""

import concurrent.futures
import threading
import traceback
from collections import deque
from collections.abc import Generator
from contextlib import suppress
from typing import Any

import torch

from peftrun import console
from peftrun.serving import errors
from peftrun.serving.adapter_registry import AdapterRegistry, AdapterVersion
from peftrun.serving.batch import ModelRunner, RunningBatch, StepOutput
from peftrun.serving.metrics import Metrics
from peftrun.serving.request_state import OutputChunk, RequestHandle, SequenceState

PREFILL_TOKENS = 4096  # most tokens of prompts, padding included, that are read in one pass
MAX_FAILURES = 3  # so many failed passes in a row, and the engine says that it is not well
ChangeStages = Generator[None, None, Any]  # stages, between which answers go on


class Engine:
    """Answers rows. All public methods are called from the event loop; everything that touches the model happens in its own thread."""

    def __init__(
        self, computer: ModelRunner, versions: AdapterRegistry, watch: Metrics, max_batch_size: int, max_waiting: int
    ) -> None:
        self._runner, self._registry, self._metrics = computer, versions, watch
        self._max_batch_size, self._max_waiting = max_batch_size, max_waiting
        self._waiting: deque[SequenceState] = deque()
        self._batches: dict[str | None, RunningBatch] = {}
        self._changes: deque[tuple[ChangeStages, concurrent.futures.Future[Any]]] = deque()
        self._unfinished: dict[RequestHandle, int] = {}  # answers of each request that are not over
        self._condition = threading.Condition()
        self._closed, self._failures, self._dead, self._running = False, 0, "", 0
        self._thread = threading.Thread(target=self._run_loop, name="engine", daemon=True)

    def start(self) -> None:
        """Begins to answer."""
        self._thread.start()

    def submit(self, ticket: RequestHandle, rows: list[SequenceState]) -> None:
        """Puts the rows of a request in the queue. Raises: ApiFault: it is full, or the engine does not run."""
        with self._condition:
            if self._closed or self._dead:
                raise errors.shutting_down() if self._closed else errors.engine_error(self._dead)
            if len(self._waiting) + len(rows) > self._max_waiting + self._count_free_slots():
                raise errors.queue_full(len(self._waiting))
            self._unfinished[ticket] = len(rows)
            self._waiting.extend(rows)
            self._condition.notify()
        self._metrics.waiting.set(len(self._waiting))

    def cancel(self, ticket: RequestHandle) -> None:
        """Lets go of a request that nobody waits for any more; one that is over is left as it is."""
        with self._condition:
            ticket.cancelled = True
            self._condition.notify()

    def apply_change(self, stages: ChangeStages) -> "concurrent.futures.Future[Any]":
        """Runs the stages between steps, one at a time; what the generator returns."""
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        with self._condition:
            if self._closed or self._dead:
                raise errors.shutting_down() if self._closed else errors.engine_error(self._dead)
            future.set_running_or_notify_cancel()  # who asked for it may go, it is done all the same
            self._changes.append((stages, future))
            self._condition.notify()
        return future

    def notify_thread(self) -> None:
        """Looks after adapters that nobody needs any more."""
        with self._condition:
            self._condition.notify()

    @property
    def is_busy(self) -> bool:
        """Whether any request is not over."""
        return bool(self._unfinished or self._changes)

    @property
    def failure_reason(self) -> str:
        """What keeps it from answering; empty while it is well."""
        if self._dead or (not self._thread.is_alive() and not self._closed):
            return self._dead or "the engine has stopped"
        return "the last passes through the model have failed" if self._failures >= MAX_FAILURES else ""

    def close(self, timeout: float | None = None) -> None:
        """Ends the thread; requests that are not over fail."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def _count_free_slots(self) -> int:
        return max(0, self._max_batch_size - self._running)

    def _count_running(self) -> None:
        self._running = sum(len(lane.rows) for lane in self._batches.values())

    def _run_loop(self) -> None:
        try:
            while self._wait_for_work():
                self._run_step()
        except BaseException as error:
            traceback.print_exc()
            self._dead = _summarize_error(error)
        self._runner.reset_routing()
        fault = errors.engine_error(self._dead) if self._dead else errors.shutting_down()
        self._fail_requests(list(self._unfinished), fault)
        for _, future in self._changes:
            future.set_exception(fault)

    def _wait_for_work(self) -> bool:
        """Waits until there is something to do; False once the engine is closed."""
        with self._condition:
            while not (self._closed or self._waiting or self._changes or self._batches or self._list_cancelled()):
                self._remove_retired()
                self._condition.wait()
            return not self._closed

    def _list_cancelled(self) -> list[RequestHandle]:
        return [ticket for ticket in self._unfinished if ticket.cancelled]

    def _run_step(self) -> None:
        self._drop_cancelled()
        self._remove_retired()
        self._advance_change()
        self._admit_waiting()
        for lane in [one for one in self._batches.values() if one.rows]:
            self._metrics.batch.observe(len(lane.rows))
            self._run_guarded(lane.rows, lane.step)
        self._batches = {key: lane for key, lane in self._batches.items() if lane.rows}
        self._metrics.running.set(self._running)
        self._metrics.waiting.set(len(self._waiting))

    def _admit_waiting(self) -> None:
        """Rows in the order they came, as many as there is room for, those of one lane together."""
        while self._waiting and self._count_free_slots():
            key, rows = self._pop_group()
            lane = self._batches.setdefault(key, RunningBatch(self._runner))
            self._run_guarded(rows, lambda lane=lane, rows=rows: lane.admit(rows))

    def _pop_group(self) -> tuple[str | None, list[SequenceState]]:
        with self._condition:
            rows = [self._waiting.popleft()]
            key, room = _get_batch_key(rows[0]), self._count_free_slots()
            longest = len(rows[0].prompt)
            while self._waiting and len(rows) < room and _get_batch_key(self._waiting[0]) == key:
                longest = max(longest, len(self._waiting[0].prompt))
                if longest * (len(rows) + 1) > PREFILL_TOKENS:
                    break
                rows.append(self._waiting.popleft())
            return key, rows

    def _run_guarded(self, rows: list[SequenceState], compute: Any) -> None:
        """One pass of these rows. If it fails, their requests do; the engine goes on."""
        try:
            found: StepOutput = compute()
        except Exception as error:
            traceback.print_exc()
            self._failures += 1
            self._runner.reset_routing()
            self._fail_requests(
                list(dict.fromkeys(row.request for row in rows)), errors.engine_error(_summarize_error(error))
            )
            torch.cuda.empty_cache()
        else:
            self._failures = 0
            self._deliver_output(found)
        self._count_running()

    def _deliver_output(self, found: StepOutput) -> None:
        pieces: dict[RequestHandle, list[OutputChunk]] = {}
        for row, piece in found:
            if piece is not None:
                pieces.setdefault(row.request, []).append(piece)
        for row, piece in found:
            if piece is not None and piece.finish is not None:
                self._finish_sequence(row.request)
        _deliver_chunks(list(pieces.items()))
        unsound = list(dict.fromkeys(row.request for row, piece in found if piece is None))
        self._fail_requests(unsound, errors.engine_error("its logits are no finite numbers"))

    def _finish_sequence(self, ticket: RequestHandle) -> None:
        with self._condition:
            if ticket in self._unfinished:
                self._unfinished[ticket] -= 1
                if not self._unfinished[ticket]:
                    self._close_request(ticket)

    def _close_request(self, ticket: RequestHandle) -> None:
        del self._unfinished[ticket]
        self._registry.release_version(ticket.version)

    def _fail_requests(self, tickets: list[RequestHandle], fault: Exception | None) -> None:
        """These requests are over, all their answers."""
        if not tickets:
            return
        gone = set(tickets)
        with self._condition:
            self._waiting = deque(row for row in self._waiting if row.request not in gone)
            for ticket in tickets:
                if ticket in self._unfinished:
                    self._close_request(ticket)
        for lane in self._batches.values():
            lane.keep_rows([row for row in lane.rows if row.request not in gone])
        if fault:
            _deliver_chunks([(ticket, []) for ticket in tickets], fault)

    def _drop_cancelled(self) -> None:
        with self._condition:
            found = self._list_cancelled()
        self._fail_requests(found, None)
        self._batches = {key: lane for key, lane in self._batches.items() if lane.rows}
        self._count_running()

    def _advance_change(self) -> None:
        if not self._changes:
            return
        stages, future = self._changes[0]
        self._runner.reset_routing()
        try:
            next(stages)
            return
        except StopIteration as end:
            future.set_result(end.value)
        except Exception as error:
            future.set_exception(error)
        self._changes.popleft()

    def _remove_retired(self) -> None:
        """Adapters that no name means any more, and nobody answers with, are taken out of the model."""
        for version in self._registry.pop_evictable():
            self._runner.reset_routing()
            self._runner.remove_adapter(version.internal_name)
            console.print_info(f"adapter {version.name} ({version.path}): no longer in the model")


def _get_batch_key(row: SequenceState) -> str | None:
    version: AdapterVersion = row.request.version
    return version.internal_name if version.alone else None


def _deliver_chunks(given: list[tuple[RequestHandle, list[OutputChunk]]], fault: Exception | None = None) -> None:
    """Hands over what several requests have got in one call to their event loop."""
    if not given:
        return

    def deliver_all() -> None:
        for ticket, pieces in given:
            ticket.add_chunks(pieces, fault)

    with suppress(RuntimeError):  # the loop is closed: nobody reads any more
        given[0][0].call_in_loop(deliver_all)


def _summarize_error(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
