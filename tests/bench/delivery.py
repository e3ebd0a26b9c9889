"""How fast a release is published, pulled, streamed here, beside aws, rclone and `webdataset`; what readers install.

The store is the one that AWS_ENDPOINT_URL_S3 and the argument s3://bucket/prefix name, without an argument a server of
moto's in a process beside this one; MEGABYTES (328, of 100,000 images) is the set's size. The sides run in turn, one
round of all after the other; what is printed is the median of three rounds. What publishing takes of the slowest of its
parts by themselves is bound by cores where the server has the same few.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import boto3
import numpy as np

from pipeline.delivery import Description, Lineage, find, open_release, open_store, publish, pull, rowgroups
from pipeline.imageset import ImageSet, Row, Shard, write_imageset
from pipeline.parallel import in_parallel

ROUNDS, SIZE = 3, 32
DEMANDED = 1.15  # of the slowest part
ROOT = Path(__file__).parents[2]


def rows(count: int) -> Iterator[Row]:
    """Noise, which PNG cannot make smaller."""
    random = np.random.default_rng(0)
    for index in range(count):
        image = random.integers(0, 256, (3, SIZE, SIZE), np.uint8)
        yield Row(split="train", label=index % 10, image=image, path=f"{index}.png", provenance={"confidence": 0.5})


def in_turn(works: dict[str, Callable[[int], object]]) -> dict[str, float]:
    """Name → median seconds; each is called once a round, with the round's number."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(ROUNDS):
        for name, work in works.items():
            started = time.perf_counter()
            work(number)
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def copiers() -> dict[str, Callable[[str, str], object]]:
    """Name → copies a folder from and to, a path or s3://…, for those that are installed."""
    rclone = ["rclone", "copy", "--s3-provider", "Other", "--s3-env-auth", "--s3-endpoint"]
    commands = {
        "aws": (["aws", "s3", "cp", "--recursive", "--only-show-errors"], "s3://"),
        "rclone": ([*rclone, os.environ.get("AWS_ENDPOINT_URL_S3", "")], ":s3:"),
    }

    def copy(words: list[str], scheme: str, source: str, target: str) -> None:
        subprocess.run([*words, *(each.replace("s3://", scheme) for each in (source, target))], check=True)

    for name in commands:
        if not shutil.which(name):
            print(f"{name}: not installed")
    return {name: partial(copy, *command) for name, command in commands.items() if shutil.which(name)}


def read_and_hash(images: ImageSet) -> None:
    """What publishing does before it sends a shard, of all of them."""
    for _ in in_parallel(lambda shard: rowgroups.describe_shard(images.root / shard.path), images.shards, _END):
        pass


def send(images: ImageSet, url: str) -> None:
    """What publishing does with a shard that it has hashed."""
    store = open_store(url)

    def create(shard: Shard) -> None:
        assert store.create(shard.path, images.root / shard.path, shard.sha256)

    for _ in in_parallel(create, images.shards, _END):
        pass


_END = threading.Event()
# The peak is not of getrusage, where a process begins with that of its parent.
_PULL = """
import re, sys
from pathlib import Path
from pipeline.delivery import pull
pull(sys.argv[1], Path(sys.argv[2]))
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]))
"""


def peak_megabytes(url: str, dest: Path) -> float:
    """Of a process that pulls and does nothing else."""
    said = subprocess.run([sys.executable, "-c", _PULL, url, str(dest)], check=True, stdout=subprocess.PIPE, text=True)
    return int(said.stdout) * 1024 / 1e6


@contextmanager
def server() -> Iterator[str]:
    """s3://… on a server of moto's, which this process and its children find."""
    keys = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_DEFAULT_REGION": "us-east-1"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ.update(keys, AWS_ENDPOINT_URL_S3=f"http://127.0.0.1:{port}")
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for attempt in range(60):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                if attempt == 59:
                    raise
                time.sleep(1)
        boto3.session.Session().client("s3").create_bucket(Bucket="bench")
        yield "s3://bench/sets"
    finally:
        process.terminate()
        process.wait()


def light() -> None:
    """What `pip install .` takes of a disk, and how long its commands take to start."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        uv, python = str(Path(sys.executable).with_name("uv")), str(root / "venv" / "bin" / "python")
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(root / "venv")], check=True)
        install = [uv, "pip", "install", "--quiet", "--python", python]
        subprocess.run([*install, "--constraint", str(ROOT / "infra" / "constraints.txt"), str(ROOT)], check=True)
        size = sum(path.lstat().st_size for path in (root / "venv").rglob("*") if not path.is_dir())
        print(f"{'core install':16} {size / 1e6:10,.0f} MB")
        (root / "store").mkdir()
        forgeline = str(root / "venv" / "bin" / "forgeline")
        commands = {"list FOLDER": ["list", str(root / "store")], "pull --help": ["pull", "--help"]}
        if "AWS_ENDPOINT_URL_S3" in os.environ:
            commands["list s3://"] = ["list", "s3://bench/none"]

        def start(words: list[str], _: int = 0) -> None:
            subprocess.run([forgeline, *words], check=True, stdout=subprocess.DEVNULL)

        for words in commands.values():
            start(words)  # compiles what it imports
        for label, seconds in in_turn({label: partial(start, words) for label, words in commands.items()}).items():
            print(f"{label:16} {seconds:10.2f} seconds to start and end")


def main(url: str) -> None:
    light()
    megabytes = int(os.environ.get("MEGABYTES", "328"))
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
        mixing=(),
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
        up: dict[str, Callable[[int], object]] = {
            "publish": lambda n: publish(
                open_store(url), f"noise-{n}", images.root, description=description, documents={}
            )
        }
        up["read and hash"] = lambda n: read_and_hash(images)
        up["send"] = lambda n: send(images, f"{url}/sent-{n}")
        tools = copiers()
        for tool, copy in tools.items():
            up[f"{tool}, up"] = lambda n, copy=copy, tool=tool: copy(str(images.root), f"{url}/{tool}-{n}")
        found = in_turn(up)
        report(found, megabytes)
        overlap = found["publish"] / max(found["read and hash"], found["send"])
        print(f"{'publish':16} {overlap:10.2f} of its slowest part, at most {DEMANDED} demanded")
        released = f"{url}/{find(f'{url}/noise-0').key('')}"
        down: dict[str, Callable[[int], object]] = {"pull": lambda n: pull(f"{url}/noise-0", root / f"pulled-{n}")}
        for tool, copy in tools.items():
            down[f"{tool}, down"] = lambda n, copy=copy, tool=tool: copy(released, f"{root}/{tool}-{n}")
        report(in_turn(down), megabytes)
        print(f"{'peak of a pull':16} {peak_megabytes(f'{url}/noise-0', root / 'alone'):10,.0f} MB")
        read: dict[str, Callable[[int], object]] = {
            "stream": lambda n: sum(1 for _ in open_release(f"{url}/noise-0").stream(seed=n))
        }
        if importlib.util.find_spec("webdataset"):
            pull(f"{url}/noise-0", root / "tars", layout="webdataset")
            read["webdataset"] = lambda n: webdataset(root / "tars")
        for name, seconds in in_turn(read).items():
            print(f"{name:16} {sum(images.counts['train']) / seconds:10,.0f} images a second")


def webdataset(root: Path) -> int:
    """Images read from tars on this machine's disk, decoded and shuffled."""
    import webdataset as wds

    tars = [str(path) for path in sorted(root.glob("*.tar"))]
    loader = wds.WebDataset(tars, shardshuffle=False).shuffle(1600).decode("rgb8").to_tuple("png", "cls")
    return sum(1 for _ in loader)


def report(medians: dict[str, float], megabytes: int) -> None:
    for what, seconds in medians.items():
        print(f"{what:16} {megabytes / seconds:10,.1f} MB a second")


if __name__ == "__main__":
    if sys.argv[1:]:
        main(sys.argv[1])
    else:
        with server() as started:
            main(started)
