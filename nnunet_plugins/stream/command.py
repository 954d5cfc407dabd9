"""`mambamed stream`: a video or a camera through a network, frame by frame, onto the screen's line,
an overlay, masks and a report."""

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from nnunet_plugins.stream.answers import Answer, Segmentation
from nnunet_plugins.stream.compiling import compiled, warm_up
from nnunet_plugins.stream.decoding import Arrival
from nnunet_plugins.stream.memory import keep_freed_memory
from nnunet_plugins.stream.network import StreamBundle
from nnunet_plugins.stream.packing import MODES, prepared
from nnunet_plugins.stream.pipeline import Pipeline
from nnunet_plugins.stream.places import check_folder, check_places
from nnunet_plugins.stream.report import Report
from nnunet_plugins.stream.sources import Source, open_source
from nnunet_plugins.stream.writer import GrowingVideo, write_mask
from nnunet_plugins.streaming import StreamingSession


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `mambamed stream`."""
    parser.add_argument(
        "source", metavar="VIDEO|CAMERA", help="file; or 0, /dev/video0, rtsp://HOST/PATH"
    )
    parser.add_argument("--bundle", required=True, type=Path, help="folder of a bundle")
    parser.add_argument("--out", type=Path, metavar="MP4", help="overlay to write, as frames come")
    parser.add_argument("--masks", type=Path, metavar="DIR", help="write each frame's mask there")
    parser.add_argument("--json", type=Path, metavar="REPORT", help="write speed and counts there")
    parser.add_argument("--device", help="such as cpu or cuda:0; the GPU if there is one")
    parser.add_argument(
        "--dtype", default="float32", choices=MODES,
        help="mixed: large products in bfloat16, which CPUs with AMX or AVX512_BF16 do faster",
    )  # fmt: skip
    parser.add_argument(
        "--compile", action="store_true",
        help="compile the network first, a minute or two: a CUDA graph on NVIDIA GPUs; on CPUs it "
        "is faster without",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, help="of the CPU that the network may use")
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"), help="resize frames to this first"
    )
    parser.add_argument(
        "--stride", type=int, help="answer every so manyth frame; as in training if not given"
    )
    parser.add_argument("--live", action="store_true", help="play a file as a camera would")
    parser.add_argument("--skip", type=int, default=0, help="frames of a file to leave out first")
    parser.add_argument("--max-frames", type=int, help="stop after so many answers")
    parser.add_argument(
        "--save-state", type=Path, metavar="FILE", help="write the state at the end"
    )
    parser.add_argument("--resume-state", type=Path, metavar="FILE", help="go on from such a state")


def run(args: argparse.Namespace) -> int:
    """Stream and return 0, 1 if no frame was answered; 130 after Ctrl-C, with all that was
    answered kept.

    Raises:
        OSError: If a file is missing or cannot be written.
        ValueError: If the source, the bundle or an option does not fit.
        RuntimeError: If a camera went away and did not come back, once everything is written.
    """
    _check(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    keep_freed_memory()
    source = open_source(args.source, live=args.live, skip=args.skip)
    bundle = StreamBundle(args.bundle, tuple(args.size) if args.size else None, args.stride)
    device = _device(args.device or ("cuda:0" if torch.cuda.is_available() else "cpu"))
    prepare = compiled if args.compile else prepared
    session = StreamingSession(prepare(bundle.network, args.dtype, device))
    if args.resume_state:
        session.load(args.resume_state)
    report = Report(bundle.names, source.live)
    about = {
        "source": args.source,
        "bundle": str(args.bundle),
        "network": type(bundle.network).__name__,
        "device": _device_name(device),
        "dtype": args.dtype,
        "compile_seconds": _compile(args, bundle) if args.compile else None,
        "threads": torch.get_num_threads(),
        "stride": bundle.stride,
        "first_index": session.index,
    }
    with stopped_by_signals() as (stop, received):
        sink = _Sink(args, bundle, source)
        pipeline = Pipeline(source, bundle, session, sink, report, stop)
        try:
            with _status(source, bundle.stride, args.max_frames) as bar:
                pipeline.run(args.max_frames, lambda: _advance(bar, report, pipeline.dropped))
        finally:
            figures = about | _outcome(source, pipeline, session)
            with contextlib.ExitStack() as end:  # from the last to the first, whichever fails
                if args.json:
                    end.callback(_write_json, args.json, figures)
                if args.save_state and session.index:
                    end.callback(session.save, args.save_state)
                end.callback(sink.close)
    _say_end(args, figures, source)
    return 128 + received[0] if received else int(not figures["frames"])


def _compile(args: argparse.Namespace, bundle: StreamBundle) -> float | None:
    """Compile for the source's frames before any of them counts: seconds; None if none comes."""
    with contextlib.closing(iter(open_source(args.source))) as frames:
        first = next(frames, None)
    if first is None:
        return None
    frame = bundle.prepare(first.picture)
    size = " x ".join(map(str, frame.shape[2:]))
    print(f"compiling the network for frames of {size}, a minute or two ...", file=sys.stderr)
    seconds = round(warm_up(bundle.network, frame), 1)
    print(f"compiled in {seconds} s", file=sys.stderr)
    return seconds


class _Sink:
    """Draws and writes what the command line asks for; the video is begun with the first frame."""

    def __init__(self, args: argparse.Namespace, bundle: StreamBundle, source: Source) -> None:
        self.bundle, self.source = bundle, source
        self.masks: Path | None = args.masks
        self.video = GrowingVideo(args.out) if args.out else None
        self.start: float | None = None

    def __call__(self, arrival: Arrival, answer: Answer) -> None:
        if self.masks is not None:
            if not isinstance(answer, Segmentation):
                raise ValueError("this bundle gives classes of frames, no masks; leave --masks out")
            write_mask(self.masks / f"{arrival.number + 1:06d}.png", self.bundle.mask(answer))
        if self.video is not None:
            self.video.fps = self.source.fps or self.video.fps
            self.start = arrival.time if self.start is None else self.start
            self.video.write(answer.draw(arrival.picture), arrival.time - self.start)

    def close(self) -> None:
        """End the video."""
        if self.video is not None:
            self.video.close()


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[tuple[threading.Event, list[int]]]:
    """An event that Ctrl-C and SIGTERM set, and which of them came; a second one interrupts."""
    stop, received = threading.Event(), list[int]()
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: object) -> None:
        stop.set()
        received.append(number)
        signal.signal(number, signal.default_int_handler)

    try:
        for number in before:
            signal.signal(number, handle)
        yield stop, received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check(args: argparse.Namespace) -> None:
    for name in ("threads", "max_frames", "stride"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} {value} is none; give at least 1")
    if args.size and min(args.size) < 1:
        raise ValueError(f"--size {args.size[0]} {args.size[1]} is no size; give pixels")
    if args.skip < 0:
        raise ValueError(f"--skip {args.skip} is none; give 0 or more")
    if args.threads and args.threads > (os.cpu_count() or 1):
        raise ValueError(f"--threads {args.threads} are more than the {os.cpu_count()} cores here")
    if args.masks:
        check_folder("--masks", args.masks)
        goes_on = args.skip or args.resume_state
        if not goes_on and (older := sum(1 for _ in args.masks.glob("*.png"))):
            raise ValueError(
                f"--masks {args.masks} holds {older} masks already, which would mix with these; "
                "name an empty folder, or go on with --skip or --resume-state"
            )
    written = {"--out": args.out, "--json": args.json, "--save-state": args.save_state}
    check_places(written, {"the video that is read": Path(args.source)})


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (AssertionError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"--device {name} cannot be used: {reason}; give cpu, or cuda:0 where there is a GPU"
        ) from error
    return device


def _status(source: Source, stride: int, max_frames: int | None) -> Any:
    announced = source.announced()
    answers = None if announced is None else -(-announced // stride)
    known = [n for n in (answers, max_frames) if n is not None]
    return tqdm(total=min(known, default=None), unit="frame", disable=None, leave=True)


def _advance(bar: Any, report: Report, dropped: int) -> None:
    bar.set_postfix_str(report.status(dropped), refresh=False)
    bar.update()


def _outcome(source: Source, pipeline: Pipeline, session: StreamingSession) -> dict[str, Any]:
    return pipeline.report.figures() | {
        "arrived": source.health.frames,
        "repeated": pipeline.repeated,
        "dropped": pipeline.dropped,
        "corrupt": source.health.corrupt,
        "notes": source.health.notes,
        "state_bytes": session.state_bytes,
        "next_index": session.index,
    }


def _say_end(args: argparse.Namespace, figures: dict[str, Any], source: Source) -> None:
    latency = figures["latency_ms"]
    if latency is None:
        print(f"{args.source}: no frame was answered", file=sys.stderr)
        return
    corrupt, dropped, stride = (figures[name] for name in ("corrupt", "dropped", "stride"))
    print(
        f"{figures['frames']} frames"
        + (f", 1 of {stride}," if stride > 1 else "")
        + f" at {figures['fps']:.1f} FPS, latency {latency['median']:.0f} ms"
        + f" (p99 {latency['p99']:.0f})"
        + (f", {dropped} dropped for newer ones" if dropped else "")
        + (f", {corrupt} corrupt ones skipped" if corrupt else "")
        + (f": {args.out}" if args.out else "")
    )
    for note in source.health.notes:
        print(note, file=sys.stderr)


def _write_json(path: Path, figures: dict[str, Any]) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
