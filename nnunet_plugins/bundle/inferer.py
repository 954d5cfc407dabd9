"""nnU-Net's sliding window, mirroring and ensembling behind MONAI's `Inferer`."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import Tensor, nn

from nnunet_plugins.bundle.network import FoldEnsemble
from nnunet_plugins.bundle.plan import Plan


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
        network = getattr(network, "module", network)  # of DistributedDataParallel
        members = network.members if isinstance(network, FoldEnsemble) else [network]
        volumes = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        return torch.stack([self._predict(volume, members) for volume in volumes])

    def _predict(self, volume: Tensor, members: Sequence[nn.Module]) -> Tensor:
        """Mean of the members' logits, rounded where nnU-Net rounds: (c, ...) -> (k, ...)."""
        total = None
        with torch.inference_mode():
            for member in members:
                predictor = self._predictor(member, volume.device)
                logits = predictor.predict_sliding_window_return_logits(volume).cpu()
                total = logits if total is None else total.add_(logits)
            if len(members) > 1:
                total /= len(members)
        return total

    def _predictor(self, network: nn.Module, device: torch.device) -> nnUNetPredictor:
        with contextlib.redirect_stdout(io.StringIO()):  # it announces itself on CPUs
            predictor = nnUNetPredictor(
                tile_step_size=self.step_size,
                use_mirroring=bool(self.mirror_axes),
                device=device,
                allow_tqdm=self.progress,
            )
        predictor.manual_initialization(
            network, self.plan.plans, self.plan.configuration, None, self.plan.dataset, "",
            self.mirror_axes or None,
        )  # fmt: skip
        return predictor
