"""Work for callers that have gone ends, and visitors take turns."""

import asyncio
import sys
from types import SimpleNamespace

import pytest

from tests.served import ROOT

sys.path.insert(0, str(ROOT / "demo"))  # as Python does for `python demo/app.py`

import gradio as gr
import listeners
from gradio import state_holder
from listeners import CALLER, Caller, HungUp, Listeners, gone, take_turns


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(listeners.time, "monotonic", lambda: now[0])
    return now


def receiving(*messages: dict):
    left = list(messages)

    async def receive() -> dict:
        if left:
            return left.pop(0)
        await asyncio.sleep(3600)

    return receive


WHOLE, END = {"type": "http.request", "body": b""}, {"type": "http.disconnect"}


def test_a_caller_who_never_comes_is_gone_after_a_while(clock):
    caller = Caller(Listeners())
    assert not caller.gone("visit")
    clock[0] += listeners.PATIENCE - 1
    assert not caller.gone("visit")
    clock[0] += 2
    assert caller.gone("visit")


def test_a_caller_who_listens_is_there_as_long_as_he_does(clock):
    known = Listeners()
    caller = Caller(known)
    with known.listening("visit", HungUp(receiving())):
        clock[0] += 10 * listeners.PATIENCE
        assert not caller.gone("visit") and caller.gone("another visit")
    assert not caller.gone("visit")  # he may come again for the next answer
    clock[0] += listeners.MOMENT + 1
    assert caller.gone("visit")
    assert not Caller(known).gone("visit")  # asked after he left: he has time to come


def test_two_streams_of_one_visit(clock):
    known = Listeners()
    caller = Caller(known)
    with known.listening("visit", HungUp(receiving())):
        with known.listening("visit", HungUp(receiving())):
            pass
        clock[0] += 100
        assert not caller.gone("visit")


def test_visits_that_ended_are_not_remembered_for_ever(clock, monkeypatch):
    monkeypatch.setattr(listeners, "REMEMBERED", 3)
    known = Listeners()
    for visit in "abcdef":
        with known.listening(visit, HungUp(receiving())):
            pass
    assert list(known._left) == ["d", "e", "f"] and not known._streams


@pytest.mark.parametrize("asks", [True, False])
def test_a_closed_connection_is_heard_whether_or_not_somebody_asks(asks):
    async def hear() -> tuple[bool, bool, list[str]]:
        stream, heard = HungUp(receiving(WHOLE, END)), []
        await stream.begin()
        before = stream.gone.is_set()
        heard.append((await stream())["type"])
        if asks:
            heard += [(await stream())["type"], (await stream())["type"]]
        else:
            await asyncio.sleep(0.01)
        return before, stream.gone.is_set(), heard

    before, after, heard = asyncio.run(hear())
    assert not before and after
    assert heard == ["http.request", *["http.disconnect"] * 2 * asks]


def test_a_request_in_parts_is_passed_on_whole():
    async def hear() -> tuple[list[bytes], bool]:
        part = {"type": "http.request", "body": b"1", "more_body": True}
        stream = HungUp(receiving(part, part, {"type": "http.request", "body": b"2"}))
        heard = [(await stream())["body"] for _ in range(3)]
        await asyncio.sleep(0.01)
        stream.close()
        return heard, stream.gone.is_set()

    assert asyncio.run(hear()) == ([b"1", b"1", b"2"], False)


def event(visit: str, host: str, caller: Caller | None = None) -> SimpleNamespace:
    request = SimpleNamespace(client=SimpleNamespace(host=host), scope={CALLER: caller} if caller else {})
    return SimpleNamespace(_id=f"{visit}-id", session_hash=visit, request=request)


def queue_of(*waiting: SimpleNamespace, active: list) -> SimpleNamespace:
    """Gradio's queue, as far as it is touched; the first in line is served."""
    line = SimpleNamespace(queue=list(waiting))
    queue = SimpleNamespace(
        event_queue_per_concurrency_id={"x": line},
        active_jobs=active,
        event_ids_to_events={one._id: one for one in waiting},
        pending_event_ids_session={one.session_hash: {one._id} for one in waiting},
    )
    queue.get_events = lambda: line.queue.pop(0) if line.queue else None
    take_turns(queue)
    return queue


def test_who_has_less_under_way_is_served_first():
    crowd = [event(f"a{number}", "10.0.0.1") for number in range(25)]
    queue = queue_of(*crowd[2:], event("b", "10.0.0.2"), active=[crowd[:2], None])
    assert queue.get_events().session_hash == "b"
    assert queue.get_events().session_hash == "a2"  # among equals the first come


def test_nothing_under_way_means_first_come():
    queue = queue_of(event("a", "10.0.0.1"), event("b", "10.0.0.2"), active=[None])
    assert queue.get_events().session_hash == "a"


def test_what_nobody_waits_for_leaves_the_queue(clock):
    known = Listeners()
    forgotten, awaited = (event(visit, "10.0.0.1", Caller(known)) for visit in "ab")
    queue = queue_of(forgotten, awaited, active=[None])
    with known.listening("b", HungUp(receiving())):
        clock[0] += 100
        assert queue.get_events() is awaited and queue.get_events() is None
    assert "a-id" not in queue.event_ids_to_events and not queue.pending_event_ids_session["a"]


def test_gradios_queue_is_looked_at_as_often_as_said():
    queue = gr.Blocks().queue()._queue
    before = vars(queue).copy()
    listeners.look_calmly(queue)
    changed = {name for name in before if vars(queue)[name] is not before[name]}
    assert changed == {"sleep_when_free", "progress_update_sleep_when_free"}  # names that this Gradio has
    assert queue.sleep_when_free == listeners.GLANCE


def test_a_request_that_passed_no_gate_is_never_given_up():
    assert not gone({}, "visit") and not gone({}, None)


def test_a_visit_describes_no_field_before_it_changes(monkeypatch):
    monkeypatch.setattr(state_holder, "SessionState", state_holder.SessionState)  # put back afterwards
    with gr.Blocks() as demo:
        field, other = gr.HTML("before"), gr.State(3)
    listeners.begin_quickly()
    holder = state_holder.StateHolder()
    holder.set_blocks(demo)
    visit = holder["visit"]
    assert visit.config_values == {} and visit[other._id] == 3
    visit._update_value_in_config(field._id, "after")
    assert [one["props"]["value"] for one in visit.components] == ["after"]
    assert holder["visit"] is visit
