"""Networks: the numbers are the backbone's own at each layer, and nothing is computed beyond the deepest one."""

import copy
import threading

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import adaptive_max_pool2d, avg_pool2d, batch_norm, conv2d, max_pool2d, relu
from torch.utils.flop_counter import FlopCounterMode

from extractors.base import SettingError
from extractors.training import networks
from extractors.training.multi_scale_cnn import MultiScaleCNN
from extractors.training.networks import Network, create, layers_of
from extractors.weights import WeightsError
from warehouse.errors import UnknownNameError

BLOCK6A = "blocks.5.0.bn2"


def images(channels: int = 5, size: int = 64, n: int = 3) -> torch.Tensor:
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def b0() -> Network:
    torch.manual_seed(0)
    return create("tf_efficientnet_b0", 5, layers=(BLOCK6A,), size=64).eval()


# ------------------------------------------------------------------------------------------ layers


@torch.no_grad()
def test_block6a_is_the_mean_of_its_activation(b0):
    """Module after module by hand, up to the activation after the depthwise convolution."""
    model, x = b0.backbone, images()
    x = model.bn1(model.conv_stem(x))
    for stage in range(5):
        x = model.blocks[stage](x)
    block = model.blocks[5][0]
    x = block.bn2(block.conv_dw(block.bn1(block.conv_pw(x))))
    assert (b0.dim, b0.dims, b0.final_dim) == (672, (672,), 1280)
    torch.testing.assert_close(b0.embed(images()), x.mean(dim=(2, 3)))
    assert x.amin() > -0.3, "the least value of x · sigmoid(x): this is after the activation"
    features = b0(images())
    torch.testing.assert_close(features.embedding, b0.embed(images()))
    torch.testing.assert_close(features.final, model(images()))


@torch.no_grad()
def test_embed_computes_nothing_beyond_its_layer(b0):
    called = []
    handles = [
        module.register_forward_pre_hook(lambda module, inputs, path=path: called.append(path))
        for path, module in b0.backbone.named_modules()
    ]
    with FlopCounterMode(display=False) as of_embed:
        b0.embed(images())
    for handle in handles:
        handle.remove()
    assert called.count(BLOCK6A) == 1
    assert not {"blocks.5.0.se", "blocks.5.0.conv_pwl", "blocks.5.1", "conv_head"} & set(called)
    model, x = b0.backbone, images()
    with FlopCounterMode(display=False) as by_hand:
        x = model.bn1(model.conv_stem(x))
        for stage in range(5):
            x = model.blocks[stage](x)
        block = model.blocks[5][0]
        block.conv_dw(block.bn1(block.conv_pw(x)))
    with FlopCounterMode(display=False) as of_all:
        b0(images())
    assert of_embed.get_total_flops() == by_hand.get_total_flops() < 0.7 * of_all.get_total_flops()


def test_gradients_of_the_embedding_end_at_its_layer(b0):
    network = copy.deepcopy(b0)
    network(images()).embedding.sum().backward()
    assert network.backbone.conv_stem.weight.grad.abs().sum() > 0
    assert network.backbone.conv_head.weight.grad is None
    network(images()).final.sum().backward()
    assert network.backbone.conv_head.weight.grad.abs().sum() > 0


@torch.no_grad()
def test_several_layers_stand_in_the_order_in_which_they_are_named():
    torch.manual_seed(0)
    network = create("resnet18", 2, layers=("pooled", "layer3", "layer1"), size=32).eval()
    x = images(2, 32)
    _, maps = network.backbone.forward_intermediates(x, indices=(1, 3))
    assert network.dims == (512, 256, 64)
    expected = [network.backbone(x), maps[1].mean(dim=(2, 3)), maps[0].mean(dim=(2, 3))]
    torch.testing.assert_close(network.embed(x), torch.cat(expected, dim=1))
    torch.testing.assert_close(network(x).embedding, torch.cat(expected, dim=1))


@torch.no_grad()
def test_a_layer_whose_maps_are_changed_in_place_afterwards():
    torch.manual_seed(0)
    network = create("resnet18", 2, layers=("bn1",), size=32).eval()
    model, x = network.backbone, images(2, 32)
    expected = model.bn1(model.conv1(x)).mean(dim=(2, 3))
    assert not torch.allclose(expected, model.bn1(model.conv1(x)).relu().mean(dim=(2, 3)))
    torch.testing.assert_close(network(x).embedding, expected)


@torch.no_grad()
def test_of_tokens_the_class_token_or_the_mean_of_the_patches():
    torch.manual_seed(0)
    network = create(
        "vit_tiny_patch16_224", 5, layers=("blocks.3", "blocks.3:mean", "pooled"), size=48
    ).eval()
    model, x = network.backbone, images(5, 48)
    tokens = model.norm_pre(model._pos_embed(model.patch_embed(x)))
    for block in model.blocks[:4]:
        tokens = block(tokens)
    assert tokens.shape == (3, 1 + 3 * 3, 192)
    expected = [tokens[:, 0], tokens[:, 1:].mean(dim=1), model(x)]
    torch.testing.assert_close(network.embed(x), torch.cat(expected, dim=1))
    torch.testing.assert_close(model(x), model.forward_features(x)[:, 0])


@torch.no_grad()
def test_maps_whose_channels_come_last():
    torch.manual_seed(0)
    network = create("swin_tiny_patch4_window7_224", 2, layers=("layers.1",), size=64).eval()
    _, maps = network.backbone.forward_intermediates(images(2), indices=(1,))
    assert network.dim == maps[0].shape[1] == 192
    torch.testing.assert_close(network.embed(images(2)), maps[0].mean(dim=(2, 3)))


def test_layers_typed_with_commas():
    assert layers_of("blocks.2, blocks.4,pooled") == ("blocks.2", "blocks.4", "pooled")
    assert layers_of("") == ()


# ------------------------------------------------------------------------------------------ as a module


def test_making_a_network_draws_and_changes_nothing_else(b0):
    torch.manual_seed(0)
    backbone = timm.create_model("tf_efficientnet_b0", num_classes=0, in_chans=5)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    network = create("tf_efficientnet_b0", 5, layers=(BLOCK6A,), size=64)
    assert torch.rand(1) == drawn
    assert network.training
    assert network.weights_sha256 is None
    for name, tensor in backbone.state_dict().items():
        torch.testing.assert_close(network.state_dict()[f"backbone.{name}"], tensor, rtol=0, atol=0)
    assert set(network.state_dict()) == {f"backbone.{name}" for name in backbone.state_dict()}


@torch.no_grad()
def test_a_copy_is_a_network_of_its_own(b0):
    other = copy.deepcopy(b0)
    other.backbone.conv_stem.weight.zero_()
    assert not torch.allclose(other.embed(images()), b0.embed(images()))
    other.load_state_dict(b0.state_dict())
    torch.testing.assert_close(other.embed(images()), b0.embed(images()))


@torch.no_grad()
def test_lower_precision_gives_float32_near_the_full(b0):
    full = b0.embed(images())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lower, of_all = b0.embed(images()), b0(images())
    assert lower.dtype == of_all.embedding.dtype == torch.float32
    assert not torch.equal(lower, full)
    assert (lower - full).abs().max() < 0.05 * full.abs().max()


@torch.no_grad()
def test_two_threads_at_once_get_each_their_own(b0):
    batches = [images(n=1) * scale for scale in (0.2, 1.0)]
    expected, found = [b0.embed(batch) for batch in batches], {}

    def work(k: int) -> None:
        with torch.no_grad():
            found[k] = [b0.embed(batches[k]) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(k,)) for k in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in (0, 1):
        for each in found[k]:
            torch.testing.assert_close(each, expected[k])


def test_distributed_data_parallel_gives_the_same_gradients(tmp_path):
    torch.manual_seed(0)
    network = create("resnet18", 2, layers=("layer2",), size=32)
    alone = copy.deepcopy(network)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'rank'}", rank=0, world_size=1
    )
    try:
        features = nn.parallel.DistributedDataParallel(network)(images(2, 32))
        (features.final.sum() + features.embedding.sum()).backward()
    finally:
        torch.distributed.destroy_process_group()
    expected = alone(images(2, 32))
    (expected.final.sum() + expected.embedding.sum()).backward()
    torch.testing.assert_close(features.embedding, expected.embedding)
    torch.testing.assert_close(network.backbone.conv1.weight.grad, alone.backbone.conv1.weight.grad)


def test_the_layer_for_maps_is_the_last_with_more_than_one_pixel(b0):
    assert b0.map_layer == "bn2"
    assert create("resnet18", 1, size=64).map_layer == "layer4"
    assert create("resnet18", 1, size=32).map_layer == "layer3"  # layer4 is one pixel here
    # Within a block that ends at one pixel, a part may have more, and the shortcut goes around it.
    assert create("resnet26", 1, size=32).map_layer == "layer3"
    assert create("vit_tiny_patch16_224", 1, size=32).map_layer == "blocks.11.norm1"
    assert create("multi_scale_cnn", 1, size=64).map_layer == "join.2"


# ------------------------------------------------------------------------------------------ weights and sizes


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Saves a model's random weights: (name, channels, …) → file, its state."""
    folder = tmp_path_factory.mktemp("saved")

    def save(name: str, channels: int = 3, **others: object):
        torch.manual_seed(3)
        state = timm.create_model(name, in_chans=channels, num_classes=4, **others).state_dict()
        path = folder / f"{name}_{channels}.safetensors"
        save_file(state, path)
        return path, state

    return save


def test_weights_of_three_channels_are_repeated_and_scaled(saved):
    path, state = saved("resnet18")
    network = create("resnet18", 5, weights=str(path), size=32)
    three = state["conv1.weight"].numpy()
    # Channels 0, 1, 2, 0, 1, each by 3/5, so that an image of equal channels gives what it gave.
    expected = np.stack([three[:, k % 3] for k in range(5)], axis=1) * 3 / 5
    np.testing.assert_allclose(network.backbone.conv1.weight.detach().numpy(), expected, rtol=1e-6)
    torch.testing.assert_close(network.backbone.layer4[1].conv2.weight.data, state["layer4.1.conv2.weight"])
    assert len(network.weights_sha256) == 64


def test_weights_of_as_many_channels_are_taken_as_they_are(saved):
    path, state = saved("resnet18", 5)
    network = create("resnet18", 5, weights=str(path), size=32)
    torch.testing.assert_close(network.backbone.conv1.weight.data, state["conv1.weight"])


@pytest.mark.parametrize(("made_for", "asked"), [(5, 3), (5, 1), (6, 5)])
def test_weights_of_other_channels_are_refused_with_both_numbers(saved, made_for, asked):
    path, _ = saved("resnet18", made_for)
    message = rf"resnet18_{made_for}\.safetensors: made for {made_for} channels, asked for with {asked}"
    with pytest.raises(WeightsError, match=message):
        create("resnet18", asked, weights=str(path), size=32)


@torch.no_grad()
def test_vision_transformer_at_its_size_and_at_another(saved):
    path, state = saved("vit_tiny_patch16_224")
    plain = timm.create_model("vit_tiny_patch16_224", num_classes=0).eval()
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    network = create("vit_tiny_patch16_224", 3, weights=str(path), size=224).eval()
    x = images(3, 224, 1)
    torch.testing.assert_close(network.embed(x), plain(x))
    smaller = create("vit_tiny_patch16_224", 3, weights=str(path), size=64).eval()
    positions = smaller.backbone.pos_embed
    assert positions.shape == (1, 1 + 4 * 4, 192)
    torch.testing.assert_close(positions[:, 0], state["pos_embed"][:, 0])
    # timm's own way to the same: a model that resamples as it looks.
    dynamic = timm.create_model("vit_tiny_patch16_224", num_classes=0, dynamic_img_size=True).eval()
    dynamic.load_state_dict({name: state[name] for name in dynamic.state_dict()})
    torch.testing.assert_close(smaller.embed(images(3)), dynamic(images(3)), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_inception_from_75_pixels_with_weights_that_hold_its_second_classifier(saved):
    path, state = saved("inception_v3", aux_logits=True)
    assert any(name.startswith("AuxLogits.") for name in state)
    network = create("inception_v3", 3, weights=str(path), layers=("Mixed_6a", "pooled"), size=75).eval()
    assert network.dims == (768, 2048)
    plain = timm.create_model("inception_v3", num_classes=0).eval()
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    torch.testing.assert_close(network(images(3, 75)).final, plain(images(3, 75)))
    with pytest.raises(SettingError, match=r"model 'inception_v3' does not take size 74 \(.*Kernel"):
        create("inception_v3", 3, size=74)


def test_hub_without_a_network_says_so(monkeypatch):
    def absent(*args: object, pretrained: bool = False, **others: object):
        assert pretrained
        message = "no route to host\nsecond line"
        raise OSError(message)

    monkeypatch.setattr(networks.timm, "create_model", absent)
    with pytest.raises(
        WeightsError,
        match=r"weights of 'resnet18' cannot be had from the hub \(no route to host\): give weights=FILE",
    ):
        create("resnet18", 5, weights="hub", size=32)


def test_package_is_of_one_model_and_fits_five_channels():
    network = create("tf_efficientnet_lite0", 5, layers=(BLOCK6A,), weights="package", size=64)
    assert network.dim == 672
    with pytest.raises(
        WeightsError, match="model 'resnet18': the package holds weights of 'tf_efficientnet_li"
    ):
        create("resnet18", 5, weights="package", size=64)


# ------------------------------------------------------------------------------------------ the multi-scale network


def by_hand(state: dict[str, torch.Tensor], x: torch.Tensor, scales: int, grid: int) -> torch.Tensor:
    """The network of its docstring, from its tensors, in evaluation."""

    def block(x: torch.Tensor, name: str, k: int, padding: int) -> torch.Tensor:
        x = conv2d(x, state[f"{name}.{k}.weight"], padding=padding)
        norm = [state[f"{name}.{k + 1}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return relu(batch_norm(x, *norm))

    maps = []
    for scale in range(scales):
        small = avg_pool2d(x, 2**scale)
        for k in (0, 3, 6):
            small = block(small, f"scales.{scale}", k, 2)
        maps.append(adaptive_max_pool2d(small, grid))
    joined = max_pool2d(block(torch.cat(maps, dim=1), "join", 0, 0), 2)
    dense = joined.flatten(1) @ state["dense.0.weight"].T
    norm = [state[f"dense.1.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
    return relu(batch_norm(dense, *norm))


@pytest.mark.parametrize(
    ("size", "scales", "grid"), [(32, 5, 2), (50, 5, 3), (64, 6, 2), (128, 7, 2), (200, 7, 3)]
)
@torch.no_grad()
def test_multi_scale_network_is_its_description(size, scales, grid):
    torch.manual_seed(0)
    network = create("multi_scale_cnn", 2, size=size)
    network(images(2, size))  # running means and variances that are not 0 and 1
    network.eval()
    assert network.dim == network.final_dim == 512
    widths = [len(scale[0].weight) for scale in network.backbone.scales]
    assert widths == [16, 16, 16, 32, 32, 32, 64][:scales]
    expected = by_hand(network.backbone.state_dict(), images(2, size), scales, grid)
    assert expected.std() > 0.01
    torch.testing.assert_close(network.embed(images(2, size)), expected, rtol=1e-4, atol=1e-5)


def test_multi_scale_network_does_not_grow_with_a_large_image():
    """1,080 pixels leave 16 a side at the coarsest scale: the grid stays at 8 × 8, and 4 × 4 × 1,024 are read."""
    network = MultiScaleCNN(5, 1080)
    assert network.grid == 8
    assert network.dense[0].in_features == 4 * 4 * 1024


def test_multi_scale_network_takes_its_own_weights_and_no_others(tmp_path, saved):
    network = create("multi_scale_cnn", 2, size=32)
    path = tmp_path / "own.safetensors"
    save_file(network.backbone.state_dict(), path)
    again = create("multi_scale_cnn", 2, weights=str(path), size=32)
    torch.testing.assert_close(again.backbone.dense[0].weight, network.backbone.dense[0].weight)
    with pytest.raises(WeightsError, match="made for 2 channels, asked for with 5"):
        create("multi_scale_cnn", 5, weights=str(path), size=32)
    with pytest.raises(WeightsError, match=r"fit the model's .* neither by name"):
        create("multi_scale_cnn", 3, weights=str(saved("resnet18")[0]), size=32)
    with pytest.raises(
        WeightsError, match="model 'multi_scale_cnn' is our own, the hub has no weights of it"
    ):
        create("multi_scale_cnn", 3, weights="hub", size=32)


# ------------------------------------------------------------------------------------------ bad input


class Odd(nn.Module):
    """Has a layer that gives a pair, and one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair()
        self.idle = nn.Identity()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pair(x * self.weight)[0].mean(dim=(2, 3))


class Pair(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (("pair",), "layer 'pair' gives tuple, expected maps, tokens or features: name another"),
        (("idle",), "layer 'idle' of 'odd' is never called: name another"),
        ((), "model 'odd': no layer is named: give 'pooled', or paths of its modules"),
        (("pooled", "pooled"), "model 'odd': layer 'pooled' is named twice"),
    ],
)
def test_layers_without_numbers_are_refused(layers, message):
    with pytest.raises(SettingError, match=message):
        Network("odd", Odd(), 1, layers, 8)


def test_unknown_names_offer_the_nearest():
    with pytest.raises(
        UnknownNameError, match=r"unknown model 'multi_scale'\. Did you mean 'multi_scale_cnn'"
    ):
        create("multi_scale", 3, size=32)
    with pytest.raises(
        UnknownNameError, match=r"unknown layer of resnet18 'layer4\.0\.bn9'\. Did you mean 'layer4\.0\.bn"
    ):
        create("resnet18", 3, layers=("layer4.0.bn9",), size=32)
    with pytest.raises(UnknownNameError, match="unknown layer of resnet18 'pooled:mean'"):
        create("resnet18", 3, layers=("pooled:mean",), size=32)


def test_mean_of_patches_of_what_has_none_is_refused():
    with pytest.raises(
        SettingError, match=r"layer 'layer1:mean' gives \(1, 64, 8, 8\), no tokens: leave ':mean' away"
    ):
        create("resnet18", 3, layers=("layer1:mean",), size=32)


@pytest.mark.parametrize(
    ("name", "channels", "size", "message"),
    [
        ("resnet18", 0, 32, "model 'resnet18': channels is 0: give a whole number of 1 or more"),
        ("resnet18", 3, 32.5, "model 'resnet18': size is 32.5"),
        ("vit_tiny_patch16_224", 3, 60, "does not take size 60: give a multiple of its patches, 16 pixels"),
        ("multi_scale_cnn", 3, 31, "model 'multi_scale_cnn' does not take size 31: give 32 pixels or more"),
    ],
)
def test_channels_and_sizes_that_cannot_be(name, channels, size, message):
    with pytest.raises(SettingError, match=message):
        create(name, channels, size=size)
