"""Figures as the card writes them: three decimals or per cent, with interval and n."""

from typing import Any

from hub_model.check.metrics import interval, none_or_all


def bounded(record: dict[str, Any], units: int) -> dict[str, Any]:
    """Give a share of none or all of the pictures the open end of its interval, which resampling cannot.

    Args:
        record: of a share; any other than 0 or 1, or one with an interval, stays as it is.
        units: independent pictures or families that the share was counted over.
    """
    if record["value"] not in (0, 1) or record["low"] != record["high"]:
        return record
    low, high = none_or_all(record["value"], units)
    return {**record, "low": low, "high": high}


def figure(record: dict[str, Any]) -> str:
    """Spell a record out: value and interval with three decimals, and n."""
    return interval(record, n=True)


def percent(record: dict[str, Any] | float | None) -> str:
    """Spell a share out in per cent; that of a record with its interval and n."""
    if isinstance(record, dict):
        return interval(record, 1, percent=True, n=True)
    return "not defined" if record is None else _share(record)


def spread(found: dict[str, Any]) -> str:
    """Spell a share out in per cent, with the ends between which it lies."""
    value, low, high = (percent(found[end]) for end in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def duration(hours: float) -> str:
    """Spell a time out in the unit in which people would say it."""
    if hours >= 2:
        return f"{hours:.1f} hours"
    return f"{60 * hours:.0f} minutes" if hours >= 1 / 30 else f"{3600 * hours:.0f} seconds"


def _share(x: float) -> str:
    return f"{x:.1%}".replace("%", " %")
