"""What the pictures say of the model: every figure of `check.json`, from judged cases.

The order is that of a reader who has one minute: what must be said first, the verdict with its limits, then the figures
beside what the model promised, then by groups, then what moves the answers, and what remains open.
"""

import datetime
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from .. import __version__, hub_folder
from ..decision import INCONCLUSIVE, decide
from ..images import read_image
from ..refused import Refused
from ..screener import Screener
from . import harmless
from .cases import Case, Material
from .checklist import checklist
from .comparing import chance_of_calibration, difference, in_words
from .copies import ROLES
from .files import read_bytes
from .groups import groupings
from .metrics import ECE_BINS, at_threshold, family_weights, figures, mean, record

FORMAT = 1
FEWEST = 10
"""Patients of each label below which no figure is computed: an interval over fewer says nothing."""
FEW = 30
"""Patients of a label below which a figure carries a warning."""
CHANGED = 40
"""Pictures on which harmless changes are tried by default."""
BETTER_THAN_NOTHING = 0.5
"""AUROC of a coin."""
NOT_BETTER, USABLE, NONE = "not better than chance", "usable for research with these limits", "no verdict"
COMPARED = {
    "auroc": ("AUROC", True), "brier": ("Brier score", False), "ece": ("Calibration error", False),
    "sensitivity": ("Sensitivity", True), "specificity": ("Specificity", True),
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What is looked at.

    Attributes:
        by: columns to group figures by, besides those that are used wherever pictures have values for them.
        changes: pictures on which harmless changes are tried at most; 0 for none.
        prevalence: share of COVID-19 among those who would be screened, for predictive values; None for none.
        seed: of the bootstrap and of the draws.
    """

    by: tuple[str, ...] = ()
    changes: int = CHANGED
    prevalence: float | None = None
    seed: int = 0


def examine(
    material: Material,
    screener: Screener,
    settings: Settings | None = None,
    watch: Callable[[str], None] = lambda step: None,
) -> dict[str, Any]:
    """Work out the report.

    Args:
        material: judged pictures.
        screener: the model that judged them.
        settings: what is looked at.
        watch: called with the name of each step.

    Returns:
        The contents of ``check.json``; see ``check.schema.json``.

    Raises:
        Refused: only one class, or too few patients of one, was left to compute figures from; or no picture has a value
            in a column to sort by.
    """
    settings = settings or Settings()
    cases, memory = _independent(material)
    _check_enough(material, cases, screener)
    watch("figures")
    points = screener.operating_points
    card = _card(screener)
    measured = _figures(cases, points, settings)
    by = groupings(cases, settings.by)
    groups = {name: _by_group(cases, values, points, settings.seed) for name, values in by.items()}
    changes = None
    if settings.changes:
        watch("harmless changes")
        changes = _changes(cases, screener, settings)
    against = _against_card(measured, card, cases)
    told = {
        "format": FORMAT,
        "made": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "covid_xct": __version__,
        "model": _model(screener),
        "data": _data(material, cases, memory),
        "refused": _refusals(material),
        "figures": measured,
        "card": card,
        "against_card": against,
        "promises": _promises(measured, points),
        "groups": groups,
        "changes": changes,
        "copies": _copies(material),
        "prevalence": _at_prevalence(cases, points, settings) if settings.prevalence else None,
    }
    told["first"] = _first(told, memory)
    told["verdict"] = _verdict(told, memory)
    told["checklist"] = checklist(told)
    return told


def _independent(material: Material) -> tuple[list[Case], bool]:
    """Return the pictures to compute figures from, and whether they are the model's own.

    Copies of training pictures count only where hardly anything else is left.
    """
    judged = material.counted
    own = [case for case in judged if case.seen in ROLES[:2]]
    rest = [case for case in judged if case.seen not in ROLES[:2]]
    if _enough(rest) or not own:
        return rest, False
    return judged, True


def _patients(cases: Sequence[Case]) -> dict[int, int]:
    return {label: len({case.family for case in cases if case.label == label}) for label in (0, 1)}


def _enough(cases: Sequence[Case]) -> bool:
    return min(_patients(cases).values()) >= FEWEST


def _check_enough(material: Material, cases: Sequence[Case], screener: Screener) -> None:
    """Refuse to compute figures from too few pictures.

    Raises:
        Refused: with the reason that matters most.
    """
    countable = [case for case in material.cases if case.left_out is None]
    labels = {case.label for case in material.cases}
    if len(labels) == 1:
        raise Refused(
            f"All {len(material.cases):,} pictures are labelled {hub_folder.LABELS[labels.pop()]}. Sensitivity needs "
            "pictures with COVID-19 and specificity pictures without; add a folder of the other class."
        )
    if countable and not material.counted:
        codes = Counter(case.code for case in countable)
        raise Refused(
            f"All {len(countable):,} pictures were refused ({_counted(codes)}), so there is nothing to check. The "
            "model "
            f"reads {'frontal chest X-rays' if screener.modality == 'xray' else 'axial chest CT slices'}; check "
            "--model, and look at one picture: `covid-xct score PICTURE`."
        )
    if not _enough(cases):
        left = _patients(cases)
        raise Refused(
            f"Of {len(material.cases):,} pictures {len(cases):,} were judged, of {left[1]} patients with COVID-19 and "
            f"{left[0]} without; at least {FEWEST} of each are needed, as no interval over fewer says anything. "
            "`covid-xct check --plan` says how many a useful interval takes."
        )


def _counted(codes: Mapping[str, int]) -> str:
    return ", ".join(f"{code}: {count:,}" for code, count in Counter(codes).most_common())


def _arrays(cases: Sequence[Case]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return labels, probabilities and families, (n,) each."""
    return (
        np.array([case.label for case in cases]),
        np.array([case.probability for case in cases], float),
        np.array([case.family for case in cases]),
    )


def _figures(cases: Sequence[Case], points: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    labels, probabilities, families = _arrays(cases)
    thresholds = {name: point["threshold"] for name, point in points.items()}
    told = figures(labels, probabilities, families, thresholds, settings.seed)
    for name, point in points.items():
        told["at"][name]["inconclusive"] = sum(
            decide(float(p), point)[0] == INCONCLUSIVE for p in probabilities
        )
    told["calibration"] = {
        **chance_of_calibration(probabilities, told["ece"]["value"], ECE_BINS, settings.seed),
        "mean_probability": round(float(probabilities.mean()), 6),
        "observed_share": round(float(labels.mean()), 6),
        "bins": _reliability(labels, probabilities),
    }
    told["curve"] = _curve(labels, probabilities)
    return told


def _reliability(labels: np.ndarray, probabilities: np.ndarray, bins: int = 8) -> list[dict[str, float]]:
    """Compute the mean probability and the observed share in bins of equal count."""
    order = np.argsort(probabilities, kind="stable")
    parts = np.array_split(order, min(bins, max(1, len(order) // 5)))
    return [
        {
            "probability": round(float(probabilities[part].mean()), 4),
            "share": round(float(labels[part].mean()), 4),
            "n": len(part),
        }
        for part in parts
    ]


def _curve(labels: np.ndarray, probabilities: np.ndarray, most: int = 200) -> list[list[float]]:
    """Compute points of the ROC curve, 1 - specificity and sensitivity; at most `most` of them."""
    order = np.argsort(-probabilities, kind="stable")
    last = np.flatnonzero(np.r_[np.diff(probabilities[order]) != 0, True])
    true, false = np.cumsum(labels[order])[last], np.cumsum(1 - labels[order])[last]
    curve = np.column_stack([false / max(false[-1], 1), true / max(true[-1], 1)])
    curve = np.r_[[[0.0, 0.0]], curve]
    chosen = np.unique(np.linspace(0, len(curve) - 1, most).round().astype(int))
    return curve[chosen].round(4).tolist()


def _by_group(
    cases: Sequence[Case], values: np.ndarray, points: Mapping[str, Any], seed: int
) -> list[dict[str, Any]]:
    """Compute the figures of every group of one column, the largest first, and how each differs from all others."""
    labels, probabilities, families = _arrays(cases)
    rows = []
    for value, count in Counter(values.tolist()).most_common():
        inside = values == value
        patients = {label: len(set(families[inside & (labels == label)])) for label in (0, 1)}
        row: dict[str, Any] = {
            "value": str(value),
            "n": count,
            "patients": {"covid": patients[1], "others": patients[0]},
        }
        row["auroc"] = _auroc(labels[inside], probabilities[inside], families[inside], seed)
        row["at"] = {
            name: {
                figure: mean(
                    figure, right[inside & (labels == label)], families[inside & (labels == label)], seed
                )
                for figure, label in (("sensitivity", 1), ("specificity", 0))
            }
            for name, point in points.items()
            for right in [(probabilities >= point["threshold"]) == (labels == 1)]
        }
        row["warning"] = _small(patients)
        row["differs"] = _differs(inside, labels, probabilities, families, points, seed)
        rows.append(row)
    return rows


def _auroc(
    labels: np.ndarray, probabilities: np.ndarray, families: np.ndarray, seed: int
) -> dict[str, Any] | None:
    if len(set(labels)) < 2:
        return None
    return figures(labels, probabilities, families, {}, seed)["auroc"]


def _small(patients: Mapping[int, int]) -> str | None:
    few = [
        f"{patients[label]} {word}"
        for label, word in ((1, "with COVID-19"), (0, "without"))
        if patients[label] < FEW
    ]
    if not few:
        return None
    return f"too small to judge: {' and '.join(few)} (patients; {FEW} are the least)"


def _differs(
    inside: np.ndarray,
    labels: np.ndarray,
    probabilities: np.ndarray,
    families: np.ndarray,
    points: Mapping[str, Any],
    seed: int,
) -> list[str]:
    """Say in words how a group differs from all others by more than chance, at the first operating point."""
    name, point = next(iter(points.items()))
    right = (probabilities >= point["threshold"]) == (labels == 1)
    said = []
    for figure, label in (("sensitivity", 1), ("specificity", 0)):
        ours, theirs = (mask & (labels == label) for mask in (inside, ~inside))
        if min(len(set(families[mask])) for mask in (ours, theirs)) < FEWEST:
            continue
        found = difference(*(mean(figure, right[mask], families[mask], seed) for mask in (ours, theirs)))
        if found["more_than_chance"]:
            said.append(in_words(f"{figure} at {name}", found, than="in all others"))
    return said


def _changes(cases: Sequence[Case], screener: Screener, settings: Settings) -> dict[str, Any]:
    """Try the harmless changes on a few of the pictures."""
    labels, _, families = _arrays(cases)
    chosen = harmless.spread(labels, families, settings.changes, settings.seed)
    images = [
        read_image(read_bytes(cases[place].ref), modality=screener.modality) for place in chosen.tolist()
    ]

    def answers(pictures: list[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
        found = [finding.probability for finding in screener.screen_many(pictures, keep_images=False)]
        return np.array(found, float), np.array([probability is not None for probability in found])

    rows = harmless.measure_changes(
        answers, images, labels[chosen], families[chosen], screener.operating_points,
        harmless.changes_for(screener.folder), settings.seed,
    )  # fmt: skip
    return {"pictures": len(images), "families": len(set(families[chosen])), "of": len(cases), "rows": rows}


def _card(screener: Screener) -> dict[str, Any] | None:
    """Read the compared figures of the model's own evaluation; None where these weights were never evaluated."""
    evaluation = hub_folder.read_evaluation(screener.path)
    test = evaluation.get("test") or {}
    if evaluation.get("weights_sha256") != screener.screening.get("weights_sha256") or "auroc" not in test:
        return None
    told = {name: test.get(name) for name in ("auroc", "brier", "ece")}
    told["at"] = {
        name: {key: row[key] for key in ("sensitivity", "specificity")} for name, row in test["at"].items()
    }
    refused = (evaluation.get("guard") or {}).get("false_refusals")
    return {**told, "n": test.get("n"), "positives": test.get("positives"), "families": test.get("families"),
            "refused": refused}  # fmt: skip


def _against_card(
    measured: Mapping[str, Any], card: Mapping[str, Any] | None, cases: Sequence[Case]
) -> list[dict]:
    """List every figure that the card has too: ours, theirs, their difference, and the difference in words."""
    if card is None:
        return []
    pairs = [(None, name, measured[name], card[name]) for name in ("auroc", "brier", "ece")]
    pairs += [
        (point, name, row[name], card["at"][point][name])
        for point, row in measured["at"].items()
        if point in card["at"]
        for name in ("sensitivity", "specificity")
    ]
    rows = []
    for point, name, ours, theirs in pairs:
        if not theirs:
            continue
        label, more = COMPARED[name]
        found = difference(ours, theirs)
        where = f"{label} at {point}" if point else label
        words = in_words(where, found, more)
        if (
            name == "ece"
        ):  # an error over bins is larger on fewer pictures, however good the probabilities are
            found["more_than_chance"] = False
            words = f"{where}: larger on fewer pictures by itself; compared with chance instead, below."
        row = {
            "point": point,
            "figure": name,
            "here": ours,
            "card": theirs,
            "difference": found,
            "words": words,
        }
        rows.append(row)
    return rows


def _promises(measured: Mapping[str, Any], points: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Say whether each operating point keeps here what it was chosen for."""
    rows = []
    for name, point in points.items():
        told = point.get("promise")
        if not told:
            continue
        here, least = measured["at"][name][told["figure"]], told["at_least"]
        if here["high"] is not None and here["high"] < least:
            state, words = "broken", f"is broken here: at most {here['high']:.2f}"
        elif here["low"] is not None and here["low"] >= least:
            state, words = "kept", f"is kept here: at least {here['low']:.2f}"
        else:
            state, words = "open", "is neither kept nor broken for sure by so few pictures"
        sentence = f"{name}: {told['figure']} of at least {least:.2f} {words}."
        if not told.get("holds"):
            sentence += " The model itself promised none: too few patients in its own validation."
        row = {"point": name, "figure": told["figure"], "at_least": least, "here": here, "state": state}
        rows.append({**row, "held_in_training": bool(told.get("holds")), "words": sentence})
    return rows


def _at_prevalence(cases: Sequence[Case], points: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """Compute the predictive values at a prevalence, with intervals."""
    labels, probabilities, families = _arrays(cases)
    weights = family_weights(families, seed=settings.seed)
    rows = {}
    for name, point in points.items():
        value = at_threshold(labels, probabilities, point["threshold"], prevalence=settings.prevalence)
        samples = at_threshold(labels, probabilities, point["threshold"], weights, settings.prevalence)
        rows[name] = {
            figure: record(figure, float(value[figure]), samples[figure], len(labels), len(set(families)))
            for figure in ("ppv", "npv")
        }
    return {"prevalence": settings.prevalence, "at": rows}


def _model(screener: Screener) -> dict[str, Any]:
    provenance = screener.screening.get("provenance") or {}
    return {
        "name": screener.path.name,
        "modality": screener.modality,
        "architecture": screener.config["architecture"],
        "weights_sha256": screener.screening.get("weights_sha256"),
        "trained_on": provenance.get("data_sha256"),
        "site": screener.site.summary() if screener.site else None,
        "operating_points": {
            name: {"threshold": point["threshold"], "target": point.get("target")}
            for name, point in screener.operating_points.items()
        },
    }


def _data(material: Material, cases: Sequence[Case], memory: bool) -> dict[str, Any]:
    counted = material.counted
    seen = Counter(case.seen for case in counted if case.seen)
    return {
        "sha256": material.sha256(),
        "files": len(material.cases) + sum(material.skipped.values()),
        "skipped": dict(material.skipped.most_common()),
        "labelled": len(material.cases),
        "left_out": dict(Counter(case.left_out for case in material.cases if case.left_out).most_common()),
        "judged": len(counted),
        "counted": len(cases),
        "covid": sum(case.label for case in cases),
        "others": sum(1 - case.label for case in cases),
        "families": len({case.family for case in cases}),
        "patients_known": material.patients,
        "sources": dict(Counter(case.source for case in cases).most_common()),
        "seen": {role: seen.get(role, 0) for role in ROLES},
        "seen_known": material.seen_known,
        "seen_counted": memory,
    }


def _refusals(material: Material) -> dict[str, Any]:
    """Count how many were refused, why, and say whether one label is refused more often than the other."""
    countable = [case for case in material.cases if case.left_out is None]
    families = np.array([case.family for case in countable])
    labels = np.array([case.label for case in countable])
    refused = np.array([case.code is not None for case in countable])
    rows: dict[str, dict[str, Any]] = defaultdict(lambda: {"count": 0, "covid": 0})
    for case in countable:
        if case.code is not None:
            row = rows[case.code]
            row["count"] += 1
            row["covid"] += case.label
            row.setdefault("words", _shortest(case.reason or ""))
    by_label = {
        name: mean("refused", refused[labels == index], families[labels == index])
        for index, name in enumerate(hub_folder.LABELS)
    }
    found = difference(by_label[hub_folder.LABELS[1]], by_label[hub_folder.LABELS[0]])
    return {
        "share": mean("refused", refused, families),
        "by_label": by_label,
        "difference": found,
        "reasons": [
            {"code": code, **row} for code, row in sorted(rows.items(), key=lambda item: -item[1]["count"])
        ],
    }


def _shortest(reason: str) -> str:
    """Return the first sentence of a refusal, without what differs from picture to picture."""
    first = reason.split(". ")[0].rstrip(".")
    return first.split(" (")[0] + "."


def _copies(material: Material) -> dict[str, Any]:
    """Count copies among the pictures, patients with several, and copies under both labels."""
    families = Counter(case.family for case in material.cases if case.hashes)
    exact = Counter(case.hashes.exact for case in material.cases if case.hashes)
    by_family = defaultdict(set)
    for case in material.cases:
        if case.hashes and case.left_out is None:
            by_family[case.family].add(case.label)
    return {
        "identical": sum(count - 1 for count in exact.values()),
        "look_alike_pairs": len(material.alike),
        "patients_with_several": sum(count > 1 for count in families.values()),
        "largest_family": max(families.values(), default=0),
        "contradictory": sum(
            case.left_out is not None and "both labels" in case.left_out for case in material.cases
        ),
        "patients_with_both_labels": sum(len(labels) > 1 for labels in by_family.values()),
    }


def _first(told: Mapping[str, Any], memory: bool) -> list[str]:
    """List what must be said before any figure."""
    data, said = told["data"], []
    own = data["seen"]["train"] + data["seen"]["validation"]
    if own and memory:
        said.append(
            f"{own:,} of these {data['judged']:,} pictures are copies of pictures that the model was trained or "
            "calibrated "
            "on. The figures below measure its memory and say nothing of your hospital."
        )
    elif own:
        said.append(
            f"{own:,} pictures are copies of pictures that the model was trained or calibrated on; they do not "
            "count below."
        )
    if data["seen"]["test"]:
        said.append(
            f"{data['seen']['test']:,} pictures are copies of pictures that the model's own card was measured on: "
            "agreement "
            "with the card is no news for them."
        )
    if told["copies"]["contradictory"]:
        said.append(
            f"{told['copies']['contradictory']:,} pictures are copies of each other under both labels. At least one "
            "label "
            "of each pair is wrong; none of them counts. Look at the labels before the figures."
        )
    if not data["patients_known"]:
        said.append(
            "Nothing says which pictures are of one patient, so every picture counts as one, and the intervals are too "
            "narrow if there are several of a patient. Give a table with a column patient_id."
        )
    if told["refused"]["difference"]["more_than_chance"]:
        said.append(
            "Pictures of one label are refused more often than those of the other: the figures hold for what is left."
        )
    return said


def _verdict(told: Mapping[str, Any], memory: bool) -> dict[str, Any]:
    """Give the verdict in plain words, and its limits; it is never better than `USABLE`."""
    if memory:
        return {
            "word": NONE,
            "limits": [],
            "sentence": "No verdict: these are the model's own training pictures.",
        }
    auroc = told["figures"]["auroc"]
    if auroc["low"] is None or auroc["low"] <= BETTER_THAN_NOTHING:
        return {
            "word": NOT_BETTER,
            "sentence": f"On these pictures the model is not better than chance: AUROC {_span(auroc)}.",
            "limits": ["Do not use it here, not for research either, before the reason is known."],
        }
    return {
        "word": USABLE,
        "sentence": f"Better than chance on these pictures: AUROC {_span(auroc)}. Usable for research with these "
        "limits:",
        "limits": _limits(told),
    }


def _limits(told: Mapping[str, Any]) -> list[str]:
    measured, said = told["figures"], []
    for name, row in measured["at"].items():
        said.append(
            f"At {name} it finds {_span(row['sensitivity'])} of those with COVID-19 and calls "
            f"{_span(row['specificity'])} of the others negative."
        )
    said += [row["words"] for row in told["promises"] if row["state"] == "broken"]
    said += [row["words"] for row in told["against_card"] if row["difference"]["more_than_chance"]]
    if measured["calibration"]["more_than_chance"]:
        said.append(
            f"Its probabilities are off by {measured['ece']['value']:.2f} on average, more than chance explains "
            f"({measured['calibration']['high']:.2f}): do not read them as probabilities here. "
            "covid-xct check --adapt fits them."
        )
    said.append(
        f"It refused {100 * (told['refused']['share']['value'] or 0):.0f} % of the pictures; nothing is known of those."
    )
    for column, rows in told["groups"].items():
        said += [f"By {column}, {row['value']}: {words}" for row in rows for words in row["differs"]]
    if told["changes"]:
        for row in told["changes"]["rows"]:
            for point, flips in row["flips"].items():
                if flips["low"] is not None and flips["low"] > row["limit"]:
                    said.append(
                        f"At {point}, “{row['change']}” flips {_span(flips)} of the answers; {row['limit']:.0%} is "
                        "accepted."
                    )
    small = _patients_small(measured)
    return said + small + ["It was not tested as part of anybody's care, and is no medical device."]


def _patients_small(measured: Mapping[str, Any]) -> list[str]:
    if min(measured["positives"], measured["n"] - measured["positives"]) >= FEW * 3:
        return []
    return [
        f"There are few pictures ({measured['positives']:,} with COVID-19 of {measured['n']:,}); the intervals say "
        "how few."
    ]


def _span(figure: Mapping[str, Any]) -> str:
    """Spell a record with its interval, to two decimals."""
    if figure["value"] is None:
        return "not defined"
    return (
        f"{figure['value']:.2f} ({figure['low']:.2f} to {figure['high']:.2f})"
        if figure["low"] is not None
        else (f"{figure['value']:.2f}")
    )
