"""Small videos that are drawn: a bright disc that moves over a texture, another one each time."""

from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image

H, W = 40, 48


def draw_video(seed: int, frames: int = 6, classes: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Frames (t, h, w, 3) and classes (t, h, w)."""
    rng = np.random.default_rng(seed)
    texture = np.kron(rng.integers(0, 150, (H // 4, W // 4, 3)), np.ones((4, 4, 1))).astype(
        np.uint8
    )
    y, x = np.indices((H, W))
    images, labels = [], []
    for t in range(frames):
        near = (y - 14 - t) ** 2 + (x - 15 - 2 * t) ** 2 < 64
        label = np.where(near, 1 + (y > 14 + t) * (classes > 1), 0).astype(np.uint8)
        images.append(np.where(near[..., None], 230, texture).astype(np.uint8))
        labels.append(label)
    return np.stack(images), np.stack(labels)


def write_frames(folder: Path, images: np.ndarray, names: list[str] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        name = names[index] if names else f"{index + 1:04d}"
        Image.fromarray(image).save(folder / f"{name}.png")
    return folder


def write_lossless(path: Path, images: np.ndarray, pix_fmt: str = "gray") -> Path:
    """FFV1, or PNG in a .mov, which keep every value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png" if path.suffix == ".mov" else "ffv1", rate=10)
        stream.height, stream.width = images.shape[1:3]
        stream.pix_fmt = pix_fmt
        for image in images:
            source = "gray" if image.ndim == 2 else {3: "rgb24", 4: "rgba"}[image.shape[-1]]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format=source)))
        container.mux(stream.encode(None))
    return path


@pytest.fixture
def source(tmp_path) -> Path:
    """Four videos of 5 to 8 frames with masks of 0 and 255, two patients."""
    for index in range(4):
        images, labels = draw_video(index, frames=5 + index)
        folder = tmp_path / "source" / f"patient{index // 2}_seq{index}"
        write_frames(folder / "frames", images)
        write_frames(folder / "masks", labels * np.uint8(255))
    return tmp_path / "source"


@pytest.fixture
def draw() -> SimpleNamespace:
    """The functions of this file."""
    return SimpleNamespace(video=draw_video, frames=write_frames, lossless=write_lossless)
