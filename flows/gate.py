"""Whether a challenger may be published: what params.yaml demands of it, and what the champion reaches today."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import shorten
from typing import TYPE_CHECKING

import numpy as np
from prefect.artifacts import create_table_artifact

from pipeline import paths
from pipeline.delivery import open_store, pull
from pipeline.delivery.outputs import read_report
from pipeline.delivery.pointer import Pointer
from pipeline.delivery.versions import Version, read_version
from pipeline.delivery.workspace import harms, verdicts
from pipeline.imageset import ImageSet
from pipeline.params import Document
from pipeline.running import Gate

if TYPE_CHECKING:
    from pipeline.stages.evaluate import Images

_NEEDED = {"helps": "helps somewhere, harms nowhere", "harmless": "harms nowhere or helps somewhere", "any": "any"}
_LOWER_IS_BETTER = {"fidelity.fid", "fidelity.kid", "memorization.nearer_than_percentile_1"}


@dataclass(frozen=True, kw_only=True)
class Demand:
    """One thing that is demanded: what was found, and whether that is enough.

    `secret`: what was found must not be shown to others, so that the set does not leave this machine.
    """

    what: str
    needed: str
    found: str
    holds: bool
    secret: bool = False

    @property
    def sentence(self) -> str:
        return f"{self.what}: {self.found}, needed {self.needed}"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """All demands, and the version that the challenger was compared with, None where there is none."""

    demands: tuple[Demand, ...]
    champion: str | None

    @property
    def refusal(self) -> str | None:
        """Why it is refused, in one sentence; None where it passes."""
        return "; ".join(demand.sentence for demand in self.demands if not demand.holds) or None

    @property
    def shareable(self) -> bool:
        """Whether a refused set may be put where others can fetch it."""
        return all(demand.holds for demand in self.demands if demand.secret)


def judge(workspace: Path, url: str, name: str, gate: Gate, *, harmful: bool, say: Callable[[str], None]) -> Verdict:
    """Judge the set that the stages left in `workspace`, which would become NAME at `url`.

    `say` gets a line where a champion is measured, which may take a minute.
    Raises UserError when a stage has not left its report, or one that lacks what is needed.
    """
    demands = [*_own(workspace, gate, harmful=harmful)]
    champion = _champion(workspace, url, name)
    if champion and gate.champion:
        demands += _against(workspace, url, champion, gate, say)
    return Verdict(demands=tuple(demands), champion=champion.name if champion else None)


def show(verdict: Verdict) -> None:
    """Create the artifact `gate` of the run: a row for each demand, as wide as its page has room for.

    What did not hold stands whole above the table.
    """
    rows = [
        {
            "demand": each.what,
            "holds": each.holds,
            "found": shorten(each.found, 24, placeholder=" …"),
            "needed": shorten(each.needed, 42, placeholder=" …"),
        }
        for each in verdict.demands
    ]
    said = f"refused: {verdict.refusal}" if verdict.refusal else "passed"
    create_table_artifact(rows, key="gate", description=f"against {verdict.champion or 'no champion'}; {said}")


def _own(workspace: Path, gate: Gate, *, harmful: bool) -> Iterator[Demand]:
    """What the set must reach whatever was published before. One that fails its validation ends the run before this."""
    utility = read_report(workspace, paths.UTILITY / "utility.json")
    found = list(verdicts(utility))
    words = {verdict for verdict, _ in found}
    helps = "helps" in words and "harms" not in words
    allowed = gate.utility == "any" or (gate.utility == "harmless" and (harmful or not harms(utility)))
    yield Demand(
        what="utility",
        needed=_NEEDED[gate.utility],
        found=", ".join(f"{verdict} {on}" for verdict, on in found),
        holds=allowed or helps,
    )
    metrics = read_report(workspace, paths.EVALUATION / "synthetic" / "metrics.json")
    copies, near = metrics["memorization"]["copies"], metrics["memorization"]["nearer_than_percentile_1"]
    noise = gate.noise * metrics["memorization_spread"]["nearer_than_percentile_1"]
    yield Demand(
        what="exact copies of training images",
        needed=f"at most {gate.max_copies}",
        found=str(copies),
        holds=copies <= gate.max_copies,
        secret=True,
    )
    yield Demand(
        what="share of near copies of training images",
        needed=f"at most {gate.max_near_copies:g}, noise of {noise:.2g} aside",
        found=f"{near:.3g}",
        holds=near <= gate.max_near_copies + noise,
        secret=True,
    )


def _champion(workspace: Path, url: str, name: str) -> Version | None:
    """What `latest` names, unless that is this very set."""
    store = open_store(url)
    pointer = Pointer.read(store, name)
    version = read_version(store, name, pointer.version) if pointer else None
    if version is None or version.yank:
        return None
    challenger = ImageSet.open(workspace / paths.SYNTHETIC / paths.IMAGESET)
    return None if version.manifest.fingerprint == challenger.fingerprint else version


def _against(workspace: Path, url: str, champion: Version, gate: Gate, say: Callable[[str], None]) -> Iterator[Demand]:
    """The champion is fetched and measured as the challenger is, on the real images of today."""
    near = workspace / ".dvc" / "tmp"
    near.mkdir(exist_ok=True)
    with TemporaryDirectory(dir=near) as temporary:
        folder = pull(f"{url}/{champion.name}", Path(temporary) / "champion")
        theirs = ImageSet.open(folder)
        ours = ImageSet.open(workspace / paths.SYNTHETIC / paths.IMAGESET)
        if (theirs.shape, theirs.classes) != (ours.shape, ours.classes):
            yield Demand(
                what=f"champion {champion.name}",
                needed=f"{_kind(ours)} to compare it, or run.gate.champion: [] to do without",
                found=_kind(theirs),
                holds=False,
            )
            return
        say(f"gate: measures {champion.name} anew, on the real images of today")
        scores = compare(ours, theirs, workspace, gate)
    for metric, (challenger, other) in scores.items():
        worse = challenger - other if metric in _LOWER_IS_BETTER else other - challenger
        noise = gate.noise * float(worse.std(ddof=1))
        yield Demand(
            what=metric,
            needed=f"at most {noise:.2g} worse than {other.mean():.4g} of {champion.name}",
            found=f"{challenger.mean():.4g}",
            holds=float(worse.mean()) <= noise,
        )


def _kind(images: ImageSet) -> str:
    return f"{'×'.join(map(str, images.shape))} images of {', '.join(images.classes)}"


def compare(
    challenger: ImageSet, champion: ImageSet, workspace: Path, gate: Gate
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Each measure of both, float64 (draws,) each; a draw takes as many images of the one as of the other."""
    from pipeline.metrics.judges import Judges
    from pipeline.stages import evaluate

    params = evaluate.read_params(Document.load(workspace / paths.PARAMS))
    real, judges = ImageSet.open(workspace / paths.REAL / paths.IMAGESET), Judges.load(workspace / paths.FEATURES)
    train, held_out = (_images(real, split) for split in ("train", "test"))
    sets = [_images(each, "train") for each in (challenger, champion)]
    count = min(min(len(each.images) for each in sets) // 2, params.max_images)
    scores: dict[str, list[list[float]]] = {metric: [[], []] for metric in gate.champion}
    with evaluate.side_by_side(params.threads) as pool:
        for seed in range(gate.draws):
            for position, images in enumerate(sets):
                found = evaluate.evaluate(
                    images.draw(count, seed),
                    train,
                    held_out,
                    pool=pool,
                    classes=real.classes,
                    judges=judges,
                    params=dataclasses.replace(params, seed=seed),
                ).metrics
                for metric in gate.champion:
                    section, _, key = metric.partition(".")
                    if key in found.get(section, {}):  # what has no labels has no agreement
                        scores[metric][position].append(found[section][key])
    return {metric: (np.array(ours), np.array(theirs)) for metric, (ours, theirs) in scores.items() if ours and theirs}


def _images(images: ImageSet, split: str) -> Images:
    from pipeline.stages.evaluate import Images

    pixels, labels = images.arrays(split)
    translated = "translated" in (images.generator or {})
    return Images(images=pixels, labels=labels, description=split, translated=translated)
