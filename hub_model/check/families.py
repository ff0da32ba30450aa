"""Join pictures that share anything: a patient, a group, equal pixels, a look."""

from collections.abc import Sequence


def joined(tokens: Sequence[Sequence[str]]) -> list[list[int]]:
    """Group the indices of items that share a token, directly or through others (connected components)."""
    above = list(
        range(len(tokens))
    )  # of each item one further up in its group; the first of a group is its own

    def first(index: int) -> int:
        while above[index] != index:
            above[index] = index = above[above[index]]
        return index

    seen: dict[str, int] = {}
    for index, own in enumerate(tokens):
        for token in own:
            one, other = sorted((first(index), first(seen.setdefault(token, index))))
            above[other] = one
    found: dict[int, list[int]] = {}
    for index in range(len(tokens)):
        found.setdefault(first(index), []).append(index)
    return list(found.values())
