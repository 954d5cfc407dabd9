"""Pictures of what a network reconstructs."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from nnunet_plugins.networks.layers.visibility import visible_on

COLUMNS = ("input", "masked", "reconstruction")
PLANES = ("axial", "coronal", "sagittal")
"""Names of the planes across the axes d, h and w of a volume that runs from feet to head, from
back to front, from left to right."""
MOST_SAMPLES = 2


def draw_volumes(volume: Tensor, visible: Tensor, restored: Tensor, path: Path) -> None:
    """Write input, masked input and reconstruction of the first samples as a PNG.

    Three planes through the middle of each; all three pictures of a plane on one grey scale.

    Args:
        volume: (b, c, d, h, w); the first channel is drawn.
        visible: (b, 1, d_t, h_t, w_t) bool.
        restored: (b, c, d, h, w), what is hidden as the network has it.
        path: Of the PNG.
    """
    samples = min(MOST_SAMPLES, len(volume))
    shown = visible_on(visible, volume.shape[2:])
    figure = Figure(figsize=(2 * 3 * samples, 2.2 * 3), layout="constrained")
    axes = figure.subplots(3, 3 * samples, squeeze=False)
    for sample in range(samples):
        images = [
            x[sample, 0].float().cpu().numpy()
            for x in (volume, volume.where(shown, float("nan")), restored)
        ]
        for plane in range(3):
            low, high = np.percentile(images[0], (0.5, 99.5))
            for column, image in enumerate(images):
                ax = axes[plane, 3 * sample + column]
                middle = np.take(image, image.shape[plane] // 2, axis=plane)
                ax.imshow(middle, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), origin="lower")
                ax.set_facecolor("#456")
                ax.set(xticks=[], yticks=[])
                if plane == 0:
                    ax.set_title(COLUMNS[column], fontsize=9)
                if column == 0:
                    ax.set_ylabel(PLANES[plane], fontsize=9)
    figure.savefig(path, dpi=100)
