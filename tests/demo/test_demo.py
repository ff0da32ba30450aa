"""The web page's endpoints over HTTP, what it refuses, what it keeps to itself, the languages it speaks."""

import ast
import asyncio
import base64
import contextlib
import io
import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import tomllib
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from gradio_client import Client, handle_file
from packaging.requirements import Requirement
from PIL import Image

from hub_model import Finding, FolderRefused, Screener, hub_folder
from hub_model.grey import ImageRefused
from hub_model.refused import Reason, Refused
from hub_model.volumes import Unusable, Volume
from tests.attacks.inputs import broken_json
from tests.bad_files import make_bad_files, png, write_dicom
from tests.hub_standin import running
from tests.made_run import make_run, patients, pictures
from tests.served import ROOT, free_port

sys.path.insert(0, str(ROOT / "demo"))  # as Python does for `python demo/app.py`

import app
import desk
import intake
import listeners
import texts
import views
from desk import Desk, Run
from judge import Judgement, judge


@pytest.fixture(scope="module")
def screeners(tmp_path_factory) -> dict[str, Screener]:
    folder = tmp_path_factory.mktemp("models")
    made = [make_run(folder / name, name) for name in hub_folder.MODALITIES]
    return app.open_screeners([str(path) for path in made])


@pytest.fixture(scope="module")
def chest(tmp_path_factory) -> Path:
    """A drawn chest that the invented models take."""
    path = tmp_path_factory.mktemp("chest") / "chest 7.png"
    next(pictures(1)).save(path)
    return path


@pytest.fixture(scope="module")
def url(screeners, tmp_path_factory):
    """A page served from this process; its uploads live for half a minute."""
    before = {name: getattr(app, name) for name in ("KEPT_MINUTES", "SWEEP_SECONDS")}
    faster = sys.modules.pop("uvloop", None)
    sys.modules["uvloop"] = None  # it resolves names in C, past every hook; see `asked`
    app.KEPT_MINUTES, app.SWEEP_SECONDS = 0.5, 1  # a busy machine needs some seconds for an answer
    os.environ["GRADIO_TEMP_DIR"] = str(tmp_path_factory.mktemp("uploads"))
    demo = app.build(screeners)
    launch(demo)
    yield demo.local_url.rstrip("/")
    demo.close()
    demo.uploads.end()
    sys.modules.pop("uvloop")
    if faster:
        sys.modules["uvloop"] = faster
    for name, value in before.items():
        setattr(app, name, value)


def launch(demo, **options) -> None:
    """Serve from this process; Gradio gives its server 5 seconds, and a busy machine may need another try."""
    for attempt in reversed(range(5)):
        try:
            demo.launch(prevent_thread_lock=True, server_port=free_port(), **app.options(demo), **options)
            return
        except OSError:
            if not attempt:
                raise


@pytest.fixture(scope="module")
def client(url) -> Client:
    return Client(url, verbose=False)


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def png_bytes(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


NOBODY = SimpleNamespace(request=SimpleNamespace(scope={}), session_hash=None)
"""A request that did not come by HTTP."""
WATCHING: list[set[str]] = []


def _hear(event: str, given: tuple) -> None:
    """An audit hook (PEP 578): every look-up and connection of this process that leaves the machine."""
    if not WATCHING or event not in (
        "socket.getaddrinfo",
        "socket.gethostbyname",
        "socket.connect",
        "socket.sendto",
    ):
        return
    place = given[0] if event.startswith("socket.get") else given[1]
    name = place[0] if isinstance(place, tuple) else place
    if str(name) not in ("127.0.0.1", "localhost", "::1", "None"):
        WATCHING[-1].add(str(name))


@contextlib.contextmanager
def asked() -> Iterator[set[str]]:
    """Names and addresses that this process asks for meanwhile, this machine's own left out."""
    if not getattr(_hear, "set", False):
        sys.addaudithook(_hear)
        _hear.set = True
    names: set[str] = set()
    WATCHING.append(names)
    try:
        yield names
    finally:
        WATCHING.pop()


class TestEndpoints:
    @pytest.mark.parametrize("kind", hub_folder.MODALITIES)
    @pytest.mark.parametrize("point", app.POINTS)
    def test_screen_says_what_the_package_says(self, client, screeners, chest, kind, point):
        answer = client.predict(file=handle_file(chest), kind=kind, operating_point=point, api_name="/screen")
        finding = screeners[kind].screen(chest, operating_point=point)
        assert finding.decision != "refused"
        assert answer["decision"] == finding.decision
        assert answer["probability"] == pytest.approx(finding.probability, abs=1e-6)
        assert (answer["operating_point"], answer["threshold"]) == (point, finding.threshold)
        assert answer["modality"] == kind
        assert answer["reasons"] == list(finding.reasons) and answer["codes"] == []
        assert screeners[kind].config["architecture"] in answer["model"]

    def test_every_bad_file_is_refused_in_words_and_the_server_stays_up(self, client, chest, tmp_path):
        for path in make_bad_files(tmp_path / "bad").values():
            answer = client.predict(handle_file(path), "xray", "sensitivity", api_name="/screen")
            assert (answer["decision"], answer["probability"]) == ("refused", None), path.name
            assert len(answer["reasons"]) == 1 and len(answer["reasons"][0]) > 40, path.name
            assert len(answer["codes"]) == 1 and "reason_" + answer["codes"][0] in texts.TEXTS["en"], (
                path.name
            )
        answer = client.predict(handle_file(chest), "xray", "sensitivity", api_name="/screen")
        assert answer["decision"] != "refused"

    @pytest.mark.parametrize(
        "kind, point, accepted",
        [
            ("ct", "specificty", "sensitivity, balanced, specificity"),
            ("ct", "Specificity", "sensitivity, balanced, specificity"),
            ("ct", "", "sensitivity, balanced, specificity"),
            ("CT", "specificity", "detect, xray, ct"),
            ("x-ray", "balanced", "detect, xray, ct"),
            ("", "balanced", "detect, xray, ct"),
            (None, "balanced", "detect, xray, ct"),
            (["ct"], "balanced", "detect, xray, ct"),
        ],
    )
    def test_an_unknown_word_is_refused_with_the_accepted_ones(
        self, client, screeners, chest, kind, point, accepted
    ):
        with pytest.raises(Refused, match=accepted):
            judge(screeners, chest, kind, point)
        file = handle_file(chest)
        asked = [("/screen", file, kind, point), ("/batch", [file], kind, point)]
        if kind == "ct":
            asked.append(("/series", [file], point))
        else:
            asked.append(("/heat_map", file, kind))
        for name, *given in asked:
            with pytest.raises(Exception, match=rf"is not known\. Accepted: {accepted}"):
                client.predict(*given, api_name=name)
        if kind != "ct":
            with pytest.raises(Exception, match=r"is not known\. Accepted: xray, ct"):
                client.predict(kind, api_name="/model")

    def test_the_page_says_so_too_where_it_is_asked_past_its_buttons(self, screeners, chest):
        desk = Desk(screeners, {})
        request = SimpleNamespace(request=SimpleNamespace(scope={"headers": [], "query_string": b"lang=es"}))
        assert "Accepted: detect, xray, ct" in desk.show(chest, "CT", "balanced", request)
        assert desk.show_model("CT", request) == ("", "")

    def test_a_check_gives_the_report_and_says_what_is_wrong_with_an_upload(self, screeners, tmp_path):
        request = SimpleNamespace(
            request=SimpleNamespace(scope={"headers": [], "query_string": b""}), session_hash="a"
        )
        desk = Desk(screeners, {})

        def last(files: dict[str, bytes]) -> str:
            upload = zipped(tmp_path / "labelled.zip", files)
            return "".join(list(desk.run_check({"path": str(upload)}, "ct", request))[-1])

        drawn = [png_bytes(picture) for picture in patients(44, seed=8)]
        both = {f"{('Non-COVID', 'COVID')[n % 2]}/{n}.png": content for n, content in enumerate(drawn)}
        found = last(both)
        assert (
            "iframe" in found
            and 'sandbox=""' in found
            and "Site check" in found
            and "site-check.html" in found
        )
        assert str(tmp_path) not in found and "/3.png" not in found
        wrong = last({f"maybe/{n}.png": content for n, content in enumerate(drawn)})
        assert "maybe" in wrong and "labelled.zip" in wrong and str(tmp_path) not in wrong
        assert "at least 10 of each" in last(dict(list(both.items())[:6]))
        assert "choose files first" in "".join(list(desk.run_check(None, "ct", request))[-1])

    def test_heat_map_is_the_picture_in_colour(self, client, chest):
        found = Image.open(client.predict(handle_file(chest), "ct", api_name="/heat_map"))
        grey = Image.open(chest)
        assert (found.format, found.mode, found.size) == ("JPEG", "RGB", grey.size)
        assert np.ptp(np.asarray(found, int), axis=2).max() > 8  # somewhere it is tinted

    def test_the_same_picture_asked_by_many_at_once_reaches_all(self, url, chest):
        def fetch(_: int) -> int:
            client = Client(url, verbose=False)
            return (
                Image.open(client.predict(handle_file(chest), "ct", api_name="/heat_map")).convert("L").width
            )

        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(fetch, range(16))) == {Image.open(chest).width}

    def test_heat_map_of_nonsense_says_why(self, client, tmp_path):
        (tmp_path / "note.png").write_text("hello")
        with pytest.raises(Exception, match="Accepted is one grey chest picture"):
            client.predict(handle_file(tmp_path / "note.png"), "ct", api_name="/heat_map")

    def test_batch_takes_files_and_zips_and_a_broken_one_spoils_nothing(self, client, chest, tmp_path):
        one, two = (png_bytes(picture) for picture in pictures(2))
        packed = zipped(
            tmp_path / "more.zip",
            {"b/slice10.png": one, "b/slice9.png": two, "__MACOSX/x": b"", "b/bad.png": b"no"},
        )
        records = client.predict(
            [handle_file(chest), handle_file(packed)], "xray", "balanced", api_name="/batch"
        )
        assert [record["file"] for record in records] == [
            "b/bad.png",
            "b/slice9.png",
            "b/slice10.png",
            "chest 7.png",
        ]
        assert [record["decision"] == "refused" for record in records] == [True, False, False, False]
        assert records[0]["codes"] == ["no_picture"] and "not a picture" in records[0]["reasons"][0]

    def test_series_takes_frames_and_counts_slices(self, client, screeners, tmp_path):
        frames = [np.asarray(picture.resize((96, 96))) for picture in pictures(5)]
        path = write_dicom(tmp_path / "series.dcm", np.stack([*frames, np.zeros_like(frames[0])]))
        found = client.predict([handle_file(path)], "sensitivity", api_name="/series")
        assert sorted(one["slice"] for one in found["slices"]) == [1, 2, 3, 4, 5, 6]
        probabilities = [one["probability"] for one in found["slices"]]
        assert probabilities[-1] is None  # the empty frame
        assert probabilities[:-1] == sorted(probabilities[:-1], reverse=True)
        assert found["judged"] == 5
        assert found["positive"] == sum(one["decision"] == "positive" for one in found["slices"])
        (whole,) = found["series"]
        assert whole["decision"] == "unmeasured" and whole["codes"] == ["no_series_rule"]
        assert whole["slices"] == 6 and whole["without_lung"] == 1 and whole["probability"] is None

    def test_model_gives_what_the_files_hold(self, client, screeners):
        found = client.predict("ct", api_name="/model")
        assert found["screening"] == screeners["ct"].screening
        assert found["evaluation"] == json.loads((screeners["ct"].path / "evaluation.json").read_text())

    def test_endpoints_are_documented(self, client, url):
        named = client.view_api(return_format="dict")["named_endpoints"]
        assert set(named) == {"/screen", "/heat_map", "/batch", "/series", "/model"}
        for name, endpoint in named.items():
            assert endpoint["description"], name
            assert all(parameter["parameter_name"] for parameter in endpoint["parameters"])
        assert "/gradio_api/call/screen" in str(
            httpx.get(f"{url}/gradio_api/openapi.json").json()["paths"].keys()
        )

    @pytest.mark.parametrize(
        "files, complaint",
        [
            ({"a.zip": b"PK no zip"}, "a.zip: this zip cannot be opened"),
            ({"a.zip": {}}, "no pictures in this zip"),
            ({"a.zip": {f"{i}.png": b"x" for i in range(501)}}, "501 pictures are too many"),
        ],
    )
    def test_bad_zips_are_refused_in_words(self, client, tmp_path, files, complaint):
        for name, content in files.items():
            if isinstance(content, dict):
                zipped(tmp_path / name, content)
            else:
                (tmp_path / name).write_bytes(content)
        with pytest.raises(Exception, match=complaint):
            client.predict(
                [handle_file(tmp_path / name) for name in files], "xray", "balanced", api_name="/batch"
            )


class TestPrivacy:
    def test_files_of_the_server_cannot_be_screened(self, url, chest):
        payload = {
            "data": [{"path": str(chest), "meta": {"_type": "gradio.FileData"}}, "xray", "sensitivity"]
        }
        event = httpx.post(f"{url}/gradio_api/call/screen", json=payload).json()["event_id"]
        stream = httpx.get(f"{url}/gradio_api/call/screen/{event}", timeout=60).text
        assert "event: error" in stream and "decision" not in stream

    def test_no_field_and_no_route_makes_the_server_ask_another(self, url, chest):
        """Whatever names an address: fields, lists, both keys of a file, routes, odd ways of writing it."""
        address = "http://canary.example:8080/x.png"
        tag = {"meta": {"_type": "gradio.FileData"}}
        files = [
            {"path": address, **tag},
            {"path": address, "url": address, **tag},
            {"path": str(chest), "url": address, **tag},
        ]
        with asked() as names, httpx.Client(base_url=f"{url}/gradio_api", timeout=60) as client:
            for file in files:
                given = {
                    "screen": [file, "xray", "sensitivity"],
                    "heat_map": [file, "xray"],
                    "batch": [[file, file], "xray", "sensitivity"],
                    "series": [[file], "sensitivity"],
                    "model": [file],
                }
                for name, data in given.items():
                    event = client.post(f"/call/{name}", json={"data": data}).json()["event_id"]
                    assert "event: error" in client.get(f"/call/{name}/{event}").text, (name, file)
                    client.post(f"/run/{name}", json={"data": data})
            for function in range(len(httpx.get(f"{url}/config").json()["dependencies"])):
                client.post(
                    "/queue/join",
                    json={"data": [files[0]] * 3, "fn_index": function, "session_hash": "canary"},
                )
            with client.stream("GET", "/queue/data", params={"session_hash": "canary"}) as stream:
                for line in stream.iter_lines():
                    if "close_stream" in line:
                        break
            for route in ("file=", "proxy=", "file/", "stream/", "deep_link?session_hash="):
                assert client.get(f"/{route}{address}").status_code in (401, 403, 404, 405), route
        assert not names, f"the server looked up or connected to {names}"

    def test_uploads_are_deleted(self, client, chest):
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        client.predict(handle_file(chest), "xray", "sensitivity", api_name="/screen")
        assert any(path.name == chest.name for path in folder.rglob("*"))
        limit = time.monotonic() + 120
        while any(path.is_file() for path in folder.rglob("*")):
            assert time.monotonic() < limit, "uploads stay"
            time.sleep(0.3)

    def test_an_unexpected_failure_is_logged_without_its_message(self, screeners, chest, caplog, monkeypatch):
        secret = "^".join(["Doe", "Jane"])  # as a DICOM library might put a tag into its message

        def broken(*_: Any) -> None:
            raise RuntimeError(secret)

        monkeypatch.setattr(Screener, "_taken", broken)
        with caplog.at_level(logging.DEBUG):
            judgement = judge(screeners, chest, "xray", "sensitivity")
        assert judgement.finding.codes == ("failed",)
        assert "RuntimeError" in caplog.text
        assert secret not in caplog.text and chest.name not in caplog.text

    def test_gradio_keeps_nothing_and_asks_nobody(self, url):
        config = httpx.get(f"{url}/config").json()
        assert config["analytics_enabled"] is False
        assert not config.get("run_history", False)
        page = httpx.get(url)
        assert "default-src 'self'" in page.headers["content-security-policy"]
        assert page.headers["referrer-policy"] == "no-referrer"
        assert httpx.get(f"{url}/monitoring").status_code in (401, 403, 404)

    def test_a_user_and_a_password_can_be_asked_for(self, screeners, monkeypatch):
        monkeypatch.setenv(app.USER, "ward")
        monkeypatch.setenv(app.PASSWORD, "s3cret")
        demo = app.build({"ct": screeners["ct"]})
        launch(demo)
        try:
            assert httpx.get(f"{demo.local_url}config").status_code == 401
            assert Client(demo.local_url, auth=("ward", "s3cret"), verbose=False).predict(
                "ct", api_name="/model"
            )
        finally:
            demo.close()


class TestReplaced:
    """Start was pressed again while the first run was under way, as by a double click."""

    @staticmethod
    def runs(screeners, tmp_path) -> tuple[Desk, list[Iterator[tuple[str, str]]]]:
        """A desk, and two runs of one tab over four pictures."""
        files = [{"path": str(tmp_path / f"{number}.png")} for number in range(4)]
        for file, picture in zip(files, pictures(4), strict=True):
            picture.save(file["path"])
        asking = SimpleNamespace(session_hash="tab", request=SimpleNamespace(scope={"headers": []}))
        desk_ = Desk(screeners, {})
        return desk_, [desk_.run_batch(files, "xray", "sensitivity", asking) for _ in range(2)]

    def test_the_later_run_waits_for_the_earlier_and_has_the_last_word(self, screeners, tmp_path):
        desk_, (earlier, later) = self.runs(screeners, tmp_path)
        assert "1 of 4" in next(earlier)[0]
        (first,) = desk_._runs.values()
        with ThreadPoolExecutor(1) as pool:
            told = pool.submit(list, later)
            assert first.stopped.wait(20) and first.replaced
            assert not told.done() and list(desk_._runs.values()) != [first]
            assert list(earlier) == []  # it says nothing more, not even that it was stopped
            assert "4 of 4" in told.result(60)[-1][0]
        assert not desk_._runs

    def test_an_earlier_run_that_nobody_asks_for_more_ends_the_wait(self, screeners, tmp_path):
        _, (earlier, later) = self.runs(screeners, tmp_path)
        next(earlier)
        earlier.close()  # as Gradio does where the browser was closed
        assert "4 of 4" in list(later)[-1][0]


class TestGone:
    """Work stops when nobody listens, whichever way it was asked for."""

    @pytest.fixture
    def judged(self, screeners, chest, monkeypatch) -> list[int]:
        """Numbers of the pictures judged, one each 20 ms; 400 would take 8 seconds."""
        numbers, answer = [], judge(screeners, chest, "xray", "balanced")

        def slowly(screeners, sources, *_: Any, **__: Any) -> Iterator[Judgement]:
            for number, _ in enumerate(sources):
                numbers.append(number)
                time.sleep(0.02)
                yield answer

        monkeypatch.setattr(desk, "judge_many", slowly)
        monkeypatch.setattr(listeners, "MOMENT", 0.1)
        return numbers

    @pytest.fixture
    def payload(self, url, tmp_path) -> dict[str, Any]:
        """A batch of 400 pictures, uploaded."""
        packed = zipped(tmp_path / "many.zip", {f"{number}.png": b"x" for number in range(400)})
        path = httpx.post(f"{url}/gradio_api/upload", files={"files": packed.read_bytes()}).json()[0]
        return {"data": [[{"path": path, "meta": {"_type": "gradio.FileData"}}], "xray", "balanced"]}

    @staticmethod
    def stops(judged: list[int]) -> bool:
        """Whether it had begun, and ends before the last picture."""
        limit = time.monotonic() + 20
        while not judged or len(judged) < 400:
            before = len(judged)
            time.sleep(0.5)
            if judged and len(judged) == before:
                return True
            assert time.monotonic() < limit
        return False

    def test_a_direct_call(self, url, payload, judged):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/gradio_api/run/batch", json=payload, timeout=0.7)
        assert self.stops(judged)

    def test_a_stream_of_answers_that_is_closed(self, url, payload, judged):
        event = httpx.post(f"{url}/gradio_api/call/batch", json=payload).json()["event_id"]
        with httpx.stream("GET", f"{url}/gradio_api/call/batch/{event}"):
            time.sleep(0.7)
        assert self.stops(judged)

    def test_an_answer_that_nobody_comes_for(self, url, payload, judged, monkeypatch):
        monkeypatch.setattr(listeners, "PATIENCE", 0.7)
        httpx.post(f"{url}/gradio_api/call/batch", json=payload).raise_for_status()
        assert self.stops(judged)

    def test_who_listens_gets_everything(self, url, payload, judged, monkeypatch):
        monkeypatch.setattr(listeners, "PATIENCE", 6)  # less than the work takes
        event = httpx.post(f"{url}/gradio_api/call/batch", json=payload).json()["event_id"]
        answer = httpx.get(f"{url}/gradio_api/call/batch/{event}", timeout=60).text
        assert "event: complete" in answer and len(judged) == 400


class TestStart:
    def test_a_port_in_use_is_one_line(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(SystemExit) as said:
                app.prepare(["--port", str(port)])
        assert f"port {port}" in said.value.code and "another port" in said.value.code
        assert "\n" not in said.value.code

    def test_half_an_account_is_refused(self, monkeypatch):
        monkeypatch.setenv(app.USER, "ward")
        with pytest.raises(SystemExit, match="Set both"):
            app.prepare(["--port", str(free_port())])

    def test_mcp_without_its_package_is_one_line(self, monkeypatch):
        monkeypatch.setattr(app.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(SystemExit, match=r"gradio\[mcp\]"):
            app.prepare(["--port", str(free_port()), "--mcp"])

    def test_a_model_that_is_none_is_refused(self, tmp_path):
        with pytest.raises(SystemExit, match="neither an embedded model"):
            app.prepare(["--port", str(free_port()), "--model", str(tmp_path / "nothing")])

    def test_it_listens_on_loopback_unless_told_otherwise(self, screeners, monkeypatch):
        monkeypatch.delenv("GRADIO_SERVER_NAME", raising=False)
        monkeypatch.setattr(app, "_private_folder", lambda: None)
        models = [f"--model={screener.path}" for screener in screeners.values()]
        _, launch = app.prepare(["--port", str(free_port()), *models])
        assert launch["server_name"] == "127.0.0.1"
        assert (launch["share"], launch["run_history"], launch["auth"]) == (False, False, None)


class TestFurther:
    """Models beside the default of their modality: they answer where they are chosen by name, and only there."""

    @pytest.fixture
    def further(self, screeners) -> dict[str, Screener]:
        return screeners | {"ct-covid_cnn_3": Screener.from_pretrained(screeners["ct"].path)}

    @pytest.mark.parametrize("kind", ["ct-covid_cnn_3", "ct", "xray"])
    def test_the_one_that_was_chosen_answers(self, further, chest, kind):
        judgement = judge(further, chest, kind, "sensitivity")
        assert judgement.screener is further[kind] and judgement.decision != "refused"

    def test_detect_asks_the_defaults_alone(self, further, chest):
        asked = judge(further, chest, "detect", "sensitivity").screener
        assert asked in (None, further["ct"], further["xray"])

    def test_a_default_is_detected_where_there_is_one_of_each(self, further):
        assert Desk(further, {}).kinds == ["detect", "xray", "ct", "ct-covid_cnn_3"]
        del further["xray"]
        assert Desk(further, {}).kinds == ["ct", "ct-covid_cnn_3"]

    def test_the_model_tab_shows_it(self, further):
        shown = Desk(further, {}).model("ct-covid_cnn_3")
        assert shown["screening"] == further["ct-covid_cnn_3"].screening


class TestPinned:
    """COVID_XCT_XRAY, COVID_XCT_CT and --model name models: folders, or Hub ids at a revision."""

    def test_a_variable_replaces_one_embedded_model(self, screeners, monkeypatch):
        monkeypatch.setenv("COVID_XCT_CT", str(screeners["ct"].path))
        monkeypatch.setattr(app, "embedded", lambda: ["ct", "xray"])
        assert app._pinned() == ["xray", str(screeners["ct"].path)]
        monkeypatch.setattr(app, "embedded", list)  # as in a Space, which brings no weights
        opened = app.open_screeners()
        assert {name: one.path for name, one in opened.items()} == {"ct": screeners["ct"].path}

    def test_unless_told_otherwise_it_opens_all_that_is_embedded(self, monkeypatch):
        for kind in hub_folder.MODALITIES:
            monkeypatch.delenv(f"COVID_XCT_{kind.upper()}", raising=False)
        opened = app.open_screeners()
        assert {name: one.path for name, one in opened.items()} == hub_folder.embedded()
        kinds = Desk(opened, {}).kinds
        assert kinds == ["detect", *hub_folder.EMBEDDED]
        for language, table in views.static_texts({}).items():
            named = {kind: table[views.PREFIX + kind] for kind in kinds}
            assert len(set(named.values())) == len(kinds), language
            assert named["ct-covid_cnn_3"] == f"{named['ct']}, covid_cnn_3"

    def test_two_models_of_one_kind_are_refused(self, screeners):
        with pytest.raises(FolderRefused, match="Give one for each"):
            app.open_screeners([str(screeners["ct"].path)] * 2)

    def test_a_hub_id_is_opened_at_its_revision(self, screeners, tmp_path):
        """In a process of its own: this one is told to stay offline."""
        code = (
            "import sys; sys.path.insert(0, 'demo'); import app; from huggingface_hub import HfApi\n"
            f"api = HfApi(); api.create_repo('org/ct'); api.upload_folder(repo_id='org/ct', "
            f"folder_path={str(screeners['ct'].path)!r})\n"
            "commit = api.model_info('org/ct').sha; import os; os.environ['COVID_XCT_CT'] = f'org/ct@{commit}'\n"
            "app.embedded = list\n"
            "print(commit == app.open_screeners()['ct'].path.name)\n"
            "try: app.open_screeners(['org/ct@' + '0' * 40])\n"
            "except app.FolderRefused as refused: print('refused')"
        )
        with running(tmp_path / "hub") as hub:
            done = subprocess.run(
                [sys.executable, "-c", code],
                cwd=ROOT,
                env={**os.environ, **hub.env},
                capture_output=True,
                text=True,
            )
        assert done.stdout.split() == ["True", "refused"], done.stderr


class TestIntake:
    def test_slices_come_in_natural_order(self, tmp_path):
        for name in ("IM10", "IM9", "IM1"):
            next(pictures(1)).save(tmp_path / name, "PNG")
        (volume,) = self.volumes([tmp_path / "IM10", tmp_path / "IM9", tmp_path / "IM1"])
        assert volume.files == ("IM1", "IM9", "IM10") and len(volume) == 3

    @staticmethod
    def volumes(found: list[Path]) -> list:
        return list(intake.volumes(intake.pictures(found)))

    def test_a_zip_bomb_is_refused_before_it_is_unpacked(self, tmp_path, monkeypatch):
        monkeypatch.setattr(intake, "MAX_UNPACKED", 1)
        path = zipped(tmp_path / "bomb.zip", {"a.png": bytes(2 * 2**20)})
        assert path.stat().st_size < 10_000
        with pytest.raises(intake.UploadRefused) as refused:
            intake.pictures([path])
        assert refused.value.key == "zip_too_large"

    def test_a_picture_bomb_in_a_zip_is_refused_by_itself(self, screeners, tmp_path):
        path = zipped(
            tmp_path / "a.zip", {"bomb.png": png(100_000, 100_000), "ok.png": png_bytes(next(pictures(1)))}
        )
        decisions = [
            judge(screeners, one.source, "ct", "balanced", heat_map=False).decision
            for one in intake.pictures([path])
        ]
        assert decisions[0] == "refused" != decisions[1]

    def test_a_locked_zip_names_the_picture(self, tmp_path):
        path = zipped(tmp_path / "a.zip", {"x.png": b"12345"})
        raw = bytearray(path.read_bytes())
        for mark in (b"PK\x03\x04", b"PK\x01\x02"):
            raw[raw.index(mark) + (6 if mark[2] == 3 else 8)] |= 1  # the flag 'encrypted', in both headers
        path.write_bytes(raw)
        (picture,) = intake.pictures([path])
        with pytest.raises(ImageRefused, match=r"x\.png: it is locked with a password") as refused:
            picture.source()
        assert refused.value.reason.code == "archive_locked"

    @staticmethod
    def slice(path: Path, **tags: Any) -> Path:
        return write_dicom(path, np.asarray(next(pictures(1))), Modality="CT", **tags)

    def test_two_series_stay_apart_and_a_broken_slice_is_told(self, tmp_path):
        for number, uid in enumerate(("1.2.3", "1.2.4", "1.2.3")):
            self.slice(
                tmp_path / f"{number}", SeriesInstanceUID=uid, ImagePositionPatient=[0, 0, 5.0 * number]
            )
        made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        packed = zipped(tmp_path / "s.zip", {**made, "x": b"DICM" * 40, "DICOMDIR": b"x", ".DS_Store": b"x"})
        found = self.volumes([packed])
        assert sorted(len(one) for one in found if isinstance(one, Volume)) == [1, 2]
        (broken,) = (one for one in found if isinstance(one, Unusable))
        assert broken.name == "x" and broken.reason.code

    def test_files_that_systems_leave_in_a_folder_are_passed_over(self, tmp_path):
        for name in ("DICOMDIR", ".DS_Store", "Thumbs.db", "a.png"):
            next(pictures(1)).save(tmp_path / name, "PNG")
        assert [one.name for one in intake.pictures(sorted(tmp_path.iterdir()))] == ["a.png"]

    @pytest.mark.parametrize(
        "name", ["2\u24601.png", "1\u00b22.png", ".", "9" * 4400 + ".png", "\u0663.png", "a\\b.png"]
    )
    def test_an_odd_name_ends_nothing(self, tmp_path, name):
        path = zipped(tmp_path / "odd.zip", {"fine.png": png_bytes(next(pictures(1)))})
        with zipfile.ZipFile(path, "a") as archive:
            entry = zipfile.ZipInfo("x")
            entry.filename = name
            archive.writestr(entry, b"no picture")
        assert any("fine.png" in one.files for one in self.volumes([path]))

    def test_a_page_full_of_odd_names_is_judged(self, screeners, tmp_path):
        picture, odd = (
            png_bytes(next(pictures(1))),
            ["\u2460", "\u00b2", "\u0663", "\u0e53", "9" * 4400, "<b>", "=1+1"],
        )
        path = zipped(tmp_path / "a.zip", {f"{number}{odd[number % 7]}.png": picture for number in range(21)})
        todo = intake.pictures([path])
        found = Desk(screeners, {})._judged(todo, "xray", "balanced", Run(NOBODY))
        assert [judgement.decision != "refused" for _, judgement in found] == [True] * 21

    @pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
    def test_a_damaged_member_spoils_neither_batch_nor_series(self, screeners, tmp_path, method):
        path = tmp_path / "a.zip"
        with zipfile.ZipFile(path, "w", method) as archive:
            for name in ("bad.png", "ok.png"):
                archive.writestr(name, png_bytes(next(pictures(1))))
        start = zipfile.ZipFile(path).getinfo("bad.png")
        raw = bytearray(path.read_bytes())
        raw[start.header_offset + 60 : start.header_offset + 400] = b"\xff" * 340
        path.write_bytes(raw)
        first, second = (
            one
            for _, one in Desk(screeners, {})._judged(
                intake.pictures([path]), "xray", "balanced", Run(NOBODY)
            )
        )
        assert first.finding.codes == ("member_damaged",) and second.decision != "refused"
        broken, volume = self.volumes([path])
        assert broken.reason.code == "member_damaged" and volume.files == ("ok.png",)

    def test_a_method_that_is_not_read_is_named_and_not_called_a_password(self, tmp_path):
        path = zipped(tmp_path / "a.zip", {"x.png": b"12345"})
        raw = bytearray(path.read_bytes())
        raw[raw.index(b"PK\x03\x04") + 8] = raw[raw.index(b"PK\x01\x02") + 10] = 9  # Deflate64
        path.write_bytes(raw)
        (picture,) = intake.pictures([path])
        with pytest.raises(ImageRefused, match="Deflate64") as refused:
            picture.source()
        assert refused.value.reason.code == "archive_method"

    def test_limits_are_of_the_upload_not_of_each_archive(self, tmp_path, monkeypatch):
        monkeypatch.setattr(intake, "MAX_UNPACKED", 1)
        halves = [zipped(tmp_path / f"{name}.zip", {"a.png": bytes(600 * 1024)}) for name in "ab"]
        assert intake.pictures(halves[:1])
        with pytest.raises(intake.UploadRefused) as refused:
            intake.pictures(halves)
        assert refused.value.key == "zip_too_large"
        monkeypatch.setattr(intake, "MAX_ENTRIES", 5)
        many = zipped(tmp_path / "many.zip", {f".hidden/{number}": b"" for number in range(6)})
        with pytest.raises(intake.UploadRefused) as refused:
            intake.pictures([many])
        assert refused.value.key == "too_many_entries"

    def test_series_of_more_slices_than_are_taken_are_refused_before_they_are_judged(
        self, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(intake, "MAX_SLICES", 2)
        for number in range(3):
            next(pictures(1)).save(tmp_path / f"{number}.png")
        with pytest.raises(intake.UploadRefused) as refused:
            self.volumes(sorted(tmp_path.iterdir()))
        assert refused.value.key == "too_many" and refused.value.values == {"n": 3, "limit": 2}

    def test_five_hundred_pictures_are_taken_and_one_more_is_not(self, tmp_path):
        paths = [tmp_path / f"{number}.png" for number in range(501)]
        assert len(intake.pictures(paths[:500])) == 500
        with pytest.raises(intake.UploadRefused) as refused:
            intake.pictures(paths)
        assert refused.value.values["n"] == 501


class TestDetect:
    def test_the_model_whose_guard_takes_it_answers(self, screeners, chest):
        tight = {**screeners, "xray": _refusing(screeners["xray"])}
        judgement = judge(tight, chest, "detect", "sensitivity")
        assert judgement.screener is screeners["ct"] and judgement.finding.modality == "ct"

    def test_where_both_take_it_the_nearer_one_answers_and_it_is_said(self, screeners, chest):
        judgement = judge(screeners, chest, "detect", "sensitivity")
        far = {
            name: one.out_of_distribution_score(judgement.finding.image) for name, one in screeners.items()
        }
        assert max(far.values()) <= 1  # both take it
        assert judgement.screener is screeners[min(far, key=far.get)] and judgement.tied
        assert views.record(judgement)["codes"] == ["nearer"]
        assert "lies nearer to the" in views.answer(judgement, "en")

    def test_models_without_a_guard_cannot_tell(self, screeners, chest, tmp_path):
        unguarded = {}
        for name, screener in screeners.items():
            shutil.copytree(screener.path, tmp_path / name)
            (tmp_path / name / hub_folder.GUARD).unlink()
            file = tmp_path / name / hub_folder.SCREENING
            told = {key: value for key, value in json.loads(file.read_text()).items() if key != "guard"}
            file.write_text(json.dumps(told))
            unguarded[name] = Screener.from_pretrained(tmp_path / name)
        judgement = judge(unguarded, chest, "detect", "sensitivity")
        assert judgement.finding.codes == ("ambiguous",) and judgement.finding.probability is None

    def test_a_dicom_that_says_what_it_is_is_believed(self, screeners, tmp_path):
        path = write_dicom(tmp_path / "x.dcm", np.asarray(next(pictures(1))), Modality="DX")
        assert judge(screeners, path, "detect", "sensitivity").screener is screeners["xray"]

    def test_none_taking_it_is_a_refusal_with_the_reasons_of_both(self, screeners, chest):
        tight = {name: _refusing(screener) for name, screener in screeners.items()}
        finding = judge(tight, chest, "detect", "sensitivity").finding
        assert finding.decision == "refused" and finding.probability is None
        assert len(finding.reasons) == 2 and finding.image is not None
        (said,) = views.reasons(judge(tight, chest, "detect", "sensitivity"), "en")
        assert "chest X-rays / CT slices" in said  # one sentence for both

    def test_a_ct_slice_refused_by_the_ct_model_does_not_read_that_it_is_no_x_ray(self, screeners, tmp_path):
        path = write_dicom(tmp_path / "x.dcm", np.asarray(next(pictures(1))), Modality="CT")
        tight = {name: _refusing(screener) for name, screener in screeners.items()}
        judgement = judge(tight, path, "detect", "sensitivity")
        assert [reason.code for reason in judgement.finding.reasons] == ["foreign"]
        assert judgement.screener is None and judgement.finding.modality == "ct"

    def test_a_dicom_of_another_kind_is_refused_once(self, screeners, tmp_path):
        path = write_dicom(tmp_path / "x.dcm", np.asarray(next(pictures(1))), Modality="MR")
        assert len(views.reasons(judge(screeners, path, "detect", "sensitivity"), "es")) == 1


def _refusing(screener: Screener) -> Screener:
    """The same model with a guard that lets nothing pass."""
    folder = hub_folder.load(screener.path)
    for name in folder.screening["guard"]["limits"]:
        folder.screening["guard"]["limits"][name] = 1e-6
    return Screener(folder)


class TestLanguages:
    def test_every_language_says_everything(self):
        assert len(texts.NAMES) == 7
        english = texts.TEXTS["en"]
        for language, table in texts.TEXTS.items():
            assert table.keys() == english.keys(), language
            for key, text in table.items():
                assert text.strip(), (language, key)
                assert texts.placeholders(text) == texts.placeholders(english[key]), (language, key)

    def test_no_language_is_english_in_disguise(self):
        for language in texts.NAMES.keys() - {"en"}:
            same = [key for key, text in texts.TEXTS[language].items() if text == texts.TEXTS["en"][key]]
            assert len(same) < 8, (language, same)

    @pytest.mark.parametrize(
        "asked, accepted, spoken",
        [
            ("pt", "es", "pt-BR"),
            (None, "de-CH, fr-CH;q=0.9, en;q=0.8", "fr"),
            (None, "zh-TW,zh;q=0.9", "zh-CN"),
            (None, "en;q=0.3, ar;q=0.5", "ar"),
            (None, "fr;q=0, es", "es"),
            (None, "fr;q=0", "en"),
            (None, "de, hi;q=0.1, fr ; q=0.75", "fr"),
            (None, "es;q=0.5, fr;q=0.5", "es"),
            (None, "fr;q=2, es;q=nan, hi;q=0.2", "hi"),
            (None, "*, es;q=0.1", "es"),
            ("PT-br", None, "pt-BR"),
            ("xx", "es", "en"),
            (None, None, "en"),
            ("<script>", None, "en"),
        ],
    )
    def test_choice(self, asked, accepted, spoken):
        assert texts.choose(asked, accepted) == spoken

    def test_the_document_is_in_the_language_asked_for(self, url):
        assert '<html\n\tlang="ar" dir="rtl"' in httpx.get(f"{url}/?lang=ar").text
        assert '<html\n\tlang="hi" dir="ltr"' in httpx.get(url, headers={"accept-language": "hi-IN"}).text

    def test_every_reason_the_package_can_give_has_a_sentence(self):
        """Codes are read from the source, so that a new one without a text is found."""
        codes = set()
        for path in [*(ROOT / "hub_model").glob("*.py"), ROOT / "demo" / "intake.py"]:
            if path.name in ("scoring.py", "listing.py"):  # of the command line, which speaks English
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                named = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
                if named and node.func.id in ("ImageRefused", "Reason") and len(node.args) > 1:
                    codes |= {arg.value for arg in node.args[1:2] if isinstance(arg, ast.Constant)}
        assert {"foreign", "blank", "colour", "failed"} <= codes and len(codes) > 20
        said = {key.removeprefix("reason_") for key in texts.TEXTS["en"] if key.startswith("reason_")}
        assert codes <= said, f"codes without a text: {codes - said}"

    def test_no_visitor_is_told_to_install_anything(self):
        """Neither by the page nor by the endpoints: what can be installed is the operator's business."""
        for table in texts.TEXTS.values():
            assert not [text for text in table.values() if re.search(r"\bpip\b|install", text)]

    def test_a_refusal_reaches_programs_in_the_words_of_the_page(self, screeners, tmp_path):
        advice = Reason(
            "its pixels cannot be decoded. pip install python-gdcm", "undecodable", syntax="JPEG-LS"
        )
        finding = Finding("refused", None, "sensitivity", 0.5, "ct", (advice,))
        record = views.record(Judgement(finding, screeners["ct"]))
        assert record["codes"] == ["undecodable"] and "pip" not in " ".join(record["reasons"])

    @pytest.mark.parametrize("language", texts.NAMES)
    def test_refusals_are_said_in_the_language(self, screeners, tmp_path, language):
        Image.new("L", (300, 300), 90).save(tmp_path / "blank.png")
        paths = [tmp_path / "blank.png", *make_bad_files(tmp_path / "bad").values()]
        for path in paths:
            judgement = judge(screeners, path, "xray", "sensitivity")
            assert judgement.decision == "refused"
            for said in views.reasons(judgement, language):
                assert said and "{" not in said
                assert language == "en" or said not in judgement.finding.reasons, path.name
                if language in ("ar", "hi", "zh-CN"):  # nothing but names of formats in Latin letters
                    words = set(re.findall(r"[A-Za-z]{4,}", said))
                    assert words <= {"JPEG", "TIFF", "WebP", "DICOM", "CMYK"}, (path.name, words)

    @pytest.mark.parametrize("language", texts.NAMES)
    def test_every_answer_can_be_said(self, screeners, chest, language):
        for kind in ("xray", "detect"):
            html = views.answer(judge(screeners, chest, kind, "sensitivity"), language)
            assert "{" not in html.split("<style")[0].replace("--heat", "")
        assert views.figures(screeners["ct"], "balanced", language)
        assert views.model(screeners["ct"], language).count("<tr>") > 20
        broken = judge(screeners, Path("nowhere"), "xray", "sensitivity")
        assert texts.TEXTS[language]["reason_missing"] in views.answer(broken, language)


def test_the_start_writes_nothing_beside_gradio():
    """Nor does it read what Gradio once wrote there: that took a third of its import."""
    code = (
        "import inspect, sys\nstubs, found = [], inspect.getfile\n"
        "def watch(event, told):\n    if event == 'open' and str(told[0]).endswith('.pyi'): stubs.append(told[0])\n"
        "sys.addaudithook(watch)\nimport app, gradio\n"
        "sys.exit(f'{stubs[:3]}' if stubs else 0 if inspect.getfile is found else 'not put back')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "demo", env={**os.environ, "PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr


class TestFigures:
    def test_the_operating_point_is_told_by_the_test_part(self, screeners):
        measured = views.evaluation(screeners["ct"])["test"]["at"]["sensitivity"]
        words = views.figures(screeners["ct"], "sensitivity", "en")
        assert f"finds {int(measured['sensitivity']['value'] * 100 + 1e-6)} of 100" in words
        assert f"on {measured['sensitivity']['n'] + measured['specificity']['n']} CT slices" in words
        assert "no part in training" in words

    def test_a_stranger_s_figures_are_shown_or_refused(self, tmp_path):
        """Whatever `evaluation.json` holds: a model that opens can be shown."""
        run = make_run(tmp_path / "run")
        file, shown = run / "evaluation.json", 0
        screener, good = Screener.from_pretrained(run), file.read_text()
        for number in range(100):
            file.write_bytes(broken_json(good, np.random.default_rng(number)))
            views._evaluation_in.cache_clear()
            with contextlib.suppress(FolderRefused):
                shown += "</section>" in views.model(screener, "en")
        assert 10 < shown < 90

    def test_figures_of_other_weights_are_not_shown(self, tmp_path):
        run = make_run(tmp_path / "run")
        told = json.loads((run / "evaluation.json").read_text())
        (run / "evaluation.json").write_text(json.dumps({**told, "weights_sha256": "0" * 64}))
        assert views.evaluation(Screener.from_pretrained(run)) is None

    def test_an_unmeasured_model_says_so(self, screeners):
        class Unmeasured:
            path, modality, operating_points = Path("nowhere"), "ct", {"default": {"threshold": 0.5}}
            site = None

        assert "not measured" in views.figures(Unmeasured(), "default", "en")

    def test_a_file_name_is_never_markup(self, screeners, chest):
        name = '"><img src=x onerror=alert(1)>${7*7}{{7*7}}.png'
        row = views.row(name, judge(screeners, chest, "xray", "sensitivity"), "en")
        assert "<img src=x" not in row and "&lt;img src=x" in row


class TestSnippets:
    """What the page says under 'Use from code' runs as it stands."""

    @pytest.fixture
    def folder(self, tmp_path, chest) -> Path:
        (tmp_path / "slice.png").write_bytes(chest.read_bytes())
        return tmp_path

    @pytest.mark.parametrize("name", ["client.py", "curl.sh"])
    def test_against_the_page(self, folder, url, name):
        code = (ROOT / "demo" / "snippets" / name).read_text().replace("http://127.0.0.1:7860", url)
        command = [sys.executable, "-c", code] if name.endswith("py") else ["bash", "-c", code]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert any(decision in done.stdout for decision in ("positive", "negative", "inconclusive"))

    def test_package(self, folder):
        if "ct" not in hub_folder.embedded():
            pytest.skip("no CT model is embedded in this checkout")
        code = (ROOT / "demo" / "snippets" / "package.py").read_text()
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("Finding(decision=")


class TestTools:
    """The endpoints as tools for a language model, asked by a real MCP client over loopback."""

    def test_off_by_default(self, url):
        assert httpx.get(f"{url}/gradio_api/mcp/schema").status_code == 404

    def test_listed_and_called(self, screeners, chest):
        pytest.importorskip("mcp", reason="needs gradio[mcp]")
        demo = app.build(screeners)
        launch(demo, mcp_server=True)
        picture = "data:image/png;base64," + base64.b64encode(chest.read_bytes()).decode()
        try:
            names, answer = asyncio.run(self.ask(f"{demo.local_url}gradio_api/mcp/", picture))
        finally:
            demo.close()
        assert {"screen", "heat_map", "batch", "series", "model"} == {
            name.removeprefix("_") for name in names
        }
        finding = screeners["xray"].screen(chest, operating_point="sensitivity")
        assert f"'decision': '{finding.decision}'" in answer and f"{finding.probability:.4f}"[:5] in answer

    @staticmethod
    async def ask(address: str, picture: str) -> tuple[list[str], str]:
        """Names of the tools, and what /screen answers."""
        from mcp import ClientSession
        from mcp.client.streamable_http import streamablehttp_client

        async with streamablehttp_client(address) as (read, write, _), ClientSession(read, write) as session:
            await session.initialize()
            names = [tool.name for tool in (await session.list_tools()).tools]
            tool = next(name for name in names if name.endswith("screen"))
            given = {"file": picture, "kind": "xray", "operating_point": "sensitivity"}
            answer = await session.call_tool(tool, given)
            assert not answer.isError
            return names, answer.content[0].text


class TestSpaceFiles:
    def test_front_matter_names_a_gradio_that_the_package_accepts(self):
        front = yaml.safe_load((ROOT / "demo" / "README.md").read_text().split("---")[1])
        assert (front["sdk"], front["app_file"]) == ("gradio", "app.py")
        assert front["sdk_version"] in _needed("demo")["gradio"]

    def test_requirements_are_those_of_the_package(self):
        lines = (ROOT / "demo" / "requirements.txt").read_text().split()
        assert sorted(lines) == sorted(map(str, _needed().values()))


def _needed(extra: str | None = None) -> dict[str, Any]:
    """Requirements of the package, or of one of its extras, by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["optional-dependencies"][extra] if extra else project["dependencies"]
    return {need.name: need if not extra else need.specifier for need in map(Requirement, lines)}
