"""Decoding for pretraining: frames a second of one core, beside a plain loop of PyAV.

python tests/benchmarks/bench_decoding.py [--data FOLDER] [--clips 40] [--repeats 3]

Takes the videos of MAMBAMED_SHARED, or of a folder, or makes some. Three comparisons, in CPU
seconds, which a busy machine does not stretch; all decode in one thread:

- whole: all frames of each file as RGB, first to last;
- clips: the frames of random clips of 16 at a stride of 4 as RGB. The plain loop opens the file,
  decodes from its beginning and stops after the clip; frames a second are those of the clips;
- clips, seeking: the same, but the plain loop seeks by the time of the first frame, which it is
  told. Only clips of which it gets the right frames: in some files times do not survive a seek.

Then what a clip costs with crop, resizing and colour, from the files and from the frame cache.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np

from nnunet_plugins.data.clips import write_video
from nnunet_plugins.doctor import machine
from pretrain.videos import ClipSettings, VideoClips, find_videos, first_pass
from pretrain.videos.clips import Place
from pretrain.videos.decoding import VideoFile
from pretrain.videos.open_videos import OpenVideos

SETTINGS = ClipSettings(frames=16, stride=4, size=(224, 224))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of videos")
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    for name, value in machine().items():
        print(f"{name}: {value}")
    with tempfile.TemporaryDirectory() as folder:
        sources = [args.data] if args.data else shared_videos() or [generated(Path(folder))]
        found = [video for video in find_videos(sources) if Path(video.path).is_file()]
        findings = first_pass(found, folder)
        settings = SETTINGS.plain() | {"clips": args.clips}
        clips = VideoClips(findings, ClipSettings(**settings))
        cached = VideoClips(findings, ClipSettings(**settings), cache=folder)
        assert cached.cache is not None
        cached.cache.fill(findings)
        places = [clips.place(index) for index in range(len(clips))]
        order = np.random.default_rng(0).permutation(len(places))
        drawn = [places[index] for index in order]
        times = {place.kept.video.path: frame_times(place.kept.video.path) for place in drawn}
        paths = [kept.video.path for kept in findings.kept]
        whole = sum(kept.seen.frames for kept in findings.kept)
        shown = len(drawn) * SETTINGS.frames
        compare("whole", whole, args.repeats, lambda: ours_whole(paths), lambda: plain_whole(paths))
        compare("clips", shown, args.repeats, lambda: ours(drawn), lambda: plain(drawn))
        compare(
            "clips, seeking",
            shown,
            args.repeats,
            lambda: ours(drawn),
            lambda: seeking(drawn, times),
        )
        for name, dataset in (("from files", clips), ("from the cache", cached)):
            seconds = cpu_seconds(lambda d=dataset: [d[int(i)] for i in order], args.repeats)
            print(f"whole clips {name:<15}{shown / seconds:10.1f} frames/s")


def shared_videos() -> list[Path]:
    """The real videos at hand; none if there are none."""
    shared = os.environ.get("MAMBAMED_SHARED")
    names = ("data/video_unlabelled", "data/video/VTUS")
    return [Path(shared, name) for name in names] if shared else []


def generated(folder: Path) -> Path:
    """Four videos of 200 frames of moving noise."""
    for seed in range(4):
        tile = np.random.default_rng(seed).integers(0, 255, (32, 48, 3))
        image = np.kron(tile, np.ones((8, 8, 1))).astype(np.uint8)
        frames = (np.roll(image, 3 * i, axis=1) for i in range(200))
        (folder / "videos").mkdir(exist_ok=True)
        write_video(folder / f"videos/{seed}.mp4", frames)
    return folder / "videos"


def compare(
    name: str, frames: int, repeats: int, ours: Callable[[], object], plain: Callable[[], object]
) -> None:
    """Print frames a second of both, taking turns, and their ratio."""
    pairs = [(cpu_seconds(ours, 1), cpu_seconds(plain, 1)) for _ in range(repeats)]
    mine, its = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"{name:<15}{frames / mine:10.1f} frames/s, plain {frames / its:10.1f}: {its / mine:.2f}")


def cpu_seconds(call: Callable[[], object], repeats: int) -> float:
    """Median CPU seconds of all threads."""
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


def ours_whole(paths: list[str]) -> None:
    for path in paths:
        reader = VideoFile(path)
        numbers = iter(range(10**9))
        try:
            for _ in reader.read(numbers):
                pass
        except RuntimeError:  # it ended
            reader.close()


def plain_whole(paths: list[str]) -> None:
    for path in paths:
        with av.open(path) as container:
            for _ in plain_frames(container):
                pass


def ours(places: list[Place]) -> None:
    readers = OpenVideos(8)
    for place in places:
        for _ in readers.get(place.kept).read(place.numbers):
            pass


def plain(places: list[Place]) -> None:
    for place in places:
        wanted = set(place.numbers)
        with av.open(place.kept.video.path) as container:
            container.streams.video[0].codec_context.thread_count = 1
            for number, picture in enumerate(container.decode(video=0)):
                if number in wanted:
                    picture.reformat(format="rgb24", threads=1).to_ndarray()
                if number == place.numbers[-1]:
                    break


def seeking(places: list[Place], times: dict[str, list[int]]) -> None:
    for place in places:
        for _ in sought_frames(place, times):
            pass


def sought_frames(place: Place, times: dict[str, list[int]]) -> Iterator[np.ndarray]:
    shown = times[place.kept.video.path]
    wanted = {shown[number] for number in place.numbers}
    with av.open(place.kept.video.path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        container.seek(min(wanted), stream=stream)
        for picture in container.decode(stream):
            if picture.pts in wanted:
                yield picture.reformat(format="rgb24", threads=1).to_ndarray()
            if picture.pts >= max(wanted):
                break


def seeks_right(place: Place, times: dict[str, list[int]]) -> bool:
    """Whether the plain seek gives the frames of a clip."""
    exact = list(OpenVideos(1).get(place.kept).read(place.numbers))
    sought = list(sought_frames(place, times))
    return len(sought) == len(exact) and all(map(np.array_equal, sought, exact))


def plain_frames(container: av.container.InputContainer) -> Iterator[np.ndarray]:
    container.streams.video[0].codec_context.thread_count = 1
    for picture in container.decode(video=0):
        yield picture.reformat(format="rgb24", threads=1).to_ndarray()


def frame_times(path: str) -> list[int]:
    """Time of each frame, in the stream's unit."""
    with av.open(path) as container:
        return [int(picture.pts or 0) for picture in container.decode(video=0)]


if __name__ == "__main__":
    main()
