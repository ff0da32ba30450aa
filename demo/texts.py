"""What the page says, in seven languages (``languages/*.json``), and the choice among them.

Every language has the same keys with the same ``{placeholders}``; a test holds them to that.
"""

import json
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
    """A function that says ``key`` in a language, with its placeholders filled."""

    def say(key: str, **values: object) -> str:
        return TEXTS[language][key].format(**values)

    return say


def placeholders(text: str) -> set[str]:
    """Names in curly brackets."""
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def choose(asked: str | None, accepted: str | None) -> str:
    """The language to speak.

    Args:
        asked: ``?lang=`` of the page's address, or None.
        accepted: the browser's Accept-Language header (RFC 9110, section 12.5.4), or None.

    Returns:
        A key of `NAMES`; English where none fits.
    """
    wishes = [asked] if asked else [wish.partition(";")[0].strip() for wish in (accepted or "").split(",")]
    for wish in wishes:
        for code in NAMES:
            if wish and code.partition("-")[0] == wish.partition("-")[0].lower():
                return code
    return "en"
