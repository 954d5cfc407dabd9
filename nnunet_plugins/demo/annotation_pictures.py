"""A study's slice beside what was predicted and drawn on it, as PNG."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from nnunet_plugins.label.colours import drawn, hexadecimal
from nnunet_plugins.label.scores import read_labels

OPACITY = 0.55
LOW, HIGH = 1, 99
"""Percentiles of a volume that become black and white."""


def draw_study(
    out: Path, image: Path, labels: Mapping[str, Path], classes: Mapping[str, int]
) -> Path:
    """Draw the slice with most labelled voxels: bare, and with each of the labels.

    Args:
        out: PNG to write.
        image: Volume.
        labels: Files on its grid, by what stands above them.
        classes: Names and values, for the legend.
    """
    volume = sitk.ReadImage(str(image))
    voxels = sitk.GetArrayFromImage(volume).astype(np.float32)
    found = {title: read_labels(file) for title, file in labels.items()}
    index = int(sum((array > 0).sum((1, 2)) for array in found.values()).argmax())
    across, down, _ = volume.GetSpacing()
    figure = Figure(figsize=(3.2 * (1 + len(found)), 3.4), dpi=110, layout="constrained")
    low, high = np.percentile(voxels, [LOW, HIGH])
    overlays: dict[str, NDArray | None] = {f"{out.stem}, slice {index}": None, **found}
    for axes, (title, array) in zip(
        figure.subplots(1, len(overlays)), overlays.items(), strict=True
    ):
        axes.imshow(voxels[index], cmap="gray", vmin=low, vmax=high, aspect=down / across)
        if array is not None:
            axes.imshow(drawn(array[index]), alpha=OPACITY, aspect=down / across)
        axes.set_title(title, fontsize=10)
        axes.set_axis_off()
    patches = [Patch(color=hexadecimal(value), label=name) for name, value in classes.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), fontsize=9)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)
    return out
