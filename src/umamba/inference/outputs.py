"""The files that a prediction writes: their names, which are defined only here, and whether a case has all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from umamba.io import UserError, below, read_json, remove_stale, supported_endings, write_json
from umamba.io.documents import OWN_BYTES
from umamba.settings import PredictionSettings

# Form of `export` -> ending of its files.
FORMS = {
    "seg_nrrd": ".seg.nrrd",
    "dicom_seg": ".dcm",
    "dicom_labelmap": ".dcm",
    "rtstruct": ".dcm",
    "secondary_capture": ".dcm",
    "geojson": ".geojson",
    "outlines": ".png",
    "map16": ".png",
}
# Forms that belong to the patient and study of a series in DICOM.
DICOM_FORMS = ("dicom_seg", "dicom_labelmap", "rtstruct", "secondary_capture")
_PREVIEWS, _AGREEMENT = "previews", "agreement"
CLASSES = "classes.csv"  # in a folder of predictions
CLASSIFIED = "classified"  # key of the record: entries of cases that have classes and no segmentation
# What `prediction.json` says beside: it may change with the machine that continues a folder, or from case to case.
MACHINE_KEYS = ("engine", "precision", "checkpoints", "setups", "cases", CLASSIFIED)


def wants_dicom(forms: Sequence[str]) -> bool:
    """Return whether a form in DICOM is among the wanted ones.

    Args:
        forms: names of forms.
    """
    return any(form in DICOM_FORMS for form in forms)


@dataclass(frozen=True)
class CaseFiles:
    """The files of one case.

    Attributes:
        segmentation: the label map.
        probabilities: npz file; None: not wanted.
        instances: numbered instances; None: not wanted.
        exports: form of `export` -> its file.
        agreement: the signs of how far to trust the segmentation; None: not wanted.
    """

    segmentation: Path
    probabilities: Path | None
    instances: Path | None
    exports: tuple[tuple[str, Path], ...] = ()
    agreement: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files in the order in which they are written, the segmentation last."""
        exports = [path for _, path in self.exports]
        all_ = (self.probabilities, self.instances, *exports, self.agreement, self.segmentation)
        return tuple(path for path in all_ if path)

    def complete(self) -> bool:
        """Return whether all wanted files exist."""
        return all(path.exists() for path in self.paths)


@dataclass(frozen=True)
class Outputs:
    """The files of all cases of a prediction: those of a folder, or those beside the only segmentation.

    Attributes:
        folder: where they are written.
        ending: of the segmentations, such as ".nii.gz".
        only: name of the only segmentation without its ending; None: the segmentations are named by their cases.
    """

    folder: Path
    ending: str
    only: str | None = None

    @classmethod
    def at(cls, output: Path, ending: str) -> "Outputs":
        """Return the files of an output: a folder, or a file if the name ends as an image does and is no folder.

        Args:
            output: the folder, or a file such as seg.nii.gz.
            ending: of the segmentations in a folder.
        """
        own = next((known for known in supported_endings() if output.name.lower().endswith(known)), None)
        if own is None or output.is_dir() or output.name.lower() == own:
            return cls(output, ending)
        return cls(output.parent, output.name[-len(own) :], output.name[: -len(own)])

    def case(self, case_id: str, settings: PredictionSettings) -> CaseFiles:
        """Return the files of a case.

        Args:
            case_id: name of the case.
            settings: which files are wanted.
        """
        found = self._case(case_id, settings.probabilities, settings.instances is not None, settings.export)
        return replace(found, agreement=self.agreement(case_id)) if settings.agreement else found

    def remove(self, case_id: str) -> None:
        """Delete all files of a case.

        Args:
            case_id: name of the case.
        """
        further = (self.preview(case_id), self.agreement(case_id))
        for path in (*self._case(case_id, True, True, tuple(FORMS)).paths, *further):
            path.unlink(missing_ok=True)

    def remove_common(self) -> None:
        """Delete the files that all cases have in common."""
        for path in self.common:
            path.unlink(missing_ok=True)

    def _case(self, case_id: str, probabilities: bool, instances: bool, forms: Sequence[str]) -> CaseFiles:
        name = case_id if self.only is None else self.only
        return CaseFiles(
            below(self.folder, f"{name}{self.ending}"),
            below(self.folder, f"{name}.npz") if probabilities else None,
            below(self.folder, f"{name}_label.tiff") if instances else None,
            tuple((form, self._beside(name, form, FORMS[form])) for form in forms),
        )

    def preview(self, case_id: str) -> Path:
        """Return the picture of a case.

        Args:
            case_id: name of the case.
        """
        return self._beside(case_id if self.only is None else self.only, _PREVIEWS, ".png")

    def agreement(self, case_id: str) -> Path:
        """Return the signs of how far to trust the segmentation of a case, see `CaseSigns`.

        Args:
            case_id: name of the case.
        """
        return self._beside(case_id if self.only is None else self.only, _AGREEMENT, ".json")

    def _beside(self, name: str, form: str, ending: str) -> Path:
        """Return a further file of a case; a folder holds those of one form, so that they are no cases."""
        names = (form, f"{name}{ending}") if self.only is None else (f"{name}_{form}{ending}",)
        return below(self.folder, *names)

    def _common(self, name: str, hidden: bool = False) -> Path:
        dot = "." if hidden else ""
        return self.folder / (f"{dot}{name}" if self.only is None else f"{dot}{self.only}_{name}")

    @property
    def record(self) -> Path:
        """What the segmentations were made with."""
        return self.folder / "prediction.json" if self.only is None else self._common("prediction.json", hidden=True)

    @property
    def journal(self) -> Path:
        """Entries of the cases that are segmented now, one a line, until they stand in the record."""
        return self._common("prediction_cases.jsonl", hidden=True)

    @property
    def lock(self) -> Path:
        """The lock file."""
        return self._common("prediction.lock", hidden=True)

    @property
    def volumes(self) -> Path:
        """The table of volumes."""
        return self._common("volumes.csv")

    @property
    def quality(self) -> Path:
        """The table of what is expected of the segmentations."""
        return self._common("quality.csv")

    @property
    def quality_page(self) -> Path:
        """The page of what is expected of the segmentations."""
        return self._common("quality.html")

    @property
    def classes(self) -> Path:
        """The table of the classes of whole images."""
        return self._common(CLASSES)

    @property
    def itksnap_labels(self) -> Path:
        """Names and colours of the labels for ITK-SNAP."""
        return self._common("labels_itksnap.txt")

    @property
    def slicer_labels(self) -> Path:
        """Names and colours of the labels for 3D Slicer."""
        return self._common("labels_slicer.ctbl")

    @property
    def common(self) -> tuple[Path, ...]:
        """The files that belong to all cases, and are replaced with overwrite=true."""
        tables = (self.volumes, self.classes, self.quality, self.quality_page)
        return (self.record, *tables, self.itksnap_labels, self.slicer_labels)

    @property
    def tracebacks(self) -> Path:
        """Where faults of the program are written."""
        return self._common("prediction_errors.txt")

    def remove_stale(self, files: Sequence[CaseFiles]) -> None:
        """Delete partial files of interrupted commands.

        Args:
            files: of all cases.
        """
        if self.only is not None:
            for path in (*(path for own in files for path in own.paths), self.volumes, self.classes):
                remove_stale(path.parent, path.name)
            return
        for folder in (self.folder, *(self.folder / form for form in (*FORMS, _PREVIEWS, _AGREEMENT))):
            remove_stale(folder)

    def _recorded(self) -> Any:
        """Return what the segmentations were made with.

        Raises:
            UserError: the record is damaged, so that nothing tells what made them.
        """
        try:
            return read_json(self.record, OWN_BYTES)
        except UserError as error:
            raise UserError(
                f"{error} It tells which network made the segmentations in this folder; without it, give another "
                "folder, or overwrite=true to make them again."
            ) from None

    def earlier(self, record: Mapping[str, Any], files: Sequence[CaseFiles]) -> dict[str, Any] | None:
        """Return the record of earlier segmentations that are continued; None: there are none.

        Args:
            record: what the segmentations are made with. Further keys of the earlier record are not compared if they
                are `MACHINE_KEYS`.
            files: of all cases.

        Raises:
            UserError: they were made with something else, or there are files that no prediction made.
        """
        if self.record.exists():
            recorded = self._recorded()
            found = dict(recorded) if isinstance(recorded, dict) else {}
            if not _alike(found, record):
                where = self.folder if self.only is None else files[0].segmentation
                raise UserError(
                    f"{where}: holds segmentations of another network or other settings ({self.record.name}). Give "
                    "another folder, or overwrite=true to make them again."
                )
            return found
        common = [self.volumes, self.itksnap_labels, self.slicer_labels]
        foreign = [path for path in (*common, *(path for own in files for path in own.paths)) if path.exists()]
        if foreign:
            raise UserError(
                f"output: {foreign[0]} exists, and no prediction made it ({self.record.name} is missing). Give "
                "another place, or overwrite=true to replace it."
            )
        return None

    def compared(self, record: Mapping[str, Any]) -> tuple[dict[str, Any], bool] | None:
        """Return the record of earlier segmentations of a folder, and whether they were made with the same.

        Args:
            record: what the segmentations are made with now.

        Returns:
            None: there is no record that can be read.
        """
        try:
            recorded = self._recorded() if self.record.exists() else None
        except UserError:
            return None
        return (recorded, _alike(recorded, record)) if isinstance(recorded, dict) else None

    def claim(self, record: Mapping[str, Any]) -> None:
        """Record what the segmentations are made with.

        Args:
            record: plain values.
        """
        write_json(self.record, dict(record))


def _alike(recorded: Mapping[str, Any], record: Mapping[str, Any]) -> bool:
    """Return whether two records say the same of what the segmentations are made with."""
    return {name: value for name, value in recorded.items() if name not in MACHINE_KEYS} == dict(record)
