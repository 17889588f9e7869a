"""What the publish stage passes to the recorder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt

from onward.registry.errors import Refused
from onward.registry.evidence.records import FileDigest, TensorSpec
from onward.registry.evidence.reports import Evidence
from onward.registry.monitoring.reference import Reference
from onward.registry.tracking import card


@dataclass(frozen=True)
class Publication:
    """The input of `publish`.

    Attributes:
        root: the folder that the evidence's file paths are relative to.
        experiment: the name of the MLflow experiment.
        evidence: the model's evidence.
        params: the model's effective settings.
        context: facts about this run rather than the model (commit, machine), which become tags.
        bundle: a folder with inputs.npz, outputs.npz and tolerance.json.
        reports: the folder with a `<stage>/report.json` for each stage.
        inputs: the inputs of the model.
        outputs: the outputs of the model.
        fault: why the chosen variant gave no answers to record; "" if it did.
        example: the inputs of one call, as MLflow's input example; empty if there are none.
        reference: the distributions that live traffic is compared with; None if they are unknown.
        dvc_experiment: the name of the DVC experiment that publishes; "" outside of experiments.
        registers: whether to register a version if nothing failed.
    """

    root: Path
    experiment: str
    evidence: Evidence
    params: Mapping[str, Any]
    context: Mapping[str, str]
    bundle: Path | None
    reports: Path
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    fault: str = ""
    example: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    reference: Reference | None = None
    dvc_experiment: str = ""
    registers: bool = True

    def libraries(self) -> list[Path]:
        """The native libraries with custom operators, which the export stage copied.

        Raises:
            Refused: a library has changed since.
        """
        folder = self.reports / "export"
        for library in self.evidence.export.custom_ops:
            if FileDigest.of(folder / library.path, folder) != library:
                raise Refused(f"{library.path} has changed since the export stage copied it: run `dvc repro`")
        return [folder / library.path for library in self.evidence.export.custom_ops]

    def card(self) -> str:
        """The text of MODEL_CARD.md."""
        return card.model_card(self.evidence, self.params, self.inputs, self.outputs)

    def content(self, fault: str = "") -> str:
        """The digest of the publication's content.

        It covers the evidence, the settings and the DVC experiment, but neither the context nor the card.

        Args:
            fault: why the version cannot be served, which is part of the content.
        """
        digest = hashlib.sha256(self.evidence.model_dump_json().encode())
        params = {name: value for name, value in self.params.items() if name != "card"}
        digest.update(json.dumps(params, sort_keys=True, default=str).encode())
        digest.update(fault.encode())
        digest.update(self.dvc_experiment.encode())
        return digest.hexdigest()
