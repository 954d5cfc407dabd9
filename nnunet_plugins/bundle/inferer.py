"""nnU-Net's sliding window, mirroring and ensembling behind MONAI's `Inferer`."""

import contextlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import Tensor, nn

from nnunet_plugins.bundle.network import FoldEnsemble
from nnunet_plugins.bundle.plan import Plan
from nnunet_plugins.video_windows import slide, window_step


class NNUNetInferer(Inferer):
    """Logits of whole volumes as `nnUNetv2_predict` computes them, float16 as there.

    Args:
        plan: The plan; its patch is the window.
        mirror_axes: Grid axes along which predictions of mirrored windows are averaged; None or
            empty for none, as with `--disable_tta`.
        step_size: Of the window, in windows.
        progress: Show a progress bar over the windows.
    """

    def __init__(
        self,
        plan: Plan,
        mirror_axes: Sequence[int] | None = None,
        step_size: float = 0.5,
        progress: bool = False,
    ) -> None:
        super().__init__()
        self.plan, self.mirror_axes = plan, tuple(mirror_axes or ())
        self.step_size, self.progress = step_size, progress

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """Volumes in, logits out: (b, c, d, h, w) -> (b, k, d, h, w)."""
        members = members_of(network)
        volumes = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        return torch.stack([self._predict(volume, members) for volume in volumes])

    def _predict(self, volume: Tensor, members: Sequence[nn.Module]) -> Tensor:
        """Mean of the members' logits, rounded where nnU-Net rounds: (c, ...) -> (k, ...)."""
        total = None
        with torch.inference_mode():
            for member in members:
                predictor = self._predictor(member, volume)
                logits = predictor.predict_sliding_window_return_logits(volume).cpu()
                total = logits if total is None else total.add_(logits)
            if len(members) > 1:
                total /= len(members)
        return total

    def _configuration(self, volume: Tensor) -> ConfigurationManager:
        """The plan's configuration, as it is used for this volume."""
        return self.plan.configuration

    def _blends(self, volume: Tensor) -> bool:
        """Whether windows are weighted, as nnU-Net always does."""
        return True

    def _predictor(self, network: nn.Module, volume: Tensor) -> nnUNetPredictor:
        with contextlib.redirect_stdout(io.StringIO()):  # it announces itself on CPUs
            predictor = nnUNetPredictor(
                tile_step_size=self.step_size,
                use_gaussian=self._blends(volume),
                use_mirroring=bool(self.mirror_axes),
                device=volume.device,
                allow_tqdm=self.progress,
            )
        predictor.manual_initialization(
            network, self.plan.plans, self._configuration(volume), None, self.plan.dataset, "",
            self.mirror_axes or None,
        )  # fmt: skip
        return predictor


class VideoInferer(NNUNetInferer):
    """Logits of videos: windows slide over time, and nnU-Net's window over the frames of each.

    Frames as large as the plan's patch or smaller are seen whole. A video as long as the patch, or
    longer by whole steps, gets what `nnUNetv2_predict` gives it; a shorter one is not filled up
    with black frames, as there.

    Args:
        plan: The plan; its patch is the window in time and space.
        mirror_axes: Of (t, h, w): axes along which predictions of mirrored clips are averaged;
            None or empty for none.
        overlap: Share of a window in time that the next one covers again.

    Raises:
        ValueError: If the overlap cannot be, or time would be mirrored.
    """

    def __init__(
        self, plan: Plan, mirror_axes: Sequence[int] | None = None, overlap: float = 0.5
    ) -> None:
        if 0 in (mirror_axes or ()):
            raise ValueError(
                "time has a direction and cannot be mirrored; take --mirror_axes [1,2]"
            )
        super().__init__(plan, mirror_axes)
        self.length, self.overlap = plan.patch_size[0], overlap
        window_step(self.length, overlap)

    def __call__(
        self, inputs: Tensor | Iterable[Tensor], network: nn.Module, *args: Any, **kwargs: Any
    ) -> Tensor | Iterator[Tensor]:
        """Videos in memory, (b, c, t, h, w) -> (b, k, t, h, w); or one that is being read.

        Of the latter, frames (c, h, w), the logits (k, h, w) of each come in turn, as soon as they
        are known; they are computed while they are asked for.
        """
        return of_videos(self.stream, inputs, network)

    def stream(self, frames: Iterable[Tensor], network: nn.Module) -> Iterator[Tensor]:
        """Logits of frames in turn: (c, h, w) each -> (k, h, w) each."""
        members = members_of(network)
        device = next(network.parameters()).device
        predict = lambda clip: self._predict(clip.to(device), members)  # noqa: E731
        return slide(frames, predict, self.length, self.overlap)

    def _configuration(self, volume: Tensor) -> ConfigurationManager:
        """The plan's configuration with windows as long as the clip."""
        size = [volume.shape[1], *self.plan.patch_size[1:]]
        return ConfigurationManager({**self.plan.configuration.configuration, "patch_size": size})

    def _blends(self, volume: Tensor) -> bool:
        """Not where one window shows whole frames: float16 cannot hold the weights of its corners,
        so that weighted logits would be rounded to whole numbers there."""
        return any(n > p for n, p in zip(volume.shape[2:], self.plan.patch_size[1:], strict=True))


def of_videos(
    stream: Callable[[Iterable[Tensor], nn.Module], Iterator[Tensor]],
    inputs: Tensor | Iterable[Tensor],
    network: nn.Module,
) -> Tensor | Iterator[Tensor]:
    """What a function of frames gives for videos: (b, c, t, h, w) -> (b, k, t, ...), or lazily.

    Frames (c, h, w) of one video that is being read are given to it as they are.
    """
    if not isinstance(inputs, Tensor):
        return stream(inputs, network)
    videos = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
    logits = [list(stream(video.unbind(1), network)) for video in videos]
    return torch.stack([torch.stack(frames, dim=1) for frames in logits])


def members_of(network: nn.Module) -> Sequence[nn.Module]:
    """The networks whose logits are averaged: folds of an ensemble, or this one alone."""
    network = getattr(network, "module", network)  # of DistributedDataParallel
    return network.members if isinstance(network, FoldEnsemble) else [network]
