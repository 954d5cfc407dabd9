"""The affine transformation between two patches of edges, by a small frozen network.

Source: Borse et al., "InverseForm", CVPR 2021, arXiv:2104.02745, whose regressor this is, on
smaller patches and with all six numbers of a matrix; Eq. 8 of Yang et al., "Vivim", 2024,
arXiv:2401.14168. What a blank patch is worth is ours: neither says.

Shapes: n patches, p p pixels of a patch. Coordinates of a patch run from -1 to 1, x before y.
"""

import json
import os
from collections.abc import Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from mamba_kernels.dispatch import without_autocast

HIDDEN = (192, 128, 64)
SHIPPED = Path(__file__).with_name("affine_regressor.safetensors")
"""What `mambamed affine-regressor` gave with its defaults."""


class AffineRegressor(nn.Module):
    """The matrix that takes the coordinates of one patch of edges to those of another.

    A perceptron as in InverseForm, small enough to travel with the package: it sees the patches
    at half their resolution, where an edge is one pixel wide.

    Args:
        patch: Pixels along each axis of a patch, p, an even number.
        hidden: Widths of the hidden layers.
    """

    identity: Tensor

    def __init__(self, patch: int = 32, hidden: Sequence[int] = HIDDEN) -> None:
        super().__init__()
        self.patch, self.hidden = patch, list(hidden)
        widths = [2 * (patch // 2) ** 2, *hidden]
        layers = [(nn.Linear(m, n), nn.ReLU()) for m, n in pairwise(widths)]
        self.layers = nn.Sequential(*chain(*layers), nn.Linear(widths[-1], 6))
        self.register_buffer("identity", torch.eye(2, 3), persistent=False)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Two patches of edges in [0, 1], (n, p, p) each -> (n, 2, 3).

        The second is the first seen through the matrix: second(x) = first(matrix @ (x, 1)). A
        blank second sees one point of the first everywhere: its matrix is zero, at a distance of
        sqrt(2). The network gives the difference to the identity, outside autocast.
        """
        with without_autocast(first.device):
            pair = F.avg_pool2d(torch.stack([first, second], dim=1).float(), 2)
            return self.identity + self.layers(pair.flatten(1)).view(-1, 2, 3)

    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        """Frobenius norm of the matrix less the identity: (n, p, p) twice -> (n,)."""
        return torch.linalg.matrix_norm(self(first, second) - self.identity)


class AffineConstraint(nn.Module):
    """Vivim's Eq. 8: pull a frame's boundary to its ground truth, push its neighbour's away.

    With A the matrix between ground truth and predicted edge of a frame, and A' the one between
    the same ground truth and the predicted edge of the next frame (of the one before for the last),
    each in patches: the mean of w |A - I| - w' |A' - I|, Frobenius norms. Patches whose ground
    truth holds too little of an edge, less than a line across, have no matrix and do not count. A
    clip of one frame has no neighbour and no second term.

    Args:
        regressor: A trained one; it is frozen here.
        identity_weight: w, 1.00 in the paper.
        neighbour_weight: w', 0.01 in the paper.
    """

    def __init__(
        self,
        regressor: AffineRegressor,
        identity_weight: float = 1.00,
        neighbour_weight: float = 0.01,
    ) -> None:
        super().__init__()
        self.regressor = regressor.eval().requires_grad_(False)
        self.identity_weight = identity_weight
        self.neighbour_weight = neighbour_weight

    def forward(self, predicted: Tensor, edges: Tensor, counted: Tensor | None = None) -> Tensor:
        """A scalar, 0 without an edge; it may be negative.

        Args:
            predicted: Probabilities of an edge, (b, 1, t, h, w).
            edges: Ones on edges of the ground truth, (b, 1, t, h, w).
            counted: Pixels whose ground truth is known, (b, 1, t, h, w) bool; patches with others
                do not count. All if None.
        """
        p, frames = self.regressor.patch, predicted.shape[2]
        if counted is None:
            counted = torch.ones_like(edges, dtype=torch.bool)
        predicted, edges = patches(predicted, p), patches(edges, p)
        known = patches(counted.float(), p, outside=1).amin((-2, -1)) > 0
        chosen = known & (edges.sum((-2, -1)) >= p)
        target = edges[chosen]
        if len(target) == 0:
            return predicted.sum() * 0
        loss = self.identity_weight * self.regressor.distance(target, predicted[chosen])
        if frames > 1:
            next_frame = [*range(1, frames), frames - 2]
            neighbour = self.regressor.distance(target, predicted[:, next_frame][chosen])
            loss = loss - self.neighbour_weight * neighbour * known[:, next_frame][chosen]
        return loss.mean()


def patches(maps: Tensor, p: int, outside: float = 0) -> Tensor:
    """Cut frames into patches: (b, 1, t, h, w) -> (b, t, h / p, w / p, p, p), sizes rounded up.

    What a patch holds beyond the frame is `outside`.
    """
    h, w = maps.shape[-2:]
    maps = F.pad(maps.squeeze(1), (0, -w % p, 0, -h % p), value=outside)
    b, t, h, w = maps.shape
    return maps.reshape(b, t, h // p, p, w // p, p).transpose(3, 4)


def save_regressor(regressor: AffineRegressor, path: Path, notes: dict[str, float]) -> None:
    """Write a regressor in float16, with its sizes and notes on it, whole or not at all."""
    about = {"patch": regressor.patch, "hidden": regressor.hidden, "notes": notes}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    weights = {name: x.detach().cpu().half() for name, x in regressor.state_dict().items()}
    try:
        save_file(weights, part, {"affine_regressor": json.dumps(about)})
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def load_regressor(path: Path) -> AffineRegressor:
    """The regressor that `save_regressor` wrote, in float32, frozen and in evaluation mode.

    Raises:
        FileNotFoundError: If there is no file.
        ValueError: If the file holds no regressor.
    """
    about, weights = _read(path)
    regressor = AffineRegressor(about["patch"], about["hidden"])
    regressor.load_state_dict(weights)
    return regressor.eval().requires_grad_(False)


def load_notes(path: Path) -> dict[str, float]:
    """The notes of `save_regressor`: how the regressor was trained, and how accurate it is.

    Raises:
        FileNotFoundError: If there is no file.
        ValueError: If the file holds no regressor.
    """
    return _read(path)[0]["notes"]


def default_regressor() -> AffineRegressor:
    """The regressor that comes with the package, for patches of 32 x 32 pixels, frozen."""
    return load_regressor(SHIPPED)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["affine_regressor"])
            return about, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError) as error:
        raise ValueError(
            f"{path} holds no affine regressor; train one with: mambamed affine-regressor"
        ) from error
