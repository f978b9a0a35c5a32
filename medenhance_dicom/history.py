"""What became of a series' instances before: what need not be done again, and which object a new one replaces."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from medenhance_dicom.decoding import Decoder
from medenhance_dicom.errors import InputError, MedenhanceError
from medenhance_dicom.identity import METHOD_VERSION, frames_digest, recorded_digests, source_digest
from medenhance_dicom.ledger import NAME, Entry, Ledger
from medenhance_dicom.part10 import read_instance
from medenhance_dicom.prepare import PreparedRecipe
from medenhance_dicom.report import Outcome
from medenhance_dicom.selection import Settings
from medenhance_dicom.series import Member, Series
from medenhance_dicom.signature import signature_state
from medenhance_dicom.targets import kept_object, whole_digest
from medenhance_dicom.uids import digest_of

if TYPE_CHECKING:
    from pydicom import Dataset


class History:
    """Of one series and one method."""

    def __init__(self, series: Series, prepared: PreparedRecipe, settings: Settings, decoder: Decoder) -> None:
        """Raises OutputError where the ledger cannot be read."""
        folder = settings.ledger or settings.output / NAME
        recipe, weights, guide = prepared.recipe.digest, prepared.weights_digest, prepared.guide_digest
        self._ledger = Ledger(folder, series.series_instance_uid, recipe, weights, guide)
        self._gate = digest_of(settings.gate, repr(prepared.thresholds))
        self._settings, self._decoder = settings, decoder

    def finished(self, member: Member) -> tuple[Entry, Dataset] | None:
        """What became of the same instance under the same gate, if what was made of it stands whole at its target.

        Its header and its decoded pixels are compared, so they are decoded once more where the ledger has them.

        Args:
            member: The instance.

        Returns:
            What became of it, and its header.
        """
        uid, path = str(member.instance.SOPInstanceUID), member.located.path
        if self._settings.overwrite or not self._ledger.knows(uid):
            return None
        try:
            source = read_instance(path, limits=self._settings.limits)
        except MedenhanceError:  # which the next to read it reports
            return None
        said, pixels = source_digest(source), ""
        for entry in self._ledger.entries(uid):
            if (entry.said, entry.gate, entry.rule) != (said, self._gate, METHOD_VERSION):
                continue
            if entry.derived is not None and not self._stands(entry, source):
                continue
            if entry.result == "withheld" and not self._is_kept(entry):
                continue
            try:
                pixels = pixels or frames_digest(f.stored for f in self._decoder.stored_frames(path, source))
            except MedenhanceError:
                return None
            if pixels == entry.pixels:
                return entry, source
        return None

    def target(self, entry: Entry, source: Dataset) -> Path:
        """Where an object that was derived is to stand."""
        folder = self._settings.output / str(source.StudyInstanceUID) / str(entry.derived_series)
        return folder / f"{entry.derived}.dcm"

    def kept(self, entry: Entry) -> Path | None:
        """Where what was withheld is still kept, also if the output folder was moved since."""
        if entry.kept is None:
            return None
        there = Path(entry.kept)
        places = (self._settings.withheld_folder / there.name, there)
        return next((place for place in places if place.exists()), None)

    def written(self, source: Dataset, pixels: str) -> Path | None:
        """Where an object stands that was made of the same header and pixels before, by whatever limits.

        Args:
            source: The header.
            pixels: Digest of its decoded frames.
        """
        same = source_digest(source), pixels
        for entry in self._ledger.entries(str(source.SOPInstanceUID)):
            if entry.derived is not None and (entry.said, entry.pixels) == same:
                target = self.target(entry, source)
                if target.exists():
                    return target
        return None

    def returned(self, entry: Entry) -> str | None:
        """Words for an object that was replaced by another, and whose source says again what it said then."""
        last = self._ledger.last(entry.source)
        if entry.derived in (None, last):
            return None
        self._ledger.add(entry)  # it is the last one now
        return f"RETURNED: its source says again what it said before {last} was made of it"

    def replaced(self, source: Dataset, derived: Dataset, pixels: str) -> tuple[str, str] | None:
        """SOP and Series Instance UID of the object that a new one replaces, see `Ledger.replaced`."""
        content = recorded_digests(derived)["header"], pixels
        return self._ledger.replaced(str(source.SOPInstanceUID), str(derived.SOPInstanceUID), content)

    def add(self, source: Dataset, pixels: str, outcome: Outcome, derived: Dataset | None = None) -> None:
        """Write down what became of an instance.

        Args:
            source: Its header.
            pixels: Digest of its decoded frames.
            outcome: What became of it.
            derived: What was made of it.

        Raises:
            OutputError: The disk does not take it.
        """
        entry = Entry(
            source=str(source.SOPInstanceUID),
            said=source_digest(source),
            pixels=pixels,
            gate=self._gate,
            rule=METHOD_VERSION,
            result=outcome.result,
            reason=outcome.reason,
            lassim=outcome.lassim,
            verdict=outcome.verdict,
            measures=outcome.measures,
            replaces=outcome.replaces,
            left_behind=outcome.left_behind,
            kept=outcome.kept,
        )
        if derived is not None:
            entry = replace(
                entry,
                derived=str(derived.SOPInstanceUID),
                derived_series=str(derived.SeriesInstanceUID),
                sop_class=str(derived.SOPClassUID),
                header=recorded_digests(derived)["header"],
                path=outcome.derived,
            )
        self._ledger.add(entry)

    def _stands(self, entry: Entry, source: Dataset) -> bool:
        target = self.target(entry, source)
        try:
            derived = read_instance(target)
        except MedenhanceError:
            return False
        if self._settings.preview and not target.with_suffix(".png").exists():
            return False
        known = derived.get("SOPInstanceUID"), recorded_digests(derived).get("header")
        digest = whole_digest(target, derived) if known == (entry.derived, entry.header) else None
        keys = self._settings.signing_keys()
        return digest is not None and (keys is None or signature_state(derived, keys, digest) == "signed")

    def _is_kept(self, entry: Entry) -> bool:
        """Whether all of a withheld picture is kept that is asked for; one whose days are over need not be there."""
        if entry.kept is None:
            return self._settings.keep_withheld <= 0 and not self._settings.preview
        kept = self.kept(entry)
        if kept is not None:
            try:
                with tempfile.TemporaryDirectory(prefix="medenhance-") as scratch:
                    kept_object(kept, Path(scratch, "object"))
            except InputError:
                return False
        return not self._settings.preview or (kept or Path(entry.kept)).with_suffix(".png").exists()
