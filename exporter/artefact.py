"""StagedArtefact -> VerifiedArtefact -> published folder. Only the verified one can publish."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from exporter.contract import Target
from exporter.model import FusedModel
from exporter.report.export import ExportReport
from exporter.report.export_html import write_html
from exporter.report.inspect import InspectReport
from exporter.store.folder import Staging
from exporter.store.jsonio import write_json
from exporter.store.manifest import META, Manifest, write_manifest
from exporter.verify.result import VerifyReport

Describe = Callable[[], Manifest]


@dataclass(frozen=True)
class StagedArtefact:
    """What a target wrote beside the output's place; nobody else sees it yet."""

    staging: Staging
    model: FusedModel
    target: Target

    @property
    def folder(self) -> Path:
        """The partial folder."""
        return self.staging.path


@dataclass(frozen=True)
class VerifiedArtefact:
    """A staged artefact whose final bytes were re-read and run."""

    staged: StagedArtefact
    verification: VerifyReport

    def publish(self, report: ExportReport, sparsity: InspectReport, describe: Describe) -> None:
        """Write the reports, then the manifest as the last file, then rename into place.

        `describe` makes the manifest once everything else lies in the folder.

        Raises:
            InputRefused: `output-failed`.
        """
        meta = self.staged.folder / META
        meta.mkdir(exist_ok=True)
        write_json(meta / "report.json", report.model_dump(mode="json", by_alias=True))
        write_html(meta / "report.html", report, sparsity)
        write_manifest(self.staged.folder, describe())
        self.staged.staging.publish()
