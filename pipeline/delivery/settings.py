"""`publish` of params.yaml: where a workspace publishes to, and under which name."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.params import Document


@dataclass(frozen=True, kw_only=True)
class PublishSettings:
    """`url` is s3://bucket/prefix or a folder, null where a run publishes nothing; `name` is the release's."""

    url: str | None
    name: str


def read_publish_settings(document: Document) -> PublishSettings:
    """The section `publish`."""
    return document.section("publish", PublishSettings)
