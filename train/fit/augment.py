"""Random changes of a batch of grey pictures that keep the finding and hide which collection a picture is from.

A network tells collections apart by their margins, printed markers, grey-level curves and sharpness (DeGrave
et al. 2021, Nature Machine Intelligence 3:610-619; Maguolo & Nanni 2021, arXiv:2004.12823). What is changed
at random tells nothing. Everything works on whole batches, so it costs little beside the network.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

LEVELS = 256  # grey levels, as the pictures are stored


@dataclass(frozen=True)
class Augmentation:
    """Say how far a batch is changed. Chances are 0..1; each picture draws its own numbers uniformly from the ranges.

    Attributes:
        degrees: Largest rotation, either way.
        zoom: Range of the side of what is kept, as a share of the picture's side; above 1 a margin is added.
        stretch: Largest difference of width and height, as a share; pictures come squashed to a square.
        mirror: Chance of a flip left to right.
        fill: What is shown beyond the picture's edge: "zeros", "border" or "reflection", as `grid_sample` names it.
        gamma: Range of the exponent of grey levels in 0..1, drawn in its logarithm.
        window: Largest shift, and change of width, of the grey-level window, as a share of its width.
        equalise: Chance of a blend, by a random share, with the histogram-equalised picture.
        spectrum: Chance that the Fourier amplitudes are mixed with another picture's while the phases, which
            carry the shapes, stay (Xu et al. 2021, arXiv:2105.14391).
        coarse: Chance that a picture is scaled down and up again, which loses resolution.
        coarsest: Smallest size it is scaled down to, as a share of its side.
        noise: Largest standard deviation of added white noise, in 0..1.
        margin: Chance of blanked margins.
        widest: Largest width of a margin, as a share of the side.
        corner: Chance, for each corner, that a box in it is blanked: printed letters and markers stand there.
        hole: Chance of a blanked box anywhere (DeVries & Taylor 2017, arXiv:1708.04552).
        largest: Largest side of a blanked box, as a share of the picture's side.
    """

    degrees: float = 0.0
    zoom: tuple[float, float] = (1.0, 1.0)
    stretch: float = 0.0
    mirror: float = 0.0
    fill: str = "zeros"
    gamma: tuple[float, float] = (1.0, 1.0)
    window: float = 0.0
    equalise: float = 0.0
    spectrum: float = 0.0
    coarse: float = 0.0
    coarsest: float = 1.0
    noise: float = 0.0
    margin: float = 0.0
    widest: float = 0.0
    corner: float = 0.0
    hole: float = 0.0
    largest: float = 0.0


AUGMENTATIONS = {
    "none": {"xray": Augmentation(), "ct": Augmentation()},
    "light": {
        "xray": Augmentation(degrees=7, zoom=(0.9, 1.0), fill="border", gamma=(0.8, 1.25), window=0.1,
                             corner=0.25, largest=0.2),
        "ct": Augmentation(degrees=10, zoom=(0.85, 1.05), stretch=0.1, mirror=0.5, gamma=(0.8, 1.25),
                           window=0.1, corner=0.1, largest=0.2),
    },
    # CT slices printed in papers come cut, scaled and windowed in many ways
    "medium": {
        "xray": Augmentation(degrees=8, zoom=(0.8, 1.05), stretch=0.1, mirror=0.5, fill="border",
                             gamma=(0.7, 1.4), window=0.12, equalise=0.2, coarse=0.25, coarsest=0.5,
                             corner=0.25, largest=0.2),
        "ct": Augmentation(degrees=12, zoom=(0.75, 1.05), stretch=0.15, mirror=0.5, gamma=(0.75, 1.33),
                           window=0.12, coarse=0.25, coarsest=0.5, corner=0.1, largest=0.2),
    },
    # against telling collections apart: tones, sharpness, margins and the power spectrum mean nothing
    "strong": {
        "xray": Augmentation(degrees=12, zoom=(0.65, 1.05), stretch=0.2, mirror=0.5, fill="border",
                             gamma=(0.6, 1.6), window=0.15, equalise=0.5, spectrum=0.3, coarse=0.5,
                             coarsest=0.3, noise=0.02, margin=0.3, widest=0.15, corner=0.3, hole=0.3,
                             largest=0.3),
        "ct": Augmentation(degrees=20, zoom=(0.65, 1.1), stretch=0.25, mirror=0.5, gamma=(0.6, 1.7),
                           window=0.2, equalise=0.3, coarse=0.5, coarsest=0.3, noise=0.03,
                           margin=0.3, widest=0.1, corner=0.15, hole=0.3, largest=0.3),
    },
}  # fmt: skip
"""By name, then by modality. No picture is turned upside down; left and right lung may change sides."""


def augment(pixels: Tensor, name: str, modality: str, generator: torch.Generator | None = None) -> Tensor:
    """Change a batch of pictures at random.

    Args:
        pixels: (B, C, H, W) floats in 0..1; the channels of a picture are changed alike.
        name: Key of AUGMENTATIONS.
        modality: "xray" or "ct".
        generator: Source of the random numbers; torch's own if None. The same state gives the same batch.

    Returns:
        A new batch (B, C, H, W) in 0..1; the one given stays as it was.
    """
    return apply(pixels, AUGMENTATIONS[name][modality], generator)


def apply(pixels: Tensor, row: Augmentation, generator: torch.Generator | None = None) -> Tensor:
    """Change a batch by a row that need not be in the table; otherwise as `augment`."""
    draw = _Draw(len(pixels), generator)
    if row.spectrum:
        pixels = torch.where(draw.chance(row.spectrum), _mix_amplitudes(pixels, draw), pixels)
    pixels = _tones(pixels, row, draw)
    pixels = _move(pixels, row, draw)
    if row.coarse:
        pixels = _coarsen(pixels, row, draw)
    if row.noise:
        pixels = pixels + draw.between(0, row.noise) * draw.normal(pixels.shape)
    return _blank(pixels, row, draw).clamp(0, 1)


class _Draw:
    """Draw random numbers, one for each of `count` pictures, shaped (count, 1, 1, 1)."""

    def __init__(self, count: int, generator: torch.Generator | None) -> None:
        self.count, self.generator = count, generator

    def between(self, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(self.count, 1, 1, 1, generator=self.generator)

    def chance(self, share: float) -> Tensor:
        return self.between(0, 1) < share

    def normal(self, shape: torch.Size) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def order(self) -> Tensor:
        return torch.randperm(self.count, generator=self.generator)


def _move(pixels: Tensor, row: Augmentation, draw: _Draw) -> Tensor:
    """Rotate, zoom, stretch, shift and mirror, in one resampling."""
    if not (row.degrees or row.stretch or row.mirror or row.zoom != (1.0, 1.0)):
        return pixels
    angle = draw.between(-1, 1).flatten() * math.radians(row.degrees)
    side = draw.between(*row.zoom).flatten()
    ratio = torch.exp(draw.between(-1, 1).flatten() * math.log1p(row.stretch) / 2)
    width = side * ratio * torch.where(draw.chance(row.mirror).flatten(), -1.0, 1.0)
    height = side / ratio
    # what is kept may lie anywhere in the picture; a margin that is added is shared out at random as well
    across = draw.between(-1, 1).flatten() * (1 - width.abs()).abs()
    down = draw.between(-1, 1).flatten() * (1 - height).abs()
    cosine, sine = torch.cos(angle), torch.sin(angle)
    rows = torch.stack([width * cosine, -height * sine, across, width * sine, height * cosine, down], 1)
    grid = F.affine_grid(rows.view(-1, 2, 3), list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode=row.fill, align_corners=False)


def _tones(pixels: Tensor, row: Augmentation, draw: _Draw) -> Tensor:
    """Change the grey-level curve: equalisation, gamma and window."""
    if row.equalise:
        share = draw.between(0, 1) * draw.chance(row.equalise)
        pixels = torch.lerp(pixels, equalised(pixels), share)
    if row.gamma != (1.0, 1.0):
        pixels = pixels.clamp(0, 1) ** torch.exp(draw.between(*map(math.log, row.gamma)))
    if row.window:
        centre = 0.5 + draw.between(-row.window, row.window)
        pixels = (pixels - centre) / (1 + draw.between(-row.window, row.window)) + 0.5
    return pixels.clamp(0, 1)


def equalised(pixels: Tensor) -> Tensor:
    """Level each picture's histogram: a pixel's new level is the share of darker pixels. (B, C, H, W) in 0..1."""
    levels = (pixels.clamp(0, 1) * (LEVELS - 1)).round().long().flatten(1)
    counts = torch.zeros(len(pixels), LEVELS).scatter_add_(1, levels, torch.ones(levels.shape))
    darker = counts.cumsum(1) - counts
    brightest = darker.gather(1, levels.amax(1, keepdim=True)).clamp_min(1)
    return (darker / brightest).gather(1, levels).view(pixels.shape)


def _mix_amplitudes(pixels: Tensor, draw: _Draw) -> Tensor:
    """Mix each picture's Fourier amplitudes with another's by a random share; its phases stay."""
    spectrum = torch.fft.rfft2(pixels)
    amplitude = spectrum.abs()
    mixed = torch.lerp(amplitude, amplitude[draw.order()], draw.between(0, 1))
    return torch.fft.irfft2(spectrum * (mixed / amplitude.clamp_min(1e-6)), s=pixels.shape[-2:]).clamp(0, 1)


def _coarsen(pixels: Tensor, row: Augmentation, draw: _Draw) -> Tensor:
    """Scale some pictures down and up again: pictures of papers come in every resolution."""
    chosen = draw.chance(row.coarse).flatten().tolist()
    shares = draw.between(row.coarsest, 1).flatten().tolist()
    size, pictures = pixels.shape[-2:], list(pixels.split(1))
    for index, (hit, share) in enumerate(zip(chosen, shares, strict=True)):
        if hit:
            small = [max(1, round(side * share)) for side in size]
            smaller = F.interpolate(pictures[index], small, mode="bilinear", antialias=True)
            pictures[index] = F.interpolate(smaller, size, mode="bilinear")
    return torch.cat(pictures)


def _blank(pixels: Tensor, row: Augmentation, draw: _Draw) -> Tensor:
    """Blank margins, corners and holes with one grey level, drawn for each picture."""
    height, width = pixels.shape[-2:]
    y = ((torch.arange(height) + 0.5) / height).view(1, 1, -1, 1)
    x = ((torch.arange(width) + 0.5) / width).view(1, 1, 1, -1)
    blank = torch.zeros(len(pixels), 1, height, width, dtype=torch.bool)
    if row.margin:
        left, top, right, bottom = (draw.between(0, row.widest) for _ in range(4))
        blank |= draw.chance(row.margin) & ((x < left) | (x > 1 - right) | (y < top) | (y > 1 - bottom))
    if row.corner:
        for from_x in (x, 1 - x):
            for from_y in (y, 1 - y):
                box = (from_x < draw.between(0, row.largest)) & (from_y < draw.between(0, row.largest))
                blank |= draw.chance(row.corner) & box
    if row.hole:
        box = (x - draw.between(0, 1)).abs() < draw.between(0, row.largest) / 2
        box = box & ((y - draw.between(0, 1)).abs() < draw.between(0, row.largest) / 2)
        blank |= draw.chance(row.hole) & box
    return torch.where(blank, draw.between(0, 1), pixels)
