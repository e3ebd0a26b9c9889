"""A suite against a manifest: a report for machines, and Data Docs for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import great_expectations as gx
import pandas as pd
from great_expectations.core.run_identifier import RunIdentifier
from great_expectations.data_context.types.base import ProgressBarsConfig
from great_expectations.render.renderer import ValidationResultsPageRenderer
from great_expectations.render.view import DefaultJinjaPageView

from pipeline.expectations.page import self_contained

EXAMPLES = 3  # of rows at fault, by path


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One expectation: what should hold, and what was found."""

    expectation: str
    success: bool
    observed: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """All verdicts in the suite's order. A report without verdicts is a failed one."""

    verdicts: tuple[Verdict, ...]
    page: str  # HTML: Data Docs of this run

    @property
    def failed(self) -> tuple[Verdict, ...]:
        """The verdicts that did not hold."""
        return tuple(verdict for verdict in self.verdicts if not verdict.success)

    @property
    def success(self) -> bool:
        """Whether there were expectations, and all held."""
        return bool(self.verdicts) and not self.failed

    def to_json(self) -> dict[str, Any]:
        """`success` and the number of expectations, then every verdict."""
        return {
            "success": self.success,
            "expectations": {"evaluated": len(self.verdicts), "failed": len(self.failed)},
            "verdicts": [asdict(verdict) for verdict in self.verdicts],
        }


def check(frame: pd.DataFrame, suite: gx.ExpectationSuite) -> Report:
    """What of `suite` holds in `frame`. The same frame and suite give the same report, byte for byte."""
    context = gx.get_context(mode="ephemeral")
    context.enable_analytics(False)
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_or_update_pandas("manifest").add_dataframe_asset(suite.name)
    definition = gx.ValidationDefinition(
        name=suite.name, data=asset.add_batch_definition_whole_dataframe("all"), suite=context.suites.add(suite)
    )
    checkpoint = gx.Checkpoint(
        name=suite.name,
        validation_definitions=[context.validation_definitions.add(definition)],
        result_format={
            "result_format": "SUMMARY",
            "partial_unexpected_count": EXAMPLES,
            "unexpected_index_column_names": ["path"] if "path" in frame else [],
        },
    )
    ran = context.checkpoints.add(checkpoint).run(
        batch_parameters={"dataframe": frame},
        run_id=RunIdentifier(suite.name, datetime.fromtimestamp(0, UTC)),  # no time of day in what is compared
    )
    (validation,) = ran.run_results.values()
    # Rendered here: UpdateDataDocsAction goes on without a word where a page cannot be written or rendered.
    page = self_contained(DefaultJinjaPageView().render(ValidationResultsPageRenderer().render(validation)))
    order = {expectation.id: position for position, expectation in enumerate(suite.expectations)}
    results = sorted(validation.results, key=lambda result: order[result.expectation_config.id])
    return Report(verdicts=tuple(map(_verdict, results)), page=page)


def _verdict(result: Any) -> Verdict:
    return Verdict(
        expectation=result.expectation_config.description,
        success=bool(result.success),
        observed=_observed(result.to_json_dict()["result"], result.exception_info),
    )


def _observed(result: Mapping[str, Any], exceptions: Mapping[str, Any]) -> str:
    """What Great Expectations found, in words: `600`, `all 600 rows`, `2 of 600 rows: a.png (label 11), …`."""
    if not result:  # it could not be told, as when a column is missing
        told = exceptions if "exception_message" in exceptions else next(iter(exceptions.values()))
        return " ".join(str(told["exception_message"]).removeprefix("Error: ").split())
    missing = result.get("partial_missing_list") or result.get("details", {}).get("mismatched", {}).get("missing")
    if missing:
        return f"missing {', '.join(sorted(map(str, missing)))}"
    if "element_count" in result:
        return _rows(result)
    if result.get("partial_unexpected_list"):
        return f"found also {', '.join(sorted(map(str, result['partial_unexpected_list'])))}"
    match result.get("observed_value"):
        case int() | float() as value:
            return f"{value:,}"
        case None if "missing_count" not in result:
            return "nothing"
        case _:  # a set of columns or of values
            return "all of them"


def _rows(result: Mapping[str, Any]) -> str:
    """For an expectation about each row: how many rows are at fault, and the first of them."""
    unexpected, rows = result["unexpected_count"], result["element_count"]
    if not unexpected:
        return f"all {rows:,} rows"
    examples = result["partial_unexpected_index_list"] or result["partial_unexpected_list"]
    found = ", ".join(_row(example) for example in examples[:EXAMPLES])
    return f"{unexpected:,} of {rows:,} rows: {found}{', …' if unexpected > EXAMPLES else ''}"


def _row(example: Any) -> str:
    if not isinstance(example, Mapping):
        return str(example)
    values = ", ".join(f"{name} {value}" for name, value in example.items() if name != "path")
    return f"{example['path']} ({values})" if values else str(example["path"])
