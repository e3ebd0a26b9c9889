"""How fast a release is published and pulled here, beside `aws s3 cp`; and streamed, beside `webdataset` where it is.

The store is the one that AWS_ENDPOINT_URL_S3 and the argument s3://bucket/prefix name; MEGABYTES (256) is the set's
size. Both sides run in turn, three times; what is printed is the fastest of each.
"""

from __future__ import annotations

import importlib.util
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from pipeline.delivery import Description, Lineage, find, open_release, open_store, publish, pull
from pipeline.imageset import Row, write_imageset

TIMES, SIZE = 3, 32


def rows(count: int) -> Iterator[Row]:
    """Noise, which PNG cannot make smaller."""
    random = np.random.default_rng(0)
    for index in range(count):
        image = random.integers(0, 256, (3, SIZE, SIZE), np.uint8)
        yield Row(split="train", label=index % 10, image=image, path=f"{index}.png", provenance={"confidence": 0.5})


def fastest(work: Callable[[int], object]) -> float:
    """Seconds of the fastest of some runs."""
    seconds = []
    for number in range(TIMES):
        started = time.perf_counter()
        work(number)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def aws(*words: str) -> None:
    subprocess.run(["aws", "s3", "cp", "--recursive", "--only-show-errors", *words], check=True)


def main(url: str) -> None:
    megabytes = int(os.environ.get("MEGABYTES", "256"))
    lineage = Lineage(
        model="ab" * 32,
        params={},
        seed=0,
        data_fingerprint="cd" * 32,
        dvc_lock=None,
        git_commit=None,
        metrics={},
        validation={},
    )
    description = Description(
        title="Noise",
        licence="CC0-1.0",
        source="Noise.",
        verdict="None.",
        measured=(),
        not_good_for=(),
        how_made="Drawn.",
        grid=b"",
        lineage=lineage,
    )
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        images = write_imageset(
            root / "set",
            rows(megabytes * 1_000_000 // (3 * SIZE * SIZE + 200)),
            classes=[*"0123456789"],
            source={},
            resize=None,
            synthetic=True,
        )
        sent = fastest(
            lambda n: publish(open_store(url), f"noise-{n}", images.root, description=description, documents={})
        )
        report("publish", sent, megabytes)
        if shutil.which("aws"):
            report("aws s3 cp, up", fastest(lambda n: aws(str(images.root), f"{url}/aws-{n}")), megabytes)
        fetched = fastest(lambda n: pull(f"{url}/noise-0", root / f"pulled-{n}"))
        report("pull", fetched, megabytes)
        version = find(f"{url}/noise-0")
        if shutil.which("aws"):
            report("aws s3 cp, down", fastest(lambda n: aws(f"{url}/{version.key('')}", f"{root}/aws-{n}")), megabytes)
        count = sum(images.counts["train"])
        streamed = fastest(lambda n: sum(1 for _ in open_release(f"{url}/noise-0").stream(seed=n)))
        print(f"{'stream':16} {count / streamed:10,.0f} images a second")
        if importlib.util.find_spec("webdataset"):
            pull(f"{url}/noise-0", root / "tars", layout="webdataset")
            print(f"{'webdataset':16} {count / fastest(lambda n: webdataset(root / 'tars')):10,.0f} images a second")
    print(f"{'peak memory':16} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000:10,.0f} MB")


def webdataset(root: Path) -> int:
    """Images read from tars on this machine's disk, decoded and shuffled."""
    import webdataset as wds

    tars = [str(path) for path in sorted(root.glob("*.tar"))]
    loader = wds.WebDataset(tars, shardshuffle=False).shuffle(1600).decode("rgb8").to_tuple("png", "cls")
    return sum(1 for _ in loader)


def report(what: str, seconds: float, megabytes: int) -> None:
    print(f"{what:16} {megabytes / seconds:10,.1f} MB a second")


if __name__ == "__main__":
    main(sys.argv[1])
