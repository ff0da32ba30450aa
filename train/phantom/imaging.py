"""A synthetic thorax as a CT scanner and an X-ray room show it. Lengths in mm; axes as in ``thorax.py``."""

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from scipy import ndimage
from scipy.signal import oaconvolve

from .thorax import AIR, CARTILAGE, CORTEX, MARROW, MUSCLE, Numbers, Region, Thorax, Tubes

WATER = 0.0206
"""Attenuation of water, 1/mm, at 60 keV, about the mean energy of a 120 kV chest film (NIST XCOM)."""
BONE_EXTRA = 0.6
"""Bone attenuates more on a film than its HU say, which are of harder rays: share added above 150 HU."""
VOXEL = (3.0, 7.0, 3.0)
"""z, y, x, mm: of the volume that films are summed from; edges finer than that come from tubes."""
SLAB = 3
"""Voxels in depth that a pose moves as one; 3 degrees of turn shift its ends by 1 mm against each other."""
OUTSIDE = -2000.0
"""HU outside the scanner's round field of view."""
VESSEL, BRONCHUS = 30.0, -960.0  # HU


@dataclass(frozen=True)
class Scan:
    """How a patient is scanned."""

    wide: float  # field of view, as a multiple of the patient's width
    high: float
    turn: float  # degrees
    right: float
    down: float  # share of the free height
    table: float  # distance behind the back, 0 for none in view
    sag: float  # curvature of the table, 1/mm
    blur: float
    noise: float  # HU
    grain: float  # pixels
    round: float  # field of view's radius over half the picture's width


@dataclass(frozen=True)
class Pose:
    """How a film is taken and processed: angles in degrees, shares otherwise."""

    anteroposterior: bool  # bedside film from the front, at a short distance
    yaw: float
    pitch: float
    roll: float
    left: float  # how far the picture reaches to this side of the origin
    right: float
    top: float
    bottom: float
    photons: float  # per pixel without a patient
    scatter: float
    flatten: float  # share of the coarse brightness taken out
    sharpen: float
    black: float  # percentile of density where black begins
    white: float
    fog: float  # how far below that black lies, share of the range
    gamma: float
    blade: float  # width of the black border left by the collimator, 0 if cut off


def draw_scan(rng: np.random.Generator) -> Scan:
    """Draw one setting of the scanner at random."""
    return Scan(
        wide=rng.uniform(0.92, 1.2),
        high=rng.uniform(0.97, 1.25),
        turn=rng.normal(0, 2.5),
        right=rng.normal(0, 4),
        down=rng.uniform(-0.3, 0.3),
        table=float(rng.uniform(4, 12)) if rng.random() < 2 / 3 else 0.0,
        sag=rng.uniform(0.0006, 0.0016),
        blur=rng.uniform(0.45, 1.1),
        noise=rng.uniform(10, 42),
        grain=rng.uniform(0.5, 0.9),
        round=rng.uniform(0.98, 1.12),
    )


def draw_pose(rng: np.random.Generator) -> Pose:
    """Draw one way to take a film at random."""
    bedside = bool(rng.random() < 0.4)
    return Pose(
        anteroposterior=bedside,
        yaw=rng.normal(0, 3),
        pitch=rng.normal(4 if bedside else 0, 4),
        roll=rng.normal(0, 2),
        left=rng.uniform(152, 198),
        right=rng.uniform(152, 198),
        top=rng.uniform(108, 150),
        bottom=rng.uniform(168, 205),
        photons=10 ** rng.uniform(3.3, 4.8),
        scatter=rng.uniform(0.08, 0.3),
        flatten=rng.uniform(0.15, 0.45),
        sharpen=rng.uniform(0.0, 1.0),
        black=rng.uniform(0.5, 5),
        white=rng.uniform(96.5, 99.8),
        fog=rng.uniform(0, 0.45),
        gamma=rng.uniform(0.8, 1.35),
        blade=float(rng.uniform(3, 14)) if rng.random() < 0.25 else 0.0,
    )


# --- CT -------------------------------------------------------------------------------------------


def field_of_view(thorax: Thorax, scan: Scan, size: int) -> tuple[float, float, float]:
    """Give width and height of a slice, and the side of its pixels, in mm."""
    wide = 2 * scan.wide * (thorax.width + thorax.wall + thorax.fat)
    high = 2 * scan.high * (thorax.depth + 0.9 * thorax.wall + 0.8 * thorax.fat + 14 * thorax.breast)
    return wide, high, min(wide, high) / size


def axial_slice(
    thorax: Thorax, z: float, scan: Scan, rng: np.random.Generator, size: int = 320
) -> np.ndarray:
    """Make an axial CT slice in HU, (height, width) float32.

    Args:
        thorax: the patient.
        z: height in mm, see `Thorax.slice_range`.
        scan: the scanner's setting, the same for all slices of a series.
        rng: source of the noise.
        size: pixels of the shorter side.
    """
    wide, high, pixel = field_of_view(thorax, scan, size)
    x = (np.arange(round(wide / pixel)) + 0.5) * pixel - wide / 2
    y = (np.arange(round(high / pixel)) + 0.5) * pixel - high / 2
    hu = thorax.hounsfield(x, y, np.array([z]), upright=False, soft=1.2 * pixel)
    plane = Region(hu, x[None, None], y[None, :, None], np.full((1, 1, 1), z), 1.2 * pixel)
    _cut_tubes(plane, thorax.vessels, z, [(0.0, VESSEL)])
    _cut_tubes(plane, thorax.bronchi, z, [(1.0, 0.0), (0.0, BRONCHUS)])
    _cut_tubes(plane, thorax.cartilage, z, [(0.0, CARTILAGE)])
    _cut_tubes(plane, thorax.ribs, z, [(0.0, CORTEX), (-1.6, MARROW)])
    behind = 0.5 * high / scan.high
    down = scan.down * (high / 2 - behind)
    hu = _moved(hu[0], scan.turn, (down / pixel, scan.right / pixel))
    if scan.table:
        _lay_on_table(hu, x, y - behind - down, scan)
    return _scanned(hu, pixel, x, y, scan, rng)


def _cut_tubes(plane: Region, tubes: Tubes, z: float, layers: list[tuple[float, float]]) -> None:
    """Paint where tubes cross a slice: for each layer what it adds to the radius, and its HU."""
    reach = tubes.radius[:, None] + 2
    low, high = np.minimum(tubes.start, tubes.end) - reach, np.maximum(tubes.start, tubes.end) + reach
    bounds = np.stack([low, high], axis=2)
    for index in np.flatnonzero((low[:, 2] < z) & (z < high[:, 2])):
        part = plane.within(*bounds[index, :2])
        distance = _segment_distance(part, tubes.start[index], tubes.end[index]) - tubes.radius[index]
        for margin, value in layers:
            part.paint(distance - margin, value)


def _segment_distance(part: Region, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Measure the distance of a region's points from a segment, mm."""
    line = end - start
    qx, qy, qz = part.x - start[0], part.y - start[1], part.z - start[2]
    t = np.clip((qx * line[0] + qy * line[1] + qz * line[2]) / (line @ line), 0, 1)
    return np.sqrt((qx - t * line[0]) ** 2 + (qy - t * line[1]) ** 2 + (qz - t * line[2]) ** 2)


def _moved(hu: np.ndarray, angle: float, shift: tuple[float, float]) -> np.ndarray:
    """Turn (degrees) and shift (pixels) the patient on the table."""
    turn = np.deg2rad(angle)
    matrix = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    middle = (np.array(hu.shape) - 1) / 2
    return ndimage.affine_transform(hu, matrix, middle - matrix @ (middle + shift), order=1, cval=AIR)


def _lay_on_table(hu: np.ndarray, x: np.ndarray, under: np.ndarray, scan: Scan) -> None:
    """Add the scanner's table: two thin curved shells; `under` is the distance of rows behind the back, mm."""
    place = under[:, None] - scan.table + scan.sag * x**2
    for depth, value in ((0.0, -150.0), (29.0, -250.0)):
        shell = np.clip(1.5 - np.abs(place - depth) / 1.1, 0, 1) * (hu < -850)
        hu += shell * (value - hu)


def _scanned(
    hu: np.ndarray, pixel: float, x: np.ndarray, y: np.ndarray, scan: Scan, rng: np.random.Generator
) -> np.ndarray:
    """Add what the scanner does: blur of the reconstruction kernel, correlated noise, a round field of view."""
    hu = ndimage.gaussian_filter(hu, scan.blur / pixel)
    grain = ndimage.gaussian_filter(rng.standard_normal(hu.shape, np.float32), scan.grain)
    hu += grain * (scan.noise / grain.std())
    hu[np.hypot(y[:, None], x) > scan.round * max(x[-1], y[-1])] = OUTSIDE
    return hu


# --- X-ray ----------------------------------------------------------------------------------------


def film(thorax: Thorax, pose: Pose, rng: np.random.Generator, size: int = 320) -> np.ndarray:
    """Make a frontal film, 0 (black) to 1 (white), (height, width) float32; its shorter side has `size` pixels.

    Line integrals of attenuation, Beer-Lambert, scatter and quantum noise, then the usual digital
    processing: logarithm, coarse brightness flattened, edges sharpened, window, gamma.
    """
    wide, high = pose.left + pose.right, pose.top + pose.bottom
    pixel = min(wide, high) / size
    shape = (round(high / pixel), round(wide / pixel))
    density = _solids_on_film(thorax, pose, pixel, shape) + _tubes_on_film(thorax, pose, pixel, shape)
    light = ndimage.gaussian_filter(np.exp(-np.clip(density, 0, None)), 0.6 / pixel)
    counts = pose.photons * (light + pose.scatter * _coarse(light, 70 / pixel))
    counts += np.sqrt(counts) * ndimage.gaussian_filter(rng.standard_normal(shape, np.float32), 0.45)
    shown = -np.log(np.clip(counts, 0.3, None) / pose.photons)
    coarse, fine = _coarse(shown, 90 / pixel), shown - ndimage.gaussian_filter(shown, 1.6 / pixel)
    shown += pose.sharpen * fine - pose.flatten * coarse
    black, white = np.percentile(shown, [pose.black, pose.white])
    black -= pose.fog * (white - black)
    grey = np.clip((shown - black) / (white - black), 0, 1) ** pose.gamma
    border = round(pose.blade / pixel)
    inner = tuple(slice(border, side - border) for side in shape)
    exposed = np.zeros(shape, np.float32)
    exposed[inner] = grey[inner]
    return exposed


def _solids_on_film(thorax: Thorax, pose: Pose, pixel: float, shape: tuple[int, int]) -> np.ndarray:
    """Integrate attenuation along the rays, on the film's pixels."""
    dz, _, dx = VOXEL
    slabs, (z, y, x) = _slabs(thorax)
    flat = np.zeros(slabs.shape[::2], np.float32)
    for index, depth in enumerate(y):
        scale, right, up = _shift(pose, depth)
        # where a place on the film lies in the slab: (film - shift) / scale
        offset = [((z[0] - up) / scale - z[0]) / dz, ((x[0] - right) / scale - x[0]) / dx]
        flat += ndimage.affine_transform(slabs[:, index], [1 / scale] * 2, offset, order=1, mode="nearest")
    turn = np.deg2rad(pose.roll)
    back = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])  # of z, x
    corner = back @ np.array([pose.top - pixel / 2, -pose.right + pixel / 2])
    matrix = back @ np.diag([-pixel, pixel]) / np.array([[dz], [dx]])
    offset = [(corner[0] - z[0]) / dz, (corner[1] - x[0]) / dx]
    return ndimage.affine_transform(flat, matrix, offset, shape, order=2, mode="nearest")


@lru_cache(maxsize=1)  # several films are taken of one patient
def _slabs(thorax: Thorax) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Sum the attenuation of the upright body without tubes over slabs; returns them and their z, y, x."""
    deep = thorax.depth + thorax.wall + thorax.fat + 34 * thorax.breast + 6
    deep = SLAB * VOXEL[1] * np.ceil(deep / VOXEL[1] / SLAB)
    ends = ((-240, 185), (-deep, deep), (-235, 236))
    z, y, x = (np.arange(*end, step) for end, step in zip(ends, VOXEL, strict=True))
    fine = _attenuation(thorax.hounsfield(x, y, z, upright=True, soft=3.0))
    slabs = fine.reshape(len(z), -1, SLAB, len(x)).sum(axis=2)
    return VOXEL[1] * slabs, (z, y.reshape(-1, SLAB).mean(axis=1), x)


def _tubes_on_film(thorax: Thorax, pose: Pose, pixel: float, shape: tuple[int, int]) -> np.ndarray:
    """Compute what ribs, clavicles, vessels and cartilage add to the solids they lie in."""
    added = np.zeros(shape, np.float32)
    soft, shell, marrow = (_attenuation(np.float32(hu)) for hu in (MUSCLE, CORTEX, MARROW))
    for tubes, radius, cortex in ((thorax.ribs, 5.6, 0.9), (thorax.clavicles, 6.4, 2.0)):
        half = int(np.ceil(radius / pixel)) + 1
        kernel = (shell - soft) * _disc(radius, pixel, half)
        kernel -= (shell - marrow) * _disc(radius - cortex, pixel, half)
        added += oaconvolve(_lines_on_film(tubes, pose, pixel, shape), kernel, mode="same")
    air_out = WATER * (VESSEL - thorax.lung) / 1000
    for tubes, contrast in (
        (thorax.vessels, air_out),
        (thorax.cartilage, WATER * (CARTILAGE - MUSCLE) / 1000),
    ):
        for low, high in pairwise(np.geomspace(0.4, tubes.radius.max() + 0.01, 6)):
            chosen = (tubes.radius >= low) & (tubes.radius < high)
            if chosen.any():
                part = Tubes(tubes.start[chosen], tubes.end[chosen], tubes.radius[chosen])
                radius = float(part.radius.mean())
                lines = _lines_on_film(part, pose, pixel, shape)
                # a Gaussian with the variance of a disc: sigma = radius / 2
                added += contrast * np.pi * radius**2 * ndimage.gaussian_filter(lines, radius / 2 / pixel)
    return added


def _lines_on_film(tubes: Tubes, pose: Pose, pixel: float, shape: tuple[int, int]) -> np.ndarray:
    """Spread tubes over the film as length per area, 1/mm; a disc of the tube's radius makes thickness in mm of it."""
    line = tubes.end - tubes.start
    length = np.linalg.norm(line, axis=1)
    count = np.ceil(length / (0.8 * pixel)).astype(int).clip(1)
    which = np.repeat(np.arange(len(count)), count)
    share = (np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count) + 0.5) / count[which]
    place = tubes.start[which] + share[:, None] * line[which]
    scale, right, up = _shift(pose, place[:, 1])
    x, z = place[:, 0] * scale + right, place[:, 2] * scale + up
    turn = np.deg2rad(pose.roll)
    x, z = x * np.cos(turn) - z * np.sin(turn), x * np.sin(turn) + z * np.cos(turn)
    row, column = (pose.top - z) / pixel - 0.5, (x + pose.right) / pixel - 0.5
    return _splat(row, column, (length / count)[which] / pixel**2, shape)


def _shift(pose: Pose, y: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    """Compute the enlargement of what lies at depth y, and how far the pose moves it right and up on the film, mm."""
    source, detector = (1150, 150) if pose.anteroposterior else (1800, -150)
    scale = source / (source - np.abs(detector - y))
    return scale, -y * np.tan(np.deg2rad(pose.yaw)), y * np.tan(np.deg2rad(pose.pitch))


def _attenuation(hu: np.ndarray) -> np.ndarray:
    """Convert HU to attenuation on a film, 1/mm."""
    return WATER * (1 + hu / 1000 + BONE_EXTRA * np.clip(hu - 150, 0, None) / 1000)


def _coarse(image: np.ndarray, width: float) -> np.ndarray:
    """Blur widely by two box filters, whose cost does not grow with the width (pixels)."""
    for _ in range(2):
        image = ndimage.uniform_filter(image, max(3, round(width)), mode="nearest")
    return image


def _disc(radius: float, pixel: float, half: int) -> np.ndarray:
    """Draw a disc with the radius in mm, its edge smoothed over a pixel, that sums to its area in mm2."""
    place = np.arange(-half, half + 1) * pixel
    disc = np.clip(0.5 - (np.hypot(place[:, None], place) - radius) / pixel, 0, 1)
    return (disc * (np.pi * radius**2 / disc.sum())).astype(np.float32)


def _splat(row: np.ndarray, column: np.ndarray, weight: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Add weights to an image at fractional places, shared among the four pixels around each."""
    image = np.zeros(shape[0] * shape[1])
    r, c = np.floor(row).astype(int), np.floor(column).astype(int)
    fr, fc = row - r, column - c
    for dr, dc in ((0, 0), (0, 1), (1, 0), (1, 1)):
        inside = (r + dr >= 0) & (r + dr < shape[0]) & (c + dc >= 0) & (c + dc < shape[1])
        part = weight * (fr if dr else 1 - fr) * (fc if dc else 1 - fc)
        image += np.bincount(((r + dr) * shape[1] + c + dc)[inside], part[inside], len(image))
    return image.reshape(shape).astype(np.float32)
