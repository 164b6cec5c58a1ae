"""The engine: one thread that owns the model. Between two steps requests join and leave the running batches, and adapters change."""

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
from peftrun.serving.adapter_registry import AdapterRegistry
from peftrun.serving.batch import ModelRunner, RunningBatch, StepOutput
from peftrun.serving.metrics import Metrics
from peftrun.serving.request_state import OutputChunk, RequestHandle, SequenceState

MAX_PREFILL_TOKENS = 4096  # most prompt tokens, padding included, of one prefill pass
MAX_FAILURES = 3  # failed passes in a row after which the engine reports that it cannot answer
ChangeStages = Generator[None, None, Any]  # a change of adapters; each yield lets the running batches take a step


class Engine:
    """Computes the sequences of all requests.

    Public methods are called from the event loop; everything that touches the model happens in the engine's own thread.
    """

    def __init__(
        self, runner: ModelRunner, registry: AdapterRegistry, metrics: Metrics, max_batch_size: int, max_waiting: int
    ) -> None:
        self._runner, self._registry, self._metrics = runner, registry, metrics
        self._max_batch_size, self._max_waiting = max_batch_size, max_waiting
        self._waiting: deque[SequenceState] = deque()
        # None: adapters that can share a batch. An adapter that cannot has a batch of its own, under its internal name.
        self._batches: dict[str | None, RunningBatch] = {}
        self._changes: deque[tuple[ChangeStages, concurrent.futures.Future[Any]]] = deque()
        self._unfinished: dict[RequestHandle, int] = {}  # request → sequences that have not ended
        self._condition = threading.Condition()
        self._closed, self._failures, self._dead, self._running = False, 0, "", 0
        self._thread = threading.Thread(target=self._run_loop, name="engine", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def submit(self, request: RequestHandle, rows: list[SequenceState]) -> None:
        """Adds the sequences of a request to the queue. Raises: ApiError: the queue is full, or the engine does not run."""
        with self._condition:
            self._check_running()
            # Free slots count: sequences that can start at once do not wait.
            if len(self._waiting) + len(rows) > self._max_waiting + self._count_free_slots():
                raise errors.queue_full(len(self._waiting))
            self._unfinished[request] = len(rows)
            self._waiting.extend(rows)
            self._condition.notify()
        self._metrics.waiting.set(len(self._waiting))

    def cancel(self, request: RequestHandle) -> None:
        """Drops a request whose answer is no longer needed; one that has ended is left as it is."""
        with self._condition:
            request.cancelled = True
            self._condition.notify()

    def apply_change(self, stages: ChangeStages) -> "concurrent.futures.Future[Any]":
        """Runs the stages of a change, one between two steps. The future has what the generator returns."""
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        with self._condition:
            self._check_running()
            future.set_running_or_notify_cancel()  # a client that disconnects cannot cancel half a change
            self._changes.append((stages, future))
            self._condition.notify()
        return future

    def notify_thread(self) -> None:
        """Wakes the thread, to remove retired adapters from the model."""
        with self._condition:
            self._condition.notify()

    @property
    def is_busy(self) -> bool:
        """Whether there are unfinished requests or changes."""
        return bool(self._unfinished or self._changes)

    @property
    def failure_reason(self) -> str:
        """Why the engine cannot answer; empty if it can."""
        if self._dead or (not self._thread.is_alive() and not self._closed):
            return self._dead or "the engine has stopped"
        return "the last passes through the model have failed" if self._failures >= MAX_FAILURES else ""

    def close(self, timeout: float | None = None) -> None:
        """Ends the thread; unfinished requests fail. Args: timeout: seconds to wait for the thread."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def _check_running(self) -> None:
        if self._closed or self._dead:
            raise errors.shutting_down() if self._closed else errors.engine_error(self._dead)

    def _count_free_slots(self) -> int:
        return max(0, self._max_batch_size - self._running)

    def _count_running(self) -> None:
        self._running = sum(len(batch.rows) for batch in self._batches.values())

    def _run_loop(self) -> None:
        try:
            while self._wait_for_work():
                self._run_step()
        except BaseException as error:
            traceback.print_exc()
            self._dead = _summarize_error(error)
        self._runner.reset_routing()
        failure = errors.engine_error(self._dead) if self._dead else errors.shutting_down()
        self._fail_requests(list(self._unfinished), failure)
        for _, future in self._changes:
            future.set_exception(failure)

    def _wait_for_work(self) -> bool:
        """Waits until there is something to do; False once the engine is closed."""
        with self._condition:
            # Batches that are left have rows, so they are work too.
            while not (self._closed or self._waiting or self._changes or self._batches or self._list_cancelled()):
                self._remove_retired()
                self._condition.wait()
            return not self._closed

    def _list_cancelled(self) -> list[RequestHandle]:
        return [request for request in self._unfinished if request.cancelled]

    def _run_step(self) -> None:
        """Drops cancelled requests, advances a change by a stage, admits waiting sequences, and steps each batch."""
        with self._condition:
            cancelled = self._list_cancelled()
        self._fail_requests(cancelled, None)
        self._batches = {key: batch for key, batch in self._batches.items() if batch.rows}
        self._count_running()
        self._remove_retired()
        self._advance_change()
        while self._waiting and self._count_free_slots():
            key, rows = self._pop_group()
            batch = self._batches.setdefault(key, RunningBatch(self._runner))
            self._run_guarded(rows, lambda batch=batch, rows=rows: batch.admit(rows))
        for batch in [batch for batch in self._batches.values() if batch.rows]:
            self._metrics.batch.observe(len(batch.rows))
            self._run_guarded(batch.rows, batch.step)
        self._batches = {key: batch for key, batch in self._batches.items() if batch.rows}
        self._metrics.running.set(self._running)
        self._metrics.waiting.set(len(self._waiting))

    def _pop_group(self) -> tuple[str | None, list[SequenceState]]:
        """The sequences at the head of the queue that one prefill pass can take: one batch, and not too many tokens."""
        with self._condition:
            rows = [self._waiting.popleft()]
            key, free_slots = _get_batch_key(rows[0]), self._count_free_slots()
            longest = len(rows[0].prompt)
            while self._waiting and len(rows) < free_slots and _get_batch_key(self._waiting[0]) == key:
                longest = max(longest, len(self._waiting[0].prompt))
                if longest * (len(rows) + 1) > MAX_PREFILL_TOKENS:
                    break
                rows.append(self._waiting.popleft())
            return key, rows

    def _run_guarded(self, rows: list[SequenceState], compute: Any) -> None:
        """One pass of these rows. If it fails, their requests fail, and the engine goes on."""
        try:
            output: StepOutput = compute()
        except Exception as error:
            traceback.print_exc()
            self._failures += 1
            self._runner.reset_routing()
            requests = list(dict.fromkeys(row.request for row in rows))
            self._fail_requests(requests, errors.engine_error(_summarize_error(error)))
            torch.cuda.empty_cache()
        else:
            self._failures = 0
            self._deliver_output(output)
        self._count_running()

    def _deliver_output(self, output: StepOutput) -> None:
        chunks: dict[RequestHandle, list[OutputChunk]] = {}
        for row, chunk in output:
            if chunk is not None:
                chunks.setdefault(row.request, []).append(chunk)
        with self._condition:
            for row, chunk in output:
                if chunk is not None and chunk.finish is not None and row.request in self._unfinished:
                    self._unfinished[row.request] -= 1
                    if not self._unfinished[row.request]:
                        self._close_request(row.request)
        _deliver_chunks(list(chunks.items()))
        invalid = list(dict.fromkeys(row.request for row, chunk in output if chunk is None))
        self._fail_requests(invalid, errors.engine_error("its logits are not finite"))

    def _close_request(self, request: RequestHandle) -> None:
        del self._unfinished[request]
        self._registry.release_version(request.version)

    def _fail_requests(self, requests: list[RequestHandle], error: Exception | None) -> None:
        """Ends these requests with all their sequences. Args: error: what their handlers raise; None: nobody waits for them."""
        if not requests:
            return
        ended = set(requests)
        with self._condition:
            self._waiting = deque(row for row in self._waiting if row.request not in ended)
            for request in requests:
                if request in self._unfinished:
                    self._close_request(request)
        for batch in self._batches.values():
            batch.keep_rows([row for row in batch.rows if row.request not in ended])
        if error:
            _deliver_chunks([(request, []) for request in requests], error)

    def _advance_change(self) -> None:
        if not self._changes:
            return
        stages, future = self._changes[0]
        # A stage changes the model's layers; the next pass sets the routing up again.
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
        """Removes adapter versions from the model that no name refers to and no request uses."""
        for version in self._registry.pop_evictable():
            self._runner.reset_routing()
            self._runner.remove_adapter(version.internal_name)
            console.print_info(f"adapter {version.name} ({version.path}): no longer in the model")


def _get_batch_key(row: SequenceState) -> str | None:
    version = row.request.version
    return version.internal_name if version.alone else None


def _deliver_chunks(chunks: list[tuple[RequestHandle, list[OutputChunk]]], error: Exception | None = None) -> None:
    """Hands chunks to the handlers of several requests, by one call into their event loop."""
    if not chunks:
        return

    def deliver_all() -> None:
        for request, request_chunks in chunks:
            request.add_chunks(request_chunks, error)

    with suppress(RuntimeError):  # the event loop is closed: the server is shutting down
        chunks[0][0].call_in_loop(deliver_all)


def _summarize_error(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
