"""Put a model or a data set on the Hub: checked, by allowlist, in one commit, and announced only when it lies
there.

What is uploaded is decided here and not by what happens to lie in the folder: no pickle, no optimizer state,
no file that names a folder of this machine. The Hub's own git makes a commit whole or not at all; after it,
the file hashes are compared with ours before anything is said to be done.
"""

import hashlib
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from hub_model import hub_folder
from hub_model.hub_folder import COVID, LABELS

from . import card as cards

if TYPE_CHECKING:
    from huggingface_hub import HfApi

MODEL_FILES = (
    "config.json",
    "model.safetensors",
    "screening.json",
    "guard.safetensors",
    "evaluation.json",
    "README.md",
    "collections.json",
    "covid_cnn.py",
    "modeling_covid_cnn.py",
    "plots/*.png",
    ".eval_results/*.yaml",
    "onnx/*.onnx",
    "onnx/export.json",
    "web/*.json",
    "web/onnx/*.onnx",
)
DATA_FILES = ("README.md", "split.json", "manifest.parquet", "leak_report.json", "data/*.parquet")
HUB_OWN = (".gitattributes",)
SAME = 1e-4
"""Largest difference of probabilities between loaders on one picture."""
ATTEMPTS, PAUSE = 4, 2.0
"""Tries of a commit when the network fails, and seconds before the second one; each further pause doubles."""
LOCAL_PATH = re.compile(
    rb"(?:/(?:home|root|Users|tmp|mnt|media|srv|opt|work|scratch|private|var/folders)/[\w.-]+/"
    rb"|[A-Z]:\\{1,2}Users\\|/site-packages/)[\w.\\/-]{0,60}"
)
"""Traces of the machine that made a file, as stack traces in an ONNX graph leave them."""

Content = Path | bytes


class PublishRefused(ValueError):
    """Something that must not be uploaded, or must not be uploaded there."""


class PublishFailed(ValueError):
    """The upload did not come through; nothing half-done is on the Hub."""


def publish(
    run: Annotated[Path, typer.Argument(help="hub folder with its card")],
    repo_id: Annotated[str, typer.Option(help="where to, ORG/NAME")],
    private: Annotated[
        bool, typer.Option("--private/--public", help="who may see a repository made new")
    ] = True,
    revision: Annotated[str, typer.Option(help="branch; made where absent")] = "main",
    tag: Annotated[str | None, typer.Option(help="name for this state, to pin it by")] = None,
    replace: Annotated[bool, typer.Option(help="delete what else the repository holds")] = False,
    dry_run: Annotated[bool, typer.Option(help="check and list, upload nothing")] = False,
) -> str | None:
    """Upload RUN as one commit, once its card, hashes, labels and every loader agree.

    Returns:
        Address of the commit; None after a dry run.

    Raises:
        FolderRefused, CardRefused: RUN cannot be opened, or its card cannot be written.
        PublishRefused: the card is out of date, loaders disagree, a file names this machine, or the
            repository is not ours to write or holds something else.
        PublishFailed: the network gave up.
    """
    files = checked(Path(run), repo_id)
    if dry_run:
        return show(files, repo_id)
    modality = hub_folder.read_json(Path(run) / hub_folder.SCREENING)["modality"]
    title = f"covid-xct {modality}: {hub_folder.sha256(Path(run) / hub_folder.WEIGHTS)[:12]}"
    target = Target(
        repo_id,
        "model",
        private=private,
        revision=revision,
        tag=tag,
        owns=MODEL_FILES,
        replace=replace,
        subject=cards.SUBJECTS[modality],
    )
    return target.upload(files, title)


def publish_data(
    data: Annotated[Path, typer.Argument(help="folder written by prepare")],
    repo_id: Annotated[str, typer.Option(help="where to, ORG/NAME")],
    private: Annotated[
        bool, typer.Option("--private/--public", help="who may see a repository made new")
    ] = True,
    cleared: Annotated[bool, typer.Option(help="I have the right to pass on every picture")] = False,
    revision: Annotated[str, typer.Option(help="branch; made where absent")] = "main",
    tag: Annotated[str | None, typer.Option(help="name for this state, to pin it by")] = None,
    replace: Annotated[bool, typer.Option(help="delete what else the repository holds")] = False,
    dry_run: Annotated[bool, typer.Option(help="check and list, upload nothing")] = False,
) -> str | None:
    """Upload a prepared data set with its card as one commit; `datasets.load_dataset(REPO)` opens it,
    streaming too.

    Raises:
        PublishRefused: no prepared folder, a public place for pictures that may not be passed on, or see
            `publish`.
        PublishFailed: the network gave up.
    """
    files = checked_data(Path(data), repo_id, private or cleared)
    if dry_run:
        return show(files, repo_id)
    target = Target(
        repo_id, "dataset", private=private, revision=revision, tag=tag, owns=DATA_FILES, replace=replace
    )
    return target.upload(files, "covid-xct data set")


# --- what may go out ------------------------------------------------------------------------------


def checked(run: Path, repo_id: str) -> dict[str, Content]:
    """The files of a run that go to the Hub, by their path there; the card carries the name of the
    repository.

    Raises:
        see `publish`.
    """
    hub_folder.load(run)  # labels, shapes, finite weights, and that they are those of the operating points
    for name, text in cards.render(run).items():
        there = run / name
        if not there.is_file() or there.read_text("utf-8") != text:
            raise PublishRefused(
                f"{there} does not say what {hub_folder.EVALUATION} and {hub_folder.SCREENING} say. Write "
                f"it again with `python -m train card {run}`; prose is changed in {cards.TEMPLATE.name}, "
                "not in the rendered file."
            )
    check_export(run)
    check_loaders(run)
    files: dict[str, Content] = collected(run, MODEL_FILES)
    files |= {name: text.encode() for name, text in cards.render(run, repo_id).items()}
    check_traces(files)
    return files


def check_export(run: Path) -> None:
    """Refuses ONNX files that were made of other weights than lie in the folder."""
    report = run / "onnx" / "export.json"
    weights = hub_folder.sha256(run / hub_folder.WEIGHTS)
    if report.is_file() and hub_folder.read_json(report).get("weights_sha256") != weights:
        raise PublishRefused(
            f"{run}: its ONNX files are of other weights. Say `python -m train export {run}` again."
        )


def collected(folder: Path, allowed: Iterable[str], links: bool = False) -> dict[str, Content]:
    """Files of a folder that match a pattern, by path; `links` are taken only from the Hub's own cache."""
    found = sorted(f for f in folder.rglob("*") if f.is_file() and (links or not f.is_symlink()))
    names = {f.relative_to(folder).as_posix(): f for f in found}
    return {name: file for name, file in names.items() if _matches(name, allowed)}


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, p) and name.count("/") == p.count("/") for p in patterns)


def check_traces(files: dict[str, Content]) -> None:
    """Refuses files that name a folder of this machine."""
    for name, content in files.items():
        found = LOCAL_PATH.search(_bytes(content))
        if found and not name.endswith(".parquet"):
            raise PublishRefused(
                f"{name} names a folder of this machine ({found[0][:60].decode(errors='replace')} ...). "
                "Write it again without; nothing was uploaded."
            )


def _bytes(content: Content) -> bytes:
    return content if isinstance(content, bytes) else content.read_bytes()


def _screener(run: Path) -> Callable[[Image.Image], float]:
    import torch

    folder = hub_folder.load(run)

    def probability(image: Image.Image) -> float:
        with torch.inference_mode():
            return float(folder.model(folder.transform(image)[None]).softmax(1)[0, COVID])

    return probability


def _timm(run: Path) -> Callable[[Image.Image], float]:
    import timm
    import torch
    from timm.data import create_transform, resolve_model_data_config

    model = timm.create_model(f"local-dir:{run}", pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(model), is_training=False)

    def probability(image: Image.Image) -> float:
        with torch.inference_mode():
            return float(model(transform(image.convert("RGB"))[None]).softmax(1)[0, COVID])

    return probability


def _transformers(run: Path) -> Callable[[Image.Image], float]:
    """AutoModel and AutoImageProcessor, by way of the pipeline that uses both."""
    from transformers import pipeline

    classify = pipeline("image-classification", model=str(run), trust_remote_code=False)
    return lambda image: {found["label"]: found["score"] for found in classify(image)}[LABELS[COVID]]


def _onnxruntime(run: Path) -> Callable[[Image.Image], float]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        run / "onnx" / "model.onnx", options, providers=["CPUExecutionProvider"]
    )
    transform = hub_folder.transform_of(hub_folder.read_json(run / hub_folder.CONFIG))
    name = session.get_inputs()[0].name

    def probability(image: Image.Image) -> float:
        logits = session.run(["logits"], {name: transform(image)[None].numpy()})[0][0]
        return float(1 / (1 + np.exp(logits[1 - COVID] - logits[COVID])))

    return probability


LOADERS = {"Screener": _screener, "timm": _timm, "transformers": _transformers, "ONNX Runtime": _onnxruntime}
"""By whom a published folder can be opened: loader -> folder -> picture -> P(COVID)."""


def check_loaders(run: Path) -> None:
    """Opens the folder with every loader and compares their answers on drawn pictures.

    Raises:
        PublishRefused: one does not open it, or answers otherwise.
    """
    rng = np.random.default_rng(0)
    noise = (rng.integers(0, 256, (9, 7)), rng.integers(0, 256, (40, 60)))
    pictures = [Image.fromarray(n.astype(np.uint8)).resize((310, 290)) for n in noise]
    answers: dict[str, list[float]] = {}
    for name, opened in LOADERS.items():
        if name == "ONNX Runtime" and not (run / "onnx" / "model.onnx").is_file():
            continue
        try:
            answers[name] = [opened(run)(picture) for picture in pictures]
        except Exception as error:  # whatever a loader raises, its users would meet it
            raise PublishRefused(
                f"{name} does not open {run}: {type(error).__name__}: {error} Nothing was uploaded."
            ) from error
        difference = float(np.abs(np.subtract(answers[name], answers["Screener"])).max())
        if not difference <= SAME:
            raise PublishRefused(
                f"{name} opens {run} but gives other probabilities than this package, {difference:.2g} "
                f"apart (allowed {SAME:g}). Export or save it again; nothing was uploaded."
            )


def checked_data(folder: Path, repo_id: str, may_pass_on: bool) -> dict[str, Content]:
    """The files of a prepared data set, its card with provenance and licences.

    Raises:
        PublishRefused: see `publish_data`.
    """
    from .dataset import is_prepared, verify
    from .manifest import read_manifest

    if not is_prepared(folder):
        raise PublishRefused(
            f"{folder} was not written by `python -m train prepare`. Prepare the pictures first."
        )
    told = verify(folder)
    entries = read_manifest(folder / "manifest.parquet")
    placed = [entry for entry in entries if entry.split]
    astray = [entry.path for entry in entries if _leads_outside(entry.path)]
    if astray:
        raise PublishRefused(
            f"{folder}: the manifest names {len(astray)} files by their place on this machine. Prepare it "
            "again."
        )
    closed = [
        name for name in sorted({entry.source for entry in placed}) if not _collection(name).may_pass_on
    ]
    if closed and not may_pass_on:
        raise PublishRefused(
            f"The pictures of {', '.join(closed)} may not be passed on, or nobody has said that they may "
            f"(licence: {'; '.join(_collection(name).licence for name in closed)}). Publish --private, "
            "leave these sources out, or say --cleared if you have the right."
        )
    files = collected(folder, DATA_FILES)
    files["README.md"] = _data_card((folder / "README.md").read_text("utf-8"), repo_id, placed, told).encode()
    check_traces(files)
    return files


def _leads_outside(path: str) -> bool:
    absolute = PurePosixPath(path).is_absolute() or PureWindowsPath(path).is_absolute()
    return absolute or ".." in PurePosixPath(path).parts


def _collection(name: str) -> cards.Collection:
    return cards.COLLECTIONS.get(name) or cards.Collection(
        "not described", "not stated", "Ask whoever published this."
    )


def _data_card(readme: str, repo_id: str, placed: list, told: dict) -> str:
    """The card that `prepare` wrote, with where the pictures come from and what may be done with them."""
    from huggingface_hub import DatasetCard

    card = DatasetCard(readme)
    names = sorted({entry.source for entry in placed})
    card.data.license = "other"
    card.data.license_name = "as-stated-by-each-collection"
    card.data.pretty_name = "Chest pictures, COVID against Non-COVID"
    rows = "\n".join(
        f"| {name} | {sum(entry.source == name for entry in placed):,} | {source.title} | {source.licence} "
        f"| {source.leak} |"
        for name, source in ((name, _collection(name)) for name in names)
    )
    return (
        f"{str(card).rstrip()}\n\n## Where the pictures come from\n\n"
        "| source | pictures | collection | licence | what to know about it |\n| --- | ---: | --- | --- | "
        f"--- |\n{rows}\n\nThe whole may be used only as its strictest part allows. `COVID` means that the "
        "collection says the patient had COVID-19, not that the picture shows it.\n\n## Parts\n\nSplit "
        f"`{told['split']}`, seed {told['seed']}, hash `{told['hash']}`. A family (one patient, or copies "
        "of one original) lies whole in one "
        f"part{' - **not here: this split leaks**' if told['leaking'] else ''}. Keep `family` together when "
        "you split anew.\n\n```python\nimport datasets\n\nparts = "
        f'datasets.load_dataset("{repo_id}")\n```\n'
    )


def show(files: dict[str, Content], repo_id: str) -> None:
    """List what would be uploaded."""
    table = Table("file", "bytes", title=f"Would be uploaded to {repo_id}")
    table.columns[1].justify = "right"
    sizes = {name: len(_bytes(content)) for name, content in files.items()}
    for name, size in sizes.items():
        table.add_row(name, f"{size:,}")
    table.add_row("together", f"{sum(sizes.values()):,}", style="bold")
    Console(width=110).print(table)


# --- how it goes there ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """What a place on the Hub holds before an upload."""

    exists: bool
    has_branch: bool
    files: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Target:
    """A place on the Hub.

    Attributes:
        repo_id: ORG/NAME.
        kind: model, dataset or space.
        private: of a repository that is made new; an existing one keeps what it is.
        revision: branch.
        tag: name for the commit, or None.
        owns: patterns of files that an earlier upload of ours may have left there.
        replace: delete everything else as well.
        sdk: of a Space made new.
        subject: tag of the card, as chest-ct; a model about something else is not overwritten.
    """

    repo_id: str
    kind: str
    private: bool
    revision: str
    tag: str | None
    owns: tuple[str, ...]
    replace: bool = False
    sdk: str | None = None
    subject: str = ""

    def upload(self, files: dict[str, Content], title: str) -> str:
        """Make the branch hold exactly these files, by one commit.

        Returns:
            The address of the commit.

        Raises:
            PublishRefused: no token, no right, other content, a tag that exists.
            PublishFailed: the network gave up, or the Hub holds something else than was sent.
        """
        from huggingface_hub import HfApi, get_token

        if get_token() is None:
            raise PublishRefused(
                "There is no Hub token on this machine. Log in with `hf auth login`, or set HF_TOKEN to a "
                "token that may write."
            )
        api = HfApi()
        there = self._call(lambda: self._look(api))
        gone = self._removable(there, files)
        if self.tag and there.exists and self.tag in self._call(lambda: self._tags(api)):
            raise PublishRefused(
                f"{self.repo_id} has a tag {self.tag} already. Choose another; tags are there to stay."
            )
        self._call(lambda: self._make_room(api, there))
        commit = self._commit(api, files, gone, title)
        if self.tag:
            self._call(
                lambda: api.create_tag(self.repo_id, tag=self.tag, revision=commit, repo_type=self.kind)
            )
        folder = "" if self.kind == "model" else f"{self.kind}s/"
        address = f"{api.endpoint}/{folder}{self.repo_id}/tree/{commit}"
        Console(highlight=False).print(f"{len(files)} files are at {address}", soft_wrap=True)
        return address

    def _look(self, api: "HfApi") -> "Found":
        """What lies there; a branch that is not there yet will start from main."""
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        try:
            info = api.repo_info(self.repo_id, revision=self.revision, repo_type=self.kind)
            has_branch = True
        except RevisionNotFoundError:
            info = api.repo_info(self.repo_id, repo_type=self.kind)
            has_branch = False
        except RepositoryNotFoundError:
            return Found(False, self.revision == "main")
        return Found(True, has_branch, tuple(f.rfilename for f in info.siblings), tuple(info.tags or ()))

    def _tags(self, api: "HfApi") -> set[str]:
        return {found.name for found in api.list_repo_refs(self.repo_id, repo_type=self.kind).tags}

    def _make_room(self, api: "HfApi", there: "Found") -> None:
        if not there.exists:
            sdk = {"space_sdk": self.sdk} if self.sdk else {}
            api.create_repo(self.repo_id, repo_type=self.kind, private=self.private, **sdk)
        if not there.has_branch:
            api.create_branch(self.repo_id, branch=self.revision, repo_type=self.kind)

    def _removable(self, there: "Found", files: dict[str, Content]) -> list[str]:
        """Files to delete in the same commit; refuses where somebody else's would have to go."""
        others = [name for name in there.files if name not in files and name not in HUB_OWN]
        foreign = sorted(name for name in others if not _matches(name, self.owns))
        if self.kind == "model" and hub_folder.CONFIG in there.files:
            if hub_folder.SCREENING not in there.files:
                foreign.insert(0, f"a model of another layout, without {hub_folder.SCREENING}")
            elif self.subject not in there.tags:
                foreign.insert(0, f"a model that is not about {self.subject}")
        if foreign and not self.replace:
            raise PublishRefused(
                f"{self.repo_id} holds other content "
                f"({', '.join(foreign[:4])}{' ...' if len(foreign) > 4 else ''}). Choose another name, or "
                "say --replace to delete it."
            )
        return others

    def _commit(self, api: "HfApi", files: dict[str, Content], gone: list[str], title: str) -> str:
        """One commit, tried again when the network fails; whether a lost answer meant success is looked
        up.
        """
        from httpx2 import TransportError
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete
        from huggingface_hub.errors import HfHubHTTPError

        head = self._call(
            lambda: api.repo_info(self.repo_id, revision=self.revision, repo_type=self.kind).sha
        )
        problem: Exception | None = None
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(PAUSE * 2 ** (attempt - 1))
            try:
                if attempt and (arrived := self._arrived(api, files)):
                    return arrived
                operations = [CommitOperationAdd(name, content) for name, content in files.items()]
                operations += [CommitOperationDelete(name) for name in gone]
                done = api.create_commit(
                    self.repo_id,
                    operations,
                    commit_message=title,
                    repo_type=self.kind,
                    revision=self.revision,
                    parent_commit=head,
                )
                if self._arrived(api, files) is None:
                    raise PublishFailed(
                        f"The Hub took the commit {done.oid[:12]} but does not hold the files that were "
                        f"sent. Look at {self.repo_id} before anybody uses it."
                    )
                return done.oid
            except TransportError as error:
                problem = error
            except HfHubHTTPError as error:
                if error.response.status_code < 500:
                    raise self._refusal(error) from error
                problem = error
        seen = f"No commit was made in {self.repo_id}, which is as it was before, or new and empty."
        try:
            if arrived := self._arrived(api, files):
                return arrived
        except (TransportError, HfHubHTTPError):
            seen = f"Whether the last try reached {self.repo_id} cannot be seen from here."
        raise PublishFailed(
            f"The network failed {ATTEMPTS} times ({type(problem).__name__}). {seen} Run "
            "the same command again: files that arrived are not sent twice."
        ) from problem

    def _arrived(self, api: "HfApi", files: dict[str, Content]) -> str | None:
        """The head of the branch if it holds exactly our files."""
        info = api.repo_info(self.repo_id, revision=self.revision, repo_type=self.kind, files_metadata=True)
        there = {file.rfilename: file for file in info.siblings if file.rfilename not in HUB_OWN}
        same = there.keys() == files.keys() and all(
            file.lfs.sha256 == hashlib.sha256(_bytes(files[name])).hexdigest()
            if file.lfs
            else file.blob_id == _git_hash(_bytes(files[name]))
            for name, file in there.items()
        )
        return info.sha if same else None

    def _call(self, action: Callable):
        """Run a request; its failures become sentences."""
        from httpx2 import TransportError
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

        try:
            return action()
        except HFValidationError as error:
            raise PublishRefused(f"{self.repo_id!r} is no name for a repository: {error}") from error
        except HfHubHTTPError as error:
            raise self._refusal(error) from error
        except (TransportError, ConnectionError) as error:
            raise PublishFailed(
                f"The Hub cannot be reached ({type(error).__name__}); nothing was uploaded. Check the "
                "network and that HF_HUB_OFFLINE is not set, then run the same command again."
            ) from error

    def _refusal(self, error) -> ValueError:
        status = error.response.status_code if error.response is not None else 0
        said = (error.server_message or str(error)).strip().splitlines()[0]
        what = {
            401: "the token is not valid. Log in again with `hf auth login`",
            403: "the token may not write there. Use one with write access, or a name under your own account",
            409: "there is a repository or tag of this name, perhaps somebody else's. Choose another name",
            412: "somebody else has changed the repository meanwhile. Look at it, then run the command again",
        }.get(status, "check the name, the revision and the token")
        return PublishRefused(
            f"The Hub refused {self.repo_id} ({status}: {said}): {what}. Nothing was uploaded."
        )


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0%s" % (len(content), content), usedforsecurity=False).hexdigest()
