"""What reading a release takes of memory does not grow with it: the peak of real processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from pipeline.delivery import open_store, publish
from pipeline.imageset import Row, write_imageset

# Not by getrusage, where a process begins with the peak of its parent.
PEAK = """
import re, sys
from pathlib import Path
from pipeline.delivery import pull, verify
from pipeline.delivery.selecting import Selection
url, dest, names = sys.argv[1:]
pull(url, Path(dest), selection=Selection(classes=tuple(names.split(","))))
verify(dest)
print(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024)
"""


def peak(folder: Path, description, classes: int, each: int = 26, size: int = 256) -> int:
    """Megabytes that pulling a selection, here all classes of `each` images of noise, and verifying it take."""

    def rows() -> Iterator[Row]:
        random = np.random.default_rng(0)
        for index in range(each * classes):
            image = random.integers(0, 256, (3, size, size), np.uint8)
            yield Row(split="train", label=index % classes, image=image, path=f"{index}.png", provenance={})

    names = [f"class-{label}" for label in range(classes)]
    write_imageset(folder / "set", rows(), classes=names, source={}, resize=None, synthetic=True)
    store = open_store(str(folder / "store"))
    publish(store, "noise", folder / "set", description=description, documents={})
    words = [sys.executable, "-c", PEAK, f"{folder}/store/noise", str(folder / "dest"), ",".join(names)]
    return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def test_a_selection_of_a_larger_release_takes_no_more_memory(tmp_path: Path, description) -> None:
    found = []
    for classes in (4, 24):  # 20 MB, 120 MB
        with TemporaryDirectory(dir=tmp_path) as folder:  # not kept, as pytest would
            found.append(peak(Path(folder), description, classes))
    assert max(found) < 300
    assert found[1] - found[0] < 50, found


def test_larger_images_take_no_more_memory(tmp_path: Path, description) -> None:
    assert peak(tmp_path, description, 1, each=120, size=1024) < 300  # of 3 MB each
