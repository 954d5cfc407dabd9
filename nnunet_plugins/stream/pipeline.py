"""Decode, infer and draw, each in a thread of its own, with few frames between them.

Memory does not grow with the stream, whichever thread is the slowest.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from nnunet_plugins.stream.answers import Answer
from nnunet_plugins.stream.decoding import Arrival
from nnunet_plugins.stream.handover import Handover
from nnunet_plugins.stream.network import StreamBundle
from nnunet_plugins.stream.report import Report
from nnunet_plugins.stream.sources import Source
from nnunet_plugins.streaming import StreamingSession

AHEAD = 2
"""Frames of a file that are decoded before they are needed. Of a camera one waits, the newest."""
BEHIND = 8
"""Answered frames that may wait to be drawn and encoded."""

PATIENCE = 2.0
"""Seconds that a source is waited for at the end: a silent camera does not hold the others up."""

Sink = Callable[[Arrival, Answer], None]
"""Takes answered frames, in order."""


@dataclass
class Pipeline:
    """One run of a source through a network.

    Args:
        source: Where frames come from.
        bundle: How they are prepared and answers read.
        session: Of the bundle's network.
        sink: Draws and writes, in a thread of its own.
        report: Counts.
        stop: Set by anybody to end the run after the frame in hand.
    """

    source: Source
    bundle: StreamBundle
    session: StreamingSession
    sink: Sink
    report: Report
    stop: threading.Event

    def __post_init__(self) -> None:
        live = self.source.live
        self.frames: Handover[Arrival] = Handover(1 if live else AHEAD, newest_wins=live)
        self.answered: Handover[tuple[Arrival, Answer]] = Handover(BEHIND)
        self.repeated = 0
        """Frames between those that the network sees, given to the sink with the answer before."""
        self._sink_error: BaseException | None = None

    @property
    def dropped(self) -> int:
        """Frames of a live source that newer ones took the place of."""
        return self.frames.dropped

    def run(
        self, max_frames: int | None = None, after_each: Callable[[], None] = lambda: None
    ) -> None:
        """Answer frames until there are no more, so many are answered, or `stop` is set.

        Of a bundle with a stride, the frames between keep the answer of the one before.

        Whatever was answered has been given to the sink when this returns or raises.

        Args:
            max_frames: Answer so many at most.
            after_each: Called after each frame.

        Raises:
            ValueError: If the frame size changes in the middle, or frames do not fit.
            BaseException: What the source or the sink raise.
        """
        with (
            _running(self._read, self._stop_reading, PATIENCE),
            _running(self._write, self.answered.close),
        ):
            self._answer_all(max_frames, after_each)
        if self._sink_error is not None:
            raise self._sink_error

    def _answer_all(self, max_frames: int | None, after_each: Callable[[], None]) -> None:
        size: tuple[int, ...] | None = None
        answer: Answer | None = None
        due = 0
        for arrival in self.frames.taken(self.stop):
            size = size or arrival.picture.shape
            if arrival.picture.shape != size:
                raise ValueError(_changed(arrival, size))
            if answer is not None and arrival.number < due:
                self.repeated += 1
            else:
                answer, due = self._answer(arrival), arrival.number + self.bundle.stride
                after_each()
            if not self.answered.put((arrival, answer)):
                return  # the sink has failed
            if self.report.frames == max_frames:
                return

    def _answer(self, arrival: Arrival) -> Answer:
        """Of one frame; its outputs are on the CPU, so the device has finished."""
        taken = time.perf_counter()
        frame = self.bundle.prepare(arrival.picture)
        prepared = time.perf_counter()
        outputs = self.session.step(frame)
        outputs = outputs.cpu() if hasattr(outputs, "cpu") else outputs
        inferred = time.perf_counter()
        answer = self.bundle.answer(outputs, arrival.picture)
        stages = {
            "decode": arrival.decoding,
            "wait": max(0.0, taken - arrival.arrived - arrival.decoding),
            "prepare": prepared - taken,
            "infer": inferred - prepared,
            "read": time.perf_counter() - inferred,
        }
        self.report.add(arrival, answer, stages)
        return answer

    def _read(self) -> None:
        """The source's thread."""
        error: BaseException | None = None
        try:
            for arrival in self.source:
                if not self.frames.put(arrival):
                    return
        except BaseException as caught:
            error = caught
        finally:
            self.frames.close(error)

    def _stop_reading(self) -> None:
        self.source.stop()
        self.frames.leave()

    def _write(self) -> None:
        """The sink's thread."""
        try:
            for arrival, answer in self.answered.taken():
                self.sink(arrival, answer)
        except BaseException as error:
            self._sink_error = error
            self.answered.leave()


@contextlib.contextmanager
def _running(
    work: Callable[[], None], end: Callable[[], None], patience: float | None = None
) -> Iterator[None]:
    """A thread that is told to end, and waited for, when the block ends."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        end()
        thread.join(patience)


def _changed(arrival: Arrival, size: tuple[int, ...]) -> str:
    came, before = (f"{shape[1]} x {shape[0]}" for shape in (arrival.picture.shape, size))
    return (
        f"frame {arrival.number} has {came} pixels and those before {before}; a stream needs one "
        "size: start another one from there"
    )
