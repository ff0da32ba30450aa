"""Who still waits for an answer: work for callers that have gone ends, visitors take turns, and visits begin quickly.

Gradio ends what is queued or yields when the stream of answers closes. Work that only returns a value goes on, and so
does all work whose answer nobody came for; and it takes requests in the order in which they came, whoever sent them.
"""

import asyncio
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from gradio import state_holder
from gradio.state_holder import SessionState
from starlette.types import Message, Receive, Scope

PATIENCE = 30
"""Seconds that a caller has to come for an answer after asking for it."""
MOMENT = 3
"""Seconds between two streams of answers of one visit, at most, for it to count as listening all the while."""
GLANCE = 0.005
"""Seconds between two looks at the queue: Gradio's own millisecond costs a twentieth of a core around the clock."""
PROGRESS = 1.0
"""Seconds between two looks for news of Gradio's progress bars, which are not used here."""
REMEMBERED = 10_000  # visits that have ended; more push out the oldest
CALLER = "covid_xct.caller"  # in the scope of a request


class HungUp:
    """The `receive` of a request; knows when the other side has closed the connection, also while nobody asks."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._end: asyncio.Future | None = None  # after a whole request nothing but its end can come
        self._first: Message | None = None
        self.gone = threading.Event()

    async def __call__(self) -> Message:
        if self._first is not None:
            message, self._first = self._first, None
            return message
        return await (asyncio.shield(self._end) if self._end else self._next())

    async def begin(self) -> None:
        """Receive the request body, which is empty for a GET, and listen for its end from now on."""
        self._first = await self._next()

    async def _next(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.gone.set()
        elif not message.get("more_body"):
            self._end = asyncio.ensure_future(self._receive())
            self._end.add_done_callback(lambda end: end.cancelled() or self.gone.set())
        return message

    def close(self) -> None:
        """Stop listening, as the answer was given."""
        if self._end:
            self._end.cancel()


class Listeners:
    """Open streams of answers, by visit (Gradio's session hash; of a call without one its event)."""

    def __init__(self) -> None:
        self._streams: dict[str, list[HungUp]] = {}
        self._left: OrderedDict[str, float] = OrderedDict()

    @contextmanager
    def listening(self, visit: str, stream: HungUp) -> Iterator[None]:
        """Record that a stream of answers is open while the block runs."""
        self._streams.setdefault(visit, []).append(stream)
        try:
            yield
        finally:
            streams = self._streams[visit]
            streams.remove(stream)
            if not streams:
                del self._streams[visit]
            self._left.pop(visit, None)
            self._left[visit] = time.monotonic()
            if len(self._left) > REMEMBERED:
                self._left.popitem(last=False)

    def gone(self, visit: str, asked: float) -> bool:
        """Return whether nobody will get the answer to a request made at a time (`time.monotonic`)."""
        streams = list(self._streams.get(visit, ()))
        if streams:
            return all(stream.gone.is_set() for stream in streams)
        left = self._left.get(visit, 0.0)
        return time.monotonic() > (left + MOMENT if left > asked else asked + PATIENCE)


class Caller:
    """Who sent a request for work.

    Args:
        listeners: of this server.
        stream: the request's own connection where the answer comes by it, None where it is fetched by another one.
    """

    def __init__(self, listeners: Listeners, stream: HungUp | None = None) -> None:
        self._listeners, self._stream, self._asked = listeners, stream, time.monotonic()

    def gone(self, visit: str) -> bool:
        if self._stream is not None:
            return self._stream.gone.is_set()
        return self._listeners.gone(visit, self._asked)


def gone(scope: Scope, visit: str | None) -> bool:
    """Return whether nobody waits any more for the answer to a request; False if it passed no gate."""
    caller = scope.get(CALLER)
    return caller is not None and caller.gone(visit or "")


def queued(queue: Any) -> Iterator[Any]:
    """Yield Gradio's events that wait or run."""
    for waiting in list(queue.event_queue_per_concurrency_id.values()):
        yield from list(waiting.queue)
    yield from running(queue)


def running(queue: Any) -> Iterator[Any]:
    """Yield Gradio's events that run."""
    for job in list(queue.active_jobs):
        yield from job or ()


def visitor(event: Any) -> str | None:
    """Return the address that an event was asked from; None where it is unknown."""
    client = getattr(event.request, "client", None)
    return client.host if client else None


def take_turns(queue: Any) -> None:
    """Make Gradio's queue serve the visitor with the fewest running events first.

    Among equals, the one who came first is served first; an event that nobody waits for any more leaves unserved.
    """
    first_come = queue.get_events

    def fair() -> Any:
        under_way = Counter(map(visitor, running(queue)))
        for waiting in queue.event_queue_per_concurrency_id.values():
            for event in list(waiting.queue):
                if gone(event.request.scope, event.session_hash):
                    waiting.queue.remove(event)
                    queue.event_ids_to_events.pop(event._id, None)
                    queue.pending_event_ids_session.get(event.session_hash, set()).discard(event._id)
            waiting.queue.sort(key=lambda event: under_way[visitor(event)])
        return first_come()

    queue.get_events = fair


def look_calmly(queue: Any) -> None:
    """Make Gradio's queue look for work less often, idle or not.

    It looks again and again instead of being told, and each look holds up the threads that judge pictures.
    """
    queue.sleep_when_free, queue.progress_update_sleep_when_free = GLANCE, PROGRESS


def begin_quickly() -> None:
    """Keep Gradio from describing every field of the page at the start of each visit; a call by a program is one, too.

    The description is for links to a page that is filled in, which are not offered here (`gate.ROUTES`). It takes
    longer than some networks, and memory for each visit that is remembered. Fields are described when they change.
    """
    state_holder.SessionState = _brief_visit


def _brief_visit(blocks: Any) -> SessionState:
    return SessionState(SimpleNamespace(default_config=blocks.default_config, blocks={}))
