"""Mamba over token sequences.

Shapes: b batch, l tokens, c model channels, e inner channels (expand * c), n states, r dt_rank.
Parameter names are those of mamba_ssm, and of Vision Mamba and Vivim for the further directions
(`_b`, `_s`), so that checkpoints of the Mamba-1 family load.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mamba_kernels import DirectionWeights, causal_conv1d, selective_scan, selective_scan_multi
from mamba_kernels.dispatch import without_autocast
from mamba_kernels.selective_scan.multi import Order

DT_RANGE = (1e-3, 1e-1)
"""Step sizes a fresh mixer starts from, log-uniform (Gu & Dao, 2023, section 3.6)."""

SUFFIXES = {"forward": "", "reverse": "_b", "interleaved": "_s"}
"""Directions of a mixer, and what the names of their parameters end in."""

State = tuple[Tensor, Tensor]
"""What a causal mixer keeps of the tokens before: the last inputs of its convolution, (b, e,
d_conv - 1), and the state of its scan, (b, e, n); float32, or float64 if the scan is."""


def in_full_precision(module: nn.Module, *inputs: Tensor) -> Tensor:
    """A module's output, computed outside autocast in the dtype of its weights.

    For modules that read what Mamba gives back: its features are not normalised, and in a trained
    network they exceed 65504, the largest float16.
    """
    dtype = next(module.parameters()).dtype
    with without_autocast(inputs[0].device):
        return module(*(x.to(dtype) for x in inputs))


class MambaMixer(nn.Module):
    """Mix tokens along the sequence, in time linear in their number.

    Each direction has its own convolution and state space; the projections in and out and the
    gate are shared.

    Args:
        d_model: Channels of the tokens, c.
        d_state: States per inner channel, n.
        d_conv: Width of the causal convolution before the scan, in tokens.
        expand: Inner channels over model channels, e / c.
        dt_rank: Rank of the step size projection, r; ceil(c / 16) if None.
        bidirectional: Scan from both ends (Zhu et al., "Vision Mamba", 2024, arXiv:2401.09417,
            Algorithm 1); from the first token only if False.
        interleaved: Scan once more with the frames of a clip interleaved: all frames of the first
            place, of the second, ... (Yang et al., "Vivim", 2024, arXiv:2401.14168, section III-D).
        combine: Whether directions are summed (Vision Mamba) or averaged (Vivim's released code).
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | None = None,
        bidirectional: bool = True,
        interleaved: bool = False,
        combine: Literal["sum", "mean"] = "sum",
    ) -> None:
        super().__init__()
        d_inner = expand * d_model
        dt_rank = math.ceil(d_model / 16) if dt_rank is None else dt_rank
        self.split = [dt_rank, d_state, d_state]
        self.combine = combine
        chosen = {"forward": True, "reverse": bidirectional, "interleaved": interleaved}
        self.directions = [name for name in SUFFIXES if chosen[name]]
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=False)
        for name in self.directions:
            self._add_direction(SUFFIXES[name], d_inner, d_conv)
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)

    def forward(self, x: Tensor, frames: int = 1) -> Tensor:
        """Tokens in, tokens out: (b, l, c) -> (b, l, c).

        With `frames` the tokens are those of a clip, frame after frame, equally many each. The
        output projection is computed in the dtype of its weights, under autocast too.
        """
        u, z = self.in_proj(x).transpose(1, 2).chunk(2, dim=1)  # (b, e, l) each
        orders = [_order(name, x.shape[1], frames, x.device) for name in self.directions]
        scans = [
            self._scan(u, name, order) for name, order in zip(self.directions, orders, strict=True)
        ]
        u, delta, A, B, C, D, bias = zip(*scans, strict=True)
        y, _ = selective_scan_multi(
            u, delta, A, B, C, D, z, bias, orders=orders, combine=self.combine
        )
        return in_full_precision(self.out_proj, y.transpose(1, 2))

    def step(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """The tokens that come next: (b, l, c) -> (b, l, c), and the state that they leave.

        Any cut of a sequence into steps gives what `forward` gives on the whole, to rounding.
        For a mixer of the forward direction alone.

        Args:
            x: As many tokens as there are, one at least.
            state: Left by the tokens before; None before the first one.

        Raises:
            ValueError: If the mixer has further directions, which look ahead.
        """
        if self.directions != ["forward"]:
            raise ValueError(
                f"a mixer that scans {' and '.join(self.directions)} sees tokens to come and has "
                "no step; build it with bidirectional=False and interleaved=False"
            )
        conv, scan = (None, None) if state is None else state
        u, z = self.in_proj(x).transpose(1, 2).chunk(2, dim=1)
        conv1d = self.conv1d
        assert isinstance(conv1d, nn.Conv1d)
        taps = conv1d.weight.squeeze(1)
        u, conv = causal_conv1d(
            u, taps, conv1d.bias, activation="silu", initial_state=conv, return_last_state=True
        )
        u, delta, A, B, C, D, bias = self._selected(u, "forward")
        y, scan = selective_scan(
            u, delta, A, B, C, D, z, bias, initial_state=scan, return_last_state=True
        )
        return in_full_precision(self.out_proj, y.transpose(1, 2)), (conv.to(scan.dtype), scan)

    def direction_weights(self, direction: str) -> DirectionWeights:
        """Those of one of its directions, as `mamba_kernels.MambaBlock` takes them."""
        names = ("conv1d{}", "x_proj{}", "dt_proj{}", "A{}_log", "D{}")
        conv, x_proj, dt_proj, A_log, D = (
            getattr(self, name.format(SUFFIXES[direction])) for name in names
        )
        return DirectionWeights(
            conv.weight.squeeze(1), conv.bias, x_proj.weight, dt_proj.weight, dt_proj.bias,
            -A_log.float().exp(), D,
        )  # fmt: skip

    def _add_direction(self, suffix: str, d_inner: int, d_conv: int) -> None:
        dt_rank, d_state, _ = self.split
        parts = {
            f"conv1d{suffix}": nn.Conv1d(d_inner, d_inner, d_conv, groups=d_inner),
            f"x_proj{suffix}": nn.Linear(d_inner, sum(self.split), bias=False),
            f"dt_proj{suffix}": _dt_projection(dt_rank, d_inner),
            f"A{suffix}_log": _decay_rates(d_inner, d_state),
            f"D{suffix}": nn.Parameter(torch.ones(d_inner)),
        }
        for name, part in parts.items():
            setattr(self, name, part)

    def _scan(self, u: Tensor, direction: str, order: Order) -> tuple[Tensor, ...]:
        """Of one direction, from (b, e, l): u, delta, A, B, C, D and delta_bias of its scan."""
        conv1d = getattr(self, f"conv1d{SUFFIXES[direction]}")
        u = causal_conv1d(
            u,
            conv1d.weight.squeeze(1),
            conv1d.bias,
            activation="silu",
            reverse=direction == "reverse",
            order=order if isinstance(order, Tensor) else None,
        )
        return self._selected(u, direction)

    def _selected(self, u: Tensor, direction: str) -> tuple[Tensor, ...]:
        """What the convolved tokens (b, e, l) select: as `_scan`."""
        names = ("x_proj{}", "dt_proj{}", "A{}_log", "D{}")
        x_proj, dt_proj, A_log, D = (
            getattr(self, name.format(SUFFIXES[direction])) for name in names
        )
        delta, B, C = x_proj(u.transpose(1, 2)).split(self.split, dim=-1)
        delta = F.linear(delta, dt_proj.weight).transpose(1, 2)
        A = -A_log.float().exp()
        return u, delta, A, B.transpose(1, 2), C.transpose(1, 2), D, dt_proj.bias


def _order(direction: str, tokens: int, frames: int, device: torch.device) -> Order:
    """The order in which a direction visits the tokens of so many frames."""
    if direction == "forward":
        return "forward"
    if direction == "reverse":
        return "reverse"
    return torch.arange(tokens, device=device).view(frames, -1).T.flatten()


class MambaLayer(nn.Module):
    """A mixer and a feed-forward network, each behind a norm and beside a shortcut.

    Args:
        d_model: Channels of the tokens, c.
        mlp_ratio: Hidden channels of the feed-forward network over c; 0 for a mixer alone, which
            is Vision Mamba's block.
        mixer: Options of `MambaMixer`.
    """

    def __init__(self, d_model: int, mlp_ratio: float = 2.0, **mixer: int | bool | None) -> None:
        super().__init__()
        hidden = round(mlp_ratio * d_model)
        self.norm1 = nn.LayerNorm(d_model)
        self.mamba = MambaMixer(d_model, **mixer)  # type: ignore[arg-type]
        self.mlp = (
            nn.Sequential(
                nn.LayerNorm(d_model),
                nn.Linear(d_model, hidden),
                nn.GELU(),
                nn.Linear(hidden, d_model),
            )
            if hidden
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Tokens in, tokens out: (b, l, c) -> (b, l, c)."""
        x = x + self.mamba(self.norm1(x))
        return x if self.mlp is None else x + self.mlp(x)


def _decay_rates(d_inner: int, d_state: int) -> nn.Parameter:
    """log(1), ..., log(n) for every channel: the S4D-real initialisation, (e, n)."""
    return nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(d_inner, 1))


def _dt_projection(dt_rank: int, d_inner: int) -> nn.Linear:
    """A projection whose softplus starts out log-uniform in `DT_RANGE`.

    An initialiser applied to the whole network afterwards must leave the bias alone: zero makes
    every step 0.69, far outside that range.
    """
    projection = nn.Linear(dt_rank, d_inner)
    low, high = (math.log(bound) for bound in DT_RANGE)
    dt = torch.exp(torch.rand(d_inner) * (high - low) + low)
    with torch.no_grad():
        nn.init.uniform_(projection.weight, -(dt_rank**-0.5), dt_rank**-0.5)
        projection.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # inverse of softplus
    return projection
