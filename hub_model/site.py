"""Local settings of a model: calibration and operating points that were fitted on a hospital's own pictures.

``covid-xct check --adapt`` writes them into a ``site.json``. It holds for one model, is sealed by a hash of its own
contents, and refused where it was changed since, comes from the future or belongs to other weights. The seal finds
mistakes, not forgers: whoever may write the file may write another.
"""

import datetime
import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .hub_folder import HubFolder, read_evaluation
from .layout import (
    MODALITIES,
    POINT_RULES,
    Each,
    an_object,
    is_number,
    loads,
    number,
    one_of,
    problem,
    sha256_digits,
    text,
)
from .refused import Refused

FORMAT = 1
SEAL = "seal"
MAX_BYTES = 4 << 20
ADAPT = "Make it anew: `covid-xct check DATA --model MODEL --adapt --out FOLDER`."
RULES = {
    "format": number(1),
    "made": text,
    "model": {"modality": one_of(*MODALITIES), "architecture": text, "weights_sha256": sha256_digits},
    "data": {
        "sha256": sha256_digits,
        "pictures": number(1),
        "families": number(1),
        "prevalence": number(0, 1),
    },
    "temperature": number(1e-6, 1e6),
    "bias": number(-1e6, 1e6),
    "operating_points": Each(an_object),
    "figures": an_object,
    SEAL: sha256_digits,
}


class SiteRefused(Refused):
    """Local settings that are damaged, were changed, or are not for this model."""


@dataclass(frozen=True)
class Site:
    """Local settings.

    Attributes:
        temperature, bias: log-odds of the model become log-odds / temperature + bias.
        operating_points: as in ``screening.json``.
        prevalence: share of COVID-19 among the pictures that they were fitted on.
        weights_sha256: of the model that they are for.
        modality: of that model.
        data_sha256: of the pictures and labels.
        made: the day, as YYYY-MM-DD.
        seal: SHA-256 of the contents.
    """

    temperature: float
    bias: float
    operating_points: dict[str, dict[str, Any]]
    prevalence: float
    weights_sha256: str
    modality: str
    data_sha256: str
    made: str
    seal: str

    def log_odds(self, log_odds: np.ndarray) -> np.ndarray:
        """Calibrate log-odds (n,) of the model anew."""
        return log_odds / self.temperature + self.bias

    @property
    def name(self) -> str:
        """What a finding calls these settings: the day, and the first digits of the seal."""
        return f"{self.made} {self.seal[:12]}"

    def summary(self) -> dict[str, Any]:
        """Return these settings as a report shows them."""
        return {"name": self.name, "made": self.made, "data_sha256": self.data_sha256, "seal": self.seal,
                "temperature": self.temperature, "bias": self.bias, "prevalence": self.prevalence}  # fmt: skip

    def check(self, folder: HubFolder) -> "Site":
        """Return these settings if they are for this model.

        Raises:
            SiteRefused: they are for other weights.
        """
        weights = folder.screening.get("weights_sha256")
        if weights != self.weights_sha256:
            raise SiteRefused(
                f"These local settings of {self.made} are for another model (weights {self.weights_sha256[:12]}, "
                f"{self.modality}) than {folder.path.name} (weights {(weights or 'unknown')[:12]}, {folder.modality}). "
                f"Thresholds of one model mean nothing to another. {ADAPT}"
            )
        return self


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Add the seal to the contents of a ``site.json``."""
    plain = {key: value for key, value in content.items() if key != SEAL}
    line = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return {**plain, SEAL: hashlib.sha256(line.encode()).hexdigest()}


def read_site(path: str | os.PathLike) -> Site:
    """Read local settings and check them; `Site.check` says whether they are for a model.

    Raises:
        SiteRefused: unreadable, of another layout, changed since it was written, or from the future.
    """
    path = Path(path)
    content = _contents(path)
    if is_number(content.get("format")) and content["format"] > FORMAT:
        raise SiteRefused(
            f"{path} has format {content['format']:g}; this version reads {FORMAT}. It comes from a newer covid-xct: "
            "update this one."
        )
    found = problem(content, RULES) or problem(content["operating_points"], POINT_RULES, "operating_points")
    if found or not content["operating_points"]:
        raise SiteRefused(
            f"{path} has {found or 'no operating point'}; it is no file of local settings. {ADAPT}"
        )
    if sealed(content)[SEAL] != content[SEAL]:
        raise SiteRefused(
            f"{path} was changed after it was written: its contents and its seal differ. Numbers set by hand were "
            f"measured by nobody. {ADAPT}"
        )
    _check_day(path, content["made"])
    return Site(
        temperature=content["temperature"],
        bias=content["bias"],
        operating_points=content["operating_points"],
        prevalence=content["data"]["prevalence"],
        weights_sha256=content["model"]["weights_sha256"],
        modality=content["model"]["modality"],
        data_sha256=content["data"]["sha256"],
        made=content["made"],
        seal=content[SEAL],
    )


def _contents(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES >> 20} MiB")
        content = loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SiteRefused(f"There is no file {path} with local settings. {ADAPT}") from None
    except (OSError, ValueError) as error:
        raise SiteRefused(f"{path} cannot be read as local settings ({error}). {ADAPT}") from error
    if not isinstance(content, dict):
        raise SiteRefused(f"{path} holds no object; it is no file of local settings. {ADAPT}")
    return content


def _check_day(path: Path, made: str) -> None:
    try:
        day = datetime.date.fromisoformat(made)
    except ValueError as error:
        raise SiteRefused(f"{path} was made on {made!r}, which is no day (YYYY-MM-DD). {ADAPT}") from error
    today = datetime.datetime.now(datetime.UTC).date()
    if day > today + datetime.timedelta(days=1):  # somewhere it is tomorrow already
        raise SiteRefused(
            f"{path} says that it was made on {made}, and today is {today.isoformat()}. Set this machine's clock, or "
            "make the file anew."
        )


def fitted_prevalence(folder: HubFolder, site: Site | None) -> float:
    """Return the share of COVID-19 among the pictures that a model's probabilities were fitted on.

    Raises:
        SiteRefused: nothing says it.
    """
    if site is not None:
        return site.prevalence
    told = read_evaluation(folder.path).get("validation") or {}
    positives, n = told.get("positives"), told.get("n")
    if not (is_number(positives) and is_number(n) and 0 < positives < n):
        raise SiteRefused(
            f"{folder.path.name} does not say how common COVID-19 was among the pictures that its probabilities were "
            "fitted on, so they cannot be carried over to another prevalence. Leave the prevalence out, or give local "
            "settings (site)."
        )
    return positives / n


def shift(prevalence: float, fitted: float) -> float:
    """Compute what to add to log-odds fitted at one prevalence to have them at another, by Bayes' theorem.

    It holds where the pictures of each class look as they did (Saerens, Latinne & Decaestecker, Neural Computation 14,
    2002, 21-41); only the share of the classes may differ.

    Raises:
        SiteRefused: a prevalence that is no number between 0 and 1.
    """
    for value in (prevalence, fitted):
        if not (is_number(value) and 0 < value < 1):
            raise SiteRefused(f"A prevalence is a number between 0 and 1, as 0.05; got {value!r}.")
    return math.log(prevalence / (1 - prevalence)) - math.log(fitted / (1 - fitted))
