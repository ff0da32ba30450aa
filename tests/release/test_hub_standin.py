"""The Hub in memory is worth as much as the clients that take it for the real one: they push to it and pull
from it by their own ways, most of which this project does not use itself.
"""

import json
import subprocess
import sys

import pytest

from tests.hub_standin import hub  # noqa: F401

PUSH_AND_PULL = """
import json
import datasets, timm, torch
import numpy as np
from huggingface_hub import HfApi, ModelCard, ModelCardData, snapshot_download
from pathlib import Path
from PIL import Image
from transformers import AutoModelForImageClassification, TimmWrapperConfig, TimmWrapperForImageClassification

api, told = HfApi(), {}
told["who"] = api.whoami()["name"]

# huggingface_hub: a folder with large and small files, a card, a branch, a tag, a deletion
folder = Path("folder/deep")
folder.mkdir(parents=True)
(folder / "weights.safetensors").write_bytes(bytes(range(256)) * 40)
(folder / "small.txt").write_text("ß")
api.create_repo("org/files")
api.upload_folder(repo_id="org/files", folder_path="folder")
ModelCard.from_template(ModelCardData(license="mit"), model_id="files").push_to_hub("org/files")
api.create_tag("org/files", tag="v1")
api.create_branch("org/files", branch="side")
api.delete_file("deep/small.txt", repo_id="org/files")
told["files"] = sorted(api.list_repo_files("org/files"))
pulled = Path(snapshot_download("org/files", revision="v1"))
told["pulled"] = sorted(p.relative_to(pulled).as_posix() for p in pulled.rglob("*") if p.is_file())
weights = [f.read_bytes() for f in (folder / "weights.safetensors", pulled / "deep" / "weights.safetensors")]
told["same"] = weights[0] == weights[1]
told["refs"] = [ref.name for ref in api.list_repo_refs("org/files").branches]
told["titles"] = len(api.list_repo_commits("org/files"))

# timm and transformers, each to the other
picture, network = torch.rand(1, 3, 32, 32), timm.create_model("test_resnet", num_classes=2).eval()
timm.models.push_to_hf_hub(network, "org/timm", safe_serialization=True)
again = timm.create_model("hf-hub:org/timm", pretrained=True).eval()
config = TimmWrapperConfig(architecture="test_resnet", num_labels=2, do_pooling=True)
wrapped = TimmWrapperForImageClassification(config).eval()
wrapped.push_to_hub("org/wrapped")
pulled = AutoModelForImageClassification.from_pretrained("org/wrapped").eval()
with torch.inference_mode():
    told["timm"] = bool(torch.allclose(again(picture), network(picture)))
    told["transformers"] = bool(torch.allclose(pulled(picture).logits, wrapped(picture).logits))

# datasets: pushed, loaded, streamed
rows = {"image": [Image.fromarray(np.full((8, 9), i, np.uint8)) for i in range(4)], "label": [0, 1, 0, 1]}
datasets.Dataset.from_dict(rows).push_to_hub("org/rows")
told["rows"] = len(datasets.load_dataset("org/rows", split="train"))
streamed = datasets.load_dataset("org/rows", split="train", streaming=True)
told["size"] = list(next(iter(streamed))["image"].size)
print(json.dumps(told))
"""


@pytest.mark.filterwarnings("ignore")
def test_the_clients_take_it_for_the_hub(hub, tmp_path):  # noqa: F811
    done = subprocess.run(
        [sys.executable, "-c", PUSH_AND_PULL], cwd=tmp_path, capture_output=True, text=True,
        env={"PATH": "", "OMP_NUM_THREADS": "1", **hub.env},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told == {
        "who": "org",
        "files": [".gitattributes", "README.md", "deep/weights.safetensors"],
        "pulled": [".gitattributes", "README.md", "deep/small.txt", "deep/weights.safetensors"],
        "same": True,
        "refs": ["main", "side"],
        "titles": 4,
        "timm": True,
        "transformers": True,
        "rows": 4,
        "size": [9, 8],
    }
    assert hub.repos["models", "org/files"].at("v1").files["deep/weights.safetensors"].large
    assert not [entry for entry in hub.log if entry[2] >= 500], "nothing was asked that it could not answer"


def test_what_is_not_there_is_told_apart(hub):  # noqa: F811
    """By the errors of huggingface_hub, which come from headers that the real Hub sends."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    HfApi().create_repo("org/here")
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("org/nowhere", "config.json")
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("org/here", "config.json", revision="v9")
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("org/here", "config.json")
    with pytest.raises(RepositoryNotFoundError):
        HfApi(token=False).model_info("org/nowhere")
