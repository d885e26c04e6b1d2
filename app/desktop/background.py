"""Work that must not hold up the window: runs on another thread, its result comes back on the window's."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from PySide6.QtCore import QObject, Qt, Signal

T = TypeVar("T")
log = logging.getLogger(__name__)


class Background(QObject):
    """Two lanes: `run` for the store, in order, and `run_long` for downloads and starting up."""

    _finished = Signal(object)

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._store_lane = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._long_lane = ThreadPoolExecutor(4, thread_name_prefix="background")
        self._closed = False
        self._pending = 0
        self._finished.connect(self._deliver, Qt.ConnectionType.QueuedConnection)

    @property
    def busy(self) -> bool:
        """Whether anything is still to be delivered."""
        return self._pending > 0

    def run(
        self,
        function: Callable[[], T],
        then: Callable[[T], object] | None = None,
        failed: Callable[[Exception], object] | None = None,
    ) -> None:
        """Runs a function after all others given to `run` before; `then` or `failed` gets the outcome."""
        self._submit(self._store_lane, function, then, failed)

    def run_long(
        self,
        function: Callable[[], T],
        then: Callable[[T], object] | None = None,
        failed: Callable[[Exception], object] | None = None,
    ) -> None:
        """Runs a function beside whatever else runs."""
        self._submit(self._long_lane, function, then, failed)

    def call(self, function: Callable[[], object]) -> None:
        """Runs a function on the window's thread, soon. May be called from any thread."""
        self._emit(function)

    def _submit(
        self,
        lane: ThreadPoolExecutor,
        function: Callable[[], T],
        then: Callable[[T], object] | None,
        failed: Callable[[Exception], object] | None,
    ) -> None:
        if self._closed:
            return
        self._pending += 1

        def work() -> None:
            outcome: Callable[[], object]
            try:
                value = function()
            except Exception as error:
                if failed is None:
                    log.exception("background work failed")
                caught = error
                outcome = lambda: failed(caught) if failed is not None else None  # noqa: E731
            else:
                outcome = lambda: then(value) if then is not None else None  # noqa: E731

            def deliver() -> None:
                self._pending -= 1
                outcome()

            self._emit(deliver)

        lane.submit(work)

    def _emit(self, function: Callable[[], Any]) -> None:
        if not self._closed:
            try:
                self._finished.emit(function)
            except RuntimeError:  # the window is gone
                log.debug("a result came after the window had closed")

    def _deliver(self, function: Callable[[], Any]) -> None:
        if not self._closed:
            function()

    def close(self) -> None:
        """Finishes what is queued for the store; results are no longer delivered."""
        self._closed = True
        self._long_lane.shutdown(wait=False, cancel_futures=True)
        self._store_lane.shutdown(wait=True)
