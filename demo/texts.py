"""What the page says, in seven languages (``languages/*.json``), and the choice among them.

Every language has the same keys with the same ``{placeholders}``; a test holds them to that.
"""

import json
import re
import string
from collections.abc import Callable
from pathlib import Path

NAMES = {
    "en": "English",
    "es": "Español",
    "fr": "Français",
    "pt-BR": "Português",
    "ar": "العربية",
    "zh-CN": "中文",
    "hi": "हिन्दी",
}
"""Codes as Gradio's own translations have them, and what the language calls itself."""
RIGHT_TO_LEFT = {"ar"}

TEXTS: dict[str, dict[str, str]] = {
    code: json.loads((Path(__file__).parent / "languages" / f"{code}.json").read_text(encoding="utf-8"))
    for code in NAMES
}


def teller(language: str) -> Callable[..., str]:
    """Make a function that says ``key`` in a language, with its placeholders filled."""

    def say(key: str, **values: object) -> str:
        return TEXTS[language][key].format(**values)

    return say


def placeholders(text: str) -> set[str]:
    """Find names in curly brackets."""
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def choose(asked: str | None, accepted: str | None) -> str:
    """Choose the language to speak.

    Args:
        asked: ``?lang=`` of the page's address, or None.
        accepted: the browser's Accept-Language header (RFC 9110, section 12.5.4), or None.

    Returns:
        A key of `NAMES`; English where none fits.
    """
    wishes = [asked] if asked else _ranked(accepted or "")
    for wish in wishes:
        for code in NAMES:
            if wish and code.partition("-")[0].lower() == wish.partition("-")[0].lower():
                return code
    return "en"


def _ranked(accepted: str) -> list[str]:
    """Rank the languages of an Accept-Language header, the most wanted first; those of weight 0 are not wanted."""
    found = []
    for wish in accepted.split(","):
        name, *parameters = (part.strip() for part in wish.split(";"))
        weight = 1.0
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.strip().lower() == "q":
                weight = _weight(value.strip())
        if weight > 0:
            found.append((weight, name))
    return [name for _, name in sorted(found, key=lambda one: -one[0])]  # equal ones keep their order


def _weight(value: str) -> float:
    """Read a number from 0 to 1; what is none counts as not wanted."""
    return float(value) if re.fullmatch(r"[01](\.[0-9]{0,3})?", value) and float(value) <= 1 else 0.0
