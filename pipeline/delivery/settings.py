"""`publish` of params.yaml: where a workspace publishes to, and under which name."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.delivery.manifest import NAME, is_name
from pipeline.params import Document


@dataclass(frozen=True, kw_only=True)
class PublishSettings:
    """`url` is s3://bucket/prefix or a folder, null where a run publishes nothing; `name` is the release's.

    `harmful`: whether a set is published too that was measured to harm and to help nobody.
    """

    url: str | None
    name: str
    harmful: bool = False

    def __post_init__(self) -> None:
        if not is_name(self.name):
            raise ValueError(f"name is '{self.name}'; needed {NAME}")


def read_publish_settings(document: Document) -> PublishSettings:
    """The section `publish`."""
    return document.section("publish", PublishSettings)
