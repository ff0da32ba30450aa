"""Copies: of each other, and of pictures that a model was made with, by hashes that nothing can be read from.

Two hashes a picture. The exact one is a truncated SHA-256 of the decoded grey levels. The look is made of 128 signs:
the picture without its frame becomes a thumbnail of 32 x 32, grey levels become ranks, and each of the lowest
frequencies but the first is above or below their median (a perceptual hash by the discrete cosine transform; Zauner
2010, "Implementation and Benchmarking of Perceptual Image Hash Functions"). It says whether two pictures are one, and
of what they show no more than the rough shape of a chest.

Found are copies that were saved again, scaled, windowed, framed or mirrored. A crop of ten per cent a side is another
look; `train prepare` finds such copies by local features, which takes more packages and minutes.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from ..layout import SEEN, FolderRefused, member, read_tensors

ROLES = ("train", "validation", "test")
"""What such a picture was for, by the number that stands in the file."""

SIDE, BITS, EXACT_BYTES = 32, 128, 16
ALIKE = 12
"""Signs of 128 in which copies differ at most. Of 700 films and of 700 slices the nearest unrelated pair differed in
20; re-encoded, scaled, toned, blurred and noisy copies of them in at most 8, in nine of ten cases."""
FLAT_EDGE = 12
"""Rows and columns at the edge whose grey levels span no more than this are a frame."""
BLOCK = 1024


@dataclass(frozen=True, slots=True)
class Hashes:
    """Of one picture: `exact` 16 bytes, `look` and `mirrored` (the look of its mirror image) two 64-bit words."""

    exact: bytes
    look: np.ndarray
    mirrored: np.ndarray


def hashes(grey: Image.Image) -> Hashes:
    """Hash a grey picture (mode "L")."""
    exact = hashlib.sha256(repr(grey.size).encode() + grey.tobytes()).digest()[:EXACT_BYTES]
    ranks = _ranks(grey)
    return Hashes(exact, _look(ranks), _look(ranks[:, ::-1]))


def _ranks(grey: Image.Image) -> np.ndarray:
    """Return the (SIDE, SIDE) ranks of the grey levels of the picture without its frame."""
    pixels = np.asarray(grey)
    small = Image.fromarray(np.ascontiguousarray(_unframed(pixels))).resize(
        (SIDE, SIDE), Image.Resampling.BOX
    )
    order = np.asarray(small).ravel().argsort(kind="stable").argsort(kind="stable")
    return order.reshape(SIDE, SIDE).astype(float)


def _unframed(pixels: np.ndarray) -> np.ndarray:
    """Cut off the rows and columns at the edges that are flat; a picture that is flat all over stays."""
    for _ in range(2):  # rows, then columns
        span = pixels.max(1).astype(int) - pixels.min(1)
        inside = np.flatnonzero(span > FLAT_EDGE)
        pixels = (pixels[inside[0] : inside[-1] + 1] if len(inside) else pixels).T
    return pixels


@cache
def _frequencies() -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Return the cosines (SIDE, SIDE), and rows and columns of the BITS lowest frequencies except the first."""
    cosines = np.cos(np.pi / SIDE * (np.arange(SIDE) + 0.5)[None] * np.arange(SIDE)[:, None])
    order = sorted((u + v, u, v) for u in range(SIDE) for v in range(SIDE) if u + v)[:BITS]
    return cosines, (np.array([u for _, u, _ in order]), np.array([v for _, _, v in order]))


def _look(ranks: np.ndarray) -> np.ndarray:
    cosines, places = _frequencies()
    values = (cosines @ ranks @ cosines.T)[places]
    return np.packbits(values > np.median(values)).view("<u8")


def distances(looks: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Count in how many signs looks (n, 2) differ from others (m, 2); returns (n, m)."""
    return np.bitwise_count(looks[:, None] ^ others[None]).sum(-1, dtype=int)


def pairs(found: Sequence[Hashes]) -> Iterator[tuple[int, int]]:
    """Yield places of pairs of pictures that look like copies, mirrored or not; the smaller place comes first."""
    if not found:
        return
    plain, mirrored = (np.stack([getattr(one, name) for one in found]) for name in ("look", "mirrored"))
    for start in range(0, len(found), BLOCK):
        block = slice(start, start + BLOCK)
        near = np.minimum(distances(plain[block], plain), distances(mirrored[block], plain)) <= ALIKE
        for one, other in zip(*np.nonzero(near), strict=True):
            if one + start < other:
                yield int(one) + start, int(other)


@dataclass(frozen=True)
class Seen:
    """Hashes of the pictures that a model was made with.

    Attributes:
        exact: exact hash -> role.
        looks: (n, 2) 64-bit words.
        roles: (n,) places in `ROLES`.
        data: SHA-256 of the data they were made from, as 32 bytes.
    """

    exact: dict[bytes, int]
    looks: np.ndarray
    roles: np.ndarray
    data: bytes

    def role(self, one: Hashes) -> str | None:
        """Return the role that a copy of this picture had when the model was made; None where there is no copy."""
        if (found := self.exact.get(one.exact)) is not None:
            return ROLES[found]
        apart = np.minimum(*(distances(look[None], self.looks)[0] for look in (one.look, one.mirrored)))
        near = np.flatnonzero(apart <= ALIKE)
        return ROLES[int(self.roles[near].min())] if len(near) else None


def tensors(found: Sequence[Hashes], roles: Sequence[str], data_sha256: str) -> dict[str, np.ndarray]:
    """Make the tensors of the file `SEEN`, in the order of the hashes, which does not reveal the order of the data.

    Args:
        found: hashes of every picture.
        roles: names in `ROLES`, one a picture.
        data_sha256: of the data, in hexadecimal digits.
    """
    order = sorted(range(len(found)), key=lambda place: found[place].exact)
    return {
        "exact": np.array([list(found[place].exact) for place in order], np.uint8).reshape(-1, EXACT_BYTES),
        "look": np.stack([found[place].look for place in order]).view(np.uint8),
        "role": np.array([ROLES.index(roles[place]) for place in order], np.uint8),
        "data": np.frombuffer(bytes.fromhex(data_sha256), np.uint8).copy(),
    }


def read_seen(folder: Path) -> Seen | None:
    """Return the hashes that travel with a model; None where the folder has none.

    Raises:
        FolderRefused: the file is damaged or of another layout.
    """
    path = member(folder, SEEN)
    if not path.exists():
        return None
    read = read_tensors(path)
    shapes = {name: (place.kind, place.shape) for name, place in read.header.items()}
    count = shapes.get("role", ("", (0,)))[1]
    wanted = {
        "exact": ("U8", (*count, EXACT_BYTES)), "look": ("U8", (*count, BITS // 8)), "role": ("U8", count),
        "data": ("U8", (32,)),
    }  # fmt: skip
    if shapes != wanted or len(count) != 1 or not count[0] or read.array("role").max() >= len(ROLES):
        raise FolderRefused(
            f"{path} has tensors {shapes}; expected exact, look, role and data that fit each other. Fetch the folder "
            "again, or write the file anew (`python -m train seen RUN --data ...`)."
        )
    roles = read.array("role").astype(int)
    exact = {row.tobytes(): int(role) for row, role in zip(read.array("exact"), roles, strict=True)}
    return Seen(exact, read.array("look").copy().view("<u8"), roles, read.array("data").tobytes())
