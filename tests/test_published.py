"""Published checkpoints: files with the same names and shapes, random values, and a forward pass written apart."""

import argparse
import re

import h5py
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.nn.functional import conv2d, layer_norm, pad, silu, softmax

from extractors import weights
from extractors.training.networks import create
from extractors.training.published import translated
from extractors.weights import WeightsError

#: Stages of EfficientNet-B0 (Tan and Le 2019, table 1): kernel, repeats, in, out, expansion, stride.
STAGES = ((3, 1, 32, 16, 1, 1), (3, 2, 16, 24, 6, 2), (5, 2, 24, 40, 6, 2), (3, 3, 40, 80, 6, 2),
          (5, 3, 80, 112, 6, 1), (5, 4, 112, 192, 6, 2), (3, 1, 192, 320, 6, 1))  # fmt: skip


def keras_state(channels: int = 5, classes: int = 490) -> dict[str, np.ndarray]:
    """The variables of DeepProfiler's network: layer/variable → values, in Keras' layouts."""
    rng = np.random.default_rng(0)
    state: dict[str, np.ndarray] = {}

    def conv(layer: str, kernel: int, taken: int, given: int, bias: bool = False) -> None:
        shape = (kernel, kernel, taken, given)
        state[f"{layer}/kernel"] = rng.normal(0, (2 / (kernel**2 * taken)) ** 0.5, shape)
        if bias:
            state[f"{layer}/bias"] = rng.normal(0, 0.1, given)

    def norm(layer: str, width: int) -> None:
        for variable, low, high in (("gamma", 0.8, 1.2), ("beta", -0.2, 0.2), ("moving_mean", -0.2, 0.2),
                                    ("moving_variance", 0.5, 1.5)):  # fmt: skip
            state[f"{layer}/{variable}"] = rng.uniform(low, high, width)

    conv("stem_conv", 3, channels, 32)
    norm("stem_bn", 32)
    for stage, (kernel, repeats, taken, given, expansion, _) in enumerate(STAGES):
        for repeat in range(repeats):
            block, inside = f"block{stage + 1}{'abcd'[repeat]}", taken if repeat == 0 else given
            wide = inside * expansion
            if expansion > 1:
                conv(f"{block}_expand_conv", 1, inside, wide)
                norm(f"{block}_expand_bn", wide)
            state[f"{block}_dwconv/depthwise_kernel"] = rng.normal(0, 1 / kernel, (kernel, kernel, wide, 1))
            norm(f"{block}_bn", wide)
            conv(f"{block}_se_reduce", 1, wide, inside // 4, bias=True)
            conv(f"{block}_se_expand", 1, inside // 4, wide, bias=True)
            conv(f"{block}_project_conv", 1, wide, given)
            norm(f"{block}_project_bn", given)
    conv("top_conv", 1, 320, 1280)
    norm("top_bn", 1280)
    state["ClassProb/kernel"] = rng.normal(0, 0.03, (1280, classes))
    state["ClassProb/bias"] = rng.normal(0, 0.03, classes)
    return {name: values.astype(np.float32) for name, values in state.items()}


def keras_forward(state: dict[str, np.ndarray], x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute block6a's activation and the last maps, as TensorFlow does, straight from Keras' variables."""

    def conv(x: torch.Tensor, layer: str, stride: int = 1) -> torch.Tensor:
        is_depthwise = f"{layer}/depthwise_kernel" in state
        kernel = torch.from_numpy(state[f"{layer}/depthwise_kernel" if is_depthwise else f"{layer}/kernel"])
        # "same": as many outputs as strides fit, and where the padding is uneven, more at the end.
        k, size = kernel.shape[0], x.shape[-1]
        missing = max((-(-size // stride) - 1) * stride + k - size, 0)
        x = pad(x, (missing // 2, missing - missing // 2) * 2)
        if is_depthwise:
            x = torch.cat(
                [
                    conv2d(x[:, c : c + 1], kernel[:, :, c, 0][None, None], stride=stride)
                    for c in range(x.shape[1])
                ],
                dim=1,
            )
        else:
            x = conv2d(x, torch.einsum("hwio->oihw", kernel), stride=stride)
        bias = state.get(f"{layer}/bias")
        return x if bias is None else x + torch.from_numpy(bias)[:, None, None]

    def norm(x: torch.Tensor, layer: str) -> torch.Tensor:
        gamma, beta, mean, variance = (
            torch.from_numpy(state[f"{layer}/{variable}"])[:, None, None]
            for variable in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        return (x - mean) / (variance + 1e-3).sqrt() * gamma + beta

    x = silu(norm(conv(x, "stem_conv", 2), "stem_bn"))
    for stage, (_, repeats, _, _, expansion, first_stride) in enumerate(STAGES):
        for repeat in range(repeats):
            block, before = f"block{stage + 1}{'abcd'[repeat]}_", x
            if expansion > 1:
                x = silu(norm(conv(x, block + "expand_conv"), block + "expand_bn"))
            x = silu(norm(conv(x, block + "dwconv", first_stride if repeat == 0 else 1), block + "bn"))
            if block == "block6a_":
                block6a = x
            gate = silu(conv(x.mean(dim=(2, 3), keepdim=True), block + "se_reduce"))
            x = x * conv(gate, block + "se_expand").sigmoid()
            x = norm(conv(x, block + "project_conv"), block + "project_bn")
            x = x + before if repeat else x
    return block6a, silu(norm(conv(x, "top_conv"), "top_bn"))


def save_hdf5(path, state: dict[str, np.ndarray], *, within: str = "", twice: bool = True) -> None:
    """As Keras saves weights: a group a layer, in it a group of the same name, and `:0` after each variable."""
    with h5py.File(path, "w") as file:
        file.attrs["backend"] = "tensorflow"
        for name, values in state.items():
            layer, variable = name.split("/")
            file[f"{within}{layer}/{layer}/{variable}:0" if twice else f"{within}{layer}/{variable}:0"] = (
                values
            )
        file.create_group(f"{within}stem_activation")


@pytest.fixture(scope="module")
def cell_painting(tmp_path_factory):
    state, path = keras_state(), tmp_path_factory.mktemp("keras") / "Cell_Painting_CNN_v1.hdf5"
    save_hdf5(path, state)
    return state, path


@torch.no_grad()
def test_cell_painting_cnn_gives_the_numbers_of_a_network_written_apart(cell_painting):
    state, path = cell_painting
    network = create("tf_efficientnet_b0", 5, layers=("blocks.5.0.bn2",), weights=str(path), size=64).eval()
    x = torch.rand(2, 5, 64, 64, generator=torch.Generator().manual_seed(0))
    block6a, last = keras_forward(state, x)
    assert block6a.shape == (2, 672, 2, 2)
    assert block6a.std() > 0.05
    found = network(x)
    torch.testing.assert_close(found.embedding, block6a.mean(dim=(2, 3)), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.final, last.mean(dim=(2, 3)), rtol=1e-3, atol=1e-4)
    assert network.weights_sha256 == weights.sha256(path)


@pytest.mark.parametrize("within", ["model_weights/", "efficientnet-b0/", "model_weights/efficientnet-b0/"])
def test_a_whole_saved_model_and_a_model_within_a_model(tmp_path, cell_painting, within):
    state, path = cell_painting
    expected = translated(weights.read(path), "tf_efficientnet_b0", "here")
    save_hdf5(tmp_path / "w.h5", state, within=within, twice=False)
    with h5py.File(tmp_path / "w.h5", "a") as file:
        if within.startswith("model_weights"):
            file["optimizer_weights/SGD/iter:0"] = 5
    found = translated(weights.read(tmp_path / "w.h5"), "tf_efficientnet_b0", "here")
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)


def test_classifier_is_turned_too(cell_painting):
    """Left out where embeddings are made, it is there for whoever wants the classes."""
    state, path = cell_painting
    found = translated(weights.read(path), "tf_efficientnet_b0", "here")
    np.testing.assert_array_equal(found["classifier.weight"].numpy(), state["ClassProb/kernel"].T)
    with_classes = timm.create_model("tf_efficientnet_b0", in_chans=5, num_classes=490)
    assert set(with_classes.state_dict()) == set(found)
    with_classes.load_state_dict(found)


def test_cell_painting_cnn_for_other_channels_is_refused(cell_painting):
    with pytest.raises(
        WeightsError, match=r"_CNN_v1\.hdf5: made for 5 channels, asked for with 3: give images"
    ):
        create("tf_efficientnet_b0", 3, weights=str(cell_painting[1]), size=64)


@pytest.mark.parametrize("model", ["efficientnet_b0", "resnet18", "tf_efficientnet_lite0"])
def test_cell_painting_cnn_onto_a_network_that_computes_otherwise_is_refused(cell_painting, model):
    with pytest.raises(
        WeightsError, match=f"a Keras EfficientNet, asked for as '{model}': .*'tf_efficientnet_b0'"
    ):
        create(model, 5, weights=str(cell_painting[1]), size=64)


def test_cell_painting_cnn_onto_a_deeper_network_is_refused(cell_painting):
    with pytest.raises(WeightsError, match=r"neither by name .* nor by order and shape"):
        create("tf_efficientnet_b1", 5, weights=str(cell_painting[1]), size=64)


@pytest.mark.parametrize("name", ["block6a_strange/kernel", "dense_1/kernel", "stem_bn/strange"])
def test_keras_file_with_a_part_that_no_efficientnet_has(tmp_path, cell_painting, name):
    save_hdf5(tmp_path / "w.hdf5", cell_painting[0] | {name: np.zeros((1, 1, 1, 1), np.float32)})
    layer, variable = name.split("/")
    with pytest.raises(
        WeightsError, match=rf"w\.hdf5: '{layer}/{layer}/{variable}:0' is no part of an EfficientNet"
    ):
        create("tf_efficientnet_b0", 5, weights=str(tmp_path / "w.hdf5"), size=64)


def test_keras_file_without_a_layer(tmp_path, cell_painting):
    state = {name: values for name, values in cell_painting[0].items() if name != "block3b_bn/beta"}
    save_hdf5(tmp_path / "w.hdf5", state)
    with pytest.raises(WeightsError, match=r"first missing: 'blocks\.2\.1\.bn2\.bias'"):
        create("tf_efficientnet_b0", 5, weights=str(tmp_path / "w.hdf5"), size=64)


# ------------------------------------------------------------------------------------------ CellPaintSSL


def vit_state(
    channels: int = 5, width: int = 384, depth: int = 12, side: int = 224
) -> dict[str, torch.Tensor]:
    """The names and shapes of a vision transformer with 16 × 16 patches, as DINO, MAE and timm all call them."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.05

    state = {
        "cls_token": random(1, 1, width), "pos_embed": random(1, (side // 16) ** 2 + 1, width),
        "patch_embed.proj.weight": random(width, channels, 16, 16), "patch_embed.proj.bias": random(width),
    }  # fmt: skip
    for k in range(depth):
        for name, shape in (
            ("norm1", (width,)), ("attn.qkv", (3 * width, width)), ("attn.proj", (width, width)),
            ("norm2", (width,)), ("mlp.fc1", (4 * width, width)), ("mlp.fc2", (width, 4 * width)),
        ):  # fmt: skip
            state[f"blocks.{k}.{name}.weight"] = random(*shape) + (len(shape) == 1)
            state[f"blocks.{k}.{name}.bias"] = random(shape[0])
    return state | {"norm.weight": random(width) + 1, "norm.bias": random(width)}


def vit_forward(state: dict[str, torch.Tensor], x: torch.Tensor, heads: int, depth: int = 12) -> torch.Tensor:
    """Compute the tokens after the last block, before the last norm, by the definition of a transformer."""
    n, _, side, _ = x.shape
    patches = (
        x.unfold(2, 16, 16).unfold(3, 16, 16).permute(0, 2, 3, 1, 4, 5).reshape(n, (side // 16) ** 2, -1)
    )
    tokens = patches @ state["patch_embed.proj.weight"].flatten(1).T + state["patch_embed.proj.bias"]
    tokens = torch.cat([state["cls_token"].expand(n, 1, -1), tokens], dim=1) + state["pos_embed"]
    width = tokens.shape[2]

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return layer_norm(x, (width,), state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)

    for k in range(depth):
        parts = linear(norm(tokens, f"blocks.{k}.norm1"), f"blocks.{k}.attn.qkv").chunk(3, dim=2)
        query, key, value = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in parts)
        share = softmax(query @ key.transpose(2, 3) / (width / heads) ** 0.5, dim=3)
        tokens = tokens + linear((share @ value).transpose(1, 2).flatten(2), f"blocks.{k}.attn.proj")
        inner = linear(norm(tokens, f"blocks.{k}.norm2"), f"blocks.{k}.mlp.fc1")
        inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
        tokens = tokens + linear(inner, f"blocks.{k}.mlp.fc2")
    return tokens


def decoder(width: int) -> dict[str, torch.Tensor]:
    zeros = torch.zeros
    return {
        "mask_token": zeros(1, 1, 256), "decoder_pos_embed": zeros(1, 197, 256),
        "decoder_embed.weight": zeros(256, width), "decoder_embed.bias": zeros(256),
        "decoder_blocks.0.norm1.weight": zeros(256), "decoder_norm.weight": zeros(256),
        "decoder_pred.weight": zeros(1280, 256), "decoder_pred.bias": zeros(1280),
    }  # fmt: skip


def checkpoint(kind: str, state: dict[str, torch.Tensor]) -> dict[str, object]:
    """What the training of each kind saves."""
    head, notes = torch.zeros(3, 3), {"epoch": 199, "args": argparse.Namespace(lr=0.004, arch="vit_small")}
    if kind == "dino":
        student = {f"module.backbone.{name}": tensor * 2 for name, tensor in state.items()}
        teacher = {f"backbone.{name}": tensor for name, tensor in state.items()}
        return {"student": student, "teacher": teacher | {"head.mlp.0.weight": head, "head.last_layer.weight_g": head},
                "optimizer": {"state": {0: {"step": 3}}}, "dino_loss": {"center": head}, **notes}  # fmt: skip
    if kind == "dino student":
        return {f"module.backbone.{name}": tensor for name, tensor in state.items()} | {
            "module.head.mlp.0.bias": head
        }
    if kind == "simclr":
        named = {f"backbone.{name}": tensor for name, tensor in state.items()}
        return {"state_dict": named | {"mlp.0.weight": head, "mlp.2.bias": head}, "pytorch-lightning_version": "2.0.2",
                "hyper_parameters": {"lr": 0.001, "vit": "vit_small_patch16_224"}, "epoch": 3, "loops": {}}  # fmt: skip
    return {
        "model": state | decoder(state["cls_token"].shape[2]),
        "optimizer": {"state": {}},
        "scaler": {},
        **notes,
    }


@pytest.fixture(scope="module")
def tiny():
    return vit_state(width=192)


#: The published ones are ViT-S and ViT-B; a narrower one has the same names, and costs less to look through.
@pytest.mark.parametrize(
    ("kind", "model", "width", "heads"),
    [("dino", "vit_small_patch16_224", 384, 6)]
    + [(kind, "vit_tiny_patch16_224", 192, 3) for kind in ("dino student", "simclr", "mae")],
)
@torch.no_grad()
def test_cellpaintssl_gives_the_numbers_of_a_transformer_written_apart(tmp_path, kind, model, width, heads):
    """The name of the file says nothing: what it is, its keys say."""
    path, state = tmp_path / "w.ckpt", vit_state(width=width)
    torch.save(checkpoint(kind, state), path)
    layer = "blocks.11:mean" if kind == "mae" else "pooled"
    network = create(model, 5, layers=(layer,), weights=str(path), size=224).eval()
    x = torch.rand(1, 5, 224, 224, generator=torch.Generator().manual_seed(0))
    tokens = vit_forward(state, x, heads)
    # MAE: mean of the patch tokens as the last block leaves them; the others: the normalised class token.
    normed = layer_norm(tokens[:, 0], (width,), state["norm.weight"], state["norm.bias"], eps=1e-6)
    expected = tokens[:, 1:].mean(dim=1) if kind == "mae" else normed
    assert expected.std() > 0.1
    assert network.dim == width
    torch.testing.assert_close(network.embed(x), expected, rtol=1e-3, atol=1e-4)


def test_cellpaintssl_for_other_channels_or_another_width_is_refused(tmp_path, tiny):
    path = tmp_path / "dino.pth"
    torch.save(checkpoint("dino", tiny), path)
    with pytest.raises(
        WeightsError, match=r"dino\.pth: made for 5 channels, asked for with 3: give images of 5"
    ):
        create("vit_tiny_patch16_224", 3, weights=str(path), size=224)
    with pytest.raises(
        WeightsError, match=re.escape("'cls_token' has shape (1, 1, 192), the model wants (1, 1, 384)")
    ):
        create("vit_small_patch16_224", 5, weights=str(path), size=224)


def test_what_is_no_known_head_is_refused_by_name(tmp_path, tiny):
    path = tmp_path / "other.pth"
    torch.save(checkpoint("dino student", tiny) | {"module.memory": torch.zeros(2)}, path)
    with pytest.raises(
        WeightsError, match=r"hold 1 tensors that the model does not have \(first: 'memory'\)"
    ):
        create("vit_tiny_patch16_224", 5, weights=str(path), size=224)


def test_a_model_trained_here_is_gone_on_from(tmp_path):
    torch.manual_seed(0)
    trained = create("resnet18", 2, layers=("layer2",), size=32)
    state = {f"network.{name}": tensor for name, tensor in trained.state_dict().items()}
    save_file(state | {"head.classes.weight": torch.zeros(3, 512)}, tmp_path / "model.safetensors")
    again = create("resnet18", 2, layers=("pooled",), weights=str(tmp_path / "model.safetensors"), size=32)
    for name, tensor in again.state_dict().items():
        torch.testing.assert_close(tensor, trained.state_dict()[name], rtol=0, atol=0)


def test_what_is_not_published_keeps_its_names():
    state = {"conv1.weight": torch.zeros(1), "fc.bias": torch.zeros(2)}
    assert translated(state, "resnet18", "here") == state
    in_parallel = {f"module.{name}": tensor for name, tensor in state.items()}
    assert translated(in_parallel, "resnet18", "here") == state
