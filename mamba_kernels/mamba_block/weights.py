"""Weights of a Mamba block, checked against each other.

Shapes: c outer and d inner channels, n states per channel, r rank of the step sizes, k taps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from torch import Tensor

from mamba_kernels.checks import check_operands, check_rank

State = tuple[Tensor, Tensor]
"""Last inputs of a convolution, (b, d, k - 1), and state of a scan, (b, d, n)."""
States = Sequence[Sequence[State]]
"""For each block, of each direction."""


@dataclass(frozen=True)
class DirectionWeights:
    """Of one direction, from its convolution to its scan.

    Args:
        conv: Taps, the last one for the token itself, (d, k).
        conv_bias: (d,).
        x_proj: From convolved tokens to the low-rank step size, B and C, (r + 2 n, d).
        dt_proj: From low rank to step sizes, (d, r).
        dt_bias: Added to them before softplus, (d,).
        A: Decay rates, (d, n), negative.
        D: Weights of the skip, (d,).
    """

    conv: Tensor
    conv_bias: Tensor
    x_proj: Tensor
    dt_proj: Tensor
    dt_bias: Tensor
    A: Tensor
    D: Tensor

    @property
    def split(self) -> list[int]:
        """Columns of step size, B and C in what `x_proj` gives."""
        return [self.dt_proj.shape[1], self.A.shape[1], self.A.shape[1]]

    def check(self, like: DirectionWeights) -> None:
        """Refuse weights that do not fit those of a direction of the same block, or each other.

        Raises:
            ValueError: Shapes or devices do not fit.
            TypeError: A weight is no tensor or has an unsupported dtype.
        """
        check_rank("A", like.A, "d, n")
        check_rank("dt_proj", like.dt_proj, "d, r")
        check_rank("conv", like.conv, "d, k")
        (d, n), r, k = like.A.shape, like.dt_proj.shape[1], like.conv.shape[1]
        sizes = {
            "conv": (d, k), "conv_bias": (d,), "x_proj": (r + 2 * n, d), "dt_proj": (d, r),
            "dt_bias": (d,), "A": (d, n), "D": (d,),
        }  # fmt: skip
        required = {name: (getattr(self, name), size) for name, size in sizes.items()}
        check_operands("A", like.A, required=required, optional={})

    def detached(self) -> DirectionWeights:
        """Without a graph, in float32; memory is shared where they are that already."""
        values = {x.name: getattr(self, x.name).detach().float() for x in fields(self)}
        return DirectionWeights(**values)


@dataclass(frozen=True)
class BlockWeights:
    """Of a whole block.

    Args:
        norm: Of RMSNorm, (c,).
        in_proj: (2 d, c): first what is mixed, then the gate.
        directions: Weights of each direction.
        out_proj: (c, d).
    """

    norm: Tensor
    in_proj: Tensor
    directions: list[DirectionWeights]
    out_proj: Tensor

    def check(self) -> None:
        """Refuse weights that do not fit each other.

        Raises:
            ValueError: Shapes or devices do not fit, or there is no direction.
            TypeError: A weight is no tensor or has an unsupported dtype.
        """
        if not self.directions:
            raise ValueError("a Mamba block came without directions; give at least one")
        for own in self.directions:
            own.check(like=self.directions[0])
        check_rank("norm", self.norm, "c")
        c, d = len(self.norm), len(self.directions[0].A)
        A = self.directions[0].A
        required = {
            "in_proj": (self.in_proj, (2 * d, c)),
            "out_proj": (self.out_proj, (c, d)),
            "A": (A, tuple(A.shape)),  # for its device
        }
        check_operands("norm", self.norm, required=required, optional={})

    def detached(self) -> BlockWeights:
        """Without a graph, in float32; memory is shared where they are that already."""
        norm, in_proj, out_proj = (
            x.detach().float() for x in (self.norm, self.in_proj, self.out_proj)
        )
        return BlockWeights(norm, in_proj, [own.detached() for own in self.directions], out_proj)
