from __future__ import annotations

import threading

import pytest

from engine.api import Failed, Figures, Finished, PrefillProgress, Started, StopReason
from engine.errors import RequestError
from engine.job import Job, JobCancelled
from engine.stream import Stream

END = Finished(StopReason.EOS, "", Figures())


def test_a_job_gives_its_result_to_whoever_waits() -> None:
    job: Job[int] = Job()
    with pytest.raises(TimeoutError):
        job.result(0.01)
    threading.Timer(0.02, job.succeed, [7]).start()
    assert job.result(5) == 7
    assert job.done()


def test_a_job_raises_what_the_work_raised() -> None:
    job: Job[int] = Job()
    job.fail(RequestError("no"))
    assert isinstance(job.exception(), RequestError)
    with pytest.raises(RequestError, match="no"):
        job.result()


def test_cancelling_a_job_that_has_not_begun_ends_it() -> None:
    job: Job[int] = Job()
    job.cancel()
    assert job.cancelled()
    assert not job.claim()
    with pytest.raises(JobCancelled):
        job.result()


def test_cancelling_a_job_that_runs_leaves_its_end_to_the_work() -> None:
    job: Job[int] = Job()
    assert job.claim()
    job.cancel()
    assert job.cancel_requested
    assert not job.done()
    job.succeed(1)
    assert job.result() == 1


def test_done_callbacks_run_once_also_when_added_late_or_when_one_fails() -> None:
    job: Job[int] = Job()
    seen: list[int] = []

    def fails(job: Job[int]) -> None:
        raise ValueError("listener")

    job.add_done_callback(fails)
    job.add_done_callback(lambda done: seen.append(done.result()))
    job.succeed(3)
    job.succeed(4)
    job.add_done_callback(lambda done: seen.append(done.result() + 10))
    assert seen == [3, 13]


def test_polling_reads_each_event_once_and_is_done_after_the_last() -> None:
    stream = Stream()
    assert stream.poll() == []
    stream.put(Started(1, 2))
    stream.put(END)
    stream.put(PrefillProgress(1, 1))  # nothing follows the end
    assert stream.ended
    assert not stream.done
    assert stream.poll() == [Started(1, 2), END]
    assert stream.done


def test_iterating_waits_for_events() -> None:
    stream = Stream()
    threading.Timer(0.02, stream.put, [Started(1, 2)]).start()
    threading.Timer(0.05, stream.put, [END]).start()
    assert list(stream) == [Started(1, 2), END]
    assert list(stream) == []


def test_cancelling_before_anyone_took_the_request_ends_it_at_once() -> None:
    stream = Stream()
    stream.cancel()
    stream.cancel()
    assert [event.reason for event in stream if isinstance(event, Finished)] == [StopReason.CANCELLED]
    assert not stream.claim()


def test_failed_ends_a_stream_too() -> None:
    stream = Stream()
    stream.put(Failed(RequestError("no")))
    assert len(list(stream)) == 1
