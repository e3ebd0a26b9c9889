"""What reading a release takes of memory does not grow with it: the peak of real processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from pipeline.delivery import open_store, publish
from pipeline.imageset import Row, write_imageset

PULL = """
from pipeline.delivery import pull, verify
from pipeline.delivery.selecting import Selection
pull(url, Path(dest), selection=Selection(classes=tuple(names.split(","))))
verify(dest)
"""
STREAM = """
from pipeline.delivery import open_release, opening
opening._has_torch = lambda: False  # which takes 600 MB itself
for _ in open_release(url).stream(seed=0):
    pass
"""
# Not by getrusage, where a process begins with the peak of its parent.
PEAK = """
import re, sys
from pathlib import Path
url, dest, names = sys.argv[1:]
{work}
assert "pandas" not in sys.modules, "45 MB, which functions of pyarrow's import"
print(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024)
"""


def peaks(
    folder: Path, description, classes: int, each: int = 26, size: int = 256, url: str | None = None
) -> list[int]:
    """Megabytes that pulling all classes of `each` images of noise as a selection takes at most, and streaming them."""

    def rows() -> Iterator[Row]:
        random = np.random.default_rng(0)
        for index in range(each * classes):
            image = random.integers(0, 256, (3, size, size), np.uint8)
            yield Row(split="train", label=index % classes, image=image, path=f"{index}.png", provenance={})

    names = [f"class-{label}" for label in range(classes)]
    write_imageset(folder / "set", rows(), classes=names, source={}, resize=None, synthetic=True)
    url = url or str(folder / "store")
    publish(open_store(url), "noise", folder / "set", description=description, documents={})
    words = [f"{url}/noise", str(folder / "dest"), ",".join(names)]
    return [
        int(subprocess.check_output([sys.executable, "-c", PEAK.format(work=work), *words], text=True))
        for work in (PULL, STREAM)
    ]


def test_a_selection_of_a_larger_release_takes_no_more_memory(tmp_path: Path, description) -> None:
    found = []
    for classes in (4, 24):  # 20 MB, 120 MB
        with TemporaryDirectory(dir=tmp_path) as folder:  # not kept, as pytest would
            found.append(peaks(Path(folder), description, classes))
    assert max(map(max, found)) < 300, found
    assert found[1][0] - found[0][0] < 50, found


def test_larger_images_take_no_more_memory(tmp_path: Path, description, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.imageset.layout._ROW_GROUP_BYTES", 20_000_000)  # as sets are that were made before
    found = peaks(tmp_path, description, 1, each=120, size=1024)  # of 3 MB each
    assert max(found) < 300, found


@pytest.mark.parametrize(("each", "size"), [(8, 2048), (3, 4096)])
def test_images_larger_than_a_row_group_take_no_more_memory(tmp_path: Path, description, each: int, size: int) -> None:
    """Of 13 MB each, and of 50 MB, which are the largest that there can be."""
    found = peaks(tmp_path, description, 1, each=each, size=size)
    assert max(found) < 300, found


def test_nor_do_they_from_s3(tmp_path: Path, description, s3_url: str) -> None:
    """Whose client takes 25 MB itself."""
    found = peaks(tmp_path, description, 1, each=3, size=4096, url=s3_url)
    assert max(found) < 300, found
