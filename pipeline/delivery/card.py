"""README.md of a release: a Hugging Face dataset card, written for the person who decides whether to use the set."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from pipeline.delivery.description import Advice, Description, Metric
from pipeline.imageset import ImageSet

GRID = "grid.png"
_MAX_CLASSES_SHOWN = 20
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
_HUB_LICENCES = {
    *("apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "mit", "odbl", "odc-by", "pddl", "unknown"),
    *("cc-by-3.0", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0"),
}


def card(
    images: ImageSet, features: Mapping[str, Any], description: Description, *, name: str, version: str, url: str
) -> bytes:
    """The bytes of README.md. `features` are the columns as the `huggingface` Parquet metadata has them.

    `url` is where the version's files are, as s3://… or as a folder.
    """
    count = sum(map(sum, images.counts.values()))
    lineage = description.lineage
    copy, place = "aws s3 cp --recursive", url.rsplit("/", 2)[0]
    if not url.startswith("s3://"):
        copy, place = "cp -r", "FOLDER"  # a path of the publisher's machine is nothing to readers
    said = (lineage.model, lineage.data_fingerprint)
    generator = ", ".join(f"{key} {value}" for key, value in (images.generator or {}).items() if value not in said)
    shape = f"{images.image_size}×{images.image_size} {'grayscale' if images.channels == 1 else 'RGB'}"
    what = "synthetic images, drawn by a generative model" if images.synthetic else "images"
    provenance = {
        "synthetic": str(images.synthetic).lower(),
        "generator": generator,
        "model": f"sha256 {lineage.model}",
        "seed": str(lineage.seed),
        "training data": f"fingerprint {lineage.data_fingerprint}",
        "this set": f"fingerprint {images.fingerprint}",
        "git commit": lineage.git_commit or "unknown",
        "dvc.lock": f"sha256 {lineage.dvc_lock}" if lineage.dvc_lock else "unknown",
    }
    sections = [
        f"---{_yaml(_header(images, features, description))}\n---",
        f"# {description.title}",
        f"**{description.verdict}**",
        f"![Samples of every class]({GRID})",
        "## What is in it",
        f"{count:,} {what}: {shape}, PNG without loss inside Parquet, version `{version}`.",
        _table(["class", *images.counts], _class_rows(images)),
        "## What was measured",
        *_measured(description.measured),
        "## How much of it to mix in",
        *_mixing(description.mixing, f"{place}/{name}@{version}"),
        *_filling(description.filling),
        "## Loading it",
        'With `datasets`, from the folder itself (`data_files="*.parquet"` would put all splits into `train`):',
        f'```python\nfrom datasets import load_dataset\n\nimages = load_dataset("./{name}", split="train")\n```',
        "With `pandas`, PNG bytes in `image`:",
        "```python\nfrom pathlib import Path\nimport pandas as pd\n\n"
        f'frame = pd.concat(map(pd.read_parquet, sorted(Path("{name}").glob("train-*.parquet"))))\n```',
        "Fetched and checked, with Forgeline or without:",
        f"```sh\nforgeline pull {place}/{name}@{version} {name}\n"
        f"{copy} {place}/{name}/v={version} {name} && (cd {name} && sha256sum -c SHA256SUMS)\n```",
        "## What it is not good for",
        "\n".join(f"- {reason}" for reason in description.not_good_for),
        "## How it was made",
        description.how_made,
        description.source,
        "## Where it comes from",
        _table(["", ""], provenance.items()),
        "Every file with its sha256, the settings and all measurements stand in `manifest.json`.",
        "## Licence",
        f"{description.licence}, carried over from the real images.",
    ]
    return ("\n\n".join(sections) + "\n").encode()


def _measured(metrics: Iterable[Metric]) -> Iterator[str]:
    """A table for each protocol, and the protocol below it: no number stands without."""
    for protocol, group in groupby(metrics, key=lambda metric: metric.protocol):
        yield _table(["measure", "value"], [[metric.name, metric.value] for metric in group])
        yield f"*{protocol}*"


def _mixing(advice: Sequence[Advice], release: str) -> Iterator[str]:
    """A table of the parts that validation images favour, and how to have one of them."""
    yield _table(["real images that the classifier has", "synthetic part of the images shown to it"], _shares(advice))
    yield "*The part that was best on validation images; none where they show no gain over real images, seen as often.*"
    if share := next((each.share for each in advice if each.share), None):
        yield (
            "With Forgeline, `real` being a torch `Dataset` of your own images:\n\n"
            "```python\nfrom pipeline.delivery import mix, open_release\n\n"
            f'images = mix(real, open_release("{release}").dataset(), {share:g})\n```'
        )


def _filling(advice: Sequence[Advice]) -> Iterator[str]:
    """A table of the parts that rare classes are best filled up with, where some are rare."""
    if advice:
        yield _table(["real images that the classifier has", "synthetic part of a rare class"], _shares(advice))
        yield (
            "*Filling up: all classes are shown equally often, and of a class as good as without real images this part "
            "is synthetic; of one with n of the m images of the largest class, 1 − n/m of it. The part that was best "
            "on validation images; none where they show no gain over oversampling.*"
        )


def _shares(advice: Sequence[Advice]) -> list[list[str]]:
    return [[each.real, f"{100 * each.share:.3g} %" if each.share else "none"] for each in advice]


def _header(images: ImageSet, features: Mapping[str, Any], description: Description) -> dict[str, Any]:
    count = sum(map(sum, images.counts.values()))
    sizes = {split: sum(shard.bytes for shard in images.shards_of(split)) for split in images.counts}
    licence = "-".join(description.licence.lower().split())
    known = licence in _HUB_LICENCES
    return {
        "pretty_name": description.title,
        "license": licence if known else "other",
        **({} if known else {"license_name": description.licence}),
        "task_categories": ["image-classification"],
        "size_categories": [next((name for most, name in _SIZES if count < most), "n>10M")],
        "tags": [*(["synthetic"] if images.synthetic else []), "gan", "forgeline"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"{split}-*.parquet"} for split in images.counts],
            }
        ],
        "dataset_info": {
            "features": [{"name": name, "dtype": _dtype(feature)} for name, feature in features.items()],
            "splits": [
                {"name": split, "num_bytes": sizes[split], "num_examples": sum(counts)}
                for split, counts in images.counts.items()
            ],
            "download_size": sum(sizes.values()),
            "dataset_size": sum(sizes.values()),
        },
    }


def _dtype(feature: Mapping[str, Any]) -> Any:
    match feature["_type"]:
        case "Image":
            return "image"
        case "ClassLabel":
            return {"class_label": {"names": {str(label): name for label, name in enumerate(feature["names"])}}}
        case _:
            return feature["dtype"]


def _class_rows(images: ImageSet) -> list[list[str]]:
    rows = [
        [name, *(f"{counts[label]:,}" for counts in images.counts.values())]
        for label, name in enumerate(images.classes)
    ]
    if len(rows) <= _MAX_CLASSES_SHOWN:
        return rows
    rest = [f"{len(rows) - _MAX_CLASSES_SHOWN} more classes"]
    rest += [f"{sum(counts[_MAX_CLASSES_SHOWN:]):,}" for counts in images.counts.values()]
    return [*rows[:_MAX_CLASSES_SHOWN], rest]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [list(head), ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in line) + " |" for line in lines
    )


def _yaml(value: Any, indent: str = "") -> str:
    """Mappings and lists as YAML blocks that begin with a line's end; text quoted as JSON quotes it."""
    if isinstance(value, dict):
        keys = {key: key if key.isidentifier() else _scalar(key) for key in value}
        return "".join(f"\n{indent}{keys[key]}:{_yaml(inner, indent + '  ')}" for key, inner in value.items())
    if isinstance(value, list):
        return "".join(f"\n{indent}- {_yaml(inner, indent + '  ').lstrip()}" for inner in value)
    return f" {_scalar(value)}"


def _scalar(value: str | int) -> str:
    quoted = json.dumps(value, ensure_ascii=False)
    return "".join(letter if letter.isprintable() else f"\\U{ord(letter):08x}" for letter in quoted)
