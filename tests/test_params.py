"""params.yaml: what is right is read exactly, what is wrong gets one sentence that names the key and the mend."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.params import Document


@dataclass(frozen=True, kw_only=True)
class Inner:
    depth: int = 2


@dataclass(frozen=True, kw_only=True)
class Settings:
    images: int
    rate: float = 0.1
    kind: Literal["minimax", "hinge"] = "hinge"
    channels: Literal[1, 3] = 3
    path: str | None = None
    fractions: tuple[float, ...] = ()
    per_class: dict[str, int] = field(default_factory=dict)
    flip: bool = False
    inner: Inner = Inner()

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ValueError(f"images is {self.images}; needed at least 1")


def read(text: str, tmp_path: Path) -> Settings:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    return Document.load(path).section("train", Settings)


def test_every_kind_of_value_is_read(tmp_path: Path) -> None:
    text = """
train:
  images: 1_000
  rate: 1e-3
  kind: minimax
  path: null
  fractions: [1, 0.5]
  per_class: {cat: 3}
  flip: true
  inner: {depth: 5}
"""
    assert read(text, tmp_path) == Settings(
        images=1000,
        rate=0.001,
        kind="minimax",
        fractions=(1.0, 0.5),
        per_class={"cat": 3},
        flip=True,
        inner=Inner(depth=5),
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("train: {imagse: 3}", "train.imagse is not a setting; did you mean 'images'?"),
        ("train: {}", "train.images is missing; needed a whole number"),
        ("train: {images: 1.5}", "train.images is 1.5; needed a whole number"),
        ("train: {images: true}", "train.images is true; needed a whole number"),
        ("train: {images: many}", "train.images is the text 'many'; needed a whole number"),
        ("train: {images: 0}", "train.images is 0; needed at least 1"),
        ("train: {images: 1, rate: fast}", "train.rate is the text 'fast'; needed a number"),
        ("train: {images: 1, rate: .inf}", "train.rate is inf; needed a number"),
        ("train: {images: 1, rate: .nan}", "train.rate is nan; needed a number"),
        (f"train: {{images: 1, rate: {10**400}}}", f"train.rate is {10**400}; needed a number"),
        ("train: {images: 1, kind: hing}", "train.kind is 'hing'; did you mean 'hinge'?"),
        ("train: {images: 1, kind: 'a\nb'}", "train.kind is 'a b'; needed one of hinge, minimax"),
        ("train: {images: 1, channels: 1.0}", "train.channels is 1.0; needed one of 1, 3"),
        ("train: {images: 1, channels: true}", "train.channels is True; needed one of 1, 3"),
        ('train: {images: 1, rate: "a\\nb"}', r"train.rate is the text 'a\nb'; needed a number"),
        ('train: {images: 1, "pa\\nth": 1}', "train.pa th is not a setting; did you mean 'path'?"),
        ("train: {images: 1, flip: 1}", "train.flip is 1; needed true or false"),
        ("train: {images: 1, path: 3}", "train.path is 3; needed text"),
        ("train: {images: 1, fractions: 0.5}", "train.fractions is 0.5; needed a list, each item a number"),
        ("train: {images: 1, fractions: [0.5, x]}", "train.fractions[1] is the text 'x'; needed a number"),
        ("train: {images: 1, per_class: {cat: x}}", "train.per_class.cat is the text 'x'; needed a whole number"),
        ("train: {images: 1, inner: {dept: 1}}", "train.inner.dept is not a setting; did you mean 'depth'?"),
        ("train: 3", "train found 3, needed a mapping"),
        ("trian: {images: 1}", "train is missing; did you misspell it as 'trian'?"),
    ],
)
def test_a_mistake_is_named_with_its_key_and_its_mend(text: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read(text, tmp_path)
    assert str(caught.value) == f"{tmp_path / 'params.yaml'}: {sentence}"
    assert caught.value.exit_status == 2


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("- 1", "found a list, needed a mapping of sections"),
        ("", "found nothing, needed a mapping of sections"),
        ("train:\n\timages: 1", "is not YAML: line 2: found character that cannot start any token"),
        ("train: {images: 1}\ntrain: {images: 2}", 'is not YAML: line 2: found duplicate key "train" with value'),
        ("\0", "is not YAML: unacceptable character"),
        ("a: 2020-13-45", "has a value that YAML does not allow (month must be in 1..12"),
        ("a: ._", "has a value that YAML does not allow (could not convert string to float"),
        ("a: !!bool abc", "has a value that YAML does not allow ('abc')"),
        (f"a: {'1' * 5000}", "has a value that YAML does not allow (Exceeds the limit"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused_in_one_line(text: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read(text, tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'params.yaml'}: {sentence}")
    assert "\n" not in str(caught.value)
    assert "http" not in str(caught.value)


def test_a_missing_file_says_where_ready_ones_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needed the folder of a Forgeline project, 'forgeline recipe' lists ready"):
        Document.load(tmp_path / "params.yaml")


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)$"):
        Document.load(tmp_path)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*Settings.__dataclass_fields__, "other"]), VALUES))
def test_any_content_gives_settings_or_a_sentence(content: dict[str, object]) -> None:
    sentence, settings = "", None
    try:
        settings = Document({"train": content}).section("train", Settings)
    except UserError as error:
        sentence = str(error)
    assert sentence.startswith("params.yaml: train") or (
        settings is not None and type(settings.images) is int and type(settings.rate) is float
    )
