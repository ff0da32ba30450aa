"""Join pictures that share anything: a patient, a group, equal pixels, a look."""

from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


def joined(tokens: Sequence[Sequence[str]]) -> list[list[int]]:
    """Group the indices of items that share a token, directly or through others (connected components)."""
    numbers: dict[str, int] = {}
    pairs = [
        (index, len(tokens) + numbers.setdefault(token, len(numbers)))
        for index, own in enumerate(tokens)
        for token in own
    ]
    if not pairs:
        return []
    heads, tails = np.array(pairs).T
    size = len(tokens) + len(numbers)
    graph = coo_array((np.ones(len(pairs)), (heads, tails)), (size, size))
    found: dict[int, list[int]] = {}
    for index, component in enumerate(connected_components(graph, directed=False)[1][: len(tokens)]):
        found.setdefault(component, []).append(index)
    return list(found.values())
