"""The command line: `forgeline …`. Thin: each command finds its words and calls the one function that does it.

Exit status: 0 done, 1 failed, 2 the user's words are off. What a user gets wrong is answered in one sentence.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import click

from pipeline.errors import FailedError, ForgelineError, UserError, end, nearest, of_system

_SEEDS = click.IntRange(0, 2**32 - 1)  # params.SEEDS, whose module takes longer to import than all of this file
_DAYS = click.FloatRange(0, 36_500)
T = TypeVar("T", str | None, tuple[str, ...])


class Commands(click.Group):
    """A group that names the nearest command when there is none of that name."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            raise click.UsageError(f"'{args[0]}' is not a command; {nearest(args[0], self.commands)}")
        return super().resolve_command(ctx, args)


def _said(context: click.Context, option: click.Parameter, value: T) -> T:
    """For a text, or several, which may be left out, and is not nothing where it is given."""
    if not all(text.strip() for text in ([value] if isinstance(value, str) else value or ())):
        raise click.BadParameter("found nothing, needed a text.")
    return value


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="forgeline")
def forgeline() -> None:
    """Retrain a GAN, measure it honestly, publish synthetic image sets that are shown to help."""


@forgeline.command()
@click.option("--publish", "url", metavar="URL", help="Where to publish, instead of publish.url in params.yaml.")
def run(url: str | None) -> None:
    """The whole flow once, here: every stage of dvc.yaml that is out of date, then publish."""
    _flows("flows", *(["--publish", url] if url else []))


@forgeline.command()
def up() -> None:
    """A Prefect server, a worker and the deployment, on this machine: from then on runs happen by themselves."""
    _flows("flows.up", "up")


@forgeline.command()
def down() -> None:
    """End what 'forgeline up' started here: the worker, with the run that it is at, then the server."""
    _flows("flows.up", "down")


@forgeline.command()
@click.argument("shares", metavar="SHARE...", nargs=-1, required=True, type=click.FloatRange(0, 1, min_open=True))
@click.option("--seeds", type=click.IntRange(min=2), default=10, show_default=True, help="Of classifiers.")
@click.option(
    "--generators", type=click.IntRange(min=1), default=1, show_default=True, help="Each by a seed of its own."
)
def study(shares: tuple[float, ...], seeds: int, generators: int) -> None:
    """Does a set help somebody who has few images? An experiment for each SHARE, such as 0.1, of the real ones.

    In each the generator learns from this share only, as the classifiers do. The experiments are DVC's. With few images
    sets of other generators may help far less, or more: what several agree on holds for the next one too.
    """
    _flows("flows.study", *map(str, shares), "--seeds", str(seeds), "--generators", str(generators))


def _flows(*words: str) -> None:
    """Go on as a module of flows. Another process and not an import: this file knows nothing of Prefect."""
    if find_spec("prefect") is None:
        raise ModuleNotFoundError(name="prefect")
    os.execv(sys.executable, [sys.executable, "-m", *words])


@forgeline.command()
@click.argument("name", required=False)
@click.option("--force", is_flag=True, help="Overwrite a params.yaml that was edited by hand.")
def recipe(name: str | None, force: bool) -> None:
    """List the ready recipes, or make NAME the current params.yaml."""
    from pipeline import recipes

    if name is None:
        for known, title in recipes.titles().items():
            click.echo(f"{known:16}{title}")
        return
    recipes.use(name, Path("params.yaml"), force=force)
    click.echo(f"params.yaml is now the recipe '{name}'; 'forgeline run' runs it")


@forgeline.command()
@click.argument("name")
@click.argument("which", required=False)
def stage(name: str, which: str | None) -> None:
    """One stage, as dvc.yaml calls it: NAME, and WHICH for the stages that judge two things."""
    from pipeline import paths, starters
    from pipeline.params import Document

    document = Document.load(Path("dvc.yaml"))
    graph = document.mapping("stages")
    if name not in graph:
        raise click.UsageError(f"'{name}' is not a stage of dvc.yaml; {nearest(name, graph)}")
    choices = document.mapping(f"stages.{name}").get("matrix", {}).get("which", [])
    if which not in (choices or [None]):
        needed = f"one of {', '.join(choices)}" if choices else "nothing"
        raise click.UsageError(f"stage '{name}' found {which or 'nothing'} after it, needed {needed}")
    starters.end_with_them()
    module: Any = importlib.import_module(f"pipeline.stages.{name}")
    module.run(Document.load(paths.PARAMS), *([which] if which else []))


@forgeline.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--count", type=click.IntRange(min=1), default=100, show_default=True, help="How many images.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A .png for one grid, else a new folder.")
@click.option("--seed", type=_SEEDS, default=0, show_default=True)
@click.option("--spread", type=float, default=1.0, show_default=True, help="Latent spread beyond training's 1.")
@click.option("--sources", type=click.Path(path_type=Path), help="An ImageSet whose test images a cyclegan translates.")
def sample(model: Path, count: int, out: Path, seed: int, spread: float, sources: Path | None) -> None:
    """Draw images from MODEL (a folder such as out/model) into a grid or a folder."""
    from pipeline.report.grids import sample_to

    count = sample_to(model, out, count=count, seed=seed, spread=spread, sources=sources)
    click.echo(f"{out}: {count} images")


@forgeline.command()
@click.argument("images", metavar="SET")
@click.option("--against", "real", metavar="REAL", required=True, help="The images to compare with.")
@click.option("--split", help="Only this split of REAL: train, validation or test.")
@click.option("--extractor", default="inception-v3-compat", show_default=True, help="As torch-fidelity names it.")
@click.option("--layer", type=int, help="Of Inception: 64, 192, 768 or 2048, which is what nothing else is said for.")
@click.option("--weights", metavar="FILE", help="The extractor's, where they cannot be downloaded.")
@click.option("--weights-sha256", metavar="HEX", help="What FILE must have.")
@click.option("--max-images", type=click.IntRange(min=2), default=10_000, show_default=True, help="Drawn of more.")
@click.option("--seed", type=_SEEDS, default=2, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="For programs: as metrics.json has it.")
def evaluate(
    images: str, real: str, split: str | None, max_images: int, seed: int, as_json: bool, **extractor: str | int | None
) -> None:
    """How near the images of SET are to those of REAL: FID, KID, precision, recall, density, coverage.

    Each is a folder, zip or tar of pictures (also on s3://) or an ImageSet; Forgeline need not have made it. With
    --extractor in-domain the features are those that the workspace here has trained.
    """
    from pipeline.delivery.showing import put_table
    from pipeline.metrics.extractors import Settings
    from pipeline.params import Document
    from pipeline.report.against import compare, table

    given = {name: value for name, value in extractor.items() if value is not None}
    settings = Document({}, "options").build("evaluate", given, Settings)
    found = compare(images, real, settings=settings, split=split, max_images=max_images, seed=seed)
    if as_json:
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        put_table(table(found))


@forgeline.command()
@click.argument("url", required=False, callback=_said)
@click.option("--name", callback=_said, help="The release's name, instead of publish.name in params.yaml.")
@click.option("--sign", "key", type=click.Path(path_type=Path), help="A private key (PEM, ed25519) to sign with.")
@click.option("--harmful", is_flag=True, help="Also a set that was measured to harm; its card says so.")
def publish(url: str | None, name: str | None, key: Path | None, harmful: bool) -> None:
    """Publish the synthetic set of this workspace to URL (s3://bucket/prefix or a folder)."""
    from pipeline import paths
    from pipeline.delivery.settings import read_publish_settings
    from pipeline.delivery.workspace import publish_workspace
    from pipeline.params import Document

    settings = read_publish_settings(Document.load(paths.PARAMS))
    if not (url := url or settings.url):
        raise click.UsageError("params.yaml: publish.url is null; needed a URL here or there")
    harmful = harmful or settings.harmful
    published = publish_workspace(Path(), url, name or settings.name, key=key, harmful=harmful)
    if published.caveat:
        click.echo(published.caveat, err=True)
    click.echo(f"{published.url}: {'published' if published.new else 'is published already, nothing is new'}")


@forgeline.command("list")
@click.argument("url")
@click.option("--json", "as_json", is_flag=True, help="For programs: a list of objects.")
def list_(url: str, as_json: bool) -> None:
    """The releases at URL (s3://bucket/prefix or a folder)."""
    from pipeline.delivery import list_releases, open_store
    from pipeline.delivery.showing import put_table, releases_json, releases_table

    store = open_store(url)
    if "://" not in url and not Path(url).exists():
        raise UserError(f"{url}: there is no such folder; needed s3://bucket/prefix or a folder")
    releases = list_releases(store)
    if as_json:
        click.echo(releases_json(releases))
    elif releases:
        put_table(releases_table(releases))
    else:
        click.echo(f"{url}: no releases yet")
    if damaged := [release for release in releases if release.damaged is not None]:
        raise FailedError(f"{url}: {len(damaged)} of {len(releases)} rows are of what is damaged; see there")


@forgeline.command()
@click.argument("release")
def show(release: str) -> None:
    """The card of RELEASE (URL/NAME, URL/NAME@VERSION or URL/NAME@CHANNEL)."""
    from pipeline.delivery import find
    from pipeline.delivery.showing import put_card

    put_card(find(release))


@forgeline.command()
@click.argument("release")
def history(release: str) -> None:
    """Which version each channel of RELEASE (URL/NAME) named: since when, by whom, and why."""
    from pipeline.delivery.keeping import open_release_store
    from pipeline.delivery.pointer import read_pointers
    from pipeline.delivery.showing import history_table, put_table

    put_table(history_table(read_pointers(*open_release_store(release))))


@forgeline.command()
@click.argument("release")
@click.argument("dest", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "layout",
    type=click.Choice(["parquet", "imagefolder", "webdataset"]),
    default="parquet",
    show_default=True,
    help="Parquet shards, a folder of PNGs for each class, or tars.",
)
@click.option(
    "--classes", multiple=True, callback=_said, help="Only these, by name, with commas between; may be said again."
)
@click.option("--per-class", type=click.IntRange(min=1), help="At most so many images of each class in each split.")
@click.option("--min-confidence", type=float, help="Only images whose label a classifier gave this probability.")
@click.option("--key", type=click.Path(path_type=Path), help="A public key (PEM, ed25519) that must have signed it.")
@click.option("--yanked", is_flag=True, help="Insist on a version that was taken back.")
def pull(
    release: str,
    dest: Path,
    layout: str,
    classes: tuple[str, ...],
    per_class: int | None,
    min_confidence: float | None,
    key: Path | None,
    yanked: bool,
) -> None:
    """Fetch RELEASE (URL/NAME, URL/NAME@VERSION or URL/NAME@CHANNEL) into the new folder DEST, every byte checked.

    That is against its manifest, of which --key makes sure that it is the publisher's.

    Interrupted, it goes on where it was when it is run again. Of a selection only the row groups that may hold such
    images are fetched.
    """
    from pipeline.delivery import pull as fetch
    from pipeline.delivery.selecting import Selection

    selection = Selection(classes=classes or None, per_class=per_class, min_confidence=min_confidence)
    found = fetch(release, dest, yanked=yanked, layout=layout, selection=selection, key=key)
    whole = layout == "parquet" and selection == Selection()
    manifest = "its manifest, which the key signed, says" if key else "its manifest says"
    click.echo(f"{found}: {'whole, every byte' if whole else 'the images asked for, each'} as {manifest}")


@forgeline.command()
@click.argument("version")
@click.option("--channel", default="latest", show_default=True, help="The pointer to move, made where there is none.")
@click.option("--why", required=True, callback=_said, help="Kept in the history.")
def promote(version: str, channel: str, why: str) -> None:
    """Make a channel name VERSION (URL/NAME@VERSION or URL/NAME@CHANNEL)."""
    from pipeline.delivery.keeping import promote as point

    click.echo(f"{channel}: now {point(version, channel=channel, why=why)}")


@forgeline.command()
@click.argument("release")
@click.option("--channel", default="latest", show_default=True, help="The pointer to move.")
@click.option("--why", required=True, callback=_said, help="Kept in the history.")
def rollback(release: str, channel: str, why: str) -> None:
    """Make a channel of RELEASE (URL/NAME) name again what it named before."""
    from pipeline.delivery.keeping import rollback as point

    click.echo(f"{channel}: now {point(release, channel=channel, why=why)}")


@forgeline.command("yank")
@click.argument("version")
@click.option("--why", required=True, callback=_said, help="What pullers are told.")
@click.option("--remove", is_flag=True, help="Also remove its images and all that describes them, for good.")
def yank_(version: str, why: str, remove: bool) -> None:
    """Take back VERSION (URL/NAME@VERSION): channels go back to another, pullers are told and refused."""
    from pipeline.delivery.keeping import yank

    for moved in yank(version, why=why, remove=remove):
        click.echo(moved)


@forgeline.command("prune")
@click.argument("release")
@click.option("--keep", type=click.IntRange(min=1), required=True, help="How many of the newest versions stay.")
def prune_(release: str, keep: int) -> None:
    """Remove the versions of RELEASE (URL/NAME) but the newest; never one that a channel names."""
    from pipeline.delivery.keeping import prune

    removed = prune(release, keep=keep)
    click.echo(f"{release}: removed {', '.join(removed) or 'nothing'}")


@forgeline.command("gc")
@click.argument("url")
@click.option("--days", type=_DAYS, default=7, show_default=True, help="Younger parts stay.")
def gc_(url: str, days: float) -> None:
    """Remove at URL what publishes left that never finished and were last active so many days ago."""
    from datetime import timedelta

    from pipeline.delivery import open_store
    from pipeline.delivery.keeping import collect

    if math.isnan(days):  # which is beyond neither bound
        raise click.BadParameter(f"{days} is not in the range 0<=x<=36500.", param_hint="'--days'")
    removed = collect(open_store(url), timedelta(days=days))
    click.echo(f"{url}: removed {', '.join(removed) or 'nothing'}")


@forgeline.command()
@click.argument("target")
def verify(target: str) -> None:
    """Check every byte and every image of a pulled folder or of a release (URL/NAME[@VERSION])."""
    from pipeline.delivery import verify as check

    found = check(target)
    end = "all as the manifest says" if found.whole else "every file as it was pulled"
    click.echo(f"{target}: {found.name}@{found.version}, {found.images:,} images, {end}")


@forgeline.command()
def report() -> None:
    """One HTML page of what the stages left here: the verdict, the images, the numbers, the risks."""
    from pipeline.report.page import write_report

    click.echo(write_report(Path()))


@forgeline.command()
def doctor() -> None:
    """What is missing on this machine, in params.yaml, at the store or the server, and how to mend it."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from pipeline.doctor import checks

    found = checks(Path())
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column()
    table.add_column(overflow="fold")
    marks = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "missing": "[red]missing[/]"}
    for check in found:
        said = f"{check.found}\n→ {check.mend}" if check.mend else check.found
        table.add_row(check.name, marks[check.status], escape(said))  # of which [train] would be taken for a style
    Console().print(table)
    if any(check.status == "missing" for check in found):
        sys.exit(1)


def main() -> None:
    """Run the command line; turn every expected ending into one sentence and an exit status."""
    try:
        forgeline(standalone_mode=False)
    except click.ClickException as error:
        end(error.format_message(), error.exit_code)
    except click.exceptions.Exit as leaving:
        sys.exit(leaving.exit_code)
    except (KeyboardInterrupt, click.Abort):
        end("interrupted", 130)
    except ForgelineError as error:
        end(str(error), error.exit_status)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in ("pipeline", "flows"):
            raise
        end(f"the light install has no {error.name}, which this needs; pip install 'forgeline[train]'", 1)
    except (MemoryError, RuntimeError) as error:  # torch knows no better kind
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        said = str(error).partition("\n")[0]
        end(f"memory ran out ({said}); needed smaller settings, or a larger machine", 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        failed = of_system(error)
        end(str(failed), failed.exit_status)
