"""What a stream has seen and how fast it was: the figures of `--json` and of the status line."""

import time
from typing import Any

from nnunet_plugins.stream.answers import Answer, FrameClass
from nnunet_plugins.stream.decoding import Arrival
from nnunet_plugins.stream.latency import Durations

STAGES = ("decode", "wait", "prepare", "infer", "read")
"""From a frame's arrival to its answer. Drawing and encoding come after."""


class Report:
    """Counts and durations of a stream, in memory that does not grow with it.

    Args:
        names: Of classes, in the order of their numbers.
        live: Whether frames came at their own pace. Only then does waiting count as latency: a
            file's frames are read ahead.
    """

    def __init__(self, names: list[str], live: bool) -> None:
        self.names, self.live = names, live
        self.frames = 0
        self.seen: dict[str, int] = {}
        """In how many frames each class was seen."""
        self.phases: list[dict[str, Any]] = []
        """Where frames have a class: since when, which, and for how many frames."""
        self.latency = Durations()
        self.stages = {name: Durations() for name in STAGES}
        self._start: float | None = None
        self._end = 0.0

    def add(self, arrival: Arrival, answer: Answer, stages: dict[str, float]) -> None:
        """Count an answered frame; `stages` in seconds."""
        now = time.perf_counter()
        self._start = now - sum(stages.values()) if self._start is None else self._start
        self._end = now
        self.frames += 1
        for name, seconds in stages.items():
            self.stages[name].add(seconds)
        self.latency.add(sum(s for name, s in stages.items() if self.live or name != "wait"))
        for index in answer.classes():
            name = self.names[index] if index < len(self.names) else f"class {index}"
            self.seen[name] = self.seen.get(name, 0) + 1
        if isinstance(answer, FrameClass):
            self._add_phase(arrival, answer)

    @property
    def fps(self) -> float:
        """Answered frames per second so far."""
        elapsed = self._end - (self._start or 0.0)
        return self.frames / elapsed if self.frames and elapsed > 0 else 0.0

    def status(self, dropped: int) -> str:
        """For a line that is written over and over."""
        figures = self.latency.milliseconds() or {"median": 0.0, "p99": 0.0}
        line = f"{self.fps:.1f} FPS, {figures['median']:.0f} ms (p99 {figures['p99']:.0f})"
        return line + (f", {dropped} dropped" if dropped else "")

    def figures(self) -> dict[str, Any]:
        """Of the whole stream, as plain types."""
        return {
            "frames": self.frames,
            "fps": round(self.fps, 3),
            "latency_ms": self.latency.milliseconds(),
            "latency_counts_waiting": self.live,
            "stages_ms": {name: d.milliseconds() for name, d in self.stages.items()},
            "classes": self.seen,
            **({"runs": self.phases} if self.phases else {}),
        }

    def _add_phase(self, arrival: Arrival, answer: FrameClass) -> None:
        if not self.phases or self.phases[-1]["class"] != answer.name:
            start = round(arrival.time, 3)
            self.phases.append({"seconds": start, "class": answer.name, "frames": 0})
        self.phases[-1]["frames"] += 1
