from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.delivery import Metric, open_store, publish, pull

CLASSES = ("null", "no: [a, b]", 'quote " and \\ back', "line\u2028\x7f\U0001f600 é", "| pipe |\nbreak")


@pytest.fixture
def pulled(tmp_path: Path, make_images, make_description) -> Path:
    """A release with class names that try YAML, and its folder as pulled."""
    images = make_images(tmp_path / "imageset", classes=CLASSES, count=25)
    url = str(tmp_path / "releases")
    publish(open_store(url), "digits", images.root, description=make_description(), documents={"a.json": b"{}\n"})
    return pull(f"{url}/digits", tmp_path / "digits")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of datasets' own making
def test_datasets_loads_the_folder(pulled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    loaded = datasets.load_dataset(str(pulled), cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 25}
    features = loaded["train"].features
    assert features["label"].names == list(CLASSES)
    assert list(features) == ["image", "label", "seed", "index", "confidence", "note"]
    assert loaded["train"][0]["image"].size == (8, 8)


def test_pandas_reads_it_as_the_card_says(pulled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (pulled / "README.md").read_text()
    blocks = [block.split("```")[0] for block in text.split("```python\n")[1:]]
    (code,) = (block for block in blocks if "pandas" in block)
    monkeypatch.chdir(pulled.parent)
    found: dict[str, object] = {}
    exec(code, found)  # our own card's
    assert len(found["frame"]) == 25
    assert found["frame"]["image"].iloc[0]["bytes"].startswith(b"\x89PNG")


def test_what_a_person_wants_to_know_is_there(pulled: Path, description) -> None:
    text = (pulled / "README.md").read_text()
    assert text.index(description.verdict) < text.index("grid.png") < text.index("## What was measured")
    for words in (
        *(description.title, description.source, description.how_made, *description.not_good_for),
        *("| synthetic | true |", "CC BY 4.0", description.lineage.git_commit, description.lineage.model),
        *(description.lineage.data_fingerprint, "sha256sum -c SHA256SUMS", "forgeline pull", "| FID | 1.5 |"),
        "*24 images | in-domain*",
        *("| 58 (5 %) | 70 % |", "| 1,134 (100 %) | none |", ".dataset(), 0.7)"),
    ):
        assert words in text, words
    assert "| \\| pipe \\| break | 5 |" in text


def test_nothing_of_the_publishers_machine_is_in_it(pulled: Path, tmp_path: Path) -> None:
    for path in pulled.rglob("*"):
        assert path.is_dir() or str(tmp_path).encode() not in path.read_bytes(), path


def test_a_card_of_a_bucket_says_where_it_is(s3_url: str, images, description) -> None:
    store = open_store(s3_url)
    published = publish(store, "digits", images.root, description=description, documents={})
    text = store.read(f"digits/v={published.version}/README.md")[0].decode()
    assert f"aws s3 cp --recursive {published.url} digits" in text
    assert f"forgeline pull {s3_url}/digits@{published.version} digits" in text


def test_every_number_stands_above_its_protocol(tmp_path: Path, images, make_description) -> None:
    measured = tuple(Metric(name=name, value="1", protocol=protocol) for name, protocol in ("aA", "bA", "cB"))
    store = open_store(str(tmp_path / "releases"))
    published = publish(store, "x", images.root, description=make_description(measured=measured), documents={})
    text = (Path(published.url) / "README.md").read_text()
    places = [text.index(words) for words in ("| a | 1 |", "| b | 1 |", "*A*", "| c | 1 |", "*B*")]
    assert places == sorted(places)
    assert text.count("*A*") == 1


@pytest.mark.parametrize(
    ("licence", "header"),
    [
        ("CC BY 4.0", 'license: "cc-by-4.0"'),
        ("mit", 'license: "mit"'),
        ("ours alone", 'license: "other"\nlicense_name: "ours alone"'),
    ],
)
def test_the_hub_knows_the_licence(tmp_path: Path, images, make_description, licence: str, header: str) -> None:
    store = open_store(str(tmp_path / "releases"))
    description = make_description(licence=licence)
    published = publish(store, "digits", images.root, description=description, documents={})
    assert header in (Path(published.url) / "README.md").read_text()
