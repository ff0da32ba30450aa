"""Leave hashes of a run's own pictures in its folder, so that a check elsewhere can tell what the model knows "
"already."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import track

from hub_model import hub_folder
from hub_model.check import copies
from hub_model.layout import SEEN, tensors_written
from hub_model.whole import whole_file

from .provenance import data_of

if TYPE_CHECKING:
    from datasets import DatasetDict


def seen(
    run: Annotated[Path, typer.Argument(help="hub folder")],
    data: Annotated[
        list[str], typer.Option(help="what fit was given: folder, zip, prepared dataset; may repeat")
    ],
) -> Path:
    """Write seen.safetensors into RUN: hashes of its training, validation and test pictures, with nothing to see in it.

    Evaluation writes it too; this is for runs that were evaluated before there was such a file.

    Returns:
        The file.

    Raises:
        FolderRefused: RUN is no hub folder.
        Refused: DATA is not what RUN was trained on.
    """
    folder = hub_folder.open_folder(run)
    parts, origin = data_of(folder, data)
    written = write_seen(folder, parts, origin.data_sha256)
    Console(stderr=True, highlight=False, markup=False).print(
        f"{written}: hashes of {sum(len(part) for part in parts.values()):,} pictures", soft_wrap=True
    )
    return written


def write_seen(folder: hub_folder.HubFolder, parts: "DatasetDict", data_sha256: str) -> Path:
    """Hash every picture of a data set into a folder.

    Args:
        folder: the hub folder.
        parts: the splits, by the names in `copies.ROLES`.
        data_sha256: of the data; that of the folder's own provenance goes before.
    """
    from safetensors.numpy import save_file

    found, roles = [], []
    for role in copies.ROLES:
        for row in track(
            parts[role].select_columns("image"), f"hashes: {role}", len(parts[role]), transient=True
        ):
            found.append(copies.hashes(row["image"].convert("L")))
            roles.append(role)
    told = (folder.screening.get("provenance") or {}).get("data_sha256") or data_sha256
    target = folder.path / SEEN
    with whole_file(target) as new, tensors_written(target):
        save_file(copies.tensors(found, roles, told), new)
    return target
