"""The table of what was measured: values beside those of real images, and the protocol under them."""

from __future__ import annotations

from pathlib import Path

import pytest
from reports import ENTRY, METRICS, ROW, UTILITY, write_report
from rich.console import Console

from pipeline.errors import UserError
from pipeline.report.summary import summary


def printed(workspace: Path) -> str:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(*summary(workspace))
    return capture.get()


def test_says_what_was_measured_and_how(tmp_path: Path) -> None:
    entry = ENTRY | {"generated": "720 of 5000 released images", "real": "800 real images"}
    metrics = {"fidelity": {"fid": 0.0375}, "floor": {"fid": 0.0125}, "agreement": {"mean": 0.9975}}
    write_report(tmp_path, METRICS["synthetic"], **metrics, protocol=[entry])
    row = ROW | {
        "data": "5 %",
        "protocol": "shared-generator",
        "gain_over_real_long": {"mean": 3.25, "low": 2.5, "high": 4.0},
        "accuracy": {"real_long": {"mean": 94.125}, "mixed": {"mean": 97.375}},
    }
    protocol = [
        "same-data: …",
        "shared-generator: it saw more.",
        "real_long: as many images seen as by mixed.",
        "mixed: both",
    ]
    write_report(tmp_path, UTILITY, rows=[row], protocol=protocol, synthetic_only_accuracy=96.5)
    lines = printed(tmp_path).splitlines()
    (fid,) = [line.split() for line in lines if line.startswith("FID")]
    assert fid[-2:] == ["0.0375", "0.0125"]
    (agreement,) = [line.split() for line in lines if line.startswith("judges agree")]
    assert agreement[-1] == "99.75%"
    (gain,) = [line for line in lines if line.startswith("5 % (shared-generator)")]
    assert gain.split()[-5:] == ["94.12%", "97.38%", "+3.25", "[+2.50,", "+4.00]"]
    (alone,) = [line for line in lines if line.startswith("none, this set alone")]
    assert alone.split()[-1] == "96.50%"
    flat = " ".join(" ".join(lines).split())
    assert "fidelity: 720 of 5000 released images, against 800 real images" in flat
    assert "shared-generator: it saw more. real only: as many images seen as with this set." in flat
    assert "same-data" not in flat  # no row is of that protocol
    assert "recall" not in flat
    assert "Each protocol in full, that of unfiltered samples too: in the report" in flat


def test_what_resamples_spread_stands_beside_the_measure(tmp_path: Path) -> None:
    metrics = {"fidelity": {"fid": 0.0375, "fid_infinity": 0.0125}, "fidelity_spread": {"fid": 0.005}}
    write_report(tmp_path, METRICS["model"], **metrics, floor={"fid": 0.0250})
    lines = [line.split() for line in printed(tmp_path).splitlines()]
    (fid,) = [line for line in lines if line[:1] == ["FID,"]]
    assert fid[-4:] == ["0.0375", "±", "0.0050", "0.0250"]
    (infinite,) = [line for line in lines if line[1:3] == ["of", "infinitely"]]
    assert infinite[-2:] == ["0.0125", "0.0000"]


def test_another_extractor_is_named_with_its_layer(tmp_path: Path) -> None:
    scores = {"fid": 4.5, "inception_score": 2.25}
    metrics = {"inception_2048": scores, "inception_2048_spread": {"fid": 0.5}, "inception_2048_floor": {"fid": 1.5}}
    write_report(tmp_path, METRICS["model"], **metrics)
    flat = " ".join(printed(tmp_path).split())
    assert "FID, inception 2048 4.500 ± 0.500 1.500" in flat
    assert "Inception Score, inception 2048 2.250" in flat


def test_without_measurements_there_are_no_rows(tmp_path: Path) -> None:
    assert summary(tmp_path) == []


@pytest.mark.parametrize("path", [*METRICS.values(), UTILITY])
def test_a_damaged_report_is_named(tmp_path: Path, path: Path) -> None:
    write_report(tmp_path, path, protocol=[])
    with pytest.raises(UserError, match=rf"^{tmp_path / path}: protocol is missing, empty or of another kind; needed"):
        summary(tmp_path)
    (tmp_path / path).write_text("{")
    with pytest.raises(UserError, match=rf"^{tmp_path / path}: is not a JSON object; needed what all stages wrote"):
        summary(tmp_path)


def test_the_modes_stand_beside_those_of_real_labels(tmp_path: Path) -> None:
    modes = {"classes_seen": 9, "classes_covered": 8, "kl_from_real": 0.125}
    floor = {"classes_seen": 10, "classes_covered": 10, "kl_from_real": 0.0625}
    metrics = {"modes": modes, "modes_floor": floor, "fidelity": {"density": 0.75}, "floor": {"density": 1.25}}
    metrics["memorization_features"] = {"nearer_than_median": 0.625, "nearer_than_percentile_1": 0.025}
    metrics["memorization_features_floor"] = {"nearer_than_median": 0.5, "nearer_than_percentile_1": 0.012}
    write_report(tmp_path, METRICS["synthetic"], **metrics)
    flat = " ".join(printed(tmp_path).split())
    for said in (
        "density 0.75 1.25",
        "classes with an image 9 10",
        "with a tenth of their real share 8 10",
        "KL of the classes' shares from real 0.1250 0.0625",
        "in features nearer than half of held-out 62.5% 50.0%",
        "… than 99 % of held-out 2.5% 1.2%",
    ):
        assert said in flat, said


def test_the_parzen_likelihood_is_marked_and_beside_that_of_real_images(tmp_path: Path) -> None:
    likelihood = {"log_likelihood": 225.0, "standard_error": 2.5, "sigma": 0.1}
    measured = {"parzen": likelihood, "parzen_real": {"log_likelihood": 240.0}}
    write_report(tmp_path, METRICS["model"], **measured)
    write_report(tmp_path, METRICS["synthetic"], fidelity={"fid": 0.0375})
    assert "Parzen log-likelihood, nats: historical 225.0 ± 2.5 240.0" in " ".join(printed(tmp_path).split())
