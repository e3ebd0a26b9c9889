"""croissant.json: MLCommons Croissant 1.0 metadata, read by `mlcroissant` and by dataset search engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.delivery.description import Description
from pipeline.delivery.manifest import to_json
from pipeline.imageset import ImageSet

_TERMS = (
    "citeAs column conformsTo equivalentProperty extract field fileProperty fileObject fileSet format includes "
    "isLiveDataset jsonPath key md5 parentField path recordSet references regex repeated replace samplingRate "
    "separator source subField transform"
)
_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "sc": "https://schema.org/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    **{term: f"cr:{term}" for term in _TERMS.split()},
    "conformsTo": "dct:conformsTo",
}
_TYPES = {"string": "sc:Text", "int64": "sc:Integer", "float64": "sc:Float"}
_PARQUET = "application/x-parquet"


def croissant(
    images: ImageSet, features: Mapping[str, Any], description: Description, *, name: str, version: str, created: str
) -> bytes:
    """The bytes of croissant.json. `features` are the columns as the `huggingface` Parquet metadata has them."""
    files = [
        {
            "@type": "cr:FileObject",
            "@id": shard.path,
            "name": shard.path,
            "contentUrl": shard.path,
            "contentSize": f"{shard.bytes} B",
            "encodingFormat": _PARQUET,
            "sha256": shard.sha256,
        }
        for shard in images.shards
    ]
    globs = [
        {"@type": "cr:FileSet", "@id": f"{split}-files", "encodingFormat": _PARQUET, "includes": f"{split}-*.parquet"}
        for split in images.counts
    ]
    return to_json(
        {
            "@context": _CONTEXT,
            "@type": "sc:Dataset",
            "conformsTo": "http://mlcommons.org/croissant/1.0",
            "name": name,
            "description": f"{description.title}. {description.verdict}",
            "license": description.licence,
            "version": f"1.0.0+{version}",
            "datePublished": created,
            "citeAs": f"{description.title}, version {version}, {'synthetic' if images.synthetic else 'real'} images",
            "distribution": files + globs,
            "recordSet": [_classes(images.classes), *(_record_set(split, features) for split in images.counts)],
        }
    )


def _classes(classes: Sequence[str]) -> dict[str, Any]:
    """What each label means."""
    return {
        "@type": "cr:RecordSet",
        "@id": "classes",
        "name": "classes",
        "dataType": "sc:Enumeration",
        "key": {"@id": "classes/label"},
        "field": [_field("classes/label", "sc:Integer"), _field("classes/name", "sc:Text")],
        "data": [{"classes/label": label, "classes/name": name} for label, name in enumerate(classes)],
    }


def _record_set(split: str, features: Mapping[str, Any]) -> dict[str, Any]:
    fields = []
    for column, feature in features.items():
        source: dict[str, Any] = {"fileSet": {"@id": f"{split}-files"}, "extract": {"column": column}}
        match feature["_type"]:
            case "Image":
                source["transform"] = {"jsonPath": "bytes"}
                fields.append(_field(f"{split}/{column}", "sc:ImageObject", source=source))
            case "ClassLabel":
                field = _field(f"{split}/{column}", "sc:Integer", source=source)
                fields.append({**field, "references": {"field": {"@id": "classes/label"}}})
            case _:
                fields.append(_field(f"{split}/{column}", _TYPES[feature["dtype"]], source=source))
    return {"@type": "cr:RecordSet", "@id": split, "name": split, "field": fields}


def _field(key: str, kind: str, **more: Any) -> dict[str, Any]:
    return {"@type": "cr:Field", "@id": key, "name": key, "dataType": kind, **more}
