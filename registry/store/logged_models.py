"""Link logged models to the registered versions of their files.

MLflow's pages of logged models read the registered versions from a tag. A server sets the tag when a version is
created. With an embedded store nothing does, and the page says "Not registered".
"""

from __future__ import annotations

import json

MODEL_VERSIONS = "mlflow.modelVersions"


def with_version(tag: str | None, registered: str, version: int) -> str:
    """The tag's value with one more version.

    Args:
        tag: the present value; None if there is none.
        registered: the name of the registered model.
        version: the number of the version.
    """
    known = json.loads(tag) if tag else []
    if not any(one.get("name") == registered and str(one.get("version")) == str(version) for one in known):
        known.append({"name": registered, "version": version})
    return json.dumps(known)
