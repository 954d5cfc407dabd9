"""Tiny bundles with random weights, and videos of a few frames, broken ones too."""

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from nnunet_plugins.networks import EndoMamba

ROOT = Path(__file__).parents[3]
VIVIM = ROOT / "bundles" / "vivim" / "configs"
SIDES = {"d_model": 16, "depth": 2, "image_size": [32, 48], "patch_size": 8}
HEADS = {
    "segmentation": {"decoder_widths": [12, 10, 8]},
    "phase": {},
    "localization": {},
}


def write_bundle(folder: Path, head: str = "segmentation", plan: bool = True) -> Path:
    """A bundle in the layout of those in `bundles`, of an EndoMamba of two layers."""
    options = {"input_channels": 3, "num_classes": 2, "head": head, **SIDES, **HEADS[head]}
    target = {"_target_": "nnunet_plugins.networks.endomamba.EndoMamba", **options}
    inference = {"configuration": "3d_fullres", "network_def": target}
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "configs" / "inference.json").write_text(json.dumps(inference))
    channels = {str(i): "rgb_to_0_1" for i in range(3)}
    dataset = {"channel_names": channels, "labels": {"background": 0, "polyp": 1}}
    (folder / "configs" / "dataset.json").write_text(
        json.dumps(dataset | {"file_ending": ".nii.gz", "numTraining": 1})
    )
    if plan:
        (folder / "configs" / "plans.json").write_text((VIVIM / "plans.json").read_text())
    torch.manual_seed(0)
    network = EndoMamba(**options)
    for p in network.parameters():  # so that both classes are seen
        torch.nn.init.normal_(p, std=0.3) if p.ndim > 1 else None
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    return folder


@pytest.fixture(scope="session")
def bundle(tmp_path_factory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "endomamba")


@pytest.fixture(scope="session")
def phase_bundle(tmp_path_factory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "phase", "phase", plan=False)


def pictures(count: int, height: int = 32, width: int = 48) -> list[np.ndarray]:
    """A bright square that moves over noise."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 90, (count, height, width, 3), np.uint8)
    for i, frame in enumerate(frames):
        left = 2 * i % (width - 12)
        frame[8:20, left : left + 12] = 220
    return list(frames)


def write_clip(
    path: Path, frames: list[np.ndarray], fps: int = 25, codec: str = "libx264", **options
) -> Path:
    """A video in which every frame is a key frame; lossless enough to tell frames apart."""
    with av.open(str(path), "w", **options) as container:
        settings = {"g": "1", "crf": "10", "tune": "zerolatency"} if codec == "libx264" else {}
        stream = container.add_stream(codec, rate=Fraction(fps), options=settings)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p" if codec == "libx264" else "yuvj420p"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def packets_of(path: Path) -> list[tuple[int, int]]:
    """Position and size in the file of each frame's data."""
    with av.open(str(path)) as container:
        return [(p.pos, p.size) for p in container.demux(video=0) if p.size]


@pytest.fixture
def clip(tmp_path) -> Path:
    return write_clip(tmp_path / "clip.mp4", pictures(10))


def frames_of(path: Path) -> list[np.ndarray]:
    """What a player shows."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
