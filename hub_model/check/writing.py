"""The files of a check: the page, ``check.json``, predictions for further tools, the worst errors with heat maps.

The predictions come in the form that seismometer reads (github.com/epic-open-source/seismometer, 0.5): a table of
predictions, a table of events, a dictionary of the columns of each, and the two files that say where they are and how
to use them. YAML files are written as JSON, which every reader of YAML takes.
"""

import csv
import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..decision import decide
from ..heatmap import overlay
from ..hub_folder import LABELS
from ..refused import Refused
from ..rows import harmless
from ..screener import Screener
from ..whole import whole_folder
from .cases import Case, Material
from .files import read_bytes
from .groups import groupings
from .page import render

PAGE, FIGURES, SITE, ERRORS = "report.html", "check.json", "site.json", "errors"
PREDICTIONS, EVENTS, REFUSED = "predictions.parquet", "events.parquet", "refused.csv"
CONFIG, USAGE = "config.yml", "usage_config.yml"
DICTIONARIES = {"predictions": "predictions_dictionary.yml", "events": "events_dictionary.yml"}
WORST = 4
"""Worst errors of each label that are shown."""
EVENT = "COVID-19"


def check_place(out: Path) -> Path:
    """Refuse early a place where a report cannot be written; an earlier report may be replaced.

    Raises:
        Refused: something else is there.
    """
    out = Path(out).expanduser()
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / FIGURES).is_file())):
        raise Refused(f"{out}: something else is there. Name a new folder, or that of an earlier check.")
    return out


def write(
    out: Path,
    told: Mapping[str, Any],
    material: Material,
    screener: Screener,
    site: Mapping[str, Any] | None = None,
    by: Sequence[str] = (),
) -> Path:
    """Write everything, whole or not at all.

    Args:
        out: the folder.
        told: the contents of ``check.json``.
        material: the judged pictures.
        screener: who judged them; it draws the heat maps of the worst errors.
        site: contents of a ``site.json``, where local settings were fitted.
        by: columns that figures were grouped by.

    Raises:
        Refused: see `check_place`.
        OSError: the disk is full, or the place cannot be written.
    """
    out = check_place(out)
    with whole_folder(out) as folder:
        (folder / ERRORS).mkdir()
        errors = _write_errors(folder / ERRORS, material.counted, screener)
        (folder / FIGURES).write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", "utf-8")
        (folder / PAGE).write_text(render(told, site, errors), "utf-8")
        if site is not None:
            (folder / SITE).write_text(json.dumps(site, indent=1, ensure_ascii=False) + "\n", "utf-8")
        _write_predictions(folder, material, screener, by)
        _write_refused(folder / REFUSED, material)
    return out


def worst(cases: Sequence[Case]) -> list[Case]:
    """List the lowest-scored pictures with COVID-19, then the highest-scored without."""
    found = []
    for label in (1, 0):
        mine = [case for case in cases if case.label == label]
        found += sorted(mine, key=lambda case: case.probability, reverse=label == 0)[:WORST]
    return found


def _write_errors(folder: Path, cases: Sequence[Case], screener: Screener) -> list[dict[str, Any]]:
    rows = []
    for number, case in enumerate(worst(cases), start=1):
        finding = screener.screen(read_bytes(case.ref), heat_map=True)
        if finding.image is None or finding.heat_map is None:
            continue  # the file has changed meanwhile
        names = {"picture": f"{number}.png", "heat_map": f"{number}-heat.png"}
        finding.image.save(folder / names["picture"])
        overlay(finding.image, finding.heat_map).save(folder / names["heat_map"])
        rows.append({"number": number, "label": LABELS[case.label], "probability": case.probability, **names})
        rows[-1]["file"] = case.path
    with open(folder / "errors.csv", "w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(["number", "file", "label", "probability"])
        table.writerows(
            [row["number"], harmless(row["file"]), row["label"], row["probability"]] for row in rows
        )
    return [{key: value for key, value in row.items() if key != "file"} for row in rows]


def _write_refused(path: Path, material: Material) -> None:
    """Name every picture that was refused or left out, with the reason."""
    with open(path, "w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(["file", "label", "code", "reason"])
        for case in material.cases:
            if case.code or case.left_out:
                told = (case.code or "left_out", case.left_out or case.reason or "")
                table.writerow([harmless(case.path), LABELS[case.label], *told])


# --- predictions for further tools ----------------------------------------------------------------


def columns_of(
    material: Material, screener: Screener, by: Sequence[str] = ()
) -> dict[str, tuple[list, str, str]]:
    """Make the table of predictions: column -> its values, their pandas type, and what they mean.

    What was refused or left out is not in it; `REFUSED` names it.
    """
    cases, points = material.counted, screener.operating_points
    day = datetime.datetime.combine(datetime.datetime.now(datetime.UTC).date(), datetime.time())
    known = "patient" if material.patients else "picture and its copies"
    columns = {
        "Id": ([case.family for case in cases], "object", f"One {known}; a number of this check."),
        "PictureId": ([f"{place:07d}" for place in range(len(cases))], "object", "One picture; a number."),
        "ScoreTime": ([day] * len(cases), "datetime64[ns]", "Day of this check."),
        "Score": ([case.probability for case in cases], "float", "P(COVID-19) of the model, 0 to 1."),
        "OutOfDistribution": ([case.score for case in cases], "float", "How unlike; above 1 refused."),
        "SeenInTraining": ([case.seen for case in cases], "object", "Part of the model's own data that holds a copy."),
        "File": ([case.path for case in cases], "object", "Name of the file within its collection."),
    }  # fmt: skip
    for name, point in points.items():
        decided = [decide(case.probability, point)[0] for case in cases]
        told = f"Decision at the operating point {name}, threshold {point['threshold']:.4f}."
        columns[f"Decision_{name}"] = (decided, "object", told)
    for name, values in groupings(cases, by).items():
        columns[name.capitalize()] = (
            values.tolist(),
            "object",
            f"Group by {name}, as the report tells them apart.",
        )
    return columns


def _write_predictions(folder: Path, material: Material, screener: Screener, by: Sequence[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = columns_of(material, screener, by)
    kinds = {"object": pa.string(), "float": pa.float64(), "datetime64[ns]": pa.timestamp("ns")}
    table = {name: pa.array(values, kinds[kind]) for name, (values, kind, _) in columns.items()}
    pq.write_table(pa.table(table), folder / PREDICTIONS)
    labels = np.array([case.label for case in material.counted], float)
    events = {
        "Id": table["Id"], "PictureId": table["PictureId"], "Type": pa.array([EVENT] * len(labels)),
        "EventTime": table["ScoreTime"], "Value": pa.array(labels),
    }  # fmt: skip
    pq.write_table(pa.table(events), folder / EVENTS)
    dictionary = [
        {"name": name, "dtype": kind, "definition": told} for name, (_, kind, told) in columns.items()
    ]
    _yaml(folder / DICTIONARIES["predictions"], {"predictions": dictionary})
    label = {
        "name": EVENT,
        "dtype": "float",
        "definition": "Label of the picture: 1 COVID-19, 0 not, as the data say.",
    }
    _yaml(folder / DICTIONARIES["events"], {"events": [label]})
    _yaml(folder / CONFIG, {"other_info": {
        "usage_config": USAGE, "prediction_definition": DICTIONARIES["predictions"], "info_dir": ".", "data_dir": ".",
        "event_definition": DICTIONARIES["events"], "prediction_path": PREDICTIONS, "event_path": EVENTS,
    }})  # fmt: skip
    cohorts = [name.capitalize() for name in groupings(material.counted, by)]
    _yaml(folder / USAGE, {"data_usage": {
        "entity_id": "Id", "context_id": "PictureId", "primary_output": "Score", "primary_target": EVENT,
        "predict_time": "ScoreTime", "event_table": {"type": "Type", "time": "EventTime", "value": "Value"},
        "cohorts": [{"source": name} for name in cohorts], "features": [], "outputs": ["Score"],
        "events": [{"source": EVENT, "display_name": EVENT, "usage": "target", "merge_strategy": "first"}],
    }})  # fmt: skip


def _yaml(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
