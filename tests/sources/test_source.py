from __future__ import annotations

from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.params import Document
from pipeline.sources.source import kinds, load_source

KINDS = "digits, images, parquet, stacked_mnist, torchvision"


def test_the_kinds_are_the_modules_with_a_config() -> None:
    assert ", ".join(kinds()) == KINDS


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"kind": "digts"}, "params.yaml: source.kind is 'digts'; did you mean 'digits'?"),
        ({"kind": "files"}, f"params.yaml: source.kind is 'files'; needed one of {KINDS}"),
        ({"kind": None}, f"params.yaml: source.kind is 'None'; needed one of {KINDS}"),
        ({}, f"params.yaml: source.kind is missing; needed one of {KINDS}"),
        ("digits", "params.yaml: source found the text 'digits', needed a mapping"),
        ({"kind": "digits", "url": "x"}, "params.yaml: source.url is not a setting; needed none"),
        ({"kind": "images"}, "params.yaml: source.url is missing; needed text"),
        ({"kind": "images", "ulr": "x"}, "params.yaml: source.ulr is not a setting; did you mean 'url'?"),
        (
            {"kind": "images", "url": "ftp://host/x"},
            "params.yaml: source.url is 'ftp://host/x'; needed a path of this machine or s3://bucket/prefix",
        ),
        (
            {"kind": "torchvision", "dataset": "fashon_mnist"},
            "params.yaml: source.dataset is 'fashon_mnist'; did you mean 'fashion_mnist'?",
        ),
        (
            {"kind": "torchvision", "dataset": "mnist", "download": "yes"},
            "params.yaml: source.download is the text 'yes'; needed true or false",
        ),
    ],
)
def test_a_wrong_section_is_named(section: Any, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        load_source(Document({"source": section}))
    assert str(error.value) == sentence


@pytest.mark.parametrize("kind", ["images", "parquet"])
def test_the_card_hears_of_the_licence(kind: str) -> None:
    settings = {"kind": kind, "url": "data", "licence": "cc0-1.0", "description": "Cats"}
    about = load_source(Document({"source": settings})).about
    assert about == {"kind": kind, "licence": "cc0-1.0", "description": "Cats"}
