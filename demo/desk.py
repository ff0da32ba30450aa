"""What the buttons and the endpoints do: uploads come in, HTML or records for programs go out."""

import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
import texts
import views
from intake import Picture, UploadRefused, keep, pictures, slices
from judge import DETECT, Judgement, defaults, judge, judge_many, points
from listeners import gone
from page import spoken
from PIL import Image

from hub_model import Frame, Refused, Screener
from hub_model.heatmap import overlay

Uploaded = list[dict[str, Any]] | dict[str, Any] | None
"""What an upload field sends: Gradio's FileData, one or several."""
REDRAWN = 0.7  # seconds between two looks at a running batch


class Run:
    """A batch or a series under way in one browser tab, or for one call."""

    def __init__(self, request: gr.Request) -> None:
        self.stopped = threading.Event()
        self._request = request
        self._drawn = time.monotonic() - REDRAWN  # the first picture is shown at once

    @property
    def over(self) -> bool:
        """Whether it was stopped, or nobody waits for it any more."""
        return self.stopped.is_set() or gone(self._request.request.scope, self._request.session_hash)

    def due(self, pause: float) -> bool:
        """Whether the page should be drawn again, at most every `pause` seconds."""
        if time.monotonic() - self._drawn < pause:
            return False
        self._drawn = time.monotonic()
        return True


class Desk:
    """The handlers, over the models they ask.

    Attributes:
        screeners: models by modality, and further ones by name.
        examples: pictures to try, by name.
    """

    def __init__(self, screeners: Mapping[str, Screener], examples: Mapping[str, Path]) -> None:
        self.screeners = screeners
        self.examples = examples
        self._runs: dict[tuple[str, str | None], Run] = {}

    @property
    def kinds(self) -> list[str]:
        """What a picture may be said to be."""
        return [DETECT, *self.screeners] if len(defaults(self.screeners)) > 1 else list(self.screeners)

    @property
    def points(self) -> list[str]:
        """The operating points to choose from."""
        return points(self.screeners)

    # One picture

    def take(self, files: Uploaded) -> tuple[None, Path | None]:
        """Remember a picture just uploaded, and make room for the next."""
        return None, next(iter(paths(files)), None)

    def take_example(self, event: gr.EventData) -> Path | None:
        """One of the pictures that come with the page."""
        return self.examples.get(str(event._data.get("name")))

    def show(self, path: Path | None, kind: str, point: str, request: gr.Request) -> str:
        """Screen the picture at hand, and say the answer in the visitor's language."""
        language = spoken(request.request.scope)
        say = texts.teller(language)
        if path is None:
            return views.message(say("waiting"), language)
        if not path.is_file():
            return views.message(say("gone"), language, "problem")
        try:
            return views.answer(judge(self.screeners, path, kind, point), language)
        except Refused as refusal:
            return views.refusal(refusal, language)

    # Many pictures, slice after slice

    def run_batch(
        self, files: Uploaded, kind: str, point: str, request: gr.Request
    ) -> Iterator[tuple[str, str]]:
        """Screen pictures: how far it is, and the table so far."""
        language, rows, count = spoken(request.request.scope), [], views.Count()
        with self._under_way("batch", request) as run:
            try:
                todo = pictures(paths(files))
                judged = self._judged(todo, kind, point, run, heat_map=True)
            except Refused as refusal:
                yield views.refusal(refusal, language), ""
                return
            for picture, judgement in judged:
                count.add(picture.name, judgement, language)
                rows.append(views.row(picture.name, judgement, language))
                if run.due(REDRAWN):
                    keep(todo)
                    progress = views.progress(len(rows), len(todo), language)
                    yield progress, views.table(rows, language, closed=False)
        yield views.finished(count, len(rows), len(todo), language), views.table(rows, language)

    def run_series(
        self, files: Uploaded, folder: Uploaded, point: str, request: gr.Request
    ) -> Iterator[tuple[str, str]]:
        """Screen the slices of a series: how far it is, and the slices so far."""
        language, seen = spoken(request.request.scope), []
        with self._under_way("series", request) as run:
            try:
                todo = slices([*paths(files), *paths(folder)])
                judged = self._judged(todo, self._series_kind, point, run, heat_map=True)
            except Refused as refusal:
                yield views.refusal(refusal, language), ""
                return
            for number, (_, judgement) in enumerate(judged, start=1):
                seen.append(views.Slice.of(number, judgement, language))
                if run.due(2 * REDRAWN):
                    keep(todo)
                    yield views.progress(len(seen), len(todo), language), views.series(seen, language)
        yield views.ended(len(seen), len(todo), language), views.series(seen, language)

    def stop(self, name: str, request: gr.Request) -> None:
        """End the run of this name in this browser tab after the picture it is at."""
        if run := self._runs.get((name, request.session_hash)):
            run.stopped.set()

    @contextmanager
    def _under_way(self, name: str, request: gr.Request) -> Iterator["Run"]:
        """A run that can be stopped; one of the same name and tab that is under way gives way to it."""
        key, run = (name, request.session_hash), Run(request)
        self.stop(name, request)
        self._runs[key] = run
        try:
            yield run
        finally:  # also when the browser is closed
            if self._runs.get(key) is run:
                del self._runs[key]

    @property
    def _series_kind(self) -> str:
        return "ct" if "ct" in self.screeners else next(iter(self.screeners))

    def _judged(
        self, todo: list[Picture], kind: str, point: str, run: Run, *, heat_map: bool = False
    ) -> Iterator[tuple[Picture, Judgement]]:
        """Each picture with its answer, in batches, until the run is over."""
        sources = (Frame(picture.source, picture.frame) for picture in todo)
        judged = judge_many(self.screeners, sources, kind, point, heat_map=heat_map)

        def until_over() -> Iterator[tuple[Picture, Judgement]]:
            for picture in todo:
                if run.over:
                    return
                yield picture, next(judged)

        return until_over()

    # About the model

    def show_model(self, kind: str, request: gr.Request) -> tuple[str, str]:
        """Figures and plots as HTML, and the card as Markdown."""
        if kind not in list(self.screeners):  # asked past the page's buttons
            return "", ""
        screener = self.screeners[kind]
        return views.model(screener, spoken(request.request.scope)), views.card(screener)

    def show_code(self, request: gr.Request) -> str:
        """How to get the same answers from code, with this page's own address."""
        mcp = bool(getattr(request.request.app.get_blocks(), "mcp_server_obj", None))
        return views.code(request.headers.get("origin"), mcp, spoken(request.request.scope))

    # Endpoints. Their docstrings are the API's documentation.

    def screen(self, file: Uploaded, kind: str, operating_point: str) -> dict[str, Any]:
        """Judge one chest picture.

        Args:
            file: PNG, JPEG, TIFF, WebP, BMP, GIF or DICOM file.
            kind: "detect", "xray", "ct", or a further model that the page names; any other word is an error.
            operating_point: "sensitivity", "balanced" or "specificity"; any other word is an error.

        Returns:
            decision ("positive", "negative", "inconclusive" or "refused"), probability (calibrated, 0..1;
            null when refused), operating_point, threshold, modality, reasons (sentences), codes (names of the
            reasons, which stay when the wording changes), model.
        """
        with _said():
            return views.record(judge(self.screeners, _first(file), kind, operating_point, heat_map=False))

    def heat_map(self, file: Uploaded, kind: str) -> Image.Image:
        """The picture, tinted where the model found evidence for COVID-19 (orange) and against it (blue).

        Args:
            file: PNG, JPEG, TIFF, WebP, BMP, GIF or DICOM file.
            kind: "detect", "xray", "ct", or a further model that the page names.

        Returns:
            JPEG picture of the same size; an error with the reason where the picture was refused.
        """
        with _said():
            judgement = judge(self.screeners, _first(file), kind, self.points[0])
        if judgement.finding.heat_map is None:
            raise gr.Error(" ".join(views.record(judgement)["reasons"]), print_exception=False)
        tinted = overlay(judgement.finding.image, judgement.finding.heat_map)
        # Gradio names a result by its content, and would write anew the file that another visitor is fetching
        tinted.info["comment"] = secrets.token_hex(8)
        return tinted

    def batch(
        self, files: Uploaded, kind: str, operating_point: str, request: gr.Request
    ) -> list[dict[str, Any]]:
        """Judge many pictures; a broken one gives a refusal and the rest goes on.

        Args:
            files: pictures, or zips or tars of pictures, 500 at most.
            kind: "detect", "xray", "ct", or a further model that the page names.
            operating_point: "sensitivity", "balanced" or "specificity".

        Returns:
            One record for each picture as /screen gives it, with its name as "file".
        """
        with _said():
            return [
                {"file": picture.name, **views.record(judgement)}
                for picture, judgement in self._judged(
                    pictures(paths(files)), kind, operating_point, Run(request)
                )
            ]

    def series(self, files: Uploaded, operating_point: str, request: gr.Request) -> dict[str, Any]:
        """Judge every slice of a CT series. The counts are no validated test of the patient.

        Args:
            files: a DICOM file with many frames, the slices of one series, or a zip or tar of them; 500 at most.
            operating_point: "sensitivity", "balanced" or "specificity".

        Returns:
            judged, positive (numbers of slices), slices (records as /screen gives them, with "file" and
            "slice" from 1, the most suspicious first).
        """
        with _said():
            judged = self._judged(slices(paths(files)), self._series_kind, operating_point, Run(request))
            records = [
                {"slice": number, "file": picture.name, **views.record(judgement)}
                for number, (picture, judgement) in enumerate(judged, start=1)
            ]
        judged = [record for record in records if record["probability"] is not None]
        return {
            "judged": len(judged),
            "positive": sum(record["decision"] == "positive" for record in judged),
            "slices": sorted(records, key=lambda record: -(record["probability"] or 0)),
        }

    def model(self, kind: str) -> dict[str, Any]:
        """What is known of a model.

        Args:
            kind: "xray", "ct", or a further model that the page names.

        Returns:
            screening (operating points, provenance), evaluation (every measured figure; null where none).
        """
        if kind not in list(self.screeners):
            raise gr.Error(
                f"kind {kind!r} is not known. Accepted: {', '.join(self.screeners)}.", print_exception=False
            )
        screener = self.screeners[kind]
        return {"screening": screener.screening, "evaluation": views.evaluation(screener)}


@contextmanager
def _said() -> Iterator[None]:
    """A refused upload or an unknown word reaches the caller of an endpoint as its sentence."""
    try:
        yield
    except UploadRefused as refusal:
        raise gr.Error(texts.teller("en")(refusal.key, **refusal.values), print_exception=False) from None
    except Refused as refusal:
        raise gr.Error(str(refusal), print_exception=False) from None


def paths(uploaded: Uploaded) -> list[Path]:
    """The files behind an upload field; Gradio has made sure that they lie in its upload folder."""
    files = uploaded if isinstance(uploaded, list) else [uploaded] if uploaded else []
    return [Path(file["path"]) for file in files]


def _first(uploaded: Uploaded) -> Path:
    if not (found := paths(uploaded)):
        raise gr.Error(texts.teller("en")("nothing_chosen"), print_exception=False)
    return found[0]
