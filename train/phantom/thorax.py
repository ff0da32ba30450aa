"""A synthetic thorax: a small 3-D model in Hounsfield units. How it is seen: ``imaging.py``.

Solids (body, lungs, heart, spine ...) are signed distance functions, so that the same formulas serve a
slice at full resolution and a coarse volume; tubes (ribs, vessels, bronchi) are line segments with a radius,
which a slice and a film can show exactly. Nothing is taken from a patient: shapes and sizes are drawn at
random around textbook proportions, and what tells COVID from Non-COVID is the lesions alone.

Axes, in mm: x to the patient's left, y to the back, z to the head; z = 0 where the trachea forks.
"""

import math
from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

AIR, FAT, MUSCLE, BLOOD, FLUID = -1000.0, -95.0, 50.0, 45.0, 20.0  # HU
CORTEX, MARROW, CARTILAGE = 1000.0, 300.0, 110.0  # HU
MIDDLE = 115.0
"""The mediastinum lies within so many mm of the middle."""

Numbers = np.ndarray | float
"""One number, or an array of them that broadcasts with others: coordinates in mm, distances, shares."""
Place = tuple[float, float, float]
"""x, y, z in mm."""
Bounds = tuple[float, float] | None
"""Lowest and highest value along one axis in mm; None for all of it."""


@dataclass(frozen=True)
class Lesion:
    """An ellipsoid of denser lung with a ragged or (with a fissure) a straight edge; lengths in mm.

    `opacity` is the share of the air replaced by fluid: 0.3 to 0.6 is ground glass, above 0.8 consolidation.
    """

    centre: Place
    radii: tuple[float, float, float]
    opacity: float
    ragged: float
    fissure: bool = False


@dataclass(frozen=True)
class Tubes:
    """Line segments with a radius: start and end (n, 3) in mm as x, y, z; radius (n,) in mm."""

    start: np.ndarray
    end: np.ndarray
    radius: np.ndarray

    @classmethod
    def joined(cls, parts: list["Tubes"]) -> "Tubes":
        """Join several sets of tubes into one."""
        return cls(
            *(np.concatenate([getattr(part, name) for part in parts]) for name in ("start", "end", "radius"))
        )

    @classmethod
    def along(cls, points: np.ndarray, radius: float) -> "Tubes":
        """Lay tubes of one radius along a polyline (n, 3)."""
        return cls(points[:-1], points[1:], np.full(len(points) - 1, radius))


def _ellipse(x: Numbers, y: Numbers, a: Numbers, b: Numbers, power: float = 2.0) -> np.ndarray:
    """Measure the distance (mm, roughly, negative inside) from a superellipse with the half axes a and b."""
    return ((np.abs(x) / a) ** power + (np.abs(y) / b) ** power - 1) * (np.minimum(a, b) / power)


def _ellipsoid(
    x: Numbers, y: Numbers, z: Numbers, centre: Place, radii: tuple[Numbers, Numbers, Numbers]
) -> np.ndarray:
    """Measure the distance (mm, roughly, negative inside) from an ellipsoid with three half axes."""
    (cx, cy, cz), (a, b, c) = centre, radii
    return (((x - cx) / a) ** 2 + ((y - cy) / b) ** 2 + ((z - cz) / c) ** 2 - 1) * (min(a, b) / 2)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Scale vectors (n, 3) to length 1; a zero vector stays zero."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-6)


def _either(chosen: np.ndarray | bool, one: float, other: float) -> np.ndarray:
    """Choose as `np.where` does, but keep single precision, which is faster."""
    return np.where(chosen, np.float32(one), np.float32(other))


def _rise(x: Numbers) -> np.ndarray:
    """Step smoothly: 0 below 0, 1 above 1."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


@dataclass(frozen=True)
class Region:
    """A box of the volume: `hu` is a view (nz, ny, nx), the axes broadcast to it; edges `soft` mm wide."""

    hu: np.ndarray
    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    soft: float

    def within(self, x: Bounds = None, y: Bounds = None, z: Bounds = None) -> "Region":
        """Take the part between bounds (low, high) in mm, None for all; painting a part is cheaper."""
        cuts = []
        for axis, bounds in ((self.z.ravel(), z), (self.y.ravel(), y), (self.x.ravel(), x)):
            cuts.append(slice(*np.searchsorted(axis, bounds)) if bounds is not None else slice(None))
        hu = self.hu[tuple(cuts)]
        return Region(hu, self.x[..., cuts[2]], self.y[:, cuts[1]], self.z[cuts[0]], self.soft)

    def paint(self, distance: np.ndarray, value: float | np.ndarray, soft: float | None = None) -> None:
        """Put a material where distance < 0."""
        share = distance * (-1 / (soft or self.soft))
        share += 0.5
        self.blend(np.clip(share, 0, 1, out=share), value)

    def blend(self, share: np.ndarray, value: float | np.ndarray) -> None:
        """Replace a share (0 to 1) of what is there by a material."""
        change = value - self.hu
        change *= share
        np.add(self.hu, change, out=self.hu)


@dataclass(eq=False)
class Thorax:
    """One synthetic patient. Build with `Thorax.drawn`; lengths in mm."""

    width: float  # inner half width of the rib cage
    depth: float  # inner half depth
    wall: float  # muscle around it
    fat: float  # under the skin
    breast: float  # 0 for none
    apex: float
    domes: tuple[float, float]  # height of the right and left diaphragm
    heart: float  # scale
    heart_tilt: float  # radians
    lung: float  # HU
    stretch: float  # of everything along z
    lesions: list[Lesion]
    bubble: bool
    clavicle: float
    waves: list[float]  # phases that make outlines uneven
    own: dict[str, list[float]]  # per organ four standard normals: how place and size depart from the usual
    ribs: Tubes = field(init=False)
    cartilage: Tubes = field(init=False)
    clavicles: Tubes = field(init=False)
    vessels: Tubes = field(init=False)
    bronchi: Tubes = field(init=False)
    noise: np.ndarray = field(init=False)

    # --- how a patient comes about ----------------------------------------------------------------

    @classmethod
    def drawn(cls, finding: str, body: np.random.Generator, disease: np.random.Generator) -> "Thorax":
        """Draw a patient at random.

        Args:
            finding: "COVID-19", "healthy", "lobar pneumonia" or "nodule".
            body: source of the anatomy, which must not depend on the finding.
            disease: source of the lesions.
        """
        width, dome = body.uniform(114, 148), body.uniform(-112, -78)
        thorax = cls(
            width=width,
            depth=width * body.uniform(0.58, 0.76),
            wall=body.uniform(13, 24),
            fat=body.uniform(5, 26),
            breast=body.uniform(0.5, 1.25) if body.random() < 0.45 else 0.0,
            apex=body.uniform(88, 108),
            domes=(dome, dome - body.uniform(2, 18)),
            heart=body.uniform(0.8, 1.12),
            heart_tilt=math.radians(body.uniform(18, 48)),
            lung=body.uniform(-910, -825),
            stretch=body.uniform(0.92, 1.08),
            lesions=[],
            bubble=bool(body.random() < 0.6),
            clavicle=body.uniform(-8, 12),
            waves=body.uniform(0, 2 * np.pi, 8).tolist(),
            own={organ: body.standard_normal(4).clip(-2, 2).tolist() for organ in ORGANS},
        )
        thorax.noise = body.standard_normal((32, 32, 32), np.float32)
        thorax._grow(body)
        thorax.lesions = LESIONS[finding](thorax, disease)
        return thorax

    def _grow(self, rng: np.random.Generator) -> None:
        """Draw ribs, clavicles, and the trees of vessels and bronchi."""
        ribs, cartilage = [], []
        top, spacing, drop = rng.uniform(76, 88), rng.uniform(20, 23.5), rng.uniform(0.85, 1.2)
        for side in (-1, 1):
            for number in range(11):
                path, end = self._rib(side, top - spacing * number + rng.normal(0, 1), number, drop)
                ribs.append(Tubes.along(path[:end], 4.6 + 0.12 * min(number, 6) + rng.normal(0, 0.2)))
                if 0 < number < 8:
                    cartilage.append(Tubes.along(path[end - 1 :], 5.0))
        self.ribs, self.cartilage = Tubes.joined(ribs), Tubes.joined(cartilage)
        self.clavicles = Tubes.joined([Tubes.along(self._clavicle(side), 5.6) for side in (-1, 1)])
        trees = [self._tree(side, rng) for side in (-1, 1)]
        self.vessels = Tubes.joined([vessels for vessels, _ in trees])
        self.bronchi = Tubes.joined([bronchi for _, bronchi in trees])

    def _rib(self, side: int, z: float, number: int, drop: float) -> tuple[np.ndarray, int]:
        """Lay points from the spine round to the breastbone, and say where bone ends and cartilage begins."""
        t = np.linspace(0, 1, 60)
        angle = np.pi * (0.07 + 0.86 * t)  # from the back
        fall = drop * (30 + 9.5 * min(number, 7)) * _rise((t - 0.06) / 0.9)
        arch = 5 * np.sin(np.pi * np.clip(t / 0.25, 0, 1))
        height = (z - fall + arch) * self.stretch
        a, b = self._cage(height)
        x = side * (a + 5) * np.abs(np.sin(angle)) ** 0.87
        y = (b + 5) * np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** 0.87
        end = int(60 * (0.86 - 0.022 * number if number else 0.8))
        return np.stack([x, y, height], axis=1), end

    def _clavicle(self, side: int) -> np.ndarray:
        """Lay points along a clavicle, from the breastbone outwards."""
        t = np.linspace(0, 1, 24)
        x = side * (20 + (self.width + 6) * t)
        y = -0.75 * self.depth - 8 * np.sin(2 * np.pi * t) + 55 * t**2
        z = (58 + self.clavicle + 26 * t + 7 * np.sin(2 * np.pi * t)) * self.stretch
        return np.stack([x, y, z], axis=1)

    def _tree(self, side: int, rng: np.random.Generator) -> tuple[Tubes, Tubes]:
        """Grow vessels that fork from the hilum towards the pleura, and the first bronchi beside them."""
        hilum = np.array([side * 38.0, 12.0, -18.0 if side > 0 else -28.0])
        count = 26
        turn = np.linspace(0, 2 * np.pi, count, endpoint=False) + rng.uniform(0, 1)
        tip = np.stack([side * rng.uniform(0.2, 1.1, count), 0.9 * np.cos(turn), 1.2 * np.sin(turn)], axis=1)
        direction = _unit(tip)
        start = hilum + rng.normal(0, (3, 5, 12), (count, 3))
        radius = rng.uniform(2.4, 4.8, count)
        vessels, bronchi = [], []
        for generation in range(10):
            direction = _unit(direction + 0.3 * _unit(start - hilum) + rng.normal(0, 0.16, direction.shape))
            length = rng.uniform(0.6, 1.3, len(start)) * (18 if generation else 26) * 0.94**generation
            end = start + direction * length[:, None]
            kept = self.lung_distance(*end.T) < -1.5 if generation else np.full(len(end), True)
            start, end, direction, radius = start[kept], end[kept], direction[kept], radius[kept]
            vessels.append(Tubes(start, end, radius))
            if generation < 2:
                beside = np.cross(direction, [0.0, 0.3, 1.0]) * (radius * 1.7)[:, None]
                bronchi.append(Tubes(start + beside, end + beside, radius * 0.5))
            aside = rng.normal(0, 0.34, (len(end), 3))
            other = -aside * rng.uniform(0.6, 1.6, (len(end), 1))
            direction = np.concatenate([direction + aside, direction + other])
            start = np.concatenate([end, end])
            share = rng.uniform([[0.76], [0.5]], [[0.93], [0.82]], (2, len(end)))
            radius = (radius * share).ravel()
            alive = radius > 0.5
            start, direction, radius = start[alive], direction[alive], radius[alive]
        main = Tubes.along(np.array([[side * 3.0, 10.0, 0.0], [side * 18.0, 12.0, -14.0], hilum]), 6.0)
        trunk = hilum + np.array([[0, 0, 0], [side * 7, 8, -22], [side * 10, 12, -44]])
        artery = Tubes.along(np.concatenate([[[side * 10, -8, -15]], trunk]), 6.0)
        return Tubes.joined([artery, *vessels]), Tubes.joined([main, *bronchi])

    def _place(self, organ: str, x: float, y: float, z: float = 0.0) -> Place:
        """Move an organ's usual centre by this patient's few mm."""
        dx, dy, dz, _ = self.own[organ]
        return x + 4 * dx, y + 4 * dy, z + 4 * dz

    def _sizes(self, organ: str, *usual: float) -> tuple[float, ...]:
        """Scale an organ's usual measures by this patient's factor."""
        return tuple(one * (1 + 0.13 * self.own[organ][3]) for one in usual)

    # --- solids -----------------------------------------------------------------------------------

    def _cage(self, z: Numbers) -> tuple[np.ndarray, np.ndarray]:
        """Give the inner half width and half depth of the rib cage at a height."""
        t = np.clip((z + 60) / (self.apex + 26 + 60), 0, 0.97)
        taper = np.sqrt(1 - t**2.2)
        return self.width * taper, self.depth * (0.25 + 0.75 * taper)

    def _dome(self, x: Numbers, y: Numbers) -> np.ndarray:
        """Give the height of the diaphragm."""
        right, left = self.domes
        top = left + (right - left) * _rise(0.5 - x / 60)
        away = np.abs(x) - 0.5 * self.width
        side = _either(away > 0, 62, 22) * (away / (0.5 * self.width)) ** 2
        back = y + 0.15 * self.depth
        return top - side - _either(back > 0, 62, 26) * (back / self.depth) ** 2

    def _uneven(self, x: Numbers, y: Numbers, z: Numbers, first: int) -> np.ndarray:
        """Add a gentle, personal waviness of a few mm."""
        p, q, r = self.waves[first : first + 3]
        return 2.2 * (np.sin(y / 11 + p) + np.sin(z / 14 + q)) + 1.5 * np.sin((x + z) / 9 + r)

    def _heart_distance(self, x: Numbers, y: Numbers, z: Numbers) -> np.ndarray:
        """Measure the distance (mm, roughly, negative inside) from the tilted heart."""
        cx, cy, cz = self._place("heart", 16, -0.3 * self.depth, 0.5 * sum(self.domes) + 24)
        cos, sin = math.cos(self.heart_tilt), math.sin(self.heart_tilt)
        along, across = (x - cx) * cos - (z - cz) * sin, (x - cx) * sin + (z - cz) * cos
        radii = tuple(self.heart * radius for radius in (66, 46, 53))
        return _ellipsoid(along, y, across, (0, cy, 0), radii) + self._uneven(x, y, z, 0)

    def _aorta_distance(self, x: Numbers, y: Numbers, z: Numbers) -> np.ndarray:
        """Measure the distance (mm, roughly, negative inside) from the aorta's arch and its descending part."""
        arch = _ellipsoid(x, y, z, self._place("arch", 20, 8, 27), self._sizes("arch", 17, 34, 14))
        cx, cy, top = self._place("aorta", 24, 0.5 * self.depth, 27)
        (radius,) = self._sizes("aorta", 12.5)
        return np.minimum(arch, np.maximum(np.hypot(x - cx, y - cy) - radius, z - top))

    def _mediastinum_distance(self, x: Numbers, y: Numbers, z: Numbers) -> np.ndarray:
        """Measure the distance from what keeps the lungs apart; it need be asked for within `MIDDLE` only."""
        hila, arch = np.exp(-(((z + 18) / 26) ** 2)), np.exp(-(((z - 30) / 22) ** 2))
        half = 13 + 14 * _rise((z + 78) / 46) + 10 * hila + 5 * arch + 7 * _rise((z - 60) / 40)
        (wide,), (cx, cy, _) = (
            self._sizes("mediastinum", 1),
            self._place("mediastinum", 2, -0.08 * self.depth),
        )
        column = _ellipse(x - cx, y - cy, wide * half, self.depth * 0.9, 1.8)
        column = column + self._uneven(x, y, z, 3)
        spine = np.hypot(x, y - self.depth + 20) - self._sizes("spine", 22)[0]
        solid = np.minimum(np.minimum(column, spine), self._heart_distance(x, y, z) - 3)
        return np.minimum(solid, self._aorta_distance(x, y, z) - 1.5)

    def _cavity_distance(self, x: Numbers, y: Numbers, z: Numbers) -> np.ndarray:
        """Measure the distance from the inside of the rib cage between diaphragm and apices."""
        a, b = self._cage(z)
        cap = self.apex - 16 * ((np.abs(x) - 46) / 36) ** 2 - 14 * ((y - 12) / 60) ** 2
        ends = np.maximum(self._dome(x, y) - z, z - cap) * 0.7
        return np.maximum(_ellipse(x, y, a, b, 2.3), ends)

    def lung_distance(self, x: Numbers, y: Numbers, z: Numbers) -> np.ndarray:
        """Measure the distance (mm, roughly) from the lungs, negative inside."""
        return np.maximum(self._cavity_distance(x, y, z), -self._mediastinum_distance(x, y, z))

    def _trunk_axes(self, z: Numbers) -> tuple[np.ndarray, np.ndarray]:
        """Give the half axes of the trunk's outline."""
        taper = self._cage(z)[0] / self.width
        a = self.width * (0.72 + 0.28 * taper) + self.wall + self.fat
        return a, self.depth * (0.7 + 0.3 * taper) + 0.9 * self.wall + 0.8 * self.fat

    def _body_distance(self, x: Numbers, y: Numbers, z: Numbers, upright: bool) -> np.ndarray:
        """Measure the distance (mm, roughly, negative inside) from the skin; upright, with shoulders and arms."""
        a, b = self._trunk_axes(z)
        groove = 5 * np.exp(-((x / 20) ** 2)) * _either(y > 0, 1.4, 0.4)  # along the breastbone and the spine
        bulge = 3.5 * (np.sin(x / 31 + self.waves[6]) + np.sin(y / 23 + z / 60 + self.waves[7]))
        body = _ellipse(x, y, a, b, 2.4) + (groove + bulge)
        if upright:
            slope = z - 142 * self.stretch + 0.42 * np.clip(np.abs(x) - 52, 0, None)
            high = z.ravel() > 5
            wide = a + (self.width + 85 - a) * _rise((z - 5) / 75)
            shoulders = np.minimum(body[high], _ellipse(x, y - 12, wide[high], 62, 2.5))
            neck = np.hypot(x, y - 12) - 52 + np.clip(60 - z[high], 0, None)
            body[high] = np.minimum(np.maximum(shoulders, slope[high]), neck)
            for out in (x.ravel() < -self.width, x.ravel() > self.width):
                arm = np.hypot(np.abs(x[..., out]) - self._arm(z), y - 15) - 36
                body[..., out] = np.minimum(body[..., out], np.maximum(arm, slope[..., out]))
        return body

    def _arm(self, z: Numbers) -> np.ndarray:
        """Give the distance of the upper arm's axis from the middle."""
        return self.width + 62 - 0.16 * (z - 60)

    def hounsfield(
        self, x: np.ndarray, y: np.ndarray, z: np.ndarray, upright: bool, soft: float
    ) -> np.ndarray:
        """Paint solids and lesions, without the tubes.

        Args:
            x, y, z: axes in mm, 1-D, ascending.
            upright: with arms and shoulders as on a film; otherwise arms raised, as in the scanner.
            soft: width of edges in mm.

        Returns:
            HU of shape (nz, ny, nx), float32.
        """
        hu = np.full((len(z), len(y), len(x)), AIR, np.float32)
        z, y, x = (axis.astype(np.float32) for axis in np.meshgrid(z, y, x, indexing="ij", sparse=True))
        whole = Region(hu, x, y, z, soft)
        body = self._body_distance(x, y, z, upright)
        whole.paint(body, FAT)
        self._paint_breasts(whole, upright)
        whole.paint(body + self.fat, MUSCLE, max(soft, 3.0))
        if not upright:  # sheets of fat between the muscles, where a random field changes its sign
            sheet = np.clip(1 - np.abs(self._cloud(x, y, z, 15.0)) / 0.22, 0, 1)
            whole.blend(0.8 * sheet * np.clip(-0.25 * (body + self.fat) - 1, 0, 1), FAT)
        self._paint_lungs(whole)
        self._paint_organs(whole)
        self._paint_bones(whole, upright)
        throat = whole.within((-26, 26), (-18, 34), (0, 300))
        cx, cy, _ = self._place("trachea", 0, 8)
        outline = _ellipse(throat.x - cx, throat.y - cy, *self._sizes("trachea", 8.0, 8.8))
        throat.paint(outline + 0 * throat.z, AIR)
        return hu

    def _paint_breasts(self, whole: "Region", upright: bool) -> None:
        """Paint breasts, flatter when lying."""
        if not self.breast:
            return
        size, settled = 0.75 + 0.25 * self.breast, 1.0 if upright else 0.62  # flat when lying
        centre = (
            (0.52 if upright else 0.6) * self.width,
            -(self.depth + 0.3 * self.wall),
            -60 * self.stretch,
        )
        front = whole.within(None, (-250, centre[1] + 60), (centre[2] - 60, centre[2] + 110))
        upper = 100 if upright else 60
        radii = (
            60 * size,
            (26 + 30 * self.breast) * settled,
            _either(front.z > centre[2], upper, 50) * size,
        )
        distance = _ellipsoid(np.abs(front.x), front.y, front.z, centre, radii)
        front.paint(distance, FAT)
        front.paint(distance + 8, -30.0, 14.0)

    def _paint_lungs(self, whole: "Region") -> None:
        """Paint fat and muscle between the lungs, and lung tissue, denser towards the back, with the lesions in it."""
        distance = self._cavity_distance(whole.x, whole.y, whole.z)
        middle = whole.within((-MIDDLE, MIDDLE))
        mediastinum = self._mediastinum_distance(middle.x, middle.y, middle.z)
        middle.paint(np.maximum(mediastinum, self._dome(middle.x, middle.y) - middle.z), FAT + 10)
        between = Region(distance, whole.x, whole.y, whole.z, 0).within((-MIDDLE, MIDDLE)).hu
        np.maximum(between, -mediastinum, out=between)
        whole.paint(distance, self.lung + 35 * whole.y / self.depth)
        share = Region(np.clip(0.5 - distance / whole.soft, 0, 1), whole.x, whole.y, whole.z, 0)
        for lesion in self.lesions:
            box = [
                (place - 1.5 * radius, place + 1.5 * radius)
                for place, radius in zip(lesion.centre, lesion.radii, strict=True)
            ]
            spot = whole.within(*box)
            if spot.hu.size:
                spot.blend(share.within(*box).hu * self._opacity(lesion, spot.x, spot.y, spot.z), FLUID)

    def _opacity(self, lesion: Lesion, x: Numbers, y: Numbers, z: Numbers) -> np.ndarray:
        """Give the share of air that a lesion replaces by fluid, 0 to 1, with a cloudy edge."""
        (cx, cy, cz), (a, b, c) = lesion.centre, lesion.radii
        reach = np.sqrt(((x - cx) / a) ** 2 + ((y - cy) / b) ** 2 + ((z - cz) / c) ** 2)
        cloud = self._cloud(x, y, z, 13.0) + 0.5 * self._cloud(x, y, z, 5.0)
        share = lesion.opacity * _rise((1 - reach + lesion.ragged * cloud) / 0.55) * (1 + 0.22 * cloud)
        if lesion.fissure:  # the oblique fissure, down to the front
            share = share * np.clip(0.5 - (z - cz - 28 - 0.75 * (y - cy)) / 4, 0, 1)
        return np.clip(share, 0, 1)

    def _cloud(self, x: Numbers, y: Numbers, z: Numbers, size: float) -> np.ndarray:
        """Make a smooth random field of about unit variance, with a grain of `size` mm."""
        places = np.stack(np.broadcast_arrays(z / size, y / size, x / size))
        return ndimage.map_coordinates(self.noise, places, order=1, mode="grid-wrap") * 1.5

    def _paint_organs(self, whole: "Region") -> None:
        """Paint the heart and great vessels, the gullet, and the stomach's air."""
        middle = whole.within((-MIDDLE, MIDDLE))
        middle.paint(self._heart_distance(middle.x, middle.y, middle.z), BLOOD)
        aorta = whole.within((-20, 70), (-60, 110), (-300, 70))
        aorta.paint(self._aorta_distance(aorta.x, aorta.y, aorta.z), BLOOD)
        self._paint_vessel(middle, "ascending", self._place("ascending", -10, -22, -5), 15, 32)
        self._paint_vessel(middle, "cava", self._place("cava", -27, -10, 20), 8, 60)
        self._paint_vessel(middle, "gullet", self._place("gullet", 6, 0.42 * self.depth), 6, 300)
        both = whole.within((-60, 60), (-45, 30), (-55, 15))
        centre, radii = self._place("pulmonary", 16, -8, -20), self._sizes("pulmonary", 27, 14, 13)
        both.paint(_ellipsoid(np.abs(both.x), both.y, both.z, centre, radii), BLOOD)
        if self.bubble:
            centre = (0.55 * self.width, -0.1 * self.depth, self.domes[1] - 24)
            stomach = whole.within(*((place - 32, place + 32) for place in centre))
            stomach.paint(_ellipsoid(stomach.x, stomach.y, stomach.z, centre, (27, 24, 11)), AIR)

    def _paint_vessel(self, part: "Region", organ: str, centre: Place, radius: float, half: float) -> None:
        """Paint a tube along z, `half` mm up and down from its centre."""
        cx, cy, cz = centre
        (radius,) = self._sizes(organ, radius)
        near = part.within((cx - radius - 4, cx + radius + 4), (cy - radius - 4, cy + radius + 4))
        near.paint(np.maximum(np.hypot(near.x - cx, near.y - cy) - radius, np.abs(near.z - cz) - half), BLOOD)

    def _paint_bones(self, whole: "Region", upright: bool) -> None:
        """Paint spine, breastbone, shoulder blades and upper arms; ribs and clavicles are tubes."""
        self._paint_spine(whole.within((-48, 48), (self.depth - 45, self.depth + 55)))
        front = whole.within((-22, 22), (-self.depth - 20, 0), (-100, 80))
        a, b = self._sizes("sternum", 17.0, 6.0)
        outline = _ellipse(front.x, front.y + self._cage(front.z)[1] + 7, a, b, 3.0)
        sternum = np.maximum(outline, np.abs(front.z / self.stretch + 14) - 76)
        front.paint(sternum, CORTEX * 0.5)
        front.paint(sternum + 1.8, MARROW * 0.7)
        aside, inward, rise, _ = self.own["scapula"]
        angle = math.radians((64 if upright else 52) + 5 * aside)  # from the back; arms forward turn it out
        cos, sin = math.cos(angle), math.sin(angle)
        a, b = (20 + 2 * inward + float(half) for half in self._cage(30.0))
        back = whole.within(None, (0, 150), (-60, 120))
        u, v = np.abs(back.x) - a * sin, back.y - b * cos
        along, across = u * cos - v * sin, u * sin + v * cos
        centre, radii = (0, 0, 28 * self.stretch + 6 * rise), self._sizes("scapula", 40, 4.5, 62)
        blade = _ellipsoid(along, across + 0.004 * along**2, back.z, centre, radii)
        back.paint(blade, CORTEX * 0.5)
        for low, high in ((-300, -self.width), (self.width, 300)) if upright else ():
            arm = whole.within((low, high), (-30, 60), (-300, 90))
            bone = np.hypot(np.abs(arm.x) - self._arm(arm.z), arm.y - 15) - _either(arm.z > 55, 19, 11)
            arm.paint(np.maximum(bone, arm.z - 84), CORTEX * 0.5)

    def _paint_spine(self, part: "Region") -> None:
        """Paint vertebral bodies with discs between them, arches, spinous processes, and the canal."""
        (size,) = self._sizes("spine", 1)
        x, y = part.x / size, (part.y - self.depth + 18) / size
        disc = np.abs((part.z / self.stretch / size + self.own["spine"][2]) % 23 - 11.5) - 9
        body = _ellipse(x, y, 17.5, 14.5, 2.5)
        part.paint(body + 0 * disc, CARTILAGE)
        part.paint(np.maximum(body, disc), CORTEX * 0.45)
        part.paint(np.maximum(body, disc) + 1.6, MARROW * 0.5)
        arch = np.minimum(np.hypot(x, y - 23) - 12, _ellipse(np.abs(x) - 24, y - 21, 15, 5.5))
        spinous = np.maximum(_ellipse(x, y - 40, 3.5, 15), disc - 1)
        part.paint(np.minimum(np.maximum(arch, disc), spinous), CORTEX * 0.22)
        part.paint(np.hypot(x, y - 22) - 8.5 + 0 * disc, 15.0)

    def slice_range(self) -> tuple[float, float]:
        """Give the heights in mm between which a slice shows both lungs."""
        return min(self.domes) - 8, self.apex - 34


# --- lesions --------------------------------------------------------------------------------------


def _at_pleura(thorax: Thorax, rng: np.random.Generator, side: int) -> Place:
    """Draw a place just under the pleura, more often at the back and below."""
    low, high = thorax.slice_range()
    for _ in range(50):
        z = low + (high - low) * rng.random() ** 1.25
        angle = abs(rng.normal(0, 0.95))  # from the back
        a, b = thorax._cage(z)
        inward = rng.uniform(0.8, 0.95)
        place = (side * inward * a * np.sin(min(angle, 2.8)) ** 0.87, inward * b * np.cos(min(angle, 2.8)), z)
        if thorax.lung_distance(*place) < -2:
            break
    return tuple(map(float, place))


def _covid(thorax: Thorax, rng: np.random.Generator) -> list[Lesion]:
    """Draw ground glass on both sides, peripheral, partly dense (Bernheim et al., Radiology 295:685, 2020)."""
    severity = rng.uniform(0.3, 1)
    lesions = []
    for side in (-1, 1):
        for _ in range(6 + int(rng.integers(0, 4) + 9 * severity)):
            radius = rng.uniform(14, 24 + 20 * severity)
            dense = rng.random() < 0.12 + 0.25 * severity
            opacity = rng.uniform(0.7, 0.95) if dense else rng.uniform(0.32, 0.5 + 0.15 * severity)
            flat = rng.uniform(0.7, 1.3, 3) * radius * (0.75 if dense else 1)
            lesions.append(Lesion(_at_pleura(thorax, rng, side), tuple(flat.tolist()), opacity, 0.28))
    return lesions


def _healthy(thorax: Thorax, rng: np.random.Generator) -> list[Lesion]:
    """Draw no lesion."""
    return []


def _lobar(thorax: Thorax, rng: np.random.Generator) -> list[Lesion]:
    """Draw one consolidation from the hilum outwards, on one side, with the fissure as its upper edge."""
    side = float(rng.choice([-1, 1]))
    centre = (side * rng.uniform(52, 74), rng.uniform(0, 0.4) * thorax.depth, rng.uniform(-75, -5))
    radii = tuple(rng.uniform(34, 58, 3).tolist())
    return [Lesion(centre, radii, rng.uniform(0.75, 0.97), 0.14, fissure=True)]


def _nodule(thorax: Thorax, rng: np.random.Generator) -> list[Lesion]:
    """Draw one round nodule."""
    side = float(rng.choice([-1, 1]))
    centre = (
        side * rng.uniform(50, 90),
        rng.uniform(-0.4, 0.4) * thorax.depth,
        rng.uniform(*thorax.slice_range()),
    )
    radius = rng.uniform(8, 19)
    return [Lesion(centre, (radius,) * 3, 1.0, 0.08)]


ORGANS = (
    *("mediastinum", "heart", "arch", "aorta", "ascending", "cava", "pulmonary", "gullet", "trachea"),
    *("spine", "sternum", "scapula"),
)
LESIONS = {"COVID-19": _covid, "healthy": _healthy, "lobar pneumonia": _lobar, "nodule": _nodule}
