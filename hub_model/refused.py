"""What every refusal of this package is: a sentence that says what came, what is accepted and what to do next."""

from typing import Any


class Refused(ValueError):
    """Base of all refusals; both command lines print its message and end with exit code 1."""


class Failed(RuntimeError):
    """Base of errors that end work which was rightly begun: what went wrong, what is kept, and what to do next."""


class Reason(str):
    """An English sentence that says why, and what a page needs to say it in another language.

    Attributes:
        code: names the reason; it stays when the wording changes.
        values: what the sentence mentions, by name.
    """

    code: str
    values: dict[str, Any]

    def __new__(cls, text: str, code: str = "", **values: Any) -> "Reason":
        reason = super().__new__(cls, text)
        reason.code, reason.values = code, values
        return reason
