"""Four words for an answer, and the rule by which a probability becomes one of them."""

from typing import Any

POSITIVE, NEGATIVE, INCONCLUSIVE, REFUSED = "positive", "negative", "inconclusive", "refused"


def decide(probability: float, point: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Turn a probability into a decision at an operating point, with the reasons for it.

    Raises:
        ValueError: the probability, the threshold or an end of the band is no number from 0 to 1.
    """
    low, high = point.get("abstain") or (point["threshold"], point["threshold"])
    for name, value in (
        ("probability", probability),
        ("threshold", point["threshold"]),
        ("band", low),
        ("band", high),
    ):
        if not 0 <= value <= 1:  # so is NaN refused
            raise ValueError(
                f"A {name} is a number from 0 to 1; got {value}. There is no decision to be had from it."
            )
    if low <= probability < high:
        return INCONCLUSIVE, (
            f"The probability {probability:.2f} is too close to the threshold {point['threshold']:.2f} to call "
            f"(between {low:.2f} and {high:.2f}). Repeat the imaging or test by other means.",
        )
    return (POSITIVE if probability >= point["threshold"] else NEGATIVE), ()
