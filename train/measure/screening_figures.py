"""The figures of a screening test as a module of the ``evaluate`` library.

It computes with the functions of the site check and is what the verb `evaluate` scores with. Elsewhere it loads by
path, offline, as ``evaluate.load("train/measure/screening_figures.py")``, or from the Space that the verb
`publish-metric` makes of it, as ``evaluate.load("ORG/screening_figures")``. Only who imports this file pays for
importing ``evaluate``.
"""

import datasets
import evaluate

from hub_model.check.metrics import at_threshold, figures, threshold_free

DESCRIPTION = """Figures of a binary screening test (AUROC, sensitivity, specificity, calibration error and more), with
intervals that resample families: pictures of one patient, or copies of one original."""
INPUTS = """predictions: P(COVID) in 0..1.
references: 0 (Non-COVID) or 1 (COVID).
thresholds: name -> decision threshold; probabilities at or above it are called COVID. By default {"half": 0.5}.
families: one name a picture. With them every figure is a record with its interval, else a plain number.
prevalence: share of COVID for the predictive values, by default that of the references; without families only.
seed: of the bootstrap."""
CITATION = """@article{field2007bootstrapping,
  title = {Bootstrapping clustered data},
  author = {Field, C. A. and Welsh, A. H.},
  journal = {Journal of the Royal Statistical Society B}, volume = {69}, pages = {369--390}, year = {2007}
}"""


@evaluate.utils.file_utils.add_start_docstrings(DESCRIPTION, INPUTS)
class ScreeningFigures(evaluate.Metric):
    """Scores P(COVID) against labels; see the module's description."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(
        self,
        predictions: list[float],
        references: list[int],
        thresholds: dict[str, float] | None = None,
        families: list[str] | None = None,
        prevalence: float | None = None,
        seed: int = 0,
    ) -> dict:
        thresholds = {"half": 0.5} if thresholds is None else thresholds
        if families is not None:
            return figures(references, predictions, families, thresholds, seed)
        found = {name: float(value) for name, value in threshold_free(references, predictions).items()}
        at = {
            name: at_threshold(references, predictions, threshold, prevalence=prevalence)
            for name, threshold in thresholds.items()
        }
        return {**found, "at": {name: {k: float(v) for k, v in row.items()} for name, row in at.items()}}
