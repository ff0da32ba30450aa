"""Log places in the code, never contents: messages of libraries can hold file names and tags.

Warnings, tracebacks and what C libraries print count as logs. So nobody but this module writes to the terminal once
`keep_quiet` was called: records of our own loggers are shown; of all others only which logger, which kind of error and
where; what is printed past all loggers is dropped.
"""

import logging
import os
import sys
import threading
import traceback
from types import TracebackType
from typing import TextIO

OURS = "covid_xct"


class Places(logging.Formatter):
    """Says of a record where it came from; its message only if it is ours, the text of an exception never."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record as its place alone."""
        ours = record.name == OURS or record.name.startswith(f"{OURS}.")
        told = (
            record.getMessage() if ours else f"a message, not shown ({record.module}, line {record.lineno})"
        )
        line = f"{self.formatTime(record)} {record.levelname} {record.name}: {told}"
        if record.exc_info and record.exc_info[0]:
            line += f"\n{place(record.exc_info[0], record.exc_info[2])}"
        return line


def place(kind: type[BaseException], where: TracebackType | None) -> str:
    """Give the kind of an exception and the lines that it passed, without its message and without the lines' text."""
    frames = traceback.extract_tb(where)
    return "\n".join(
        [kind.__name__, *(f"  {one.filename}, line {one.lineno}, in {one.name}" for one in frames)]
    )


def keep_quiet() -> TextIO:
    """Discard all log records but our own, for the rest of the process.

    Returns:
        Standard output as it was, for what is meant to be read.
    """
    output, terminal = (
        os.fdopen(os.dup(number), "w", buffering=1, encoding="utf-8", errors="backslashreplace")
        for number in (1, 2)
    )
    handler = logging.StreamHandler(terminal)
    handler.setFormatter(Places())
    for name in list(logging.root.manager.loggerDict):  # uvicorn and others bring handlers of their own
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
    logging.root.handlers = [handler]
    logging.root.setLevel(logging.WARNING)
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # a record that cannot be formatted would be printed as it is
    log = logging.getLogger(f"{OURS}.demo")

    def uncaught(kind: type[BaseException], error: BaseException | None, where: TracebackType | None) -> None:
        log.error("an error that nobody caught", exc_info=(kind, error or kind(), where))

    sys.excepthook = uncaught
    threading.excepthook = lambda given: uncaught(given.exc_type, given.exc_value, given.exc_traceback)
    sys.unraisablehook = lambda given: uncaught(given.exc_type, given.exc_value, given.exc_traceback)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(nowhere, 1)  # Gradio prints tracebacks, and C libraries write to these two directly
    os.dup2(nowhere, 2)
    os.close(nowhere)
    return output
