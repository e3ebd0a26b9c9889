from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from pipeline.delivery import mix, open_release, open_store, publish
from pipeline.delivery.keeping import yank
from pipeline.delivery.opening import Stream
from pipeline.errors import FailedError, UserError
from pipeline.imageset import ImageSet
from pipeline.metrics.classifier import _order


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORGELINE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def large(tmp_path: Path, make_images) -> ImageSet:
    return make_images(tmp_path / "large", count=300)


@pytest.fixture
def release(url: str, large: ImageSet, description) -> str:
    publish(open_store(url), "digits", large.root, description=description, documents={})
    return f"{url}/digits"


def contents(items) -> list[tuple[int, bytes]]:
    return [(int(label), np.asarray(image).tobytes()) for image, label in items]


def expected(images: ImageSet) -> list[tuple[int, bytes]]:
    return contents(zip(*images.arrays("train"), strict=True))


def test_a_dataset_has_every_image(release: str, large: ImageSet) -> None:
    dataset = open_release(release).dataset("train")
    assert contents(dataset[index] for index in range(len(dataset))) == expected(large)
    images, labels = next(iter(DataLoader(dataset, batch_size=4)))
    assert (images.dtype, images.shape, labels.dtype) == (torch.uint8, (4, 1, 8, 8), torch.int64)


OPENED = """
import sys
from pipeline.delivery import open_release
release = open_release(sys.argv[1])
print("opened", flush=True)
sys.stdin.readline()
print(len(release.arrays()[1]))
"""


def test_processes_that_want_the_same_release_wait_for_each_other(proxy, s3_url: str, large, description) -> None:
    """As the ranks of a training do: both open, then both fetch, and one of them does."""
    publish(open_store(s3_url), "digits", large.root, description=description, documents={})
    command = [sys.executable, "-c", OPENED, f"{s3_url}/digits"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as one, subprocess.Popen(command, **pipes) as two:
        for process in (one, two):
            assert process.stdout.readline() == "opened\n"
        proxy.log.clear()
        for process in (one, two):
            process.stdin.write("go\n")
            process.stdin.flush()
        assert [process.communicate(timeout=120)[0] for process in (one, two)] == ["300\n", "300\n"]
    fetched = [path for _, path in proxy.log if path.endswith(large.shards[0].path)]
    assert len(fetched) == 1


def test_a_stream_in_order_has_every_image(release: str, large: ImageSet) -> None:
    stream = open_release(release).stream("train")
    assert isinstance(stream, IterableDataset)
    assert contents(stream) == expected(large)


def test_a_seed_shuffles_always_the_same_way(release: str, large: ImageSet) -> None:
    opened = open_release(release)
    first, again, other = (contents(opened.stream(seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert sorted(first) == sorted(other) == sorted(expected(large))
    assert first not in (other, expected(large))
    assert len({label for label, _ in first[:20]}) == 3
    stream = opened.stream(seed=1)
    stream.set_epoch(1)
    assert contents(stream) != first


def test_workers_share_the_images(release: str, large: ImageSet) -> None:
    """In real worker processes."""
    loader = DataLoader(open_release(release).stream(seed=3), batch_size=None, num_workers=2)
    assert sorted(contents(loader)) == sorted(expected(large))


RANK = """
import sys
import torch.distributed
from torch.utils.data import DataLoader
from pipeline.delivery import open_release
url, folder, how, rank = sys.argv[1:]
stream = open_release(url).stream(seed=3)
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=int(rank), world_size=2)
for image, label in DataLoader(stream, batch_size=None, num_workers=2, multiprocessing_context=how):
    print(int(label), image.numpy().tobytes().hex())
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize("url", ["folder"], indirect=True)
@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_ranks_and_their_workers_share_the_images(release: str, large: ImageSet, tmp_path: Path, how: str) -> None:
    """In a real process group, whose workers are processes too, and know of it only where they are forked."""
    command = [sys.executable, "-c", RANK, release, str(tmp_path), how]
    with (
        subprocess.Popen([*command, "0"], stdout=subprocess.PIPE, text=True) as one,
        subprocess.Popen([*command, "1"], stdout=subprocess.PIPE, text=True) as two,
    ):
        found = [process.communicate(timeout=120)[0].splitlines() for process in (one, two)]
    assert all(len(lines) >= 100 for lines in found)
    items = [line.split() for lines in found for line in lines]
    assert sorted((int(label), bytes.fromhex(image)) for label, image in items) == sorted(expected(large))


@pytest.mark.parametrize("consumers", [2, 7, 50])
def test_consumers_share_the_images(release: str, large: ImageSet, consumers: int) -> None:
    stream: Stream = open_release(release).stream(seed=3).stream
    found = [contents(stream.consume(number, consumers)) for number in range(consumers)]
    assert sorted(item for each in found for item in each) == sorted(expected(large))


def test_a_stream_that_is_left_early_stops_fetching(proxy, s3_url: str, large: ImageSet, description) -> None:
    publish(open_store(s3_url), "digits", large.root, description=description, documents={})
    opened = open_release(f"{s3_url}/digits")
    asked, left = set[str](), threading.Event()

    def fault(number: int, method: str, path: str, headers: dict[str, str]) -> None:
        asked.add(path)
        if not path.endswith(large.shards[0].path):
            left.wait(60)

    proxy.fault = fault
    stream = iter(opened.stream())
    next(stream)
    threading.Timer(0.5, left.set).start()  # while the stream is closed, which waits for what is under way
    stream.close()
    assert len(asked) <= 1 + 8  # of 30 shards: the first, and one for each thread


def test_a_wrong_byte_never_comes_out_of_a_stream(release: str, url: str, large: ImageSet) -> None:
    opened = open_release(release)
    key = opened.part.version.key(large.shards[20].path)
    data = bytearray(b"".join(open_store(url).chunks(key)))
    data[200] ^= 1
    open_store(url).delete(key)
    open_store(url).create(key, bytes(data))
    right, found = expected(large), []
    stream = opened.stream()
    with pytest.raises(FailedError, match="are not as published"):
        found.extend((label, np.asarray(image).tobytes()) for image, label in stream)
    assert found == right[: len(found)]


def test_an_opened_release_is_pinned(
    url: str, release: str, large: ImageSet, tmp_path: Path, make_images, description
) -> None:
    opened = open_release(release)
    other = make_images(tmp_path / "other", 9)
    publish(open_store(url), "digits", other.root, description=description, documents={})
    assert contents(opened.stream()) == expected(large)
    assert len(open_release(release).dataset()) == 24


def test_the_same_version_in_another_store_is_opened_too(
    release: str, large: ImageSet, tmp_path: Path, make_description
) -> None:
    elsewhere = str(tmp_path / "elsewhere")
    publish(open_store(elsewhere), "digits", large.root, description=make_description(git_commit=None), documents={})
    for url in (release, f"{elsewhere}/digits", release):
        assert len(open_release(url).dataset()) == 300


def test_a_yanked_release_is_not_opened(release: str) -> None:
    yank(release, why="a mistake")
    with pytest.raises(UserError, match="a mistake"):
        open_release(release)
    assert len(open_release(release, yanked=True).dataset()) == 300


def test_an_unknown_split_is_said(release: str) -> None:
    with pytest.raises(UserError, match="has no split 'test'"):
        open_release(release).stream("test")


@pytest.mark.parametrize(
    ("real", "synthetic", "ratio", "length"),
    [(58, 5000, 0.7, 7143), (540, 540, 0.7, 1800), (10, 30, 0.75, 40), (1134, 5000, 0.1, 50000), (10, 50, 0.0, 10)],
)
def test_a_mixture_shows_its_share_of_all_images(real: int, synthetic: int, ratio: float, length: int) -> None:
    mixture = mix(list(range(real)), list(range(real, real + synthetic)), ratio)
    found = np.array([mixture[index] for index in range(len(mixture))])
    assert len(found) == length
    assert abs((found >= real).sum() - ratio * length) <= 1
    shown = np.bincount(found, minlength=real + synthetic)
    for side in (shown[:real], shown[real:]):
        assert side.max() - side.min() <= 1
        assert side.min() >= 1 or ratio == 0
    assert shown.min() == (1 if ratio else 0)


def test_a_mixture_has_the_share_that_utility_trains_on() -> None:
    """The classifier's own draw of images with the weights that `utility` gives them."""
    weights = np.repeat([0.3 / 58, 0.7 / 500], [58, 500])
    order = _order(weights, 10_000, np.random.default_rng(0))
    mixture = mix([0] * 58, [1] * 500, 0.7)
    assert np.mean(order >= 58) == pytest.approx(np.mean([mixture[place] for place in range(len(mixture))]), abs=0.01)
    assert len(set(order[order >= 58])) == 500


def test_a_mixture_mixes_always_the_same_way_by_seed() -> None:
    first, again, other = ([*mix(range(9), range(9, 40), 0.5, seed=seed).places] for seed in (1, 1, 2))
    assert first == again != other
    assert sorted(first) != first


@pytest.mark.parametrize(("real", "synthetic"), [([], [1]), ([1], [])])
def test_a_mixture_needs_items_of_both_sides(real: list[int], synthetic: list[int]) -> None:
    with pytest.raises(UserError, match=r"a share of 0\.9 needs (real|synthetic) images; found none"):
        mix(real, synthetic, 0.9)
    with pytest.raises(ValueError, match="ratio is 1"):
        mix([1], [2], 1)


WITHOUT_TORCH = """
import importlib.abc, sys
class No(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "prefect", "dvc", "great_expectations", "pandas", "ruamel", "sklearn"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, No())
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "torch" else real(name, package)
from pipeline.delivery import open_release
release = open_release(sys.argv[1])
images, labels = release.arrays()
(image, label), *_ = release.stream()
print(type(image).__name__, images.shape, len(release.dataset()), sorted(set(sys.modules) & {"torch", "prefect"}))
"""


def test_without_torch_there_are_arrays(release: str, tmp_path: Path) -> None:
    said = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, release], capture_output=True, text=True, check=True
    ).stdout
    assert said == "ndarray (300, 1, 8, 8) 300 []\n"
