"""Great Expectations suites: JSON files of expectations, validated over a table. It is imported only when one judges,
because that takes seconds.
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
    """The expectations of a suite.

    Args:
        path: of the JSON file.
        where: how messages name it.

    Raises:
        UsageError: the file is missing, cannot be read, or is no suite with at least one expectation.
    """
    try:
        expectations = json.loads(path.read_text())["expectations"]
        if not expectations or not all(
            isinstance(e["type"], str) and isinstance(e.get("kwargs", {}), dict) for e in expectations
        ):
            raise TypeError
    except FileNotFoundError:
        raise UsageError(f"{where}: there is no such file in the repository") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(
            f'{where}: wants JSON of the form {{"expectations": [{{"type": "expect_...", "kwargs": {{...}}}}]}}'
        ) from None
    return list(expectations)


def validate(table: pd.DataFrame, suite: Suite, name: str) -> Any:
    """Validate a table in an ephemeral context: nothing of Great Expectations is left on disk.

    Args:
        table: what is judged.
        suite: the expectations.
        name: of the suite, in messages and pages.

    Returns:
        Great Expectations' own result of the suite.

    Raises:
        UsageError: Great Expectations refuses the suite.
        ImportError: Great Expectations is not installed.
    """
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    logging.getLogger("great_expectations").setLevel(logging.ERROR)  # the results name a missing column
    import great_expectations as gx
    from great_expectations.core.expectation_suite import ExpectationSuite
    from great_expectations.data_context.types.base import (
        DataContextConfig,
        InMemoryStoreBackendDefaults,
        ProgressBarsConfig,
    )

    # With this configuration Great Expectations makes no folder for a docs site, which nothing would remove.
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
    except Exception as error:  # an expectation that does not exist, or with the wrong arguments
        raise UsageError(f"{name}: Great Expectations refuses it: {str(error).splitlines()[0][:300]}") from error
    return batch.validate(wanted)


def page(result: Any) -> str:
    """The result of a suite as an HTML page (Data Docs)."""
    from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer
    from great_expectations.render.view.view import DefaultJinjaPageView

    rendered = ValidationResultsPageRenderer().render(result)
    return str(DefaultJinjaPageView().render(rendered))  # type: ignore[no-untyped-call]
