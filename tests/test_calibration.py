"""Calibration: splits keep patients apart, limits hold on others like them, and the manifest reads what was written."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter
from typer import Typer
from typer.testing import CliRunner

from medenhance_dicom.calibration.calibrate import evidence
from medenhance_dicom.calibration.commands import calibrate as command
from medenhance_dicom.calibration.honest import METHODS, SOURCES, conventional
from medenhance_dicom.calibration.limits import conformal_quantile, fit_by_quality, fit_limits
from medenhance_dicom.calibration.measuring import HONEST, Conventional, Measured, measure
from medenhance_dicom.calibration.pictures import Sample, digest_of, find_pictures, split
from medenhance_dicom.calibration.resampling import Patients
from medenhance_dicom.errors import InputError, ModelError
from medenhance_dicom.gate import CHECKS, FrameScores, Limit, Thresholds
from medenhance_dicom.manifest import GateEntry, Manifest, load_limits, load_manifest, verify_all
from medenhance_dicom.metrics import auroc
from medenhance_dicom.training.choosing import group_of
from medenhance_dicom.verdicts import excess_of


def frames(rng, count):
    """Honest statistics of very different size and spread."""
    local, shift, turned, blur, colour = rng.exponential((1.0, 0.2, 0.1, 0.3, 0.2), (count, 5)).T
    lassim = 1 - 0.1 * rng.random(count)
    table = zip(lassim, local, shift, turned, 1 + blur, colour, strict=True)
    return [FrameScores(float(s), dict(zip(CHECKS, map(float, rest), strict=True))) for s, *rest in table]


def texture(path, seed, shape=(96, 96)):
    rng = np.random.default_rng(seed)
    plane = sum(gaussian_filter(rng.standard_normal(shape), s) * s for s in (1, 3, 9))
    plane = 0.5 + 0.15 * (plane - plane.mean()) / plane.std()
    Image.fromarray((plane.clip(0, 1) * 255).astype(np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "pictures"
    (made / "masks").mkdir(parents=True)
    for number in range(28):
        texture(made / f"case{number}.png", number)
    texture(made / "masks" / "case0.png", 0)
    return made


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("nervestitcher/raw/seq3_017.png", "seq3"),
        ("sh_004.jpg", "sh"),
        ("Image_02L.jpg", "Image_02"),
        ("Image_02R.jpg", "Image_02"),
        ("csdi_003.jpg", "csdi_003"),
        ("cvc_clinicdb_256/images/25.jpg", "cvc 1"),
        ("cvc_clinicdb_256/images/26.jpg", "cvc 2"),
        ("cvc_clinicdb_256/images/612.jpg", "cvc 29"),
        ("idrid/0026.jpg", "0026"),
    ],
)
def test_names_tell_patients_and_sequences(name, group):
    assert group_of(Path(name)) == group


@pytest.mark.parametrize("seed", range(5))
def test_no_patient_is_on_both_sides_and_every_folder_is(seed):
    samples = [Sample(Path(f"a/{i}"), f"a:{i // 7}") for i in range(40)] + [
        Sample(Path(f"b/{i}"), f"b:{i // 30}") for i in range(40)
    ]
    first, second = split(samples, (20, 20), np.random.default_rng(seed))
    assert not {s.group for s in first} & {s.group for s in second}
    assert len(first) == len(second) == 20
    for side in (first, second):
        assert {s.group[0] for s in side} == {"a", "b"}


def test_one_patient_cannot_be_split_and_a_folder_without_pictures_is_refused(tmp_path):
    with pytest.raises(InputError, match="one patient"):
        split([Sample(Path("a"), "a"), Sample(Path("b"), "a")], (5, 5), np.random.default_rng(0))
    with pytest.raises(InputError, match="no pictures"):
        find_pictures([tmp_path])


def test_a_table_of_persons_groups_pictures_and_drops_doubles(folder):
    rows = ["file,person,same_picture_as", "case1.png,7,", "case2.png,7,", "case3.png,7,case1.png"]
    (folder.parent / "groups.csv").write_text("\n".join(rows))
    groups = {sample.path.stem: sample.group.rsplit(":", 1)[1] for sample in find_pictures([folder])}
    assert (groups["case1"], groups["case2"], groups["case4"]) == ("7", "7", "case4")
    assert "case3" not in groups


def test_masks_are_no_pictures_and_a_digest_tells_what_was_used(folder):
    samples = find_pictures([folder])
    assert len(samples) == 28
    (one,) = digest_of(samples, [folder])
    assert (one.name, one.pictures) == (f"{folder.parent.name}/pictures", 28)
    texture(folder / "case3.png", 99)
    assert digest_of(samples, [folder])[0].sha256 != one.sha256


def test_the_conformal_quantile_is_the_rank_that_it_says():
    assert conformal_quantile(range(1, 20), 0.05) == 19
    assert conformal_quantile(range(1, 101), 0.05) == 96
    with pytest.raises(ValueError, match="19 or more"):
        conformal_quantile(range(18), 0.05)


@pytest.mark.parametrize("alpha", [0.02, 0.05, 0.2])
def test_limits_hold_over_all_checks_together(alpha):
    rng = np.random.default_rng(7)
    withheld = []
    for _ in range(40):
        limits = fit_limits(frames(rng, 300), frames(rng, 300), alpha, warn_alpha=2 * alpha)
        withheld.append(np.mean([excess_of(f, limits)[0] > 1 for f in frames(rng, 300)]))
        assert all(limit.warn <= limit.withhold for limit in limits.checks.values())
        assert limits.minimum <= limits.warn_below
    assert np.mean(withheld) == pytest.approx(alpha, rel=0.2)


def test_the_detector_decides_and_the_others_stand_guard():
    rng = np.random.default_rng(8)
    limits = fit_limits(frames(rng, 2000), frames(rng, 2000), 0.05, warn_alpha=0.1)
    over = {n: np.mean([f.checks[n] > limits.checks[n].withhold for f in frames(rng, 4000)]) for n in CHECKS}
    assert 0.5 < over["local"] / over["displacement"] < 2
    assert max(over["inversion"], over["blur"]) < 0.2 * over["local"]


def test_an_outlier_of_colour_does_not_open_the_gate_for_lesions():
    rng = np.random.default_rng(9)
    loud = [replace(f, checks=f.checks | {"colour": 6.0}) for f in frames(rng, 60)]
    limits = fit_limits(loud, loud, 0.05, warn_alpha=0.1)
    assert limits.checks["colour"].withhold == pytest.approx(np.log(7))
    assert limits.checks["local"].withhold > 2
    grey = [replace(f, checks=f.checks | {"colour": 0.0}) for f in frames(rng, 25)]
    fit_limits(grey, grey, 0.05, warn_alpha=0.1)  # no half of alpha goes to colour, for which there are too few
    with pytest.raises(ValueError, match="too few"):
        fit_limits(loud[:25], loud[:25], 0.05, warn_alpha=0.1)


def test_really_poor_sources_have_limits_of_their_own():
    rng = np.random.default_rng(3)

    def sources(count):
        """A third shows little detail, and honest results of it say three times as much."""
        poor = np.arange(count) % 3 == 0
        detail = rng.uniform(0.01, 0.02, count) + np.where(poor, 0, 0.03)
        found = [replace(f, detail=float(d)) for f, d in zip(frames(rng, count), detail, strict=True)]
        return [
            replace(f, checks={n: v * (3 if p and n in ("local", "displacement") else 1) for n, v in f.checks.items()})
            for f, p in zip(found, poor, strict=True)
        ]

    withheld = {False: [], True: []}
    for _ in range(12):
        limits = fit_by_quality(sources(600), sources(600), 0.05, warn_alpha=0.1)
        assert 0.0195 < limits.poor.below < 0.05
        assert limits.poor.checks.keys() == {"local", "displacement", "colour"}
        assert limits.of(0.01)["local"].withhold > 1.5 * limits.of(0.04)["local"].withhold
        assert limits.of(0.01)["blur"] == limits.of(None)["blur"]
        for frame in sources(600):
            withheld[limits.is_poor(frame.detail)].append(excess_of(frame, limits)[0] > 1)
    assert np.mean(withheld[False]) == pytest.approx(0.05, abs=0.015)
    assert np.mean(withheld[True]) == pytest.approx(0.05, abs=0.015)
    few = fit_by_quality(sources(60), sources(60), 0.05, warn_alpha=0.1)
    assert few.poor is None  # twenty frames set no limit for one in forty


def test_evidence_is_of_what_counts():
    honest = [Measured(HONEST, "m", "p", 0, 0, FrameScores(1.0, {"local": v})) for v in (0.1, 0.2, 0.3)]
    small, large = (
        Measured("invented lesion", "m", "p", size, 0.2, FrameScores(1.0, {"local": 9.0})) for size in (2, 8)
    )
    limits = Thresholds(0.5, 0.6, {"local": Limit(1, 2)})
    assert evidence([*honest, small], limits) is None
    found = evidence([*honest, small, large], limits)
    assert found["honest"][::20] == [0.05, 0.1, 0.15]
    assert set(found["altered"]) == {4.5}


def test_the_area_is_the_probability_of_the_right_order():
    rng = np.random.default_rng(0)
    honest, altered = rng.normal(0, 1, 60).round(1), rng.normal(1, 1, 70).round(1)
    pairs = (altered[None] > honest[:, None]) + 0.5 * (altered[None] == honest[:, None])
    assert auroc(honest, altered) == pytest.approx(pairs.mean())
    assert auroc([1, 2], [2, 3]) == 0.875


def test_intervals_are_of_patients_not_of_pairs():
    rng = np.random.default_rng(1)
    names = [f"p{k}" for k in range(30) for _ in range(20)]
    alike = [bool(k % 2) for k in range(30) for _ in range(20)]  # all pairs of a patient the same
    mixed = [bool(k % 2) for k in range(600)]
    patients = Patients(names)
    (low, high), (near, far) = patients.share(names, alike), patients.share(names, mixed)
    assert low == pytest.approx(0.5 - 1.96 * (0.25 / 30) ** 0.5, abs=0.03)
    assert high == pytest.approx(0.5 + 1.96 * (0.25 / 30) ** 0.5, abs=0.03)
    assert near == far == 0.5
    assert patients.share(names, [False] * 600) == [0, 0]
    honest, altered = rng.normal(0, 1, 600), rng.normal(1, 1, 600)
    low, high = patients.auroc(list(zip(names, honest, strict=True)), list(zip(names, altered, strict=True)))
    assert low < auroc(honest, altered) < high
    assert high - low < 0.08
    assert patients.auroc([("p1", 1.0), ("p2", 1.0)], [("p1", 1.0), ("p2", 1.0)]) == [0.5, 0.5]
    assert Patients(["one"] * 9).share(["one"], [True]) is None


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("channels", [1, 3])
def test_honest_methods_change_only_the_inside_and_keep_the_range(name, channels):
    rng = np.random.default_rng(0)
    x = rng.random((192, 192, channels), np.float32)
    inside = np.zeros((192, 192), bool)
    inside[10:150, 10:160] = True
    y = conventional(name, x, inside, rng)
    assert y.dtype == np.float32
    assert y.shape == x.shape
    assert 0 <= y.min() <= y.max() <= 1
    np.testing.assert_array_equal(y[~inside], x[~inside])
    assert np.abs(y - x)[inside].max() > 1e-3


def test_sources_are_the_picture_itself_first():
    x = np.full((8, 8, 1), 0.3, np.float32)
    assert next(iter(SOURCES)) == "as it is"
    np.testing.assert_array_equal(SOURCES["as it is"](x, np.random.default_rng(0)), x)


def test_pairs_are_measured_picture_by_picture_and_a_seed_repeats_them(folder):
    samples = find_pictures([folder])[:3]

    def run():
        kinds = {"invented lesion": (6, 8), "inversion": (0,)}
        rng = np.random.default_rng(5)
        return list(measure(samples, Conventional(), rng, count=2, alterations=kinds, draws={"invented lesion": 2}))

    rows = run()
    assert rows == run()
    assert [r.kind for r in rows] == 3 * (2 * [HONEST] + 2 * ["invented lesion"] + ["inversion"])
    honest = [r.scores.checks["inversion"] for r in rows if r.kind == HONEST]
    assert max(honest) < min(r.scores.checks["inversion"] for r in rows if r.kind == "inversion")


def limits_file(folder, **changes):
    content = {"minimum": 0.7, "warn_below": 0.8, "checks": {"local": {"warn": 1.5, "withhold": 2}}, "alpha": 0.05}
    (folder / "gate").mkdir(exist_ok=True)
    path = folder / "gate" / "tiny.json"
    path.write_text(json.dumps(content | changes))
    return GateEntry(calibration="gate/tiny.json", sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def test_the_manifest_reads_limits_from_their_verified_file(tmp_path):
    entry = limits_file(tmp_path)
    manifest = Manifest(root=tmp_path, gate={"tiny": entry})
    limits = load_limits("tiny", entry, manifest)
    assert (limits.minimum, limits.warn_below, limits.checks["local"].withhold) == (0.7, 0.8, 2)
    assert limits.name == f"tiny {entry.sha256[:12]}"
    assert verify_all(manifest) == {"tiny gate": None}
    limits_file(tmp_path, minimum=0.1)
    with pytest.raises(ModelError, match="was altered"):
        load_limits("tiny", entry, manifest)
    assert "was altered" in verify_all(manifest)["tiny gate"]
    wrong = limits_file(tmp_path, minimum="low")
    with pytest.raises(ModelError, match="minimum"):
        load_limits("tiny", wrong, manifest)


def test_limits_come_from_a_file_or_from_a_hand_and_not_from_both():
    assert load_limits("by hand", GateEntry(minimum=0.5, warn_below=0.6), Manifest(root=Path())).name == ""
    for wrong in ({}, {"minimum": 0.5}, {"calibration": "a"}, {"calibration": "a", "sha256": "0" * 64, "minimum": 0.1}):
        with pytest.raises(ValueError, match="wanted calibration"):
            GateEntry(**wrong)


@pytest.mark.slow
def test_the_command_writes_limits_that_pass_what_they_should(folder, tmp_path):
    app = Typer()
    app.command()(command)
    out = tmp_path / "own.json"
    result = CliRunner().invoke(
        app, ["--data", str(folder), "--limit", "14", "--alpha", "0.1", "-o", str(out), "--json"]
    )
    assert result.exit_code == 0, result.output
    written = json.loads(out.read_text())
    assert json.loads(result.stdout) == {"file": str(out), **written}
    assert written["calibrated_on"]["pictures"] == written["tested_on"]["pictures"] == 14
    assert written["results"]["kinds"]["inversion"]["missed"]["share"] == 0
    assert written["results"]["kinds"]["inversion"]["auroc"] == 1
    assert "cannot say so" in written["statement"]
    content = out.read_bytes()
    entry = GateEntry(calibration="own.json", sha256=hashlib.sha256(content).hexdigest())
    shipped = load_manifest()
    manifest = Manifest(root=tmp_path, detector=shipped.detector, colour_detector=shipped.colour_detector)
    assert set(load_limits("own", entry, manifest).checks) == set(CHECKS)


def test_the_command_wants_one_enhancer(folder):
    app = Typer()
    app.command()(command)
    result = CliRunner().invoke(app, ["--data", str(folder), "--weights", "a", "--recipe", "b"])
    assert result.exit_code != 0
