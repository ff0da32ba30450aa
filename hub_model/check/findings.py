"""What pictures without COVID show instead, in the words of collections, brought to few groups."""

WORDS = {
    "no finding": ("no finding", "normal", "healthy", "no findings"),
    "tuberculosis": ("tuberculosis", "tb"),
    "pneumonia": ("pneumonia", "viral pneumonia", "bacterial pneumonia", "lung opacity", "consolidation"),
}
"""Findings that are told apart, each with what collections call it; anything else that is named is "other"."""
OTHER = "other"


def group(finding: str | None = "", detail: str | None = "") -> str:
    """Group a finding; its detail decides where it names one of `WORDS`, as in "Other" with "tuberculosis"."""
    for said in (detail, finding):
        plain = (said or "").strip().casefold()
        for name, words in WORDS.items():
            if plain in words:
                return name
    return OTHER if (finding or "").strip() else ""
