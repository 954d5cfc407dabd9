"""Pictures of what a network reconstructs in clips."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from nnunet_plugins.networks.layers.visibility import visible_on
from pretrain.pictures import COLUMNS as ROWS
from pretrain.pictures import MOST_SAMPLES

MOST_FRAMES = 6
"""Of a clip that are drawn, evenly spaced from the first to the last."""
HIDDEN = (0.27, 0.33, 0.4)
"""Colour of what is hidden."""


def draw_clips(clip: Tensor, visible: Tensor, restored: Tensor, path: Path) -> None:
    """Write film strips of the first samples as a PNG: input, masked input, reconstruction.

    Args:
        clip: (b, c, t, h, w) in [0, 1]; of one channel, it is drawn grey.
        visible: (b, 1, t, rows, columns) bool.
        restored: (b, c, t, h, w), what is hidden as the network has it.
        path: Of the PNG.
    """
    samples = min(MOST_SAMPLES, len(clip))
    frames = np.linspace(0, clip.shape[2] - 1, min(MOST_FRAMES, clip.shape[2])).round().astype(int)
    height = clip.shape[3] / clip.shape[4]
    rows = len(ROWS) * samples
    size = (1.6 * len(frames) + 0.4, 1.6 * height * rows + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, len(frames), squeeze=False)
    hidden = clip.new_tensor(HIDDEN)[: clip.shape[1]].view(-1, 1, 1, 1)
    masked = clip.where(visible_on(visible, clip.shape[2:]), hidden)
    for row in range(rows):
        strip = (clip, masked, restored)[row % len(ROWS)][row // len(ROWS)]
        pixels = strip.float().clamp(0, 1).cpu().permute(1, 2, 3, 0).numpy()
        for column, frame in enumerate(frames):
            ax = axes[row, column]
            grey = pixels.shape[-1] == 1
            ax.imshow(pixels[frame, ..., 0] if grey else pixels[frame], cmap="gray", vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
            if row == 0:
                ax.set_title(f"frame {frame + 1}", fontsize=9)
        axes[row, 0].set_ylabel(ROWS[row % len(ROWS)], fontsize=9)
    figure.savefig(path, dpi=100)
