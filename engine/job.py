"""A piece of work that the engine's thread does for another thread."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from engine.api import LoadProgress
from engine.errors import RealmError

T = TypeVar("T")

log = logging.getLogger(__name__)


class JobCancelled(RealmError):
    """What `Job.result` raises for a job that was cancelled before it finished."""

    def __init__(self, message: str = "This was cancelled before it finished.") -> None:
        super().__init__(message)


class Job(Generic[T]):
    """Result, progress and cancellation of one piece of work; every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self._done = False
        self._claimed = False
        self._cancel_requested = False
        self._value: T | None = None
        self._error: BaseException | None = None
        self._progress: LoadProgress | None = None
        self._callbacks: list[Callable[[Job[T]], None]] = []

    def done(self) -> bool:
        """True once there is a result, an error, or the job was cancelled."""
        return self._done

    def result(self, timeout: float | None = None) -> T:
        """Waits for the result, at most `timeout` seconds.

        Raises what the work raised, JobCancelled, or TimeoutError when the time is over first.
        """
        error = self.exception(timeout)
        if error is not None:
            raise error
        return self._value  # type: ignore[return-value]  # set together with _done

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Waits like `result` and returns what it would raise, or None. Raises TimeoutError itself."""
        with self._lock:
            if not self._lock.wait_for(lambda: self._done, timeout):
                raise TimeoutError("The engine has not finished this in the time given.")
            return self._error

    def progress(self) -> LoadProgress | None:
        """The latest progress of a load; None before it starts and for jobs that report none."""
        return self._progress

    def cancel(self) -> None:
        """Asks the work to stop. Work not yet begun ends at once, a load at its next check, anything else runs on."""
        with self._lock:
            self._cancel_requested = True
            claimed = self._claimed
        if not claimed:
            self.fail(JobCancelled())

    @property
    def cancel_requested(self) -> bool:
        return self._cancel_requested

    def cancelled(self) -> bool:
        """True when the job is done and ended through cancel()."""
        return isinstance(self._error, JobCancelled)

    def add_done_callback(self, function: Callable[[Job[T]], None]) -> None:
        """Calls function(job) when done: on the engine's thread, or at once when it is done already."""
        with self._lock:
            if not self._done:
                self._callbacks.append(function)
                return
        function(self)

    # What follows is for whoever does the work.

    def claim(self) -> bool:
        """Marks the work as begun; False when it was cancelled or failed before."""
        with self._lock:
            if self._done:
                return False
            self._claimed = True
            return True

    def report(self, progress: LoadProgress) -> None:
        self._progress = progress

    def succeed(self, value: T) -> None:
        self._finish(value, None)

    def fail(self, error: BaseException) -> None:
        self._finish(None, error)

    def _finish(self, value: T | None, error: BaseException | None) -> None:
        with self._lock:
            if self._done:
                return
            self._value, self._error, self._done = value, error, True
            callbacks, self._callbacks = self._callbacks, []
            self._lock.notify_all()
        for function in callbacks:
            try:
                function(self)
            except Exception:  # a listener's mistake must not take the engine's thread down
                log.exception("A done callback failed")
