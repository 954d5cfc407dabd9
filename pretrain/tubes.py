"""Tubes: the same patches of all frames are hidden, so that no frame shows what another hides.

Source: Tong et al., "VideoMAE", 2022, arXiv:2203.12602, section 3.3.
"""

from torch import Tensor

from pretrain.masking import random_visible


def tube_visible(
    batch: int, frames: int, patches: int, mask_ratio: float, seeds: Tensor | None = None
) -> Tensor:
    """A random choice of visible patches, the same in all frames of a clip: (b, t, n) bool.

    Of each frame round((1 - mask_ratio) * n) patches are visible, at least one and not all.

    Args:
        batch: Clips.
        frames: Frames of a clip.
        patches: Patches of a frame, n.
        mask_ratio: Share of hidden patches.
        seeds: (b,) integers that decide the choice of each clip, whatever batch it is in; drawn
            from torch's generator if None.

    Raises:
        ValueError: If the ratio is not between 0 and 1 or a frame is a single patch.
    """
    return random_visible(batch, (patches,), mask_ratio, seeds).expand(batch, frames, patches)
