"""The contract of a family, and how it is found."""

from __future__ import annotations

import dataclasses
import pkgutil

import pytest

from pipeline.gan import families, family
from pipeline.gan.family import load_family

NAMES = [module.name for module in pkgutil.iter_modules(families.__path__)]


@pytest.mark.parametrize("name", NAMES)
def test_the_settings_of_a_family_are_frozen_and_all_have_defaults(name: str) -> None:
    config = load_family(name).Config()
    assert isinstance(config, family.Config)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.learning_rate = 1.0


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("dcgn", "family is 'dcgn'; did you mean 'dcgan'?"), ("__init__", "family is '__init__'; needed one of")],
)
def test_an_unknown_family_is_refused_with_the_nearest(name: str, sentence: str) -> None:
    with pytest.raises(ValueError, match="family is") as refused:
        load_family(name)
    assert str(refused.value).startswith(sentence)


OUT_OF_RANGE = {
    "learning_rate": 0.0,
    "beta1": 1.0,
    "beta2": -0.1,
    "fall_from": 1.0,
    "ema_halflife_images": -1,
    "ema_ramp": 0.0,
    "latent_size": 0,
    "label_smoothing": 1.0,
    "discriminator_steps": 0,
    "r1_gamma": -1.0,
    "r2_gamma": -1.0,
    "gradient_penalty": -1.0,
    "penalty_every": 0,
    "embedding_size": 0,
    "width": 0,
}


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        (name, field.name)
        for name in NAMES
        for field in dataclasses.fields(load_family(name).Config)
        if field.name in OUT_OF_RANGE
    ],
)
def test_a_setting_out_of_range_is_named(name: str, setting: str) -> None:
    value = OUT_OF_RANGE[setting]
    with pytest.raises(ValueError, match=f"^{setting} is {value}; needed "):
        load_family(name).Config(**{setting: value})
