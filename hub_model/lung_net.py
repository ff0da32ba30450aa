"""The lung network: a small U-Net (Ronneberger et al. 2015, arXiv:1505.04597) for outlines on a coarse picture."""

import torch
from torch import nn

WIDTHS = (16, 32, 64, 96)
"""Channels at each level, the finest first: 386,209 parameters, 0.8 MB in half precision."""


class Twice(nn.Sequential):
    """Two 3 x 3 convolutions, each with batch norm and ReLU."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__(
            nn.Conv2d(into, out, 3, padding=1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(inplace=True),
            nn.Conv2d(out, out, 3, padding=1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(inplace=True),
        )


class LungNet(nn.Module):
    """Equalised grey pictures (N, 1, S, S) in 0..1 -> logits of lung (N, 1, S, S); S is a multiple of 8."""

    def __init__(self, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        self.down = nn.ModuleList(Twice(a, b) for a, b in zip((1, *widths[:-1]), widths, strict=True))
        self.up = nn.ModuleList(
            Twice(fine + coarse, fine) for fine, coarse in zip(widths[-2::-1], widths[:0:-1], strict=True)
        )
        self.pool = nn.MaxPool2d(2)
        self.grow = nn.Upsample(scale_factor=2, mode="nearest")
        self.head = nn.Conv2d(widths[0], 1, 1)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Compute logits of lung, (N, 1, H, W), of equalised pictures of that shape."""
        kept, x = [], pictures
        for level in self.down[:-1]:
            x = level(x)
            kept.append(x)
            x = self.pool(x)
        x = self.down[-1](x)
        for level, beside in zip(self.up, reversed(kept), strict=True):
            x = level(torch.cat([self.grow(x), beside], 1))
        return self.head(x)


class Outlines(nn.Module):
    """A lung network that gives probabilities: what is stored."""

    def __init__(self, network: LungNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Compute probabilities of lung, (N, 1, H, W), of equalised pictures of that shape."""
        return torch.sigmoid(self.network(pictures))
