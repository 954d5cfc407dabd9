"""Mamba over token sequences.

Shapes: b batch, l tokens, c model channels, e inner channels (expand * c), n states, r dt_rank.
Parameter names are those of mamba_ssm, and of Vision Mamba for the second direction (`_b`), so
that checkpoints of the Mamba-1 family load.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mamba_kernels import causal_conv1d, selective_scan_multi
from mamba_kernels.dispatch import without_autocast
from mamba_kernels.selective_scan.multi import Order

DT_RANGE = (1e-3, 1e-1)
"""Step sizes a fresh mixer starts from, log-uniform (Gu & Dao, 2023, section 3.6)."""


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

    Args:
        d_model: Channels of the tokens, c.
        d_state: States per inner channel, n.
        d_conv: Width of the causal convolution before the scan, in tokens.
        expand: Inner channels over model channels, e / c.
        dt_rank: Rank of the step size projection, r; ceil(c / 16) if None.
        bidirectional: Scan from both ends with own convolutions and state spaces, one input
            projection, one gate and one output projection (Zhu et al., "Vision Mamba", 2024,
            arXiv:2401.09417, Algorithm 1); from the first token only if False.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | None = None,
        bidirectional: bool = True,
    ) -> None:
        super().__init__()
        d_inner = expand * d_model
        dt_rank = math.ceil(d_model / 16) if dt_rank is None else dt_rank
        self.split = [dt_rank, d_state, d_state]
        self.bidirectional = bidirectional
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=False)
        self.conv1d = nn.Conv1d(d_inner, d_inner, d_conv, groups=d_inner)
        self.x_proj = nn.Linear(d_inner, sum(self.split), bias=False)
        self.dt_proj = _dt_projection(dt_rank, d_inner)
        self.A_log = _decay_rates(d_inner, d_state)
        self.D = nn.Parameter(torch.ones(d_inner))
        if bidirectional:
            self.conv1d_b = nn.Conv1d(d_inner, d_inner, d_conv, groups=d_inner)
            self.x_proj_b = nn.Linear(d_inner, sum(self.split), bias=False)
            self.dt_proj_b = _dt_projection(dt_rank, d_inner)
            self.A_b_log = _decay_rates(d_inner, d_state)
            self.D_b = nn.Parameter(torch.ones(d_inner))
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens in, tokens out: (b, l, c) -> (b, l, c).

        The output projection is computed in the dtype of its weights, under autocast too.
        """
        u, z = self.in_proj(x).transpose(1, 2).chunk(2, dim=1)  # (b, e, l) each
        scans = [self._scan(u, self.conv1d, self.x_proj, self.dt_proj, self.A_log, reverse=False)]
        skips = [self.D]
        orders: list[Order] = ["forward"]
        if self.bidirectional:
            scans.append(
                self._scan(
                    u, self.conv1d_b, self.x_proj_b, self.dt_proj_b, self.A_b_log, reverse=True
                )
            )
            skips.append(self.D_b)
            orders.append("reverse")
        u, delta, A, B, C, bias = zip(*scans, strict=True)
        y, _ = selective_scan_multi(u, delta, A, B, C, skips, z, bias, orders=orders)
        return in_full_precision(self.out_proj, y.transpose(1, 2))

    def _scan(
        self,
        u: Tensor,
        conv1d: nn.Conv1d,
        x_proj: nn.Linear,
        dt_proj: nn.Linear,
        A_log: Tensor,
        *,
        reverse: bool,
    ) -> tuple[Tensor, ...]:
        """Of one direction, from (b, e, l): u, delta, A, B, C and delta_bias of its scan."""
        u = causal_conv1d(
            u, conv1d.weight.squeeze(1), conv1d.bias, activation="silu", reverse=reverse
        )
        delta, B, C = x_proj(u.transpose(1, 2)).split(self.split, dim=-1)
        delta = F.linear(delta, dt_proj.weight).transpose(1, 2)
        A = -A_log.float().exp()
        return u, delta, A, B.transpose(1, 2), C.transpose(1, 2), dt_proj.bias


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
