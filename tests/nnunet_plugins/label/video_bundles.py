"""Bundles of video whose networks see something in every clip of the tests."""

import json
import shutil
from pathlib import Path

import torch
from torch import Tensor

from nnunet_plugins.label.served import ServedBundle
from tests.bundles.conftest import ROOT, draw_frames

BIAS = "decoder.seg_layers.0.bias"


def lively_bundle(name: str, parent: Path) -> Path:
    """A copy of a bundle of the project, its last bias moved so that each class wins somewhere."""
    folder = parent / name
    shutil.copytree(ROOT / "bundles" / name, folder)
    inference = folder / "configs" / "inference.json"
    config = json.loads(inference.read_text())
    inference.write_text(json.dumps(config | {"mirror_axes": []}))  # a quarter of the time
    bundle = ServedBundle(folder)
    network = bundle.network(bundle.shipped)
    clip = torch.from_numpy(draw_frames(3, 8, (48, 64))[0]).permute(3, 0, 1, 2)[None] / 255
    with torch.no_grad():
        logits: Tensor = network(clip)
    weights = torch.load(bundle.shipped, weights_only=True)
    half = (logits[:, 1] - logits[:, 0]).quantile(0.7)
    weights[BIAS] = weights[BIAS] + torch.tensor([half, 0.0]).to(weights[BIAS].dtype)
    torch.save(weights, bundle.shipped)
    return folder
