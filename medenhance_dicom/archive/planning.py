"""Make a plan: find every instance of an archive, then judge every series by one instance of each kind in it.

Finding reads headers alone and enters them in batches, so whoever is killed reads only the rest. Judging fetches one
instance for each SOP class of a series and asks `selection`, as `enhance` does: the same policy, recipes and reasons.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medenhance_dicom.archive.forecast import LEAST, Forecasts, Measured, Population, Stratum, draw, forecast
from medenhance_dicom.archive.plan import BATCH, InstanceRow, Method, Plan, SeriesRow
from medenhance_dicom.decoding import Decoder
from medenhance_dicom.errors import ConfigurationError, ModelError, PeerError
from medenhance_dicom.guides import find_guides, load_guide
from medenhance_dicom.manifest import Manifest, load_manifest
from medenhance_dicom.node.jobfolder import locked, read_lines, write_lines
from medenhance_dicom.node.sources import open_source
from medenhance_dicom.recipe import Recipe
from medenhance_dicom.report import Outcome
from medenhance_dicom.selection import (
    GUIDE_FACTS,
    Settings,
    choose_recipes,
    facts_of,
    guide_for,
    read_members,
    recipes_of,
)
from medenhance_dicom.series import Series
from medenhance_dicom.uids import digest_of

if TYPE_CHECKING:
    from medenhance_dicom.node.sources import Found, LeftOut, Source

Tell = Callable[[str, int, int | None], None]
"""Told about every step: what is being done, how much of it, of how much (None: nobody knows)."""
_READERS_TRIED = 16  # instances of a kind that are tried until one can be read
_PEER_FAILURES = 3  # in a row, after which judging stops
_SAMPLE = "sample.jsonl"


@dataclass
class Judged:
    """What judging came to, in series."""

    chosen: int = 0
    left_out: int = 0
    later: int = 0
    """Their source failed for now; plan again."""


def settings_of(options: Mapping[str, Any], output: Path = Path("enhanced")) -> Settings:
    """The settings of a run by a plan's options, which have the keys and the defaults of the node's `[enhance]`."""
    from medenhance_dicom.node.enhancing import run_settings
    from medenhance_dicom.node.settings import Enhancing

    return run_settings(Enhancing.model_validate(dict(options)), output)


def make_plan(plan: Plan, *, tell: Tell | None = None) -> Judged:
    """Find what its sources hold now, and judge what is new; all of it again where recipes, weights or guides changed.

    Raises:
        ConfigurationError: Another process plans it now.
        InputError: A source cannot be read.
        PeerError: One refuses or is not there.
        ModelError: Weights that a recipe needs are missing.
        OutputError: The plan cannot be written.
    """
    with locked(plan.folder / "plan.lock") as alone:
        if not alone:
            raise ConfigurationError(f"{plan.folder} is being planned by another process")
        find(plan, tell=tell)
        judge_by = judged_by(plan)
        if plan.meta("judged by") not in (None, judge_by):
            plan.judge_again()
        plan.set_meta(**{"judged by": judge_by})
        return judge(plan, tell=tell)


def judged_by(plan: Plan) -> str:
    """Changes when a series might be judged otherwise: another recipe, other weights, another guide.

    Every guide of an HQG-Net counts, as it did when no other network took one, so that plans of that time keep their
    mark; of those of another network only what leads the plan's own weights.
    """
    manifest = load_manifest()
    recipes = recipes_of(settings_of(plan.options))
    keys = {r.enhancer.weights for r in recipes if r.enhancer.weights}
    others = {key for key, entry in manifest.weights.items() if entry.network != "hqgnet"} - keys
    guides = [guide.digest for guide in map(load_guide, find_guides().values()) if guide.weights not in others]
    weights = [manifest.entry(r.enhancer.weights).sha256 for r in recipes if r.enhancer.weights]
    options = json.dumps(plan.options, sort_keys=True)
    return digest_of(options, *sorted(r.digest for r in recipes), *sorted(weights), *sorted(guides))


# ---------------------------------------------------------------- find


def source_name(text: str) -> str:
    """A source as a plan keeps it: paths made absolute, since workers have other working folders."""
    if text.startswith("@"):
        listed, found, origin = text[1:].partition(" from ")
        return f"@{Path(listed).absolute()}{found}{origin}"
    path = Path(text)
    return str(path.absolute()) if path.exists() else text


def find(plan: Plan, *, tell: Tell | None = None) -> int:
    """Walk every source of a plan. What a walk before this one has read, even one that was cut short, is not read.

    Returns:
        Instances that are not there any more.

    Raises:
        InputError: A source cannot be read.
        PeerError: One refuses or is not there.
        OutputError: The plan cannot be written.
    """
    gone = 0
    for row in plan.sources():
        source = open_source(row.name, **row.options)
        scan = plan.begin_scan(row.id)
        known = _Counted(scan.known, tell)
        for batch in _batches(source.scan(known)):
            scan.add(batch)
            known.add(len(batch))
        gone += scan.end()
    return gone


class _Counted:
    """Whether an instance is known, and how many were looked at."""

    def __init__(self, known: Callable[[str, int, str], bool], tell: Tell | None) -> None:
        self._known, self._tell, self._count = known, tell, 0

    def __call__(self, locator: str, size: int, stamp: str) -> bool:
        known = self._known(locator, size, stamp)
        if known:
            self.add(1)
        return known

    def add(self, count: int) -> None:
        before, self._count = self._count, self._count + count
        if self._tell and before // 100 != self._count // 100:
            self._tell("finding", self._count, None)


def _batches(items: Iterator[Found | LeftOut]) -> Iterator[list[Found | LeftOut]]:
    """Batches; what there is of one is yielded too where the source fails in the middle, before it raises."""
    batch: list[Found | LeftOut] = []
    try:
        for item in items:
            batch.append(item)
            if len(batch) >= BATCH:
                yield batch
                batch = []
    except Exception:
        if batch:
            yield batch
        raise
    if batch:
        yield batch


# ---------------------------------------------------------------- judge


def judge(plan: Plan, *, tell: Tell | None = None) -> Judged:
    """Give every series that nobody has judged a method, or a reason why it is left out.

    A series whose source fails for now stays as it is; where that happens three times in a row judging stops.

    Raises:
        PeerError: A source refuses or is not there.
        ModelError: Weights that a recipe needs are missing.
        RecipeError: No recipe of the name that the plan's options have.
        OutputError: The plan cannot be written.
    """
    judged, in_a_row = Judged(), 0
    total = plan.counts()["series"].get("new", 0)
    with _Judge(plan) as judge_:
        for done, series in enumerate(plan.new_series(), 1):
            try:
                verdict = judge_.method(series)
            except PeerError as error:
                judged.later, in_a_row = judged.later + 1, in_a_row + 1
                if error.permanent or in_a_row == _PEER_FAILURES:
                    raise
                continue
            in_a_row = 0
            if isinstance(verdict, Method):
                plan.choose(series.id, verdict)
                judged.chosen += 1
            else:
                plan.leave_out(series.id, verdict)
                judged.left_out += 1
            if tell:
                tell("judging", done, total)
    return judged


class _Judge:
    """Asks `selection` about representatives; holds what that needs."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._settings = plan, settings_of(plan.options)
        self._recipes, self._manifest = recipes_of(self._settings), load_manifest()
        self._bring, self._methods = Bringing(plan), dict[tuple[str, ...], Method | str]()
        self._open = ExitStack()

    def __enter__(self) -> _Judge:
        self._decoder = self._open.enter_context(Decoder(limits=self._settings.limits))
        self._scratch = self._open.enter_context(own_scratch(self._plan))
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def method(self, series: SeriesRow) -> Method | str:
        """The method of a series, or the reason why there is none."""
        if self._plan.patients(series.id) > 1:
            return "CONFLICT: PatientID differs between instances of one Series Instance UID"
        methods: list[Method] = []
        reasons: list[str] = []
        for row in self._plan.representatives(series.id):
            verdict = self._of_a_kind(row, series)
            if isinstance(verdict, Method):
                methods.append(verdict)
            else:
                reasons.append(verdict)
        return joined(methods) if methods else (reasons or ["MISSING: no instance of it is there"])[0]

    def _of_a_kind(self, first: InstanceRow, series: SeriesRow) -> Method | str:
        """What the first readable instance of a SOP class says; what is not readable speaks only for itself."""
        reason = self._verdict(first)
        if isinstance(reason, Method) or not reason.startswith(("UNREADABLE", "MISSING", "CHANGED", "NOT_DICOM")):
            return reason
        others = self._plan.query(
            "SELECT id FROM instance WHERE series = ? AND sop_class = ? AND id <> ? ORDER BY id LIMIT ?",
            series.id, first.sop_class, first.id, _READERS_TRIED,
        )  # fmt: skip
        for row in self._plan.instances([number for (number,) in list(others)]):
            verdict = self._verdict(row)
            if isinstance(verdict, Method) or not verdict.startswith(("UNREADABLE", "MISSING", "CHANGED")):
                return verdict
        return reason

    def _verdict(self, row: InstanceRow) -> Method | str:
        try:
            paths, reasons = self._bring([row], self._scratch)
            if not paths:
                return (reasons or ["MISSING: it did not come"])[0]
            found = read_members(paths, self._scratch, self._decoder, self._settings, self._recipes)
            for item in choose_recipes(found, self._recipes, self._settings, self._manifest):
                if isinstance(item, Outcome):
                    return item.reason or "UNKNOWN: no reason was given"
                return self._method(*item)
            return "MISSING: nothing was in it"
        finally:
            for path in self._scratch.rglob("*"):
                if not path.is_dir():
                    path.unlink()

    def _method(self, series: Series, recipe: Recipe) -> Method | str:
        """By recipe and device, since nothing else decides on a guide: an archive has few of them."""
        facts = facts_of(series.members[0].instance)
        key = (recipe.name, *(str(facts.get(keyword) or "") for keyword in ("Modality", *sorted(GUIDE_FACTS))))
        if key not in self._methods:
            try:
                self._methods[key] = method_of(recipe, series, self._settings, self._manifest)
            except ModelError as error:
                if recipe.enhancer.weights not in self._manifest.weights:
                    raise
                self._methods[key] = f"NO_GUIDE: {error}"
        return self._methods[key]


def method_of(recipe: Recipe, series: Series, settings: Settings, manifest: Manifest) -> Method:
    """What makes the enhancement of a series by a recipe this one.

    Raises:
        ModelError: Weights or a guide that it needs are missing or altered.
    """
    guide = guide_for(recipe, series, settings, manifest)
    weights = recipe.enhancer.weights if recipe.enhancer.method == "network" else None
    return Method(
        recipe=recipe.name,
        recipe_digest=recipe.digest,
        weights=weights,
        weights_digest=manifest.entry(weights).sha256 if weights else None,
        guide=guide.key if guide else None,
        guide_digest=guide.digest if guide else None,
    )


def joined(methods: Sequence[Method]) -> Method:
    """The method of a series whose SOP classes get different recipes: all of them together."""
    different = sorted({method.key: method for method in methods}.values(), key=lambda method: method.key)
    if len(different) == 1:
        return different[0]

    def both(name: str) -> str | None:
        found = [value for method in different if (value := getattr(method, name))]
        return None if not found else digest_of(*found) if name.endswith("digest") else " + ".join(dict.fromkeys(found))

    return Method(
        recipe=both("recipe") or "",
        recipe_digest=both("recipe_digest") or "",
        **{name: both(name) for name in ("weights", "weights_digest", "guide", "guide_digest")},
    )


class Bringing:
    """Brings instances of a series from wherever they lie; keeps sources open."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._sources: dict[int, Source] = {}

    def __call__(self, rows: Sequence[InstanceRow], folder: Path) -> tuple[list[Path], list[str]]:
        """Paths below `folder`, and the reasons of those that did not come.

        Raises:
            PeerError: A source refuses or is not there.
            InputError: One cannot be read.
        """
        from medenhance_dicom.node.sources import Wanted

        paths: list[Path] = []
        reasons: list[str] = []
        for number in sorted({row.source for row in rows}):
            place = folder / str(number)
            place.mkdir(exist_ok=True)
            wanted = [
                Wanted(row.locator, row.study, row.series, row.sop_instance, row.sop_class)
                for row in rows
                if row.source == number
            ]
            reasons += self._source(number).fetch(wanted, place)
            paths += [path for n in range(len(wanted)) if (path := place / f"{n}.dcm").exists()]
        return paths, reasons

    def _source(self, number: int) -> Source:
        if number not in self._sources:
            row = next(row for row in self._plan.sources() if row.id == number)
            self._sources[number] = open_source(row.name, **row.options)
        return self._sources[number]


@contextmanager
def own_scratch(plan: Plan) -> Iterator[Path]:
    """A folder in the plan's for what is fetched or made only to look at it; those of dead processes go.

    It holds patients' pictures, so temporary files lie in it too for as long as it is there.
    """
    from medenhance_dicom.node.worker import is_alive

    parent = plan.folder / "scratch" / socket.gethostname()
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for old in parent.iterdir():
        if not is_alive(int(old.name.partition("-")[0])):
            shutil.rmtree(old, ignore_errors=True)
    folder, before = Path(tempfile.mkdtemp(dir=parent, prefix=f"{os.getpid()}-")), tempfile.tempdir
    tempfile.tempdir = str(folder)
    try:
        yield folder
    finally:
        tempfile.tempdir = before
        shutil.rmtree(folder, ignore_errors=True)


# ---------------------------------------------------------------- sample


def stratum_of(series: SeriesRow) -> Stratum:
    """Of a series."""
    return Stratum(series.modality or "none", " ".join(f"{series.manufacturer} {series.model}".split()) or "unknown")


class Sampling:
    """Enhances a sample of what is open, and forecasts the whole. What was measured is kept in PLAN/sample.jsonl."""

    def __init__(self, plan: Plan, share: float, *, now: datetime, seed: int = 0, least: int = LEAST) -> None:
        """Args: plan: judged; share: in (0, 1], of every stratum; now: aware time; seed: of the draw; least: series."""
        self._plan, self._now, self._seed = plan, now, seed
        keys = ((series.key, stratum_of(series), series.instances) for series in plan.open_series())
        self.drawn, self.population = draw(keys, share, seed=seed, least=least)
        self._bring = Bringing(plan)

    def run(self, *, tell: Tell | None = None) -> Forecasts | None:
        """Measure what was not measured before, and forecast; None where nothing is open or nothing could be measured.

        Raises:
            PeerError: A source refuses or is not there.
            ModelError: Weights or a guide that a recipe needs are missing or altered.
            OutputError: The plan's folder is full.
        """
        wanted = {key for keys in self.drawn.values() for key in keys}
        before = {(line["measured"]["key"], line["method"]): line["measured"] for line in self._lines()}
        measured: list[Measured] = []
        warm: set[str | None] = set()
        for series in self._plan.open_series():
            if series.key not in wanted:
                continue
            found = before.get((series.key, series.method))
            if found is not None:
                measured.append(Measured(**found | {"stratum": Stratum(*found["stratum"])}))
            elif (one := self._measure(series, warm=series.method in warm)) is not None:
                measured.append(one)
                warm.add(series.method)
                line = {"event": "sampled", "method": series.method, "measured": asdict(one)}
                write_lines(self._plan.folder / _SAMPLE, [line])
            if tell:
                tell("sampling", len(measured), len(wanted))
        if not measured:
            return None
        forecasts = forecast(measured, self.population, seed=self._seed)
        self._plan.set_meta(forecast=as_json(forecasts) | self._machine() | {"made": self._now.isoformat()})
        return forecasts

    def _lines(self) -> Iterable[dict[str, Any]]:
        return (line for line in read_lines(self._plan.folder / _SAMPLE) if line["event"] == "sampled")

    def _measure(self, series: SeriesRow, *, warm: bool) -> Measured | None:
        rows = self._plan.open_instances(series)
        with own_scratch(self._plan) as scratch:
            (scratch / "source").mkdir()
            started = time.monotonic()
            paths, _ = self._bring(rows, scratch / "source")
            fetched = time.monotonic() - started
            if not paths:
                return None
            if not warm:  # loads weights, compiles: once in a run, not once in a series
                self._outcomes(paths[:1], scratch / "warm")
            started = time.monotonic()
            outcomes = self._outcomes([scratch / "source"], scratch / "derived")
            seconds = time.monotonic() - started
            written = sum(path.stat().st_size for path in (scratch / "derived").rglob("*.dcm"))
        results = [outcome.result for outcome in outcomes]
        withheld = results.count("withheld")
        return Measured(
            series.key,
            stratum_of(series),
            len(rows),
            round(seconds, 4),
            round(fetched, 4),
            written,
            judged=withheld + results.count("enhanced") + results.count("warned"),
            withheld=withheld,
            failed=results.count("failed") + len(rows) - len(paths),
        )

    def _outcomes(self, paths: Sequence[Path], output: Path) -> list[Outcome]:
        self._enhancement.settings = replace(self._enhancement.settings, output=output)
        return list(self._enhancement.outcomes(paths))

    @cached_property
    def _enhancement(self) -> Any:
        from medenhance_dicom.enhance import Enhancement

        return Enhancement(replace(settings_of(self._plan.options), keep_withheld=0.0), now=self._now)

    def _machine(self) -> dict[str, Any]:
        run = self._enhancement
        return {"device": run.device, "engine": run.engine, "precision": run.precision, "cores": os.cpu_count()}


def as_json(forecasts: Forecasts) -> dict[str, Any]:
    """A forecast for JSON: `total`, `modalities`, `strata`, `unmeasured`; an estimate is {value, low, high}."""

    def plain(one: Any) -> dict[str, Any]:
        return {
            name: value._asdict() if hasattr(value, "_asdict") else value
            for name in one.__dataclass_fields__
            for value in [getattr(one, name)]
        }

    def sized(size: Population) -> dict[str, Any]:
        return asdict(size)

    return {
        "total": plain(forecasts.total),
        "modalities": {name: plain(one) for name, one in forecasts.modalities.items()},
        "strata": [stratum._asdict() | plain(one) for stratum, one in forecasts.strata.items()],
        "unmeasured": [stratum._asdict() | sized(size) for stratum, size in forecasts.unmeasured.items()],
    }
