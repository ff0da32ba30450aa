"""Which pictures are copies of one original: families, found in three steps.

1. `describe` turns one picture into a fixed-size record of local features (SIFT: Lowe, IJCV 60, 2004; square
   roots: Arandjelovic & Zisserman, CVPR 2012). It is a pure function: store the records, and a killed run
   need not make them again.
2. Candidates: the features of a picture are summed up in one short vector (VLAD: Jegou et al., CVPR 2010;
   projected as in Jegou & Chum, ECCV 2012), and each picture is compared with its nearest few only.
3. `agreement` counts the features of two pictures that one affine map, mirrored or not, lays onto each other.
   Chests look alike, but only copies agree to within two pixels over the whole picture.

Mirrored copies need no second description: reflecting a picture permutes the 128 numbers of each feature.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from threadpoolctl import threadpool_limits

SIDE = 192  # pixels of the longer side at which pictures are described
FEATURES = 160  # strongest features kept per picture

# `count`: features found, at most FEATURES. `place`: x and y from the centre, then size times cosine and sine
# of the orientation, in longer sides. `feature`: square-rooted SIFT, of length 512.
RECORD = np.dtype([("count", "<u2"), ("place", "<f2", (FEATURES, 4)), ("feature", "u1", (FEATURES, 128))])

# Reflecting a picture turns the 4 x 4 x 8 histogram (across, along, direction) of a feature over like this.
MIRRORED = np.arange(128).reshape(4, 4, 8)[::-1, :, -np.arange(8) % 8].ravel()

# The proof, from how copies and unrelated pictures score. Lengths are in longer sides of the picture.
LIKENESS = 0.75  # cosine below which two features are not matched
GUESS = 0.08  # how far features may land from their partners at first,
NEAR = (0.03, 0.015, 0.0075, 0.0075)  # and after each fit
SURE = 22  # agreeing features that prove a copy; unrelated films reach 16, a few of their copies 20 and more
SPREAD = 0.03  # smallest standard deviation of their places: a printed letter is no proof
SQUASH = 0.5  # smallest ratio of the two scales of the map

# The search: what is compared at all.
WORDS, LENGTH = 64, 512  # VLAD words; numbers kept after projection
SAMPLE = 2048  # pictures from which words and projection are learnt
NEAREST = 8  # pictures compared with each picture in the first round
OTHERS = 16  # pictures of other families considered for each picture in the second,
FAMILIES, PAIRS = 16, 4  # where a family is compared with so many others, by so many pairs of pictures each
BLOCK = 1024  # pictures handled at once: bounds the memory

Progress = Callable[[int, int], None]


def describe(image: Image.Image | np.ndarray) -> np.ndarray:
    """Describe one grey picture by its strongest local features.

    Args:
        image: PIL picture, or array (height, width) of uint8.

    Returns:
        One `RECORD`, an array without dimensions (21,762 bytes). Stack them for `find_families`.
    """
    pixels = np.asarray(image.convert("L") if isinstance(image, Image.Image) else image, np.uint8)
    pixels = cv2.medianBlur(np.ascontiguousarray(pixels), 3)  # against salt and pepper
    scale = SIDE / max(pixels.shape)
    height, width = (max(1, round(side * scale)) for side in pixels.shape)
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    pixels = cv2.resize(pixels, (width, height), interpolation=method)
    pixels = cv2.GaussianBlur(pixels, (0, 0), 1.0)  # against grain and JPEG blocks
    # A low contrast threshold: faded copies must give features too, the strongest are kept anyway.
    sift = cv2.SIFT_create(FEATURES, contrastThreshold=0.004, edgeThreshold=20)
    points, features = sift.detectAndCompute(pixels, None)
    record = np.zeros((), RECORD)
    count = min(len(points), FEATURES)
    if count == 0:
        return record
    turn = np.deg2rad([point.angle for point in points[:count]])
    size = np.array([point.size for point in points[:count]])
    centred = np.array([point.pt for point in points[:count]]) - (np.array([width, height]) - 1) / 2
    record["count"] = count
    record["place"][:count] = np.column_stack([centred, size * np.cos(turn), size * np.sin(turn)]) / SIDE
    features = features[:count] / features[:count].sum(axis=1, keepdims=True).clip(1e-6)
    record["feature"][:count] = (512 * np.sqrt(features)).round().clip(0, 255)
    return record


def agreement(one: np.ndarray, other: np.ndarray) -> int:
    """Count the features of two records that agree on one affine map between the pictures, mirrored or not.

    Args:
        one: `RECORD` of a picture.
        other: `RECORD` of another.

    Returns:
        Number of features; 0 where they are crowded in one spot or the map is no plausible copy's.
    """
    ours, theirs = _features(one), _features(other)
    if min(len(ours), len(theirs)) < SURE:
        return 0
    (ours_at, ours_turn), (theirs_at, theirs_turn) = _places(one), _places(other)
    straight = _agreeing(ours @ theirs.T, ours_at, ours_turn, theirs_at, theirs_turn)
    if straight >= SURE:
        return straight
    # In the plane of complex numbers a reflection is the conjugate.
    turned = _agreeing(ours[:, MIRRORED] @ theirs.T, ours_at.conj(), ours_turn.conj(), theirs_at, theirs_turn)
    return max(straight, turned)


def _features(record: np.ndarray) -> np.ndarray:
    """Give the features of a record as vectors of length one, (count, 128) float32."""
    features = record["feature"][: record["count"]].astype(np.float32)
    return features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-6)


def _places(record: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give places and orientations of a record's features as complex numbers, (count,) each."""
    place = record["place"][: record["count"]].astype(np.float32)
    return place[:, 0] + 1j * place[:, 1], place[:, 2] + 1j * place[:, 3]


def _agreeing(likeness, from_at, from_turn, to_at, to_turn) -> int:
    """Count matched features that one affine map carries over (see `agreement`)."""
    partner = likeness.argmax(axis=1)
    mine = np.arange(len(partner))
    matched = (likeness.argmax(axis=0)[partner] == mine) & (likeness[mine, partner] > LIKENESS)
    if matched.sum() < SURE:
        return 0
    partner = partner[matched]
    start, end = from_at[matched], to_at[partner]
    # Each match alone fixes a rotation, a scale and a shift. Try them all, keep the one with most followers.
    turn = to_turn[partner] / from_turn[matched]
    landing = turn[:, None] * (start[None, :] - start[:, None]) + end[:, None]
    alike = np.abs(turn[None, :] - turn[:, None]) < 0.6 * np.abs(turn)[:, None]
    follows = (np.abs(landing - end) < GUESS) & alike
    agreeing = follows[follows.sum(axis=1).argmax()]
    # Then fit the affine map: end = a * start + b * conj(start) + c, and let go of what misses it.
    terms = np.column_stack([start, start.conj(), np.ones_like(start)])
    for near in NEAR:
        if agreeing.sum() < SURE:
            return 0
        weights = np.linalg.lstsq(terms[agreeing], end[agreeing], rcond=None)[0]
        agreeing = np.abs(terms @ weights - end) < near
    a, b = np.abs(weights[:2])
    plausible = a - b > SQUASH * (a + b) and min(_spread(start[agreeing]), _spread(end[agreeing])) > SPREAD
    return int(agreeing.sum()) if plausible else 0


def _spread(at: np.ndarray) -> float:
    """Compute the standard deviation of places along the direction in which they vary least."""
    if len(at) == 0:
        return 0.0
    centred = at - at.mean()
    return float(np.sqrt(max(0.0, np.mean(np.abs(centred) ** 2) - np.abs(np.mean(centred**2))) / 2))


def find_families(
    records: np.ndarray,
    known: Sequence[str | None] | None = None,
    progress: Progress | None = None,
    seed: int = 0,
    jobs: int = 1,
) -> list[str]:
    """Give every picture the name of its family: all copies of one original, and all pictures of one patient.

    Copies are sought among the nearest pictures only, so the time grows with the number of pictures; the
    search for the nearest grows with its square, but takes only seconds for 20,000.

    Args:
        records: (n,) array of `RECORD`, see `describe`; may be a memory map.
        known: per picture the name of a patient or group, None or "" where unknown; same name, same family.
        progress: called with (pairs compared so far, pairs to compare as far as is known yet).
        seed: of the sampling behind the short vectors.
        jobs: threads that compare pairs.

    Returns:
        One family name per picture, "family-000000" onwards in the order of first appearance.
    """
    joined = _known_pairs([None] * len(records) if known is None else known, len(records))
    families = _components(joined, len(records))
    if len(records) > 1:
        search, comparison = _Search(_vectors(records, seed)), _Comparison(records, progress, jobs)
        # One neighbour at a time: most pictures are joined by the first, and the rest need no comparison.
        for candidates in search.ranks():
            apart = candidates[families[candidates[:, 0]] != families[candidates[:, 1]]]
            joined = np.concatenate([joined, comparison.copies(apart)])
            families = _components(joined, len(records))
        joined = np.concatenate([joined, comparison.copies(search.between(families))])
        families = _components(joined, len(records))
    names: dict[int, str] = {}
    return [names.setdefault(family, f"family-{len(names):06d}") for family in families.tolist()]


def _vectors(records: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sum up each picture, as it is and mirrored, in one vector: (n, at most LENGTH) float32 twice."""
    from sklearn.cluster import KMeans
    from sklearn.utils.extmath import randomized_svd

    rng = np.random.default_rng(seed)
    sample = rng.permutation(len(records))[:SAMPLE]
    features = np.concatenate([_features(records[place]) for place in sample])
    features = features[rng.permutation(len(features))[: WORDS * 256]]
    if len(features) == 0:
        return (np.zeros((len(records), 1), np.float32),) * 2
    count = min(WORDS, max(1, len(features) // 40))
    words = (
        KMeans(count, init="random", n_init=1, max_iter=12, random_state=seed).fit(features).cluster_centers_
    )
    raw = np.stack([_aggregate(_features(records[place]), words) for place in sample])
    mean = raw.mean(axis=0)
    axes = randomized_svd(raw - mean, min(LENGTH, *raw.shape), n_iter=2, random_state=seed)[2].T
    plain, mirrored = [], []
    for start in range(0, len(records), BLOCK):
        block = [_features(record) for record in records[start : start + BLOCK]]
        for kept, order in ((plain, slice(None)), (mirrored, MIRRORED)):
            sums = (np.stack([_aggregate(some[:, order], words) for some in block]) - mean) @ axes
            kept.append(sums / np.linalg.norm(sums, axis=1, keepdims=True).clip(1e-6))
    return np.concatenate(plain), np.concatenate(mirrored)


def _aggregate(features: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Compute VLAD: per word the direction in which its features differ from it, (words * 128,) of length one."""
    nearest = (features @ words.T - (words**2).sum(axis=1) / 2).argmax(axis=1)
    belongs = (nearest == np.arange(len(words))[:, None]).astype(np.float32)
    residual = belongs @ features - belongs.sum(axis=1, keepdims=True) * words
    residual /= np.linalg.norm(residual, axis=1, keepdims=True).clip(1e-6)
    return residual.ravel() / max(np.linalg.norm(residual), 1e-6)


class _Search:
    """Finds, for pictures and for families, those worth comparing with them."""

    def __init__(self, vectors: tuple[np.ndarray, np.ndarray]):
        self.plain, self.mirrored = vectors

    def ranks(self) -> Iterator[np.ndarray]:
        """Yield (n, 2) pairs: every picture with its nearest, then with its second nearest, and so on."""
        pictures = np.arange(len(self.plain))
        for neighbours in self._nearest(pictures, NEAREST)[0].T:
            yield np.column_stack([pictures, neighbours])

    def between(self, families: np.ndarray) -> np.ndarray:
        """Give the pairs of pictures, (m, 2), that speak most for joining each family with others."""
        found, likeness = self._nearest(families, OTHERS)
        ones, others = np.repeat(np.arange(len(found)), found.shape[1]), found.ravel()
        order = np.argsort(-likeness.ravel(), kind="stable")
        order = order[np.isfinite(likeness.ravel()[order])]
        compared: Counter[tuple[int, int]] = Counter()  # pairs of pictures, per pair of families
        met: Counter[int] = Counter()  # families compared with, per family
        chosen = set()
        for one, other in zip(ones[order].tolist(), others[order].tolist(), strict=True):
            between = tuple(sorted((int(families[one]), int(families[other]))))
            if between not in compared:
                if min(met[family] for family in between) >= FAMILIES:
                    continue
                met.update(between)
            pair = (min(one, other), max(one, other))
            if compared[between] < PAIRS and pair not in chosen:
                compared[between] += 1
                chosen.add(pair)
        return np.array(sorted(chosen), int).reshape(-1, 2)

    def _nearest(self, families: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Find for each picture the nearest of other families, mirrored or not: indices, likeness, (n, count)."""
        count = min(count, len(self.plain) - 1)
        found, likeness = [], []
        for start in range(0, len(self.plain), BLOCK):
            block = slice(start, start + BLOCK)
            alike = np.maximum(self.plain[block] @ self.plain.T, self.mirrored[block] @ self.plain.T)
            alike[families[block, None] == families[None, :]] = -np.inf
            best = np.argpartition(-alike, count - 1, axis=1)[:, :count]
            scores = np.take_along_axis(alike, best, axis=1)
            order = np.argsort(-scores, axis=1, kind="stable")
            found.append(np.take_along_axis(best, order, axis=1))
            likeness.append(np.take_along_axis(scores, order, axis=1))
        return np.concatenate(found), np.concatenate(likeness)


class _Comparison:
    """Compares pairs of pictures, each pair once."""

    def __init__(self, records: np.ndarray, progress: Progress | None, jobs: int):
        self.records, self.progress, self.jobs = records, progress, jobs
        self.seen: set[tuple[int, int]] = set()

    def copies(self, pairs: np.ndarray) -> np.ndarray:
        """Give those of the (m, 2) pairs, compared now for the first time, that are copies of one original."""
        done = len(self.seen)
        fresh = {(min(pair), max(pair)) for pair in pairs.tolist()} - self.seen
        self.seen |= fresh
        pairs = np.array(sorted(fresh), int).reshape(-1, 2)
        blocks = [pairs[start : start + BLOCK] for start in range(0, len(pairs), BLOCK)]
        kept = [pairs[:0]]
        # Products of such small matrices gain nothing by threads of their own.
        with threadpool_limits(1), ThreadPoolExecutor(self.jobs) as pool:
            for block, agreed in zip(blocks, pool.map(self._agree, blocks), strict=True):
                kept.append(block[agreed])
                done += len(block)
                if self.progress:
                    self.progress(done, len(self.seen))
        return np.concatenate(kept)

    def _agree(self, block: np.ndarray) -> np.ndarray:
        return np.array([agreement(self.records[one], self.records[other]) >= SURE for one, other in block])


def _known_pairs(known: Sequence[str | None], count: int) -> np.ndarray:
    """Pair each picture with the first of the same known name: (m, 2)."""
    if len(known) != count:
        raise ValueError(
            f"{len(known)} known names for {count} pictures: give one per picture, None where unknown."
        )
    first: dict[str, int] = {}
    pairs = [(first.setdefault(name, place), place) for place, name in enumerate(known) if name]
    return np.array(pairs, int).reshape(-1, 2)


def _components(pairs: np.ndarray, count: int) -> np.ndarray:
    """Number the families, (count,), that the joined pairs make."""
    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return connected_components(graph, directed=False)[1]
