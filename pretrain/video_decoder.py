"""VideoMAE's decoder: a plain vision transformer over visible and hidden patches of a clip.

Source: Tong et al., "VideoMAE", 2022, arXiv:2203.12602, as EndoMamba's released code (commit
debd20a) uses it.

Shapes: b batch, c channels, t frames, n patches of a frame, l tokens.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_plugins.networks.layers.frame_tokens import frame_sinusoid

EPS = 1e-6
"""Of layer norms, as released."""


class VideoDecoder(nn.Module):
    """Says what hidden patches show, from the features of the visible ones.

    Every token sees all others of its clip, later frames too, and no other clip.

    Args:
        d_model: Channels of the features.
        width: Channels of the decoder's own tokens.
        depth: Blocks.
        heads: Of the attention.
        outputs: Numbers for each hidden patch.

    Raises:
        ValueError: If the width does not divide into the heads.
    """

    def __init__(self, d_model: int, width: int, depth: int, heads: int, outputs: int) -> None:
        if min(width, depth, heads) < 1 or width % heads:
            raise ValueError(
                f"decoder width is {width}, depth {depth} and heads {heads}; give at least 1 of "
                "each and a width that is a multiple of the heads"
            )
        super().__init__()
        self.project = nn.Linear(d_model, width, bias=False)
        self.mask_token = nn.Parameter(0.02 * torch.randn(width))
        self.blocks = nn.ModuleList(DecoderBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.head = nn.Linear(width, outputs)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, features: Tensor, visible: Tensor) -> Tensor:
        """Features (b, visible tokens, c), visible (b, t, n) bool -> (b, hidden tokens, outputs).

        Tokens stand in causal order: frame after frame, row by row. Each frame of a clip and each
        clip may show other patches, equally many in a clip.
        """
        batch, frames, patches = visible.shape
        index = torch.arange(frames * patches, device=visible.device).expand(batch, -1)
        x = self.project(features)
        places = frame_sinusoid(index, x.shape[-1]).to(x.dtype)
        chosen = visible.flatten(1)
        shown = x + places[chosen].view_as(x)
        holes = self.mask_token.to(x.dtype) + places[~chosen].view(batch, -1, x.shape[-1])
        x = torch.cat([shown, holes], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, shown.shape[1] :]))


class DecoderBlock(nn.Module):
    """Self-attention and a feed-forward network, each behind a norm and beside a shortcut.

    Args:
        width: Channels of the tokens.
        heads: Of the attention.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Tokens in, tokens out: (b, l, c) -> (b, l, c)."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Attention(nn.Module):
    """Self-attention whose keys have no bias, which would change nothing.

    Args:
        width: Channels of the tokens.
        heads: Parts that they are split into.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens in, tokens out: (b, l, c) -> (b, l, c)."""
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias).view(*x.shape[:2], 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (b, heads, l, c / heads) each
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).flatten(2))
