"""The whole flow: DICOM in, derived DICOM out. Read `Enhancement._enhance_instance` for one instance's way.

Memory is flat in the number of instances and frames: headers are read when their turn comes, frames are decoded,
enhanced, judged and written to a scratch file one by one.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import secrets
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medenhance_dicom import frames, withheld
from medenhance_dicom.comparison.maps import shown_map
from medenhance_dicom.comparison.panels import Picture, panels, save
from medenhance_dicom.decoding import Decoder
from medenhance_dicom.derive import PixelSummary, derivation
from medenhance_dicom.errors import (
    OUT_OF_MEMORY,
    DerivationError,
    FrameError,
    InputError,
    OutputError,
    TargetTakenError,
    UnsupportedInstanceError,
    is_out_of_memory,
)
from medenhance_dicom.gate import FrameScores, examine, verdict_of
from medenhance_dicom.gate.blend import blend
from medenhance_dicom.guides import Guide
from medenhance_dicom.history import History
from medenhance_dicom.identity import little_endian, name_replaced, replaced_uid
from medenhance_dicom.manifest import Manifest, load_manifest
from medenhance_dicom.masks import field_of_view
from medenhance_dicom.metrics.fundus import Changes, mean_changes, reduced_changes
from medenhance_dicom.overlays import packed
from medenhance_dicom.part10 import read_instance, write_document, write_instance
from medenhance_dicom.prepare import PreparedRecipe, prepare_recipe, runtime
from medenhance_dicom.provenance import VERDICT
from medenhance_dicom.recipe import Recipe
from medenhance_dicom.released import places
from medenhance_dicom.report import UNCHANGED, UNREADABLE, Outcome
from medenhance_dicom.selection import Settings, choose_methods, outcome_of, read_members, recipes_of, unambiguous
from medenhance_dicom.series import Member, Series
from medenhance_dicom.signature import sign
from medenhance_dicom.site_keys import load_signing_key
from medenhance_dicom.structured_report import structured_report
from medenhance_dicom.targets import Standing, standing
from medenhance_dicom.unit_frames import SeriesIntensity, UnitFrame, unit_frames
from medenhance_dicom.verdicts import Blending, excess_of, in_a_word, in_words, settled, values_of
from medenhance_dicom.verify import assert_derived

if TYPE_CHECKING:
    from pydicom import Dataset

Progress = Callable[..., None]

EARLIER = "EARLIER"
"""In the reason of an instance whose object stands as an earlier run, of another gate or other limits, wrote it."""

_REWRITTEN: dict[Standing, str] = {
    "damaged": "REWRITTEN: the file there was damaged",
    "unsigned": "REWRITTEN: the file there was not signed by a key of this site",
}


class Enhancement:
    """One run: the settings, and the enhancers it has loaded so far."""

    def __init__(self, settings: Settings, *, now: datetime) -> None:
        """Args: settings; now: aware time of the run, which the derived objects carry."""
        self.settings, self.now = settings, now
        self.recipes = recipes_of(settings)
        self._prepared: dict[tuple[str, str], PreparedRecipe] = {}
        self.device, self.engine, self.precision = runtime(settings.device, settings.engine, settings.precision)

    def outcomes(
        self, paths: Iterable[Path], *, progress: Progress | None = None, decoder: Decoder | None = None
    ) -> Iterator[Outcome]:
        """Enhance everything below `paths`; one Outcome per instance, as they are done.

        Args:
            paths: Files, folders, zips, DICOMDIRs.
            progress: Called with how many instances are done, and how many there are.
            decoder: Of whoever calls this often, and closes it; None: one for this call.

        Raises:
            InputError: A path does not exist.
            ConfigurationError: The site key cannot be used.
            ModelError: Weights or a guide that a recipe needs are missing or altered.
            RecipeError: A guide or weights are named, and no recipe chosen for a series takes any.
            OutputError: The output folder is not writable or full.
        """
        settings = self.settings
        if settings.sign_key is not None:
            load_signing_key(settings.sign_key)  # before anything is done
        with tempfile.TemporaryDirectory(prefix="medenhance-") as folder, contextlib.ExitStack() as own:
            scratch = Path(folder)
            decoder = decoder or own.enter_context(Decoder(limits=settings.limits))
            found = unambiguous(read_members(paths, scratch, decoder, settings, self.recipes), decoder, settings)
            jobs: list[tuple[Series, Recipe, Guide | None]] = []
            done = 0
            for item in choose_methods(found, self.recipes, settings, self.manifest):
                if isinstance(item, Outcome):
                    yield item
                else:
                    jobs.append(item)
            total = sum(len(series.members) for series, _, _ in jobs)
            for series, recipe, guide in jobs:
                for outcome in self._enhance_series(series, self._prepare(recipe, guide), decoder, scratch):
                    done += 1
                    if progress:
                        progress(done, total)
                    yield outcome

    @cached_property
    def manifest(self) -> Manifest:
        """The weights that there are."""
        return load_manifest()

    def _prepare(self, recipe: Recipe, guide: Guide | None) -> PreparedRecipe:
        key = recipe.name, guide.digest if guide else ""
        if key not in self._prepared:
            self._prepared[key] = prepare_recipe(
                recipe, device=self.device, engine=self.engine, precision=self.settings.precision, guide=guide
            )
        return self._prepared[key]

    def _enhance_series(
        self, series: Series, prepared: PreparedRecipe, decoder: Decoder, scratch: Path
    ) -> Iterator[Outcome]:
        """Enhance a series, instance by instance; what they share is their intensity map, see `SeriesIntensity`."""
        maps = SeriesIntensity(series, prepared.recipe, decoder, self.settings.limits)
        history = History(series, prepared, self.settings, decoder)
        for member in series.members:
            yield self._enhance_instance(member, maps, history, prepared, scratch)

    def _enhance_instance(
        self, member: Member, maps: SeriesIntensity, history: History, prepared: PreparedRecipe, scratch: Path
    ) -> Outcome:
        """Enhance, judge and write one instance; whatever is the matter with a frame of it fails no other instance."""
        result: InstanceResult | None = None
        try:
            if (before := self._repeated(member, history, prepared)) is not None:
                return before
            for frame in unit_frames(member, maps, prepared.region):
                result = result or InstanceResult(member, frame.instance, prepared, scratch, self.settings)
                result.add(frame, prepared.enhance_picture(frame.unit, frame.enhance_here))
            assert result is not None  # an instance has a frame at least
            return self._finish(result, history, maps.decoder)
        except InputError as error:
            return outcome_of(member, "failed", f"{UNREADABLE}: {error}", **_names(prepared))
        except UnsupportedInstanceError as error:
            return outcome_of(member, "skipped", str(error), **_names(prepared))
        except FrameError as error:
            return outcome_of(member, "failed", str(error), **_names(prepared))
        except TargetTakenError as error:
            return outcome_of(member, "failed", f"TARGET_TAKEN: {error}", **_names(prepared))
        except DerivationError as error:
            return outcome_of(member, "failed", f"NOT_DERIVED: {error}", **_names(prepared))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        finally:
            if result is not None:
                result.discard()
        gc.collect()  # now that nothing holds the frame any more
        return outcome_of(member, "failed", f"{OUT_OF_MEMORY}: too little memory for this instance", **_names(prepared))

    def _repeated(self, member: Member, history: History, prepared: PreparedRecipe) -> Outcome | None:
        """The outcome of an instance that was finished before; None where there is something to do."""
        started = time.monotonic()
        known = history.finished(member)
        if known is None:
            return None
        entry, source = known
        more: dict[str, Any] = _names(prepared) | {
            "lassim": entry.lassim,
            "verdict": entry.verdict,
            "measures": entry.measures,
        }
        earlier = _still_there(history.written(source, entry.pixels)) if entry.result == "withheld" else None
        if entry.derived is not None:
            target = history.target(entry, source)
            more |= {"derived": str(target), "derived_sop_instance_uid": entry.derived, "replaces": entry.replaces}
            more["left_behind"] = entry.left_behind
            earlier = _says_another(target, in_a_word(entry.lassim, entry.reason, entry.verdict))
            if self.settings.structured_report:
                document = structured_report(source, read_instance(target), entry.lassim, entry.result, entry.verdict)
                more["structured_report"] = str(self._put_report(document))
        elif (kept := history.kept(entry)) is not None:
            more["kept"] = str(kept)
        reason = "; ".join(filter(None, [entry.reason, history.returned(entry), earlier])) or None
        more["seconds"] = {"verify": round(time.monotonic() - started, 4)}
        return outcome_of(member, entry.result, reason, repeated=True, **more)

    def _finish(self, result: InstanceResult, history: History, decoder: Decoder) -> Outcome:
        """Judge, derive, check and write one instance whose frames are all there."""
        member, source, prepared, settings = result.member, result.instance, result.prepared, self.settings
        started = time.monotonic()
        names: dict[str, Any] = _names(prepared)
        mode = "withhold" if settings.gate == "blend" else settings.gate
        verdict = verdict_of(result.scores, prepared.thresholds, mode, level=prepared.recipe.gate.level)
        blending = result.blending()
        verdict = settled(verdict, blending)
        values = values_of(verdict, result.scores, prepared.thresholds, mode=settings.gate, blending=blending)
        names |= {"lassim": verdict.lassim, "verdict": values | result.change(), "measures": result.measures()}
        digest, source_digest = result.digest(), result.source_digest()
        nothing: Outcome | None = None
        if result.unchanged() and prepared.method != "identity":
            reason = f"{UNCHANGED}: {prepared.method} changes no stored value"
            nothing = outcome_of(member, "skipped", reason, seconds=result.seconds, **names)
        elif verdict.outcome == "withheld":
            outcome = outcome_of(member, "withheld", verdict.reason, seconds=result.seconds, **names)
            nothing = self._keep(result, history, decoder, outcome, in_words(verdict, values))
        if nothing is not None:
            history.add(source, source_digest, nothing)
            earlier = _still_there(history.written(source, source_digest)) if nothing.result == "withheld" else None
            return replace(nothing, reason="; ".join(filter(None, [nothing.reason, earlier])))
        try:
            derived, left_behind = self._derive(result, history, decoder, in_words(verdict, values))
            self._sign(derived, digest)
            document = None
            if settings.structured_report:
                document = structured_report(source, derived, verdict.lassim, verdict.outcome, values)
            target = self._target(derived)
            found = self._put(derived, lambda: write_instance(derived, result.path, target))
            if document is not None:
                names["structured_report"] = str(self._put_report(document))
            result.write_previews(target)
            result.seconds["write"] = round(time.monotonic() - started, 4)
            word = in_a_word(verdict.lassim, verdict.reason, values)
            earlier = _says_another(target, word) if found == "intact" else None
            reasons = [verdict.reason, _REWRITTEN.get(found), earlier]
            outcome = outcome_of(
                member, verdict.outcome, "; ".join(filter(None, reasons)) or None, derived=str(target),
                derived_sop_instance_uid=str(derived.SOPInstanceUID), repeated=found == "intact",
                replaces=replaced_uid(derived), left_behind=left_behind, seconds=result.seconds, **names,
            )  # fmt: skip
            history.add(source, source_digest, replace(outcome, reason=verdict.reason), derived)
            return outcome
        except TargetTakenError as error:
            return outcome_of(member, "failed", f"TARGET_TAKEN: {error}", seconds=result.seconds, **names)
        except (DerivationError, InputError, UnsupportedInstanceError) as error:
            return outcome_of(member, "failed", f"NOT_DERIVED: {error}", seconds=result.seconds, **names)

    def _derive(
        self, result: InstanceResult, history: History, decoder: Decoder, verdict: str
    ) -> tuple[Dataset, list[str]]:
        """The derived object without Pixel Data, and what it leaves behind.

        Raises:
            DerivationError: It breaks one of our own rules.
        """
        summary = PixelSummary(
            result.digest(),
            result.pixels,
            result.pixels.number_of_frames,
            result.source_digest(),
            blended=result.blending() is not None,
            overlays=result.overlays(),
            shared_range=result.shared_range,
            encoding=decoder.encoding(result.member.located.path),
        )
        source = result.instance
        derived, left_behind = derivation(source, summary, result.prepared.provenance(verdict, made=self.now))
        if replaced := history.replaced(source, derived, summary.source_digest):
            name_replaced(derived, *replaced)
        if problems := assert_derived(derived, source, pixel_digest=summary.digest):
            raise DerivationError("; ".join(problems))
        return derived, left_behind

    def _keep(
        self, result: InstanceResult, history: History, decoder: Decoder, outcome: Outcome, verdict: str
    ) -> Outcome:
        """Write what was withheld where no program takes it for a picture, and its previews beside it."""
        days = self.settings.keep_withheld
        if days <= 0 and not self.settings.preview:
            return outcome
        kept = outcome
        try:
            derived, left_behind = self._derive(result, history, decoder, verdict)
            target = self.settings.withheld_folder / f"{derived.SOPInstanceUID}{withheld.SUFFIX}"
            if days > 0:
                kept = replace(outcome, kept=str(target), left_behind=left_behind)
                run = {"device": self.device, "engine": self.engine, "precision": self.precision}
                withheld.keep(derived, result.path, target, kept, made=self.now, days=days, run=run)
        except (DerivationError, InputError, UnsupportedInstanceError):
            return outcome  # it could not be released either
        _make_folder(target.parent)
        result.write_previews(target)
        return kept

    def _put(self, instance: Dataset, write: Callable[[], None]) -> Standing:
        """Write an object where it is not yet, or where it is damaged or to be overwritten; what was there before."""
        target = self._target(instance)
        overwrite = self.settings.overwrite and not target.is_dir()
        found: Standing = "absent" if overwrite else standing(target, instance, self.settings.signing_keys())
        if found == "taken":
            raise TargetTakenError(f"another object is where {target.name} is to be")
        if found != "intact":
            _make_folder(target.parent)
            write()
        return found

    def _sign(self, instance: Dataset, pixel_digest: str = "") -> None:
        """Sign what is finished, where that is asked for."""
        if self.settings.sign_key is not None:
            sign(instance, load_signing_key(self.settings.sign_key), pixel_digest)

    def _put_report(self, document: Dataset) -> Path:
        """Write a structured report, as `_put` does; where it stands."""
        self._sign(document)
        target = self._target(document)
        self._put(document, lambda: write_document(document, target))
        return target

    def _target(self, instance: Dataset) -> Path:
        folder = self.settings.output / instance.StudyInstanceUID / instance.SeriesInstanceUID
        return folder / f"{instance.SOPInstanceUID}.dcm"


def _names(prepared: PreparedRecipe) -> dict[str, Any]:
    return {"recipe": prepared.recipe.name, "weights": prepared.weights_key, "guide": prepared.guide_key}


def _still_there(target: Path | None) -> str | None:
    """Words for an object of a picture that is withheld now."""
    if target is None:
        return None
    return f"{EARLIER}: {target.name} is still there, which an earlier run wrote under another gate or other limits"


def _says_another(target: Path, word: str) -> str | None:
    """Words for an object that stands, if it says another verdict than this run's, see `in_a_word`."""
    found = (VERDICT.search(str(place.DerivationDescription)) for place in places(read_instance(target)))
    said = {match[1] for match in found if match}
    if said == {word}:
        return None
    words = " and ".join(sorted(said))
    return f"{EARLIER}: the object there says what an earlier run found (structure check {words}); see --overwrite"


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: {error.strerror}") from error


class InstanceResult:
    """The new pixels of one instance: written to a scratch file, hashed and scored as they come."""

    def __init__(
        self, member: Member, instance: Dataset, prepared: PreparedRecipe, scratch: Path, settings: Settings
    ) -> None:
        self.member, self.instance, self.prepared, self.settings = member, instance, prepared, settings
        self.path = scratch / f"{secrets.token_hex(8)}.pixels"
        self.pixels = frames.pixel_format(instance)
        self.scores: list[FrameScores] = []
        self.shared_range: tuple[float, float] | None = None
        self.seconds: dict[str, float] = {}
        self._hash, self._source_hash = hashlib.sha256(), hashlib.sha256()
        self._file: IO[bytes] = self.path.open("wb")
        self._largest, self._sum, self._count = 0, 0.0, 0
        self._shares: list[float] = []
        self._overlays: dict[int, list[NDArray[np.bool_]]] = {}
        self._pictures: dict[str, Picture] = {}
        self._measured: list[Changes] = []
        self._worst, self._started = -1.0, time.monotonic()

    def add(self, frame: UnitFrame, after: NDArray[np.float32]) -> None:
        """Encode an enhanced frame, (H, W, C) in [0, 1], as stored values, and examine what those show.

        Where that is asked for and structure changed, the source is blended in first.

        Raises:
            FrameError: NOT_FINITE.
        """
        level, thresholds, inside = self.prepared.recipe.gate.level, self.prepared.thresholds, frame.enhance_here
        stored = frame.encode(after)
        shown = released = frame.shown(stored)
        scores = judged = examine(frame.unit, shown, level=level, inside=inside)
        if self.settings.gate == "blend":
            blended = blend(frame.unit, shown, scores, thresholds, level=level, inside=inside)
            if blended is not None:
                stored = frame.encode(blended.after)
                released = frame.shown(stored)
                scores = examine(frame.unit, released, level=level, inside=inside)
                self._shares.append(blended.share)
        if self.settings.preview:
            self._draw(frame, shown, released, judged)
        self._measure(frame, released)
        self.scores.append(scores)
        if frame.shared_map:
            self.shared_range = frame.map.lo, frame.map.hi
        change = np.abs(stored.astype(np.int64) - frame.stored.stored)
        self._largest = max(self._largest, int(change.max()))
        self._sum, self._count = self._sum + float(change.sum()), self._count + change.size
        for group, plane in frame.stored.overlays.items():
            self._overlays.setdefault(group, []).append(plane)
        self._source_hash.update(little_endian(frame.stored.stored))
        block = little_endian(stored)
        self._hash.update(block)
        try:
            self._file.write(block)
        except OSError as error:
            raise OutputError(f"scratch space: {error.strerror}") from error

    def digest(self) -> str:
        """SHA-256 of the pixel bytes, in hex; call when all frames are there."""
        self._file.close()
        self.seconds.setdefault("enhance", round(time.monotonic() - self._started, 4))
        return self._hash.hexdigest()

    def source_digest(self) -> str:
        """SHA-256 of the source's decoded frames, in hex."""
        return self._source_hash.hexdigest()

    def overlays(self) -> dict[int, bytes]:
        """Group -> Overlay Data of the planes that lay in the pixel cells."""
        return {group: packed(planes) for group, planes in self._overlays.items()}

    def change(self) -> dict[str, float]:
        """Largest and mean absolute change in stored values."""
        return {"max_change": self._largest, "mean_change": round(self._sum / max(self._count, 1), 4)}

    def unchanged(self) -> bool:
        """Whether every stored value is the source's."""
        return self._largest == 0

    def blending(self) -> Blending | None:
        """How much came back from the source; None: nothing."""
        if not self._shares:
            return None
        return Blending(sum(self._shares) / len(self.scores), len(self._shares), max(self._shares))

    def _measure(self, frame: UnitFrame, released: NDArray[np.float32]) -> None:
        """Measure a colour photograph of the eye, within its field of view."""
        if self.instance.get("Modality") != "OP" or frame.unit.shape[2] != 3:
            return
        inside = frame.enhance_here
        if self.prepared.recipe.mask.field_of_view == "none":
            inside = inside & field_of_view(frame.unit, "ellipse")
        with contextlib.suppress(ValueError):  # nothing is left of the field within its margin
            self._measured.append(reduced_changes(frame.unit, released, inside))

    def measures(self) -> dict[str, Any]:
        """See `Outcome.measures`."""
        return mean_changes(self._measured)

    def _draw(
        self, frame: UnitFrame, after: NDArray[np.float32], released: NDArray[np.float32], judged: FrameScores
    ) -> None:
        """Keep the pictures of the first frame and of the worst so far; the map is that of before any blending."""
        thresholds = self.prepared.thresholds
        excess, check = excess_of(judged, thresholds)
        if frame.index == 0:
            self._pictures[""] = (np.hstack([frame.unit, released]) * 255 + 0.5).astype(np.uint8)
        if frame.index and excess <= self._worst:
            return
        level = self.prepared.recipe.gate.level
        objection = shown_map(frame.unit, after, thresholds, level=level, inside=frame.enhance_here)
        drawn = panels(frame.unit, released, objection, judged.regions.get(check))
        if frame.index == 0:
            self._pictures[".first-map"] = drawn
        if excess > self._worst:
            self._worst = excess
            if frame.index:
                self._pictures[".worst-map"] = drawn

    def write_previews(self, beside: Path) -> None:
        """PNGs beside an instance: the first frame before and after, and the maps of the first and the worst frame."""
        for name, drawn in self._pictures.items():
            save(drawn, beside.with_suffix(f"{name}.png"))

    def discard(self) -> None:
        """Remove the scratch file."""
        self._file.close()
        self.path.unlink(missing_ok=True)
