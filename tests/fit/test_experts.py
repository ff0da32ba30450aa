"""A chest-CT network as part of a teacher: opened or refused, asked, and kept out of what is trained."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from hub_model.refused import Refused
from train.fit import experts
from train.fit.settings import Settings

FILE = "resnet152_stages1to3.astra_chestct_2d_int8.safetensors"


@pytest.fixture(scope="module")
def expert_file():
    file = Path(__file__).resolve().parents[2].parent / "shared" / "backbones2" / FILE
    if not file.is_file():
        pytest.skip("needs the chest-CT network in ../shared/backbones2")
    return file


@pytest.mark.slow
def test_its_features_are_those_of_the_published_snippet(expert_file):
    grey = torch.rand(2, 1, 224, 224, generator=torch.Generator().manual_seed(0))
    stored = load_file(expert_file)
    state = {
        k: v.float() * stored[k + "_scale"][:, None, None, None] if v.dtype == torch.int8 else v
        for k, v in stored.items()
        if not k.endswith("_scale")
    }
    model = timm.create_model("resnet152", features_only=True, out_indices=(2, 3)).eval()
    model.load_state_dict(state, strict=False)
    x = ((grey[:, 0] * 1500 - 350) / 1200).clamp(0, 1)
    x = torch.flip(x, (1, 2)).transpose(1, 2)[:, None].expand(-1, 3, -1, -1)
    with torch.inference_mode():
        second, third = model(x)
        found = experts.load_expert(expert_file)(grey)
    assert torch.allclose(found, torch.cat([third.mean((2, 3)), second.mean((2, 3))], 1), atol=1e-4)


def test_another_file_is_refused(tmp_path):
    save_file({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "other.safetensors")
    with pytest.raises(Refused, match=r"lacks .* tensors of a ResNet-152"):
        experts.load_expert(tmp_path / "other.safetensors")
    (tmp_path / "pickle.pt").write_bytes(b"\x80\x02")
    with pytest.raises(Refused, match="no readable safetensors"):
        experts.load_expert(tmp_path / "pickle.pt")


def test_it_needs_ct_and_a_recipe_with_a_teacher(tmp_path):
    given = {"data": "x", "variant": "resnet18", "expert": tmp_path / "e.safetensors"}
    for wrong in ({"modality": "xray", "recipe": "steady"}, {"modality": "ct", "recipe": "scratch"}):
        with pytest.raises(Refused, match="leave --expert out"):
            Settings(**given, **wrong)
    assert Settings(**given, modality="ct", recipe="steady_ct").expert
