"""Clips that say where in their video they were taken, for teachers whose features are on disk."""

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pretrain.videos.augmentation import View
from pretrain.videos.clips import VideoClips


class LocatedClips(Dataset[dict[str, Tensor]]):
    """The same clips with their place beside them, as `pretrain.teachers.features.PLACE` says.

    Args:
        clips: Whose items are given.
    """

    def __init__(self, clips: VideoClips) -> None:
        self.clips = clips
        self._numbers = {kept.identity: i for i, kept in enumerate(clips.findings.kept)}

    def __len__(self) -> int:
        return len(self.clips)

    def set_epoch(self, epoch: int) -> None:
        """As of the clips."""
        self.clips.set_epoch(epoch)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """An item of the clips, and "video", "frames", "box" and "flipped"."""
        return {**self.clips[index], **self.place(index)}

    def place(self, index: int) -> dict[str, Tensor]:
        """Where a clip of this epoch was taken."""
        place, random = self.clips.drawn(index)
        inside = torch.tensor(place.kept.seen.box)
        cache, (top, left, bottom, right) = self.clips.cache, place.kept.seen.box
        box = (top, left, bottom, right) if cache is None else (0, 0, *cache.size(place.kept))
        view = View.random(box, self.clips.settings, random)
        x0, y0, x1, y1 = view.box
        stored = torch.tensor([box[2] - box[0], box[3] - box[1]] * 2)
        pixels = torch.tensor([bottom - top, right - left] * 2) / stored
        corners = torch.tensor([y0 - box[0], x0 - box[1], y1 - box[0], x1 - box[1]])
        return {
            "video": torch.tensor(self._numbers[place.kept.identity]),
            "frames": torch.tensor(place.numbers),
            "box": (corners * pixels + inside[:2].repeat(2)).float(),
            "flipped": torch.tensor(view.flipped),
        }
