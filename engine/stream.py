"""The events of one request, written by the engine's thread and read by another."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator

from engine.api import Event, Failed, Figures, Finished, StopReason


class Stream:
    """Events of one request: Started, PrefillProgress*, Token*, then exactly one of Finished and Failed.

    One reader at a time: either iterate (blocks until the last event) or `poll` (never blocks).
    """

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._arrived = threading.Condition()
        self._claimed = False
        self._cancelled = False
        self._ended = False

    def __iter__(self) -> Iterator[Event]:
        """Yields events as they come and stops after Finished or Failed."""
        while not self.done:
            yield from self.wait()

    def poll(self) -> list[Event]:
        """The events that came since the last call; empty when there are none."""
        with self._arrived:
            events = list(self._events)
            self._events.clear()
        return events

    def wait(self, timeout: float | None = None) -> list[Event]:
        """Like `poll`, but waits up to `timeout` seconds for an event to come or the stream to be over."""
        with self._arrived:
            self._arrived.wait_for(lambda: self._events or self._ended, timeout)
        return self.poll()

    def cancel(self) -> None:
        """Ends the request within one step: Finished with reason CANCELLED follows, with the text so far kept."""
        with self._arrived:
            self._cancelled = True
            claimed = self._claimed
        if not claimed:  # nobody works on it yet, so nobody else would end it before the work in front is over
            self.put(Finished(StopReason.CANCELLED, "", Figures()))

    @property
    def done(self) -> bool:
        """True once the last event has been read."""
        return self._ended and not self._events

    @property
    def ended(self) -> bool:
        """True once the last event is there, read or not."""
        return self._ended

    # What follows is for the engine's thread.

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    def claim(self) -> bool:
        """Marks the request as taken up; False when it has ended before."""
        with self._arrived:
            self._claimed = True
            return not self._ended

    def put(self, event: Event) -> None:
        """Adds an event; whatever would follow the last one is dropped."""
        with self._arrived:
            if self._ended:
                return
            self._events.append(event)
            self._ended = isinstance(event, Finished | Failed)
            self._arrived.notify_all()
