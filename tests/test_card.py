"""The card of a model: what its identity is of, and what is refused although it agrees with itself."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from trained import CHANNELS, model_of

from extractors.learned import Learned
from extractors.training.card import Card, read_card
from extractors.training.model_folder import CARD, read_model
from warehouse.errors import TrainingError


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return model_of("cell_painting_cnn", tmp_path_factory.mktemp("models") / "net")


@pytest.fixture
def card(folder) -> Card:
    return read_model(folder).card


def without(settings: dict, name: str) -> dict:
    return {key: value for key, value in settings.items() if key != name}


def test_a_card_is_read_as_it_was_written(card):
    assert read_card(card.text(), "card.json") == card


def test_the_identity_is_of_all_that_decides_an_embedding_and_its_classes(card):
    changes = {
        "method": "attention_mil", "version": "2", "channels": ("DNA", "ER"), "mean": (0.25, 0.5), "std": (0.5, 0.25),
        "settings": card.settings | {"crop": 48}, "classes": card.classes[::-1], "weights": "0" * 64,
    }  # fmt: skip
    found = {card.identity(), *(replace(card, **{name: value}).identity() for name, value in changes.items())}
    assert len(found) == 1 + len(changes)
    for name, value in {"data": {"lake": "/other"}, "training": {"epochs": 9}, "code_version": "9"}.items():
        assert replace(card, **{name: value}).identity() == card.identity()


def test_the_identity_does_not_depend_on_where_the_first_weights_lay(card):
    for place in ("/here/w.pth", "/there/w.pth", "package"):
        assert replace(card, settings=card.settings | {"weights": place}).identity() == card.identity()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda card: {"mean": (0.5,)}, r"has 1 values of mean for 2 channels: it is of another version of Wellhouse"),
        (lambda card: {"std": (0.5,) * 3}, r"has 3 values of std for 2 channels"),
        (lambda card: {"mean": "ab"}, r"has no values of mean for 2 channels"),
        (lambda card: {"std": (0.5, 0.0)}, r"std holds 0\.0, which pixels on a scale of 0 to 1 cannot have"),
        (lambda card: {"mean": (0.5, float("nan"))}, r"mean holds nan, which"),
        (lambda card: {"mean": (0.5, "x")}, r"mean holds 'x', which"),
        (lambda card: {"settings": without(card.settings, "layer")}, r"has no setting 'layer' of cell_painting_cnn"),
        (lambda card: {"settings": card.settings | {"lair": 1}}, r"unknown setting of cell_painting_cnn 'lair'"),
        (lambda card: {"settings": card.settings | {"crop": "x"}}, r"setting crop is 'x': give a whole number: it is"),
        (lambda card: {"method": "cell_cnn"}, r"unknown trained method 'cell_cnn'"),
    ],
)  # fmt: skip
def test_a_card_that_contradicts_itself_is_refused(card, change, message):
    odd = replace(card, **change(card))
    with pytest.raises(TrainingError, match=rf"^card\.json: {message}"):
        read_card(odd.text(), "card.json")


def test_settings_that_are_none_are_no_card(card):
    found = json.loads(card.text()) | {"settings": ["crop"]}
    with pytest.raises(TrainingError, match=r"is no model's card \(AttributeError: "):
        read_card(json.dumps(found), "card.json")


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            "test_resnet",
            r"test_resnet that card\.json names is not .*tensor 'backbone\..*' is not among the weights",
        ),
        (
            "multi_scale_cnn",
            r"tensor 'backbone.*' has shape \(.*\), the network has \(.*\)\): copy the whole folder",
        ),
    ],
)
def test_weights_of_another_network_are_named_by_their_first_tensor(folder, card, tmp_path, network, message):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    channels = CHANNELS if network != card.settings["network"] else (*CHANNELS, "ER")
    scale = (0.25,) * len(channels)
    odd = replace(
        card, settings=card.settings | {"network": network}, channels=channels, mean=scale, std=scale
    )
    (tmp_path / CARD).write_text(odd.text())
    with pytest.raises(TrainingError, match=message):
        Learned(channels, method="cell_painting_cnn", model=tmp_path, device="cpu")
