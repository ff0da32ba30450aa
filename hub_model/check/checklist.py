"""What journals and regulators ask of a report: answered where the software knows, open by name where only people do.

The questions are in our own words; the numbers are those of the guides: TRIPOD+AI (Collins et al., BMJ 2024;385:e078378),
CLAIM (Tejani et al., Radiology: Artificial Intelligence 2024;6:e240300). STARD-AI (Sounderajah et al., Nature Medicine
2025) and the ECLAIR guide (Omoumi et al., European Radiology 31, 2021, 3786-3796) are cited by their headings.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Told = Mapping[str, Any]


@dataclass(frozen=True)
class Question:
    """One row of the checklist.

    Attributes:
        topic: what is asked.
        guides: where it is asked.
        answer: what the report says of it; None where only whoever runs the check can say.
        open: what is to be written there, where the software knows none of it or not all.
    """

    topic: str
    guides: str
    answer: Callable[[Told], str] | None = None
    open: str = ""


def _model(told: Told) -> str:
    model = told["model"]
    local = f"; local settings {model['site']['name']}" if model["site"] else "; the model's own settings"
    weights = (model["weights_sha256"] or "unknown")[:16]
    return f"{model['name']} ({model['architecture']}, {model['modality']}), weights {weights}…, covid-xct {told['covid_xct']}{local}."


def _sources(told: Told) -> str:
    data = told["data"]
    return f"{data['labelled']:,} labelled pictures from {', '.join(data['sources']) or 'one source'}; hash {data['sha256'][:16]}…."


def _flow(told: Told) -> str:
    data = told["data"]
    out = sum(data["left_out"].values()) + sum(data["skipped"].values())
    refused = sum(row["count"] for row in told["refused"]["reasons"])
    return (
        f"{data['files']:,} files; {out:,} without a label, no picture or left out; {refused:,} refused; {data['judged']:,} judged; "
        f"{data['counted']:,} used for the figures, {data['covid']:,} with COVID-19 and {data['others']:,} without."
    )


def _patients(told: Told) -> str:
    data = told["data"]
    known = (
        "by the patients that the data name"
        if data["patients_known"]
        else "patients unknown; copies are joined"
    )
    return f"{data['families']:,} patients or families of copies ({known})."


def _groups(told: Told) -> str:
    names = [name for name in told["groups"] if name != "source"]
    return (
        f"Counted by {', '.join(names)} in the section on groups."
        if names
        else "The data say nothing of them."
    )


def _size(told: Told) -> str:
    row = next(iter(told["figures"]["at"].values()))
    widths = [
        row[name]["high"] - row[name]["low"]
        for name in ("sensitivity", "specificity")
        if row[name]["low"] is not None
    ]
    return (
        f"Intervals at the first operating point are {' and '.join(f'{width:.2f}' for width in widths)} wide."
    )


def _missing(told: Told) -> str:
    data = told["data"]
    return f"Left out: {sum(data['skipped'].values()):,} because the collection says so, {sum(data['left_out'].values()):,} after they were read."


def _overlap(told: Told) -> str:
    seen, data = told["data"]["seen"], told["data"]
    if told["model"]["trained_on"] is None:
        return "Unknown: the model does not say what it was trained on."
    if not data["seen_known"]:
        return "Not checked: no hashes of training pictures travel with this model."
    return f"Copies of training and calibration pictures: {seen['train'] + seen['validation']:,}; of the card's test pictures: {seen['test']:,}."


def _metrics(told: Told) -> str:
    return "AUROC, sensitivity, specificity, calibration error, Brier score; 95 % intervals by resampling patients or families (2,000 times)."


def _performance(told: Told) -> str:
    auroc = told["figures"]["auroc"]
    ends = f" ({auroc['low']:.3f} to {auroc['high']:.3f})" if auroc["low"] is not None else ""
    return f"AUROC {auroc['value']:.3f}{ends}; each operating point in the section on figures."


def _robust(told: Told) -> str:
    changes = told["changes"]
    return (
        f"{len(changes['rows'])} harmless changes on {changes['pictures']} pictures."
        if changes
        else "Not tried in this run."
    )


def _updated(told: Told) -> str:
    site = told["model"]["site"]
    if not site:
        return "None: the model as it is delivered."
    return f"Calibration and operating points fitted locally on {site['made']} on data {site['data_sha256'][:16]}…; weights unchanged."


def _consistency(told: Told) -> str:
    worse = [row["words"] for row in told["against_card"] if row["difference"]["more_than_chance"]]
    return " ".join(worse) or (
        "No difference from the card beyond chance."
        if told["card"]
        else "The model has no card to compare with."
    )


QUESTIONS = (
    Question("Which model and version was evaluated", "TRIPOD+AI 22; CLAIM 22, 23; STARD-AI index test; ECLAIR performance", _model),
    Question("Its intended use, who uses it and when, and what follows from an answer", "TRIPOD+AI 3a, 27; STARD-AI introduction; ECLAIR relevance", open="The place in care at your site, the users, and what is done after each answer."),
    Question("Aim and hypotheses", "TRIPOD+AI 4; CLAIM 4; STARD-AI introduction", open="What you wanted to know before you looked."),
    Question("Where the pictures come from, when and where", "TRIPOD+AI 5a, 5b, 6a; CLAIM 7, 33; STARD-AI participants", _sources, "Sites, dates, setting, and whether they were gathered for this purpose."),
    Question("Who was included, who was not, and how many at each step", "TRIPOD+AI 6b, 20a; CLAIM 8, 35; STARD-AI flow", _flow, "The rule by which patients were chosen; consecutive or not."),
    Question("Patients and pictures a patient", "TRIPOD+AI 20b; CLAIM 20, 36; STARD-AI participants", _patients),
    Question("Age, sex, ethnicity, illness and treatment of the patients", "TRIPOD+AI 14, 20b; CLAIM 36; STARD-AI fairness; ECLAIR performance", _groups, "What the columns do not say, ethnicity and severity above all."),
    Question("How the pictures were taken", "CLAIM 13; STARD-AI index test", open="Machines, protocols, views, dose, and how files were exported."),
    Question("How the reference standard was set, by whom, blinded to what", "TRIPOD+AI 8a, 8b; CLAIM 14 to 18; STARD-AI reference standard", open="Test (PCR or other), its date beside the picture's, readers, disagreement."),
    Question("Sample size and its reason", "TRIPOD+AI 10; CLAIM 21; STARD-AI sample size", _size, "The plan before collecting: `covid-xct check --plan` gives one."),
    Question("Missing and unusable data", "TRIPOD+AI 11; CLAIM 12; STARD-AI missing data", _missing, "Pictures that never reached the folder."),
    Question("Whether evaluation pictures were known to the model", "TRIPOD+AI 12a; CLAIM 19, 20; STARD-AI data partitions", _overlap),
    Question("De-identification and protection of the data", "CLAIM 11; ECLAIR legal", open="What was removed, by whom; where the data may lie."),
    Question("Figures and how their uncertainty was computed", "TRIPOD+AI 12e; CLAIM 28, 29; STARD-AI analysis", _metrics),
    Question("Performance with intervals", "TRIPOD+AI 23a; CLAIM 37, 38; STARD-AI estimates; ECLAIR performance", _performance),
    Question("Performance in groups of patients; fairness", "TRIPOD+AI 14, 23b; CLAIM 36, 37; STARD-AI fairness", _groups, "Which differences would matter, and what is done about them."),
    Question("Robustness to changes of the input", "CLAIM 30; ECLAIR performance", _robust),
    Question("Failures looked at one by one", "CLAIM 39; STARD-AI discussion", lambda told: "The worst errors are in the folder errors beside the report, with heat maps.", "What a radiologist sees in them."),
    Question("Updating of the model for this site", "TRIPOD+AI 24; CLAIM 26", _updated),
    Question("Comparison with what was published of the model", "TRIPOD+AI 16, 25; CLAIM 33", _consistency),
    Question("Comparison with radiologists or other tests", "STARD-AI analysis; ECLAIR performance", open="Not measured here."),
    Question("Adverse events and harm from wrong answers", "STARD-AI results; ECLAIR legal", open="What happened, or could."),
    Question("Limits", "TRIPOD+AI 26; CLAIM 40; STARD-AI discussion", lambda told: "Those in the verdict.", "Biases of how the patients were chosen."),
    Question("Integration, cost, support, training of users", "TRIPOD+AI 27; ECLAIR integration, financial", open="Your systems and people."),
    Question("Regulatory status", "ECLAIR regulatory", lambda told: "covid-xct is research software and no medical device anywhere.", "What your country asks of a local study."),
    Question("Ethics approval and consent", "TRIPOD+AI 17; STARD-AI other information", open="Body, number, consent or its waiver."),
    Question("Protocol and registration", "TRIPOD+AI 18c, 18d; CLAIM 34, 42; STARD-AI other information", open="Where they can be read."),
    Question("Availability of code, model and data", "TRIPOD+AI 18e, 18f; CLAIM 43; STARD-AI other information", lambda told: "Code: Apache-2.0, the package covid-xct. Weights: under the licence that the model's card names.", "Your data: may others have them?"),
    Question("Funding, conflicts of interest, involvement of patients and the public", "TRIPOD+AI 18a, 18b, 19; CLAIM 44; STARD-AI other information", open="Yours."),
)  # fmt: skip


def checklist(told: Told) -> list[dict[str, Any]]:
    """Answer what can be answered.

    Args:
        told: the report so far.

    Returns:
        Rows of ``topic``, ``guides``, ``answer`` (or None) and ``open`` (or None): what is left for people to write.
    """
    return [
        {
            "topic": one.topic,
            "guides": one.guides,
            "answer": one.answer(told) if one.answer else None,
            "open": one.open or None,
        }
        for one in QUESTIONS
    ]
