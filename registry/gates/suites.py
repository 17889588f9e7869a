"""Reads Great Expectations suites (JSON files) and validates tables with them.

Importing Great Expectations takes seconds, so it is imported only when a suite judges.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onward.registry.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

Suite = list[dict[str, Any]]


def read(path: Path, where: str) -> Suite:
    """Read a suite.

    Args:
        path: The JSON file.
        where: The place that messages start with.

    Returns:
        The suite's expectations.

    Raises:
        UsageError: The file is missing, cannot be read, or is not a suite with at least one expectation.
    """
    try:
        expectations = json.loads(path.read_text())["expectations"]
        if not expectations or not all(
            isinstance(expectation["type"], str) and isinstance(expectation.get("kwargs", {}), dict)
            for expectation in expectations
        ):
            raise TypeError
    except FileNotFoundError:
        raise UsageError(f"{where}: there is no such file in the repository") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(
            f'{where}: must be JSON of the form {{"expectations": [{{"type": "expect_...", "kwargs": {{...}}}}]}}'
        ) from None
    return list(expectations)


def validate(table: pd.DataFrame, suite: Suite, name: str) -> Any:
    """Validate a table in an ephemeral context, so that Great Expectations leaves no files on disk.

    Args:
        table: The table.
        suite: The expectations.
        name: The suite's name in messages and pages.

    Returns:
        Great Expectations' result of the suite.

    Raises:
        UsageError: Great Expectations rejects the suite.
        ImportError: Great Expectations is not installed.
    """
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    logging.getLogger("great_expectations").setLevel(logging.ERROR)  # its warnings repeat what the results contain
    import great_expectations as gx
    from great_expectations.core.expectation_suite import ExpectationSuite
    from great_expectations.data_context.types.base import (
        DataContextConfig,
        InMemoryStoreBackendDefaults,
        ProgressBarsConfig,
    )

    # Without this setting, Great Expectations makes a folder for a docs site and never removes it.
    config = DataContextConfig(store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False))
    context = gx.get_context(mode="ephemeral", project_config=config)
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    batch = (
        context.data_sources.add_pandas("table")
        .add_dataframe_asset("table")
        .add_batch_definition_whole_dataframe("table")
        .get_batch({"dataframe": table})
    )
    try:
        wanted = ExpectationSuite(name=name, expectations=suite)
    except Exception as error:  # an unknown expectation, or wrong arguments
        raise UsageError(f"{name}: Great Expectations rejects it: {str(error).splitlines()[0][:300]}") from error
    return batch.validate(wanted)


def page(result: Any) -> str:
    """Render the result of a suite as an HTML page (Data Docs)."""
    from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer
    from great_expectations.render.view.view import DefaultJinjaPageView

    rendered = ValidationResultsPageRenderer().render(result)
    return str(DefaultJinjaPageView().render(rendered))
