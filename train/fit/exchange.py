"""Exchange between sources what says where a picture is from: its style, and what lies around its lungs.

Grey-level curve, sharpness and compression tell collections apart, and so do shoulders, arms, tubes and letters around
the lungs (DeGrave et al. 2021, Nature Machine Intelligence 3:610-619; Maguolo & Nanni 2021, arXiv:2004.12823). Changed
copies of a training picture take them from a picture of another source, whichever label that has, and keep their own
label: then neither says anything of the label. Works on whole grey pictures, before the one preprocessing.
"""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image
from scipy import fft
from scipy.ndimage import distance_transform_edt, gaussian_filter

from hub_model.changes import Grey, compressed
from hub_model.lungs import LIKELY, SIDE, LungFinder, Lungs
from hub_model.refused import Refused

LEVELS = 256
"""Grey levels, as the pictures are stored."""
SLOW = (1.0, 4.0)
"""Range of the highest frequency whose amplitude is mixed, in cycles per side; faster ones draw lesions."""
RINGS = np.geomspace(0.03, 0.5, 13)
"""Edges of the rings of frequencies in which sharpness is compared, in cycles per pixel."""
STRONGEST = 4.0
"""Largest factor by which a frequency is raised: beyond it there is noise alone."""
QUALITIES = (15, 25, 40, 60, 80)
"""JPEG qualities that are tried to make blocks as visible as the donor's."""
BLOCK = 8
"""Pixels a side of what JPEG compresses on its own."""
FEATHER = 0.03
"""Width of the edge of lungs, in which they blend with another background, as a share of the shorter side."""
FADED = 0.06
"""Standard deviation of the blur that fills the place of a donor's lungs from around, likewise."""


class Exchange:
    """Give pictures the style and the background of pictures of other sources, at random.

    Args:
        sources: collection of each picture that may give.
        picture: gives that picture, grey (mode "L"), by its place among the sources.
        style: chance that a picture takes the style of another.
        background: chance that it takes what lies around the lungs of another.
        finder: finds lungs; needed for backgrounds.

    Raises:
        Refused: all pictures are of one source.
    """

    def __init__(
        self,
        sources: Sequence[str],
        picture: Callable[[int], Image.Image],
        *,
        style: float,
        background: float,
        finder: LungFinder | None = None,
    ) -> None:
        self.picture, self.style, self.background, self.finder = picture, style, background, finder
        names = np.asarray(sources)
        self.places = {name: np.flatnonzero(names == name) for name in np.unique(names).tolist()}
        if len(self.places) < 2:
            raise Refused(
                f"This recipe exchanges style or background between sources, and all training pictures are of "
                f"{'one, ' + ', '.join(self.places) if self.places else 'none'}. Give --data of two sources or more, "
                "or a recipe that exchanges nothing."
            )

    def __call__(self, grey: Grey, source: str, rng: np.random.Generator) -> Grey:
        """Return a picture as another source might have had it; the same state of `rng` gives the same one.

        It stays as it is where neither chance comes up, and keeps its background where it or the donor shows no lungs.

        Args:
            grey: (H, W) uint8.
            source: its own collection, of which nothing is taken.
            rng: where the numbers come from.
        """
        if rng.random() < self.background and self.finder is not None:
            donor = self.donor(source, rng)
            own, other = self.finder.find_all([Image.fromarray(grey), Image.fromarray(donor)])
            grey = with_background(grey, own, donor, other)
        if rng.random() < self.style:
            grey = restyled(grey, self.donor(source, rng), rng)
        return grey

    def donor(self, source: str, rng: np.random.Generator) -> Grey:
        """Draw a picture of another source, every source alike."""
        others = [name for name in self.places if name != source]
        places = self.places[others[rng.integers(len(others))]]
        return np.asarray(self.picture(int(places[rng.integers(len(places))])))


def restyled(grey: Grey, donor: Grey, rng: np.random.Generator) -> Grey:
    """Take some of the donor's slow amplitudes, sharpness, grey levels and compression, drawn at random."""
    asked = rng.random(4) < (0.5, 0.5, 0.7, 0.5)
    share, highest = rng.uniform(0.2, 1.0), rng.uniform(*SLOW)
    if asked[0]:
        grey = with_amplitudes(grey, donor, share, highest)
    if asked[1]:
        grey = as_sharp_as(grey, donor)
    if asked[2]:
        grey = with_levels(grey, donor)
    if asked[3]:
        grey = as_blocky_as(grey, donor)
    return grey


def with_levels(grey: Grey, donor: Grey) -> Grey:
    """Give a picture the donor's histogram: each level becomes the donor's level of the same rank.

    It is one curve of grey levels, so their order stays; a level that covers many pixels stays one level.
    """
    own, other = (np.bincount(picture.ravel(), minlength=LEVELS) for picture in (grey, donor))
    middle = (np.cumsum(own) - own / 2) / grey.size
    reached = np.cumsum(other) / donor.size
    return np.searchsorted(reached, middle).clip(0, LEVELS - 1).astype(np.uint8)[grey]


def with_amplitudes(grey: Grey, donor: Grey, share: float, highest: float) -> Grey:
    """Mix slow Fourier amplitudes with the donor's; phases, which carry shapes, stay (Yang & Soatto, arXiv:2004.05498).

    Args:
        grey: (H, W) uint8.
        donor: of any size.
        share: of the donor in the mixture.
        highest: frequency up to which they are mixed, in cycles per side.
    """
    spectrum, other = (fft.rfft2(picture.astype(np.float32)) for picture in (grey, _fitted(donor, grey)))
    amplitude = np.abs(spectrum)
    slow = _frequencies(grey.shape, per_side=True) <= highest
    mixed = amplitude + np.where(slow, share, 0) * (np.abs(other) - amplitude)
    return _to_grey(fft.irfft2(spectrum * (mixed / np.maximum(amplitude, 1e-3)), grey.shape))


def as_sharp_as(grey: Grey, donor: Grey) -> Grey:
    """Blur or sharpen until amplitudes fall off over the frequencies as the donor's do.

    Both are seen at one size, since the network sees them so. Frequencies below the first ring stay.
    """
    frequencies = _frequencies(grey.shape)
    own, other = (_fall_off(picture, frequencies) for picture in (grey, _fitted(donor, grey)))
    there = np.isfinite(own) & np.isfinite(other)
    if not there.any():  # a picture of few pixels has none of these frequencies
        return grey
    gain = (other - own)[there]
    gain = np.minimum(gain - gain[0], np.log(STRONGEST))
    middles = np.sqrt(RINGS[:-1] * RINGS[1:])[there]
    factor = np.exp(np.interp(frequencies, middles, gain))
    return _to_grey(fft.irfft2(fft.rfft2(grey.astype(np.float32)) * factor, grey.shape))


def as_blocky_as(grey: Grey, donor: Grey) -> Grey:
    """Save as JPEG with losses that make blocks as visible as the donor's; as it came where that is nearest."""
    wanted = blocks(donor)
    candidates = [grey, *(compressed(grey, quality) for quality in QUALITIES)]
    return min(candidates, key=lambda picture: abs(blocks(picture) - wanted))


def blocks(grey: Grey) -> float:
    """Measure how visible JPEG's blocks are: how much larger steps are on one grid of 8 pixels than elsewhere.

    The grid may begin anywhere, for pictures are cropped after they were compressed. 1 means not at all.
    """
    found = []
    for picture in (grey, grey.T):
        steps = np.abs(np.diff(picture.astype(np.int16), axis=1)).mean(0)
        if len(steps) < 2 * BLOCK:
            continue
        each = [steps[offset::BLOCK].mean() for offset in range(BLOCK)]
        found.append((max(each) + 1e-3) / (float(np.median(each)) + 1e-3))
    return float(np.mean(found)) if found else 1.0


def with_background(grey: Grey, own: Lungs, donor: Grey, other: Lungs) -> Grey:
    """Put what lies around the donor's lungs around a picture's own.

    The donor is moved and stretched until the box of its lungs lies on that of the picture's, and mirrored at its edges
    where it then ends; its own lungs are filled from around them. Inside the picture's outline nothing changes, and
    beyond it both blend over a narrow edge.

    Args:
        grey: (H, W) uint8.
        own: its lungs.
        donor: of any size.
        other: the donor's lungs.

    Returns:
        A new picture; `grey` itself where either shows no lungs.
    """
    if own.box is None or other.box is None:
        return grey
    inside = _outline(own, grey)
    width = max(1.0, FEATHER * min(grey.shape))
    weight = (1 - distance_transform_edt(~inside) / width).clip(0)
    faded = (
        distance_transform_edt(~_outline(other, grey)) < width
    )  # with the edge, in which lungs show faintly
    around = _without(_fitted(donor, grey).astype(np.float32), faded)
    for axis, (low, high) in enumerate(((1, 3), (0, 2))):  # down, then across
        around = _stretched(around, axis, (own.box[low], own.box[high]), (other.box[low], other.box[high]))
    return np.where(inside, grey, _to_grey(weight * grey + (1 - weight) * around))


def _fitted(donor: Grey, grey: Grey) -> Grey:
    return np.asarray(Image.fromarray(donor).resize(grey.shape[::-1], Image.Resampling.BICUBIC))


def _to_grey(levels: np.ndarray) -> Grey:
    return levels.round().clip(0, LEVELS - 1).astype(np.uint8)


def _frequencies(shape: tuple[int, ...], per_side: bool = False) -> np.ndarray:
    """Give the frequencies of a real Fourier transform, (H, W // 2 + 1), in cycles per pixel or per side."""
    down, across = (1 / side if per_side else 1.0 for side in shape)
    return np.hypot(fft.fftfreq(shape[0], down)[:, None], fft.rfftfreq(shape[1], across)).astype(np.float32)


def _fall_off(grey: Grey, frequencies: np.ndarray) -> np.ndarray:
    """Give the logarithm of the mean amplitude in each ring; NaN where the picture has no such frequency."""
    height, width = grey.shape
    faded = (grey - grey.mean(dtype=np.float32)) * np.outer(np.hanning(height), np.hanning(width))
    ring = np.digitize(frequencies, RINGS)
    count = np.bincount(ring.ravel(), minlength=len(RINGS) + 1)[1:-1]
    total = np.bincount(ring.ravel(), np.abs(fft.rfft2(faded)).ravel(), len(RINGS) + 1)[1:-1]
    return np.where(count > 0, np.log(total / np.maximum(count, 1) + 1e-3), np.nan)


def _outline(lungs: Lungs, grey: Grey) -> np.ndarray:
    """Bring an outline to a picture's size, as (H, W) booleans."""
    coarse = Image.fromarray(lungs.outline)
    return np.asarray(coarse.resize(grey.shape[::-1], Image.Resampling.BILINEAR)) >= LIKELY


def _without(levels: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Fill the lungs of a picture from around them: the mean of what lies near, nearer places counting more."""
    kept = (~inside).astype(np.float32)
    coarse = [
        Image.fromarray(part).resize((SIDE, SIDE), Image.Resampling.BOX) for part in (levels * kept, kept)
    ]
    near, share = (gaussian_filter(np.asarray(part), FADED * SIDE) for part in coarse)
    everywhere = levels[~inside].mean() if kept.any() else levels.mean()
    faint = 1e-3  # how much the mean of the whole background counts: all there is, far from any of it
    filled = Image.fromarray((near + faint * everywhere) / (share + faint))
    return np.where(inside, filled.resize(levels.shape[::-1], Image.Resampling.BILINEAR), levels)


def _stretched(
    levels: np.ndarray, axis: int, own: tuple[float, float], other: tuple[float, float]
) -> np.ndarray:
    """Bring the span `other` of an axis to the span `own` (shares of the side), mirrored beyond the edges."""
    side = levels.shape[axis]
    scale = (other[1] - other[0]) / (own[1] - own[0])
    at = (other[0] + ((np.arange(side) + 0.5) / side - own[0]) * scale) * side - 0.5
    at = np.abs((at + 0.5) % (2 * side) - side)  # a wave between the edges
    at = (side - 0.5 - at).clip(0, side - 1)
    below = np.floor(at).astype(int)
    above = np.minimum(below + 1, side - 1)
    share = np.expand_dims(at - below, 1 - axis)
    return levels.take(below, axis) * (1 - share) + levels.take(above, axis) * share
