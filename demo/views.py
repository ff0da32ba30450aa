"""Findings and figures as HTML. Templates escape every value; file names come from strangers."""

import base64
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr
import jinja2
import numpy as np
import texts
from intake import UploadRefused
from judge import Judgement
from PIL import Image

from hub_model import Refused, Screener, read_image
from hub_model.heatmap import overlay
from hub_model.hub_folder import EMBEDDED, MODALITIES, read_evaluation
from hub_model.series import SeriesFinding

SHOWN = 896  # pixels of the longer side that travel to the page; the picture is judged at its own size
THUMB = 96
TILE = 224  # pixels of the longer side of a suspicious slice
FIRST = 6  # suspicious slices shown large
MANY = 120  # slices; in longer series each is shown as small as in a table
SMALL_HEAT = 0.6  # strength of the heat map in small pictures, where it cannot be faded
SMALL = 224  # pixels of the shorter side below which detail is missing
LONG = 2.0  # ratio of the sides from which squeezing into a square matters

LINK_STATES = (
    "",
    "_hover",
    "_active",
    "_visited",
)  # gradio's own colours of a link hovered over are too pale
PREFIX = "page_"
"""Of the keys given to Gradio, which would translate any value that is the name of a text, "ct" say."""
OVERALL_MEASURES = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "brier": "Brier score",
    "ece": "Calibration error (ECE)",
}
POINT_MEASURES = {
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "ppv": "Positive predictive value",
    "npv": "Negative predictive value",
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "f1": "F1",
    "mcc": "Matthews correlation",
}
"""Measures of an evaluation that the page shows, and their names; recall and precision would repeat."""
SNIPPETS = {"package.py": "code_package", "client.py": "code_client", "curl.sh": "code_curl"}

ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(template: str, language: str, **values: Any) -> str:
    """Render a template in a language; it can use ``say`` and ``percent``."""
    page = ENVIRONMENT.get_template(template, globals={"percent": percent, "number": number})
    return page.render(say=texts.teller(language), language=language, **values)


def percent(share: float) -> int:
    """Convert a share in 0..1 to whole percent, never 0 or 100 for a probability that is neither."""
    rounded = round(share * 100)
    return min(max(rounded, 1), 99) if 0 < share < 1 else rounded


def number(value: float | None) -> str:
    """Write a measured figure with three decimals; nothing where it is not defined."""
    return "" if value is None or math.isnan(value) else f"{value:.3f}"


def data_uri(image: Image.Image, side: int = SHOWN) -> str:
    """Put the picture inside the page, never on disk; ``side`` is the most its longer side may have in pixels."""
    small = image.copy()
    small.thumbnail((side, side))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=90, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


@cache
def legend() -> str:
    """Draw the colours of the heat map from 0 to 1, as the overlay has them on mid-grey."""
    ramp = np.tile(np.linspace(0, 1, 256, dtype=np.float32), (12, 1))
    return data_uri(overlay(Image.new("L", (256, 12), 128), ramp))


def site_check(page: str, language: str) -> str:
    """Render the report of a site check in a frame of its own, with a link that saves it."""
    link = "data:text/html;charset=utf-8;base64," + base64.b64encode(page.encode("utf-8")).decode("ascii")
    return render("check.html", language, page=page, link=link)


def figures(screener: Screener, point: str, language: str) -> str:
    """Say an operating point in words: from the test split, or else from the split on which it was chosen."""
    say, tested = (
        texts.teller(language),
        ((evaluation(screener) or {}).get("test") or {}).get("at", {}).get(point),
    )
    if screener.site:  # the card's figures are those of other thresholds
        tested = None
    measured = tested or screener.operating_points[point].get("validation") or {}
    sensitivity, specificity = measured.get("sensitivity"), measured.get("specificity")
    if any(one is None or one["value"] is None for one in (sensitivity, specificity)):
        return say("figures_unknown")
    return say(
        "figures_site" if screener.site else "figures" if tested else "figures_tuned",
        found=math.floor(round(sensitivity["value"] * 100, 6)),  # never better than measured
        flagged=math.ceil(round((1 - specificity["value"]) * 100, 6)),
        n=sensitivity["n"] + specificity["n"],
        kinds=say(screener.modality + "s"),
    )


def answer(judgement: Judgement, language: str) -> str:
    """Render the whole answer for one picture."""
    finding, screener = judgement.finding, judgement.screener
    judged = finding.heat_map is not None
    return render(
        "answer.html",
        language,
        finding=finding,
        point_named="point_" + finding.operating_point in texts.TEXTS[language],
        figures=figures(screener, finding.operating_point, language)
        if finding.probability is not None
        else "",
        picture=data_uri(finding.image) if finding.image is not None else None,
        overlay=data_uri(overlay(finding.image, finding.heat_map)) if judged else None,
        legend=legend() if judged else None,
        notes=notes(judgement, language),
        reasons=reasons(judgement, language),
        model=identity(screener, language) if screener else None,
    )


def notes(judgement: Judgement, language: str) -> list[str]:
    """Say why the answer is what it is: guard, threshold or abstain band, quality of the picture."""
    finding, say = judgement.finding, texts.teller(language)
    if finding.probability is None:
        return []
    kinds = say(finding.modality + "s")
    width, height = finding.image.size
    return [
        say("familiar", kinds=kinds),
        *([say("nearer", kinds=kinds, question=say("kind"))] if judgement.tied else []),
        beside_threshold(judgement, language),
        *([say("small", width=width, height=height)] if min(width, height) < SMALL else []),
        *([say("long")] if max(width, height) > LONG * min(width, height) else []),
    ]


def beside_threshold(judgement: Judgement, language: str) -> str:
    """Say where the probability lies: above or below the threshold, or in the band around it."""
    finding, point = judgement.finding, judgement.screener.operating_points[judgement.finding.operating_point]
    low, high = point.get("abstain") or (finding.threshold,) * 2
    side = {"positive": "above", "negative": "below", "inconclusive": "within"}[finding.decision]
    return texts.teller(language)(
        side, threshold=percent(finding.threshold), low=percent(low), high=percent(high)
    )


def identity(screener: Screener, language: str) -> str:
    """Name the model, so that an answer can be traced."""
    weights, say = screener.screening.get("weights_sha256", ""), texts.teller(language)
    local = say("local_settings", name=screener.site.name) if screener.site else ""
    parts = (say(screener.modality), screener.config["architecture"], weights[:12], local)
    return ", ".join(part for part in parts if part)


def record(judgement: Judgement) -> dict[str, Any]:
    """Make a record of a judgement for programs: the endpoints' answer, in English."""
    finding, screener, say = judgement.finding, judgement.screener, texts.teller("en")
    found = [*(reasons(judgement, "en") if finding.decision == "refused" else finding.reasons)]
    codes = [code for code in finding.codes if code]
    if judgement.tied:
        found.append(say("nearer", kinds=say(finding.modality + "s"), question="kind"))
        codes.append("nearer")
    return {
        "decision": finding.decision,
        "probability": finding.probability,
        "operating_point": finding.operating_point,
        "threshold": finding.threshold,
        "modality": screener.modality if screener else None,
        "reasons": found,
        "codes": codes,
        "model": identity(screener, "en") if screener else None,
    }


def message(text: str, language: str, kind: str = "") -> str:
    """Render one sentence instead of an answer."""
    return render("message.html", language, text=text, kind=kind)


def refusal(problem: Refused, language: str) -> str:
    """Say why nothing was done, in the language where the text is known."""
    known = isinstance(problem, UploadRefused)
    text = texts.teller(language)(problem.key, **problem.values) if known else str(problem)
    return message(text, language, "problem")


@dataclass
class Count:
    """How a batch came out so far.

    Attributes:
        decisions: number of pictures by decision.
        failures: (name, reasons) of what was not judged.
    """

    decisions: Counter = field(default_factory=Counter)
    failures: list[tuple[str, str]] = field(default_factory=list)

    def add(self, name: str, judgement: Judgement, language: str) -> None:
        self.decisions[judgement.decision] += 1
        if judgement.decision == "refused":
            self.failures.append((name, " ".join(reasons(judgement, language))))


def reasons(judgement: Judgement, language: str) -> Sequence[str]:
    """List why it was refused or not decided, each reason once."""
    finding, say = judgement.finding, texts.teller(language)
    if finding.decision == "inconclusive":
        return [beside_threshold(judgement, language)]
    unlike = [
        say(reason.values["modality"] + "s") for reason in finding.reasons if _code(reason) == "foreign"
    ]
    return list(dict.fromkeys(said(reason, language, " / ".join(unlike)) for reason in finding.reasons))


def said(reason: str, language: str, kinds: str = "") -> str:
    """Say a reason of the package in a language; `kinds` are those that a foreign picture is unlike."""
    if (key := "reason_" + _code(reason)) not in texts.TEXTS[language]:
        return reason  # a sentence that has no code: better English than nothing
    say = texts.teller(language)
    named = {"kinds": kinds, "series": say("tab_series"), "question": say("kind")}
    return say(key, **{**reason.values, **named})


def _code(reason: str) -> str:
    return getattr(reason, "code", "")


def progress(done: int, total: int, language: str) -> str:
    return render("progress.html", language, done=done, total=total)


def finished(count: Count, done: int, total: int, language: str) -> str:
    """Say what a batch found, and what was not judged."""
    return render("finished.html", language, count=count, done=done, total=total)


def ended(done: int, total: int, language: str) -> str:
    """Say that a run is over, or was stopped."""
    key = "finished" if done == total else "stopped"
    return message(texts.teller(language)(key, done=done, total=total), language)


def row(name: str, judgement: Judgement, language: str) -> str:
    """Show one picture of a batch as a row of the table."""
    return render(
        "row.html",
        language,
        name=name,
        judgement=judgement,
        finding=judgement.finding,
        reasons=reasons(judgement, language),
        thumb=thumb(judgement, THUMB),
        record=json.dumps({"file": name, **record(judgement)}),
    )


def table(rows: Sequence[str], language: str, closed: bool = True) -> str:
    """Show rows as a sortable table. Left open while it grows: then Gradio sends only what is new."""
    start, end = render("table.html", language, rows="\0").split("\0")
    return start + "".join(rows) + (end if closed else "")


def thumb(judgement: Judgement, side: int) -> str | None:
    """Make a small picture, with its heat map where there is one."""
    finding = judgement.finding
    if finding.image is None:
        return None
    small = finding.image.copy()
    small.thumbnail((side, side))
    if finding.heat_map is not None:
        small = Image.blend(small.convert("RGB"), overlay(small, finding.heat_map), SMALL_HEAT)
    return data_uri(small, side)


@dataclass(frozen=True)
class Slice:
    """What the page keeps of one slice."""

    number: int
    decision: str
    probability: float | None
    reasons: Sequence[str]
    tile: str | None

    @classmethod
    def of(cls, number: int, judgement: Judgement, language: str, among: int) -> "Slice":
        """Make one of `among` slices; pictures of a long series are small, as all are sent to the page."""
        probability, side = judgement.finding.probability, TILE if among <= MANY else THUMB
        return cls(
            number, judgement.decision, probability, reasons(judgement, language), thumb(judgement, side)
        )


def series(seen: Sequence[Slice], language: str, **whole: Any) -> str:
    """Render the most suspicious slices and all slices in order, with the whole answer where there is one."""
    judged = sorted((one for one in seen if one.probability is not None), key=lambda one: -one.probability)
    positive = sum(one.decision == "positive" for one in judged)
    told = {"number": None, "found": None, "notes": [], "why": [], "figures": "", "picture": None, **whole}
    return render(
        "series.html", language, seen=seen, judged=judged, positive=positive, first=judged[:FIRST], **told
    )


def whole(number: int, found: SeriesFinding, seen: Sequence[Slice], language: str) -> str:
    """Render a series with its answer, the notes from its files, and the picture along the body."""
    picture = None
    if found.judged:
        stream = io.BytesIO()
        found.picture().save(stream, "JPEG", quality=85)
        picture = "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
    return series(
        seen,
        language,
        number=number,
        found=found,
        notes=[said(note, language) for note in found.notes],
        why=[said(reason, language) for reason in found.reasons],
        figures=series_figures(found, language),
        picture=picture,
    )


def series_figures(found: SeriesFinding, language: str) -> str:
    """Say how often the rule for a series is right on patients; empty where it gave no answer."""
    if found.probability is None or not found.measured:
        return ""
    sensitivity, specificity = found.measured["sensitivity"], found.measured["specificity"]
    return texts.teller(language)(
        "series_measured",
        found=math.floor(round(sensitivity["value"] * 100, 6)),
        flagged=math.ceil(round((1 - specificity["value"]) * 100, 6)),
        n=sensitivity["n"] + specificity["n"],
    )


def series_record(found: SeriesFinding) -> dict[str, Any]:
    """Make a record of a series for programs, with the reasons in the words of the page."""
    return {
        **found.to_dict(),
        "reasons": [said(reason, "en") for reason in found.reasons],
        "notes": [said(note, "en") for note in found.notes],
    }


def evaluation(screener: Screener) -> dict[str, Any] | None:
    """Read every measured figure of a model, as the file beside its weights has them; None where it has no such."""
    found = _evaluation_in(screener.path)
    return (
        found if found and found.get("weights_sha256") == screener.screening.get("weights_sha256") else None
    )


_evaluation_in = cache(read_evaluation)


def model(screener: Screener, language: str) -> str:
    """Render the operating points, measured figures, audits and plots of a model."""
    measured = evaluation(screener) or {}
    splits = {"split_test": measured.get("test"), "split_validation": measured.get("validation")}
    audits = {key: measured.get(key) for key in ("audits", "guard")}
    return render(
        "model.html",
        language,
        identity=identity(screener, language),
        points={name: figures(screener, name, language) for name in screener.operating_points},
        thresholds={name: point["threshold"] for name, point in screener.operating_points.items()},
        splits={title: part for title, part in splits.items() if part},
        rows=POINT_MEASURES,
        overall=OVERALL_MEASURES,
        sources=measured.get("test_by_source") or {},
        audits=list(measures(audits)),
        plots=plots(screener),
    )


def measures(part: Any, under: tuple[str, ...] = ()) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield every record in nested dicts and lists, with its place: ("guard, caught, noise: caught", record)."""
    if isinstance(part, Mapping):
        if "metric" in part and "value" in part:
            place = under[:-1] if under and under[-1] == part["metric"] else under
            name = ", ".join(place) + (": " if place else "") + str(part["metric"])
            yield name.replace("_", " "), part
            return
        for name, inner in part.items():
            yield from measures(inner, (*under, str(name)))
    elif isinstance(part, list):
        for inner in part:
            yield from measures(inner, under)


def plots(screener: Screener) -> dict[str, str]:
    """List the pictures of the figures, by name."""
    found = sorted((screener.path / "plots").glob("*.png"))
    return {
        path.stem.replace("_", " "): "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
        for path in found
    }


def card(screener: Screener) -> str:
    """Give the model card's Markdown, without its front matter and its pictures, which are shown beside it."""
    path = screener.path / "README.md"
    if not path.is_file():
        return ""
    body = re.sub(r"\A---\n.*?\n---\n", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.sub(r"!\[[^\]]*\]\([^)]*\)", "", body)


def code(address: str | None, mcp: bool, language: str) -> str:
    """Render the snippets, with the address of the page they stand on."""
    address = (address or "http://127.0.0.1:7860").rstrip("/")
    folder = Path(__file__).parent / "snippets"
    snippets = {name: (folder / name).read_text(encoding="utf-8") for name in SNIPPETS}
    return render(
        "code.html",
        language,
        snippets={
            name: text.replace("http://127.0.0.1:7860", address).strip() for name, text in snippets.items()
        },
        headings=SNIPPETS,
        address=address,
        mcp=mcp,
    )


def header(language: str) -> str:
    return render("header.html", language, names=texts.NAMES)


def static_texts(examples: Mapping[str, Path], **values: object) -> dict[str, dict[str, str]]:
    """Collect texts for `gr.I18n`, by language: all that `values` can fill, and the fixed parts of the page."""
    pictures = {name: data_uri(read_image(path), THUMB) for name, path in examples.items()}
    return {language: _named(language, pictures, values) for language in texts.NAMES}


def _named(language: str, pictures: Mapping[str, str], values: Mapping[str, object]) -> dict[str, str]:
    table = texts.TEXTS[language]
    found = {
        key: text.format(**values) for key, text in table.items() if texts.placeholders(text) <= values.keys()
    }
    for name in set(EMBEDDED) - set(MODALITIES):
        modality, _, network = name.partition("-")
        found[name] = f"{table[modality]}, {network}"
    found["header"] = header(language)
    found["waiting_message"] = message(table["waiting"], language)
    labels = {name: example_label(name, language) for name in pictures}
    found["example_buttons"] = render("examples.html", language, examples=pictures, labels=labels)
    # the last is a word of Gradio's own that it lacks in every language: the name of the button that adds files
    return {**{PREFIX + key: text for key, text in found.items()}, "common.upload": table["add_files"]}


def example_label(name: str, language: str) -> str:
    """Name the example ``phantom_ct_1`` or ``drawn_hand_refused``."""
    say = texts.teller(language)
    kind = next((kind for kind in MODALITIES if f"_{kind}_" in name), None)
    return f"{say(kind)} {name.rpartition('_')[2]}" if kind else say("example_refused")


def theme() -> gr.themes.Base:
    """Make the theme: calm slate and teal from the visitor's own fonts; nothing is fetched."""
    return gr.themes.Base(
        primary_hue="teal",
        secondary_hue="slate",
        neutral_hue="slate",
        radius_size="md",
        font=["system-ui", "Segoe UI", "Roboto", "Noto Sans", "Arial", "sans-serif"],
        font_mono=["ui-monospace", "Consolas", "monospace"],
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color="*neutral_900",
        body_text_color_dark="*neutral_100",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        block_title_text_color="*neutral_800",
        block_title_text_color_dark="*neutral_100",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_800",
        button_primary_text_color="white",
        checkbox_label_background_fill_selected="*primary_700",
        checkbox_label_background_fill_selected_dark="*primary_700",
        checkbox_label_text_color_selected="white",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        color_accent="*primary_700",
        color_accent_soft="*primary_50",
        **{f"link_text_color{state}": "*primary_700" for state in LINK_STATES},
        **{f"link_text_color{state}_dark": "*primary_300" for state in LINK_STATES},
    )
