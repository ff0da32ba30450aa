"""What the buttons and the endpoints do: uploads come in, HTML or records for programs go out."""

import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import texts
import views
from gradio.utils import get_upload_folder
from intake import MAX_PICTURES, MAX_SLICES, MAX_UNPACKED, Picture, UploadRefused, keep, pictures, volumes
from judge import BATCH, DETECT, Judgement, chosen, defaults, judge, judge_many, points
from listeners import gone
from page import spoken

from hub_model import Frame, Refused, Screener
from hub_model.heatmap import overlay
from hub_model.screener import WORKERS
from hub_model.series import SeriesFinding, concluded, judged, refused
from hub_model.volumes import Unusable, Volume

Uploaded = list[dict[str, Any]] | dict[str, Any] | None
"""What an upload field sends: Gradio's FileData, one or several."""
CHANGED = 12
"""Pictures on which the page tries harmless changes: each is judged some twenty times."""
REDRAWN = 0.7  # seconds between two looks at a running batch
LONGEST = 60  # seconds that a run waits for the one it replaces, which ends after its picture


class Run:
    """A batch or a series under way in one browser tab, or for one call."""

    def __init__(self, request: gr.Request) -> None:
        self.stopped, self.ended = threading.Event(), threading.Event()
        self.replaced = False  # by a later run, whose results the page shall show
        self._request = request
        self._drawn = time.monotonic() - REDRAWN  # the first picture is shown at once

    @property
    def over(self) -> bool:
        """Whether it was stopped, or nobody waits for it any more."""
        return self.stopped.is_set() or gone(self._request.request.scope, self._request.session_hash)

    def due(self, pause: float) -> bool:
        """Return whether the page should be drawn again, at most every `pause` seconds."""
        if self.replaced or time.monotonic() - self._drawn < pause:
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
        """Return the path of the chosen example picture; None for an unknown name."""
        return self.examples.get(str(event._data.get("name")))

    def show(self, path: Path | None, kind: str, point: str, request: gr.Request) -> str:
        """Screen the picture that was uploaded or chosen, and show the answer in the visitor's language."""
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
        """Screen pictures; yield the progress and the table so far."""
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
        if not run.replaced:
            yield views.finished(count, len(rows), len(todo), language), views.table(rows, language)

    def run_series(
        self, files: Uploaded, folder: Uploaded, point: str, request: gr.Request
    ) -> Iterator[tuple[str, str]]:
        """Screen the slices of a series; yield the progress and the slices so far."""
        language = spoken(request.request.scope)
        told, ready, before, done, total = "", "", 0, 0, 0
        with self._under_way("series", request) as run:
            try:
                todo = pictures([*paths(files), *paths(folder)], MAX_SLICES)
                yield views.progress(0, len(todo), language), ""  # their headers are read first
                for number, volume in enumerate(volumes(todo), start=1):
                    total += len(volume) if isinstance(volume, Volume) else 0
                    for count, told in self._shown(number, volume, point, run, language):
                        done = before + count
                        keep(todo)
                        yield views.progress(done, total, language), ready + told
                    before, ready = done, ready + told
                    if run.over:
                        break
            except Refused as refusal:
                yield views.refusal(refusal, language), ready
                return
        if not run.replaced:
            yield views.ended(done, total, language), ready

    def _shown(
        self, number: int, volume: Volume | Unusable, point: str, run: Run, language: str
    ) -> Iterator[tuple[int, str]]:
        """Yield the number of judged slices and the series so far, at intervals; at the end the whole answer."""
        screener, seen, found = self._reader(point), [], []
        if isinstance(volume, Unusable):
            answer = refused(screener, volume.name, volume.reason, point)
            yield 0, views.whole(number, answer, seen, language)
            return
        for one in judged(screener, volume, point, True, BATCH, WORKERS):
            seen.append(views.Slice.of(one.number, Judgement(one.finding, screener), language, len(volume)))
            found.append(replace(one, finding=replace(one.finding, image=None, heat_map=None)))
            if run.over:
                break
            if len(seen) < len(volume) and run.due(2 * REDRAWN):
                yield len(seen), views.series(seen, language)
        if len(seen) == len(volume):
            answer = concluded(screener, volume, found, point)
            yield len(seen), views.whole(number, answer, seen, language)
        else:
            yield len(seen), views.series(seen, language)

    def _whole(self, screener: Screener, volume: Volume | Unusable, point: str, run: Run) -> SeriesFinding:
        """Return the answer for a series; stop early when the run is over."""
        if isinstance(volume, Unusable):
            return refused(screener, volume.name, volume.reason, point)
        found = []
        for one in judged(screener, volume, point, False, BATCH, WORKERS):
            found.append(one)
            if run.over:
                break
        return concluded(screener, volume, found, point)

    # A model on labelled pictures

    def run_check(self, files: Uploaded, kind: str, request: gr.Request) -> Iterator[tuple[str, str]]:
        """Check a model on labelled pictures; yield the progress, then the report."""
        from hub_model.check import cases, page, report, sources

        language = spoken(request.request.scope)
        with self._under_way("check", request) as run:
            try:
                path = _upload(files)
                screener = self.screeners.get(kind) or next(iter(self.screeners.values()))
                rows = sources.open_sources(path, screener.modality, zip_limit=MAX_UNPACKED * 2**20)
                material = cases.listed(rows)
                if len(material.cases) > MAX_PICTURES:
                    raise UploadRefused("too_many", n=len(material.cases), limit=MAX_PICTURES)
                for done in cases.judging(material, screener):
                    if run.over:
                        if not run.replaced:
                            yield views.ended(done, len(material.cases), language), ""
                        return
                    if run.due(REDRAWN):
                        keep([Picture(path.name, path)])
                        yield views.progress(done, len(material.cases), language), ""
                told = report.examine(material, screener, report.Settings(changes=CHANGED))
            except Refused as refusal:
                yield views.refusal(_nameless(refusal, paths(files)), language), ""
                return
        if not run.replaced:
            yield "", views.site_check(page.render(told), language)

    def stop(self, name: str, request: gr.Request) -> None:
        """Stop the run of this name in this browser tab after the current picture."""
        if run := self._runs.get((name, request.session_hash)):
            run.stopped.set()

    @contextmanager
    def _under_way(self, name: str, request: gr.Request) -> Iterator["Run"]:
        """Start a run that can be stopped; an earlier run of the same name and tab is stopped first.

        It is waited for: its last word would stand on the page in place of what the new one found.
        """
        key, run = (name, request.session_hash), Run(request)
        earlier, self._runs[key] = self._runs.get(key), run
        try:
            if earlier is not None:
                earlier.replaced = True
                earlier.stopped.set()
                earlier.ended.wait(LONGEST)
            yield run
        finally:  # also when the browser is closed
            run.ended.set()
            if self._runs.get(key) is run:
                del self._runs[key]

    def _reader(self, point: str) -> Screener:
        """Return the model that judges series.

        Raises:
            Refused: the model has no such operating point.
        """
        kind = "ct" if "ct" in self.screeners else next(iter(self.screeners))
        chosen(self.screeners, kind, point)
        return self.screeners[kind]

    def _judged(
        self, todo: list[Picture], kind: str, point: str, run: Run, *, heat_map: bool = False
    ) -> Iterator[tuple[Picture, Judgement]]:
        """Yield each picture with its answer, judged in batches, until the run is over."""
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
        """Return the figures and plots as HTML, and the model card as Markdown."""
        if kind not in list(self.screeners):  # asked past the page's buttons
            return "", ""
        screener = self.screeners[kind]
        return views.model(screener, spoken(request.request.scope)), views.card(screener)

    def show_code(self, request: gr.Request) -> str:
        """Return HTML that shows how to get the same answers from code, with this page's own address."""
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

    def heat_map(self, file: Uploaded, kind: str) -> Path:
        """Tint the picture where the model found evidence for COVID-19 (orange) and against it (blue).

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
        # written here: Gradio would encode it in memory, where Pillow keeps all other threads waiting, and name it by
        # its content, hence write anew the file that another visitor is fetching
        place = Path(get_upload_folder()) / secrets.token_hex(32)
        place.mkdir(parents=True)
        overlay(judgement.finding.image, judgement.finding.heat_map).save(place / "image.jpeg")
        return place / "image.jpeg"

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
        """Judge CT series: every slice that shows a lung, and the series as a whole where that was measured.

        Args:
            files: volumes (NIfTI, NRRD, MetaImage, DICOM with many frames), slices, or a zip or tar of them; 1,000
                slices at most.
            operating_point: "sensitivity", "balanced" or "specificity".

        Returns:
            judged, positive (numbers of slices); series (each with decision, probability or null, rule, measured,
            reasons, notes, slices, judged, positive, without_lung); slices (records as /screen gives them, with
            "series" and "slice" from 1 and "position" in mm, the most suspicious first).
        """
        with _said():
            screener, run, found = self._reader(operating_point), Run(request), []
            for volume in volumes(pictures(paths(files), MAX_SLICES)):
                if run.over:
                    break
                found.append(self._whole(screener, volume, operating_point, run))
        records = [
            {"series": number, "slice": one.number, "position": one.position,
             **views.record(Judgement(one.finding, screener))}
            for number, whole in enumerate(found, start=1) for one in whole.slices
        ]  # fmt: skip
        judged = [record for record in records if record["probability"] is not None]
        return {
            "judged": len(judged),
            "positive": sum(record["decision"] == "positive" for record in judged),
            "series": [views.series_record(whole) for whole in found],
            "slices": sorted(records, key=lambda record: -(record["probability"] or 0)),
        }

    def model(self, kind: str) -> dict[str, Any]:
        """Return what is known of a model.

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
    """Turn a refused upload or an unknown word into an error that shows its sentence to the caller."""
    try:
        yield
    except UploadRefused as refusal:
        raise gr.Error(texts.teller("en")(refusal.key, **refusal.values), print_exception=False) from None
    except Refused as refusal:
        raise gr.Error(str(refusal), print_exception=False) from None


def _upload(files: Uploaded) -> Path:
    """Return the path of the one file that a check needs.

    Raises:
        UploadRefused: there is none, or it is gone.
    """
    path = next(iter(paths(files)), None)
    if path is None:
        raise UploadRefused("nothing_chosen")
    if not path.is_file():
        raise UploadRefused("gone")
    return path


def _nameless(refusal: Refused, uploads: list[Path]) -> Refused:
    """Return the refusal with the name of each upload in place of its path on the server."""
    if isinstance(refusal, UploadRefused):
        return refusal
    text = str(refusal)
    for path in uploads:
        text = text.replace(str(path), path.name)
    return Refused(text)


def paths(uploaded: Uploaded) -> list[Path]:
    """Return the paths of the files in an upload field; Gradio has made sure that they lie in its upload folder."""
    files = uploaded if isinstance(uploaded, list) else [uploaded] if uploaded else []
    return [Path(file["path"]) for file in files]


def _first(uploaded: Uploaded) -> Path:
    if not (found := paths(uploaded)):
        raise gr.Error(texts.teller("en")("nothing_chosen"), print_exception=False)
    return found[0]
