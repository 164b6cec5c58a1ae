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
from peftrun.serving.adapter_registry import Version, Versions
from peftrun.serving.batch import Computer, Lane, Told
from peftrun.serving.metrics import Watch
from peftrun.serving.request_state import Piece, Row, Ticket

PREFILL_TOKENS = 4096  # most tokens of prompts, padding included, that are read in one pass
FAILING = 3  # so many failed passes in a row, and the engine says that it is not well
Change = Generator[None, None, Any]  # stages, between which answers go on


class Engine:
    """Answers rows. All public methods are called from the event loop; everything that touches the model happens in its own thread."""

    def __init__(
        self, computer: Computer, versions: Versions, watch: Watch, max_batch_size: int, max_waiting: int
    ) -> None:
        self._computer, self._versions, self._watch = computer, versions, watch
        self._most, self._most_waiting = max_batch_size, max_waiting
        self._waiting: deque[Row] = deque()
        self._lanes: dict[str | None, Lane] = {}
        self._changes: deque[tuple[Change, concurrent.futures.Future[Any]]] = deque()
        self._open: dict[Ticket, int] = {}  # answers of each request that are not over
        self._wake = threading.Condition()
        self._closed, self._failures, self._dead, self._running = False, 0, "", 0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begins to answer."""
        self._thread.start()

    def submit(self, ticket: Ticket, rows: list[Row]) -> None:
        """Puts the rows of a request in the queue. Raises: ApiFault: it is full, or the engine does not run."""
        with self._wake:
            if self._closed or self._dead:
                raise errors.stopping() if self._closed else errors.broken(self._dead)
            if len(self._waiting) + len(rows) > self._most_waiting + self._idle():
                raise errors.queue_full(len(self._waiting))
            self._open[ticket] = len(rows)
            self._waiting.extend(rows)
            self._wake.notify()
        self._watch.waiting.set(len(self._waiting))

    def cancel(self, ticket: Ticket) -> None:
        """Lets go of a request that nobody waits for any more; one that is over is left as it is."""
        with self._wake:
            ticket.cancelled = True
            self._wake.notify()

    def change(self, stages: Change) -> "concurrent.futures.Future[Any]":
        """Runs the stages between steps, one at a time; what the generator returns."""
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        with self._wake:
            if self._closed or self._dead:
                raise errors.stopping() if self._closed else errors.broken(self._dead)
            future.set_running_or_notify_cancel()  # who asked for it may go, it is done all the same
            self._changes.append((stages, future))
            self._wake.notify()
        return future

    def wake(self) -> None:
        """Looks after adapters that nobody needs any more."""
        with self._wake:
            self._wake.notify()

    @property
    def busy(self) -> bool:
        """Whether any request is not over."""
        return bool(self._open or self._changes)

    @property
    def fault(self) -> str:
        """What keeps it from answering; empty while it is well."""
        if self._dead or (not self._thread.is_alive() and not self._closed):
            return self._dead or "the engine has stopped"
        return "the last passes through the model have failed" if self._failures >= FAILING else ""

    def close(self, timeout: float | None = None) -> None:
        """Ends the thread; requests that are not over fail."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def _idle(self) -> int:
        return max(0, self._most - self._running)

    def _count(self) -> None:
        self._running = sum(len(lane.rows) for lane in self._lanes.values())

    def _run(self) -> None:
        try:
            while self._has_work():
                self._turn()
        except BaseException as error:
            traceback.print_exc()
            self._dead = _short(error)
        self._computer.release()
        fault = errors.broken(self._dead) if self._dead else errors.stopping()
        self._fail(list(self._open), fault)
        for _, future in self._changes:
            future.set_exception(fault)

    def _has_work(self) -> bool:
        """Waits until there is something to do; False once the engine is closed."""
        with self._wake:
            while not (self._closed or self._waiting or self._changes or self._lanes or self._cancelled()):
                self._forget_free()
                self._wake.wait()
            return not self._closed

    def _cancelled(self) -> list[Ticket]:
        return [ticket for ticket in self._open if ticket.cancelled]

    def _turn(self) -> None:
        self._drop_cancelled()
        self._forget_free()
        self._change_one()
        self._admit()
        for lane in [one for one in self._lanes.values() if one.rows]:
            self._watch.batch.observe(len(lane.rows))
            self._guarded(lane.rows, lane.step)
        self._lanes = {key: lane for key, lane in self._lanes.items() if lane.rows}
        self._watch.running.set(self._running)
        self._watch.waiting.set(len(self._waiting))

    def _admit(self) -> None:
        """Rows in the order they came, as many as there is room for, those of one lane together."""
        while self._waiting and self._idle():
            key, rows = self._next_group()
            lane = self._lanes.setdefault(key, Lane(self._computer))
            self._guarded(rows, lambda lane=lane, rows=rows: lane.admit(rows))

    def _next_group(self) -> tuple[str | None, list[Row]]:
        with self._wake:
            rows = [self._waiting.popleft()]
            key, room = _lane_of(rows[0]), self._idle()
            longest = len(rows[0].prompt)
            while self._waiting and len(rows) < room and _lane_of(self._waiting[0]) == key:
                longest = max(longest, len(self._waiting[0].prompt))
                if longest * (len(rows) + 1) > PREFILL_TOKENS:
                    break
                rows.append(self._waiting.popleft())
            return key, rows

    def _guarded(self, rows: list[Row], compute: Any) -> None:
        """One pass of these rows. If it fails, their requests do; the engine goes on."""
        try:
            found: Told = compute()
        except Exception as error:
            traceback.print_exc()
            self._failures += 1
            self._computer.release()
            self._fail(list(dict.fromkeys(row.ticket for row in rows)), errors.broken(_short(error)))
            torch.cuda.empty_cache()
        else:
            self._failures = 0
            self._tell(found)
        self._count()

    def _tell(self, found: Told) -> None:
        pieces: dict[Ticket, list[Piece]] = {}
        for row, piece in found:
            if piece is not None:
                pieces.setdefault(row.ticket, []).append(piece)
        for row, piece in found:
            if piece is not None and piece.finish is not None:
                self._one_over(row.ticket)
        _hand(list(pieces.items()))
        unsound = list(dict.fromkeys(row.ticket for row, piece in found if piece is None))
        self._fail(unsound, errors.broken("its logits are no finite numbers"))

    def _one_over(self, ticket: Ticket) -> None:
        with self._wake:
            if ticket in self._open:
                self._open[ticket] -= 1
                if not self._open[ticket]:
                    self._leave(ticket)

    def _leave(self, ticket: Ticket) -> None:
        del self._open[ticket]
        self._versions.left(ticket.version)

    def _fail(self, tickets: list[Ticket], fault: Exception | None) -> None:
        """These requests are over, all their answers."""
        if not tickets:
            return
        gone = set(tickets)
        with self._wake:
            self._waiting = deque(row for row in self._waiting if row.ticket not in gone)
            for ticket in tickets:
                if ticket in self._open:
                    self._leave(ticket)
        for lane in self._lanes.values():
            lane.keep([row for row in lane.rows if row.ticket not in gone])
        if fault:
            _hand([(ticket, []) for ticket in tickets], fault)

    def _drop_cancelled(self) -> None:
        with self._wake:
            found = self._cancelled()
        self._fail(found, None)
        self._lanes = {key: lane for key, lane in self._lanes.items() if lane.rows}
        self._count()

    def _change_one(self) -> None:
        if not self._changes:
            return
        stages, future = self._changes[0]
        self._computer.release()
        try:
            next(stages)
            return
        except StopIteration as end:
            future.set_result(end.value)
        except Exception as error:
            future.set_exception(error)
        self._changes.popleft()

    def _forget_free(self) -> None:
        """Adapters that no name means any more, and nobody answers with, are taken out of the model."""
        for version in self._versions.free():
            self._computer.release()
            self._computer.forget(version.internal)
            console.say(f"adapter {version.name} ({version.path}): no longer in the model")


def _lane_of(row: Row) -> str | None:
    version: Version = row.ticket.version
    return version.internal if version.alone else None


def _hand(given: list[tuple[Ticket, list[Piece]]], fault: Exception | None = None) -> None:
    """Hands over what several requests have got in one call to their event loop."""
    if not given:
        return

    def each() -> None:
        for ticket, pieces in given:
            ticket.hand(pieces, fault)

    with suppress(RuntimeError):  # the loop is closed: nobody reads any more
        given[0][0].in_loop(each)


def _short(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
