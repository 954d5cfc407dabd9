"""Which videos there are: folders looked through to their bottom, or lists of files."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from nnunet_plugins.data.clips import IMAGE_ENDINGS, VIDEO_ENDINGS, images_in, natural_key
from pretrain.manifests import MANIFESTS, positive, read_entries

PASSED_OVER = ("masks", "labelsTr", "labelsTs")
"""Folders of label maps, which are no videos."""


@dataclass(frozen=True)
class Video:
    """One video on disk.

    Args:
        path: Absolute path of a video file, or of a folder of images.
        source: Name of the part of the corpus that it belongs to.
        weight: Of its source: how often that is drawn, relative to the others. None where no
            source has a weight.
        fps: Frames a second; None if only the file can say.
    """

    path: str
    source: str
    weight: float | None = None
    fps: float | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """The file, or the images in their order; listed anew each time."""
        if os.path.isdir(self.path):
            return tuple(map(str, images_in(Path(self.path))))
        return (self.path,)

    def __str__(self) -> str:
        return self.path


def find_videos(sources: Path | str | Iterable[Path | str]) -> list[Video]:
    """Every video of folders, files and manifests, in this order; inside a folder in natural order.

    Folders are searched to their bottom for video files (mp4, avi, mov, gif, mkv, mpeg and more)
    and for folders of images, each of which is one video; images beside a video file are none.
    Hidden files and folders called `masks`, `labelsTr` or `labelsTs` are passed over. What is
    found under a folder is one source, called like it.

    A manifest is a JSON list of paths or of {"path", "source", "weight", "fps"}, or an object with
    such a list under "videos" (as `describe` gives); a CSV with these columns; or a text file with
    one path a line. Its paths are relative to its folder, may be folders, and need not exist: the
    first pass leaves out what is missing. Entries without a source belong to one that is called
    like the manifest. A weight is that of the whole source and need be given once.

    Raises:
        FileNotFoundError: If a source does not exist, or holds no videos.
        ValueError: If a manifest cannot be read, a source has several weights, or only some
            sources have one.
    """
    listed = [sources] if isinstance(sources, Path | str) else list(sources)
    videos: list[Video] = []
    for source in (Path(one).absolute() for one in listed):
        if not source.exists():
            raise FileNotFoundError(
                f"{source} does not exist; give a folder of videos or a manifest"
            )
        is_manifest = source.is_file() and source.suffix in MANIFESTS
        found = list(_read_manifest(source) if is_manifest else _expand(source, source.stem))
        if not found:
            what = "lists no videos" if is_manifest else "holds no videos and no folders of images"
            raise FileNotFoundError(f"{source} {what}; give another folder or manifest")
        videos += found
    return _weighted(videos)


def _expand(path: Path, source: str) -> Iterator[Video]:
    """The video in a file, or all those under a folder."""
    if not path.is_dir():
        yield Video(str(path), source)
        return
    seen = set()
    for folder, folders, names in os.walk(path, followlinks=True):
        if os.path.realpath(folder) in seen:  # links may lead in circles
            folders.clear()
            continue
        seen.add(os.path.realpath(folder))
        folders[:] = [f for f in folders if not f.startswith(".") and f not in PASSED_OVER]
        folders.sort(key=natural_key)
        visible = sorted((n for n in names if not n.startswith(".")), key=natural_key)
        files = [name for name in visible if name.lower().endswith(VIDEO_ENDINGS)]
        if not files and any(name.lower().endswith(IMAGE_ENDINGS) for name in visible):
            yield Video(folder, source)
        yield from (Video(os.path.join(folder, name), source) for name in files)


def _read_manifest(manifest: Path) -> Iterator[Video]:
    for entry in read_entries(manifest, "videos"):
        path = manifest.parent / str(entry["path"])
        weight, fps = positive(entry, "weight", manifest), positive(entry, "fps", manifest)
        found = list(_expand(path, str(entry.get("source") or manifest.stem)))
        if not found:
            raise ValueError(f"{manifest} lists {path}, which holds no video; correct the entry")
        yield from (replace(video, weight=weight, fps=fps) for video in found)


def _weighted(videos: list[Video]) -> list[Video]:
    """The videos with the weight of their source, which one of them may have for all."""
    weights: dict[str, float] = {}
    for video in videos:
        if video.weight and weights.setdefault(video.source, video.weight) != video.weight:
            raise ValueError(
                f"source {video.source} has the weights {weights[video.source]:g} and "
                f"{video.weight:g}; give each source one"
            )
    without = {video.source for video in videos} - set(weights)
    if weights and without:
        raise ValueError(
            f"source {min(without)} has no weight and {min(weights)} has one; give all sources a "
            "weight, or none to draw them by their length"
        )
    return [replace(video, weight=weights.get(video.source)) for video in videos]
