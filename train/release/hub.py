"""How files go to the Hub: checked, in one commit, and announced only when they lie there.

The Hub's own git makes a commit whole or not at all; after it, the file hashes are compared with ours before
anything is said to be done.
"""

import hashlib
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console
from rich.table import Table

from hub_model.refused import Failed, Refused

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

T = TypeVar("T")
HUB_OWN = (".gitattributes",)
MADE_WITH = (*HUB_OWN, "README.md")
"""What the Hub puts into a repository that was made by hand."""
ATTEMPTS, PAUSE = 4, 2.0
"""Tries of a commit when the network fails, and seconds before the second one; each further pause doubles."""
LOCAL_PATH = re.compile(
    rb"(?:/(?:home|root|Users|tmp|mnt|media|srv|opt|work|scratch|private|var/folders)/[\w.-]+/"
    rb"|[A-Z]:\\{1,2}Users\\|/site-packages/)[\w.\\/-]{0,60}"
)
"""Traces of the machine that made a file, as stack traces in an ONNX graph leave them."""

Content = Path | bytes


class _Lost(Exception):
    """The network failed; trying again may help."""


def collected(folder: Path, allowed: Iterable[str], links: bool = False) -> dict[str, Content]:
    """List the files of a folder that match a pattern, by path; `links` are taken only from the Hub's own cache."""
    found = sorted(f for f in folder.rglob("*") if f.is_file() and (links or not f.is_symlink()))
    names = {f.relative_to(folder).as_posix(): f for f in found}
    return {name: file for name, file in names.items() if matches(name, allowed)}


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Say whether a path matches one of some patterns, folder by folder."""
    return any(fnmatchcase(name, p) and name.count("/") == p.count("/") for p in patterns)


def check_traces(files: dict[str, Content], *own: Path) -> None:
    """Refuse files that name a folder of this machine: `own`, or one that looks like it.

    Data and WebAssembly name folders of their makers and are left alone.

    Raises:
        Refused: one does.
    """
    here = [re.escape(str(path.resolve())).encode() for path in own if len(path.resolve().parts) > 2]
    pattern = re.compile(b"|".join([*here, LOCAL_PATH.pattern]))
    for name, content in files.items():
        found = pattern.search(read(content))
        if found and not name.endswith((".parquet", ".wasm")):
            raise Refused(
                f"{name} names a folder of this machine ({found[0][:60].decode(errors='replace')} ...). "
                "Write it again without; nothing was uploaded."
            )


def read(content: Content) -> bytes:
    """Read the bytes of a file that is to be uploaded."""
    return content if isinstance(content, bytes) else content.read_bytes()


def show(files: dict[str, Content], repo_id: str) -> None:
    """List what would be uploaded."""
    table = Table("file", "bytes", title=f"Would be uploaded to {repo_id}")
    table.columns[1].justify = "right"
    sizes = {name: len(read(content)) for name, content in files.items()}
    for name, size in sizes.items():
        table.add_row(name, f"{size:,}")
    table.add_row("together", f"{sum(sizes.values()):,}", style="bold")
    Console(width=110).print(table)


@dataclass(frozen=True)
class Found:
    """What a place on the Hub holds before an upload."""

    exists: bool
    has_branch: bool
    private: bool = True
    files: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Target:
    """A place on the Hub.

    Attributes:
        repo_id: ORG/NAME.
        kind: model, dataset or space.
        private: of a repository that is made new; one that is public is not written to as if it were private.
        revision: branch.
        tag: name for the commit, or None.
        owns: patterns of files that an earlier upload by this package may have left there.
        marks: files of which every upload by this package has one; a repository without them is somebody else's.
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
    marks: tuple[str, ...]
    replace: bool = False
    sdk: str | None = None
    subject: str = ""

    def upload(self, files: dict[str, Content], title: str) -> str:
        """Make the branch hold exactly these files, by one commit.

        Returns:
            The address of the commit.

        Raises:
            Refused: no token, no right, other content, a tag that exists, a public place for what was
                to be private.
            Failed: the network gave up, or the Hub holds something else than was sent.
        """
        from huggingface_hub import HfApi, get_token

        if get_token() is None:
            raise Refused(
                "There is no Hub token on this machine. Log in with `hf auth login`, or set HF_TOKEN to a "
                "token that may write."
            )
        api = HfApi()
        there = self._call(lambda: self._look(api))
        gone = self._removable(there, files)
        if there.exists and self.private and not there.private:
            raise Refused(
                f"{self.repo_id} is public, and this was to be private. Make the repository private in its "
                "settings, choose another name, or say --public."
            )
        if self.tag and there.exists and self.tag in self._call(lambda: self._tags(api)):
            raise Refused(
                f"{self.repo_id} has a tag {self.tag} already. Choose another; tags are there to stay."
            )
        self._call(lambda: self._make_room(api, there))
        commit = self._commit(api, files, gone, title)
        folder = "" if self.kind == "model" else f"{self.kind}s/"
        address = f"{api.endpoint}/{folder}{self.repo_id}/tree/{commit}"
        self._name(api, commit, address)
        seen = "private" if (there.private if there.exists else self.private) else "public"
        Console(highlight=False).print(f"{len(files)} files are at {address} ({seen})", soft_wrap=True)
        return address

    def _look(self, api: "HfApi") -> Found:
        """Look up what lies there; a branch that does not exist yet will start from main."""
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        try:
            info = api.repo_info(self.repo_id, revision=self.revision, repo_type=self.kind)
            has_branch = True
        except RevisionNotFoundError:
            info = api.repo_info(self.repo_id, repo_type=self.kind)
            has_branch = False
        except RepositoryNotFoundError:
            return Found(False, self.revision == "main")
        names = tuple(file.rfilename for file in info.siblings)
        return Found(True, has_branch, bool(info.private), names, tuple(info.tags or ()))

    def _tags(self, api: "HfApi") -> set[str]:
        return {found.name for found in api.list_repo_refs(self.repo_id, repo_type=self.kind).tags}

    def _make_room(self, api: "HfApi", there: Found) -> None:
        if not there.exists:
            sdk = {"space_sdk": self.sdk} if self.sdk else {}
            api.create_repo(self.repo_id, repo_type=self.kind, private=self.private, **sdk)
        if not there.has_branch:
            api.create_branch(self.repo_id, branch=self.revision, repo_type=self.kind)

    def _removable(self, there: Found, files: dict[str, Content]) -> list[str]:
        """List files to delete in the same commit; refuse where somebody else's would have to go."""
        others = [name for name in there.files if name not in files and name not in HUB_OWN]
        foreign = sorted(name for name in others if not matches(name, self.owns))
        if set(there.files) - set(MADE_WITH):
            if not set(self.marks) & set(there.files):
                foreign.insert(0, f"a {self.kind} of another layout, without {' or '.join(self.marks)}")
            elif self.subject and self.subject not in there.tags:
                foreign.insert(0, f"a model that is not about {self.subject}")
        if foreign and not self.replace:
            raise Refused(
                f"{self.repo_id} holds other content "
                f"({', '.join(foreign[:4])}{' ...' if len(foreign) > 4 else ''}). Choose another name, or "
                "say --replace to delete it."
            )
        return others

    def _commit(self, api: "HfApi", files: dict[str, Content], gone: list[str], title: str) -> str:
        """Make one commit, tried again when the network fails; whether a lost answer meant success is looked up."""
        problem: Exception | None = None
        head = self._call(
            lambda: api.repo_info(self.repo_id, revision=self.revision, repo_type=self.kind).sha
        )
        for attempt in range(ATTEMPTS):
            try:
                if attempt:
                    time.sleep(PAUSE * 2 ** (attempt - 1))
                    if arrived := self._once(lambda: self._arrived(api, files)):
                        return arrived
                oid = self._once(lambda: self._send(api, files, gone, title, head))
                if self._once(lambda: self._arrived(api, files)) is None:
                    raise Failed(
                        f"The Hub took the commit {oid[:12]} but does not hold the files that were sent. "
                        f"Look at {self.repo_id} before anybody uses it."
                    )
                return oid
            except _Lost as error:
                problem = error.__cause__
        seen = f"No commit was made in {self.repo_id}, which is as it was before, or new and empty."
        try:
            if arrived := self._once(lambda: self._arrived(api, files)):
                return arrived
        except _Lost:
            seen = f"Whether the last try reached {self.repo_id} cannot be seen from here."
        raise Failed(
            f"The network failed {ATTEMPTS} times ({type(problem).__name__}). {seen} Run the same command "
            "again: files that arrived are not sent twice."
        ) from problem

    def _send(self, api: "HfApi", files: dict[str, Content], gone: list[str], title: str, head: str) -> str:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        operations += [CommitOperationDelete(name) for name in gone]
        place = {"repo_type": self.kind, "revision": self.revision, "parent_commit": head}
        return api.create_commit(self.repo_id, operations, commit_message=title, **place).oid

    def _arrived(self, api: "HfApi", files: dict[str, Content]) -> str | None:
        """Find the head of the branch if it holds exactly the files that were sent."""
        info = api.repo_info(self.repo_id, revision=self.revision, repo_type=self.kind, files_metadata=True)
        there = {file.rfilename: file for file in info.siblings if file.rfilename not in HUB_OWN}
        same = there.keys() == files.keys() and all(
            file.lfs.sha256 == hashlib.sha256(read(files[name])).hexdigest()
            if file.lfs
            else file.blob_id == git_hash(read(files[name]))
            for name, file in there.items()
        )
        return info.sha if same else None

    def _name(self, api: "HfApi", commit: str, address: str) -> None:
        """Give the commit its tag."""
        if not self.tag:
            return
        try:
            self._call(
                lambda: api.create_tag(self.repo_id, tag=self.tag, revision=commit, repo_type=self.kind)
            )
        except (Refused, Failed) as error:
            raise Failed(
                f"The files are at {address}, but the tag {self.tag} could not be made: {error.__cause__}. "
                f"Say `hf repos tag create {self.repo_id} {self.tag} --revision {commit} --type {self.kind}`."
            ) from error

    def _call(self, action: Callable[[], T]) -> T:
        """Run a request, and make sentences of its failures."""
        from huggingface_hub.errors import HFValidationError

        try:
            return self._once(action)
        except HFValidationError as error:
            raise Refused(f"{self.repo_id!r} is no name for a repository: {error}") from error
        except _Lost as error:
            raise Failed(
                f"The Hub cannot be reached ({type(error.__cause__).__name__}); nothing was uploaded. Check "
                "the network and that HF_HUB_OFFLINE is not set, then run the same command again."
            ) from error.__cause__

    def _once(self, action: Callable[[], T]) -> T:
        """Run a request.

        Raises:
            Refused: the Hub said no.
            _Lost: the network or the Hub failed, in this process or in a thread that uploads a large file,
                whose failure huggingface_hub wraps in a RuntimeError.
        """
        from httpx2 import TransportError
        from huggingface_hub.errors import HfHubHTTPError

        try:
            return action()
        except (HfHubHTTPError, TransportError, ConnectionError, RuntimeError) as error:
            reason = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
            answer = reason.response if isinstance(reason, HfHubHTTPError) else None
            if answer is not None and answer.status_code < 500:
                raise self._refusal(reason) from reason
            raise _Lost from reason

    def _refusal(self, error: "HfHubHTTPError") -> Refused:
        status = error.response.status_code
        said = (error.server_message or str(error)).strip().splitlines()[0]
        what = {
            401: "the token is not valid. Log in again with `hf auth login`",
            403: "the token may not write there. Use one with write access, or a name under your own account",
            409: "there is a repository or tag of this name, perhaps somebody else's. Choose another name",
            412: "somebody else has changed the repository meanwhile. Look at it, then run the command again",
        }.get(status, "check the name, the revision and the token")
        return Refused(f"The Hub refused {self.repo_id} ({status}: {said}): {what}. Nothing was uploaded.")


def git_hash(content: bytes) -> str:
    """Hash content as git does (SHA-1 of a blob)."""
    return hashlib.sha1(b"blob %d\0%s" % (len(content), content), usedforsecurity=False).hexdigest()
