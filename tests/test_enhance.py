"""The whole flow on the sample data: what comes out, twice, killed, and beside broken files."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from pydicom import Dataset, dcmread
from pydicom.pixels import pixel_array
from pydicom.uid import JPEGBaseline8Bit

from medenhance_dicom.decoding import Decoder
from medenhance_dicom.enhance import Enhancement
from medenhance_dicom.errors import ConfigurationError, UnreadableInstanceError
from medenhance_dicom.identity import derived_instance_uid, recorded_digests
from medenhance_dicom.masks import field_of_view
from medenhance_dicom.metrics.fundus import mean_changes, reduced_changes
from medenhance_dicom.selection import Settings, _require_uid, plan
from medenhance_dicom.site_keys import create_key, load_public_keys
from medenhance_dicom.verification.files import verify_files
from tests import synthetic

NOON = datetime(2025, 1, 2, 12, tzinfo=UTC)
DCIODVFY = Path(sys.executable).parent / "dciodvfy"
DCMJ2PNM = Path("/usr/bin/dcmj2pnm")


def enhance(paths, output, *, decoder=None, **options):
    settings = Settings(output=output, device="cpu", **options)
    return list(Enhancement(settings, now=NOON).outcomes([Path(p) for p in paths], decoder=decoder))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    samples = Path(__file__).resolve().parent.parent / "sample_data"
    output = tmp_path_factory.mktemp("run")
    return samples, output, enhance([samples / "study"], output, preview=True, structured_report=True)


def test_every_sample_is_enhanced_but_ct(run):
    _, _, outcomes = run
    results = {Path(o.source).name: o for o in outcomes}
    assert {n for n, o in results.items() if o.result in ("enhanced", "warned")} == {
        "op-fundus.dcm", "op-cornea.dcm", "es-colon.dcm", "cr-chest.dcm", "us-abdomen.dcm"
    }  # fmt: skip
    assert all(results[n].result == "skipped" and results[n].reason.startswith("CT_OFF") for n in ("slice1", "slice2"))
    assert results["op-cornea.dcm"].weights == "stillgan-cornea-1"
    assert all(o.lassim is not None for o in outcomes if o.derived)


@pytest.mark.slow
def test_colour_photographs_of_the_eye_are_measured(run):
    _, output, outcomes = run
    measured = {Path(o.source).name: o.measures for o in outcomes if o.measures}
    assert list(measured) == ["op-fundus.dcm"]
    outcome = next(o for o in outcomes if o.measures)
    before, after = (pixel_array(path) / np.float32(255) for path in (outcome.source, outcome.derived))
    wanted = reduced_changes(before, after, field_of_view(before, "ellipse"))
    assert measured["op-fundus.dcm"] == mean_changes([wanted])
    (again,) = enhance([outcome.source], output)
    assert again.repeated
    assert again.measures == outcome.measures


def test_derived_objects_are_sound_and_readable_by_others(run):
    samples, output, outcomes = run
    assert [result.problems for result in verify_files(output, samples)] == [[]] * 10  # an image and a report each
    for o in outcomes:
        if not o.derived:
            continue
        source, derived = dcmread(o.source), dcmread(o.derived)
        assert (derived.Rows, derived.Columns) == (source.Rows, source.Columns)
        assert derived.StudyInstanceUID == source.StudyInstanceUID
        assert derived.SeriesInstanceUID != source.SeriesInstanceUID
        assert derived.PatientName == source.PatientName
        assert not np.array_equal(derived.pixel_array, source.pixel_array)
        assert SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(o.derived)).size >= derived.Rows * derived.Columns
        assert Path(o.derived).with_suffix(".png").is_file()
        assert Path(o.derived).with_suffix(".first-map.png").is_file()


def test_the_verdict_stands_in_object_and_report_and_is_not_part_of_the_uid(run):
    for o in run[2]:
        if o.derived:
            derived, document = dcmread(o.derived), dcmread(o.structured_report)
            said = [
                derived,
                *(g.DerivationImageSequence[0] for g in derived.get("PerFrameFunctionalGroupsSequence", [])),
            ]
            assert any(f"LaSSIM {o.lassim:.3f}" in str(place.get("DerivationDescription")) for place in said)
            referred = document.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
            uids = {i.ReferencedSOPInstanceUID for series in referred for i in series.ReferencedSOPSequence}
            assert uids == {derived.SOPInstanceUID, dcmread(o.source).SOPInstanceUID}
            assert o.verdict["frames"] == int(derived.get("NumberOfFrames", 1))
            assert derived.SOPInstanceUID == derived_instance_uid(
                dcmread(o.source).SOPInstanceUID, recorded_digests(derived)
            )


def test_blending_where_nothing_objects_changes_no_byte(samples, tmp_path):
    source = samples / "study" / "us-abdomen.dcm"
    plain, blended = (enhance([source], tmp_path / mode, gate=mode)[0] for mode in ("withhold", "blend"))
    assert plain.derived_sop_instance_uid == blended.derived_sop_instance_uid
    assert (blended.result, blended.verdict["mode"], blended.verdict["blended"]) == ("enhanced", "blend", None)
    assert Path(plain.derived).read_bytes() == Path(blended.derived).read_bytes()


@pytest.mark.slow
def test_a_site_key_signs_what_is_written(samples, tmp_path):
    create_key(tmp_path / "site.key")
    source = samples / "study" / "us-abdomen.dcm"
    signed = {"recipe": "identity", "sign_key": tmp_path / "site.key", "structured_report": True}
    enhance([source], tmp_path / "out", **signed)
    keys = load_public_keys(tmp_path / "site.key.pub")
    enhance([source], tmp_path / "later", recipe="identity")
    assert [result.state for result in verify_files(tmp_path / "later", source, keys)] == ["not signed"]
    for repeated in (False, True):
        outcomes = enhance([source], tmp_path / "later", recipe="identity", sign_key=tmp_path / "site.key")
        assert [outcome.repeated for outcome in outcomes] == [repeated]
    assert [result.state for result in verify_files(tmp_path / "later", source, keys)] == ["ok"]
    assert [result.state for result in verify_files(tmp_path / "out", source, keys)] == ["ok", "ok"]
    (tmp_path / "site.key").chmod(0o644)
    with pytest.raises(ConfigurationError, match="0600"):
        enhance([source], tmp_path / "none", recipe="identity", sign_key=tmp_path / "site.key")
    assert not (tmp_path / "none").exists()


def _errors(path):
    done = subprocess.run([DCIODVFY, "-new", str(path)], capture_output=True, text=True, check=False)
    return {line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")}


@pytest.mark.skipif(not DCIODVFY.is_file(), reason="no dciodvfy")
def test_dciodvfy_finds_no_error_that_the_source_does_not_have(run):
    for o in run[2]:
        if o.derived:
            assert _errors(o.derived) <= _errors(o.source), o.source


@pytest.mark.skipif(not DCMJ2PNM.is_file(), reason="no DCMTK")
def test_dcmtk_renders_what_we_write(run, tmp_path):
    for o in run[2]:
        if o.derived:
            done = subprocess.run(
                [DCMJ2PNM, o.derived, str(tmp_path / "x.pnm")], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr


def test_burned_in_text_is_left_alone(run):
    seen = 0
    for o in run[2]:
        if Path(o.source).name in ("us-abdomen.dcm", "es-colon.dcm"):
            before, after = (dcmread(p).pixel_array for p in (o.source, o.derived))
            glyphs = before >= 225 if before.ndim == 2 else (np.ptp(before, axis=3) == 0) & (before.min(axis=3) >= 120)
            assert glyphs.sum() > 100
            assert np.array_equal(before[glyphs], after[glyphs])
            seen += 1
    assert seen == 2


@pytest.mark.slow
def test_running_twice_changes_nothing(run, tmp_path):
    samples = run[0]
    first = enhance([samples / "study"], tmp_path)
    state = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in tmp_path.rglob("*.dcm")}
    second = enhance([samples / "study"], tmp_path)
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in tmp_path.rglob("*.dcm")} == state
    assert [o.derived_sop_instance_uid for o in first] == [o.derived_sop_instance_uid for o in second]
    assert [o.derived_sop_instance_uid for o in first] == [o.derived_sop_instance_uid for o in run[2]]


@pytest.fixture
def source(tmp_path):
    return synthetic.make_file(tmp_path / "source.dcm", "CR", rows=32, columns=32)


@pytest.fixture(scope="module")
def run_again():
    """Enhance one file with the identity recipe."""
    with Decoder() as decoder:

        def one(source, output, **options):
            (outcome,) = enhance([source], output, recipe="identity", decoder=decoder, **options)
            return outcome

        yield one


def test_what_is_there_is_verified_before_it_counts_as_done(run_again, source, tmp_path):
    first = run_again(source, tmp_path / "out")
    target, whole = Path(first.derived), Path(first.derived).read_bytes()
    modified = target.stat().st_mtime_ns
    again = run_again(source, tmp_path / "out")
    assert (again.result, again.reason, again.repeated, again.derived) == ("enhanced", None, True, first.derived)
    assert target.stat().st_mtime_ns == modified
    assert not first.repeated
    header = whole.index(b"P-1 ")
    damages = {
        "cut": whole[:100],
        "empty": b"",
        "zeros": bytes(len(whole)),
        "half": whole[: len(whole) // 2],
        "longer": whole + b"\0\0",
        "pixel": whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:],
        "patient": whole[:header] + b"P-9 " + whole[header + 4 :],
        "time": whole.replace(b"20250102", b"20250103"),
    }
    for name, damaged in damages.items():
        target.write_bytes(damaged)
        again = run_again(source, tmp_path / "out")
        said = (again.result, again.reason, again.repeated)
        assert said == ("enhanced", "REWRITTEN: the file there was damaged", False), name
        assert target.read_bytes() == whole, name


def test_another_object_at_the_target_stays(run_again, source, tmp_path):
    first = run_again(source, tmp_path / "out")
    other = synthetic.make_file(tmp_path / "other.dcm", "CR", PatientID="P-2", SOPInstanceUID="1.2.3")
    mine = run_again(other, tmp_path / "elsewhere")
    for foreign in (other, Path(mine.derived)):
        shutil.copy(foreign, first.derived)
        again = run_again(source, tmp_path / "out")
        assert (again.result, again.reason.split(":")[0], again.derived) == ("failed", "TARGET_TAKEN", None)
        assert Path(first.derived).read_bytes() == foreign.read_bytes()
    assert run_again(source, tmp_path / "out", overwrite=True).result == "enhanced"
    assert dcmread(first.derived).PatientID == "P-1"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_at_the_target_fails_one_instance_and_not_the_run(overwrite, run_again, source, tmp_path):
    first = run_again(source, tmp_path / "out")
    Path(first.derived).unlink()
    Path(first.derived).mkdir()
    again = run_again(source, tmp_path / "out", overwrite=overwrite)
    assert (again.result, again.reason.split(":")[0]) == ("failed", "TARGET_TAKEN")


@pytest.mark.parametrize("ledger", [True, False])
def test_what_is_not_signed_by_the_site_is_signed(ledger, run_again, source, tmp_path):
    keys, others = tmp_path / "keys", tmp_path / "others"
    key, other = create_key(keys / "a"), create_key(others / "a")
    first = run_again(source, tmp_path / "out", sign_key=keys)
    target, whole = Path(first.derived), Path(first.derived).read_bytes()
    place = target.read_bytes().rindex(b"\x99\x00\x03\x10OB") + 12
    unfit = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
    target.write_bytes(unfit)
    assert [found.state for found in verify_files(target, keys={key.id: key})] == ["bad signature"]
    for content, place in (
        (unfit, keys),
        (whole, others),
    ):  # of bits that tipped over; of a key that is trusted no more
        target.write_bytes(content)
        if not ledger:
            shutil.rmtree(tmp_path / "out" / ".derived")
        again = run_again(source, tmp_path / "out", sign_key=place)
        assert (again.result, again.repeated) == ("enhanced", False)
        assert again.reason == "REWRITTEN: the file there was not signed by a key of this site"
        (found,) = verify_files(target, keys={key.id: key} if place == keys else {other.id: other})
        assert found.state == "ok"
    create_key(others / "b")  # a rotation: the old one is still trusted
    assert run_again(source, tmp_path / "out", sign_key=others).repeated


@pytest.mark.parametrize(
    ("name", "attributes"),
    [
        ("CR", {"PatientID": "P-2", "PatientName": "Test^Two"}),
        ("CR", {"AccessionNumber": "A2"}),
        ("CR", {"WindowCenter": "1000"}),
        ("OP8", {"ImageLaterality": "L"}),
        ("OP8", {"AcquisitionDateTime": "20240203101113"}),
        ("MR", {"PixelSpacing": ["0.6", "0.6"]}),
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_corrected_source_never_gets_the_old_object(name, attributes, overwrite, run_again, tmp_path):
    before = synthetic.make_file(tmp_path / "before.dcm", name, rows=32, columns=32)
    after = synthetic.make_file(tmp_path / "after.dcm", name, rows=32, columns=32, **attributes)
    first = run_again(before, tmp_path / "out", overwrite=overwrite)
    second = run_again(after, tmp_path / "out", overwrite=overwrite)
    assert (second.result, second.repeated) == ("enhanced", False)
    assert first.derived_sop_instance_uid != second.derived_sop_instance_uid
    old, new = dcmread(first.derived), dcmread(second.derived)
    for keyword, value in attributes.items():
        assert (
            new[keyword].value == dcmread(after)[keyword].value == synthetic.dataset(**{keyword: value})[keyword].value
        )
        assert old[keyword].value == dcmread(before)[keyword].value


def test_a_damaged_report_is_written_again(run_again, source, tmp_path):
    first = run_again(source, tmp_path / "out", structured_report=True)
    whole = Path(first.structured_report).read_bytes()
    Path(first.structured_report).write_bytes(whole[:1000])
    assert run_again(source, tmp_path / "out", structured_report=True).repeated
    assert Path(first.structured_report).read_bytes() == whole


def test_the_identity_recipe_gives_back_the_stored_pixels(samples, tmp_path):
    outcomes = enhance([samples / "study"], tmp_path, recipe="identity", allow=frozenset({"CT"}))
    assert [o.result for o in outcomes] == ["enhanced"] * 7
    for o in outcomes:
        source, derived = dcmread(o.source), dcmread(o.derived)
        plugin = "pillow" if source.file_meta.TransferSyntaxUID == JPEGBaseline8Bit else ""
        assert np.array_equal(pixel_array(source, decoding_plugin=plugin), derived.pixel_array), o.source
        assert o.lassim == pytest.approx(1)
        assert o.verdict["max_change"] == 0


def test_one_bad_file_never_stops_the_others(samples, tmp_path):
    shutil.copytree(samples / "broken", tmp_path / "in")
    shutil.copy(samples / "study" / "us-abdomen.dcm", tmp_path / "in" / "good")
    outcomes = enhance([tmp_path / "in"], tmp_path / "out")
    results = {Path(o.source).name: o.result for o in outcomes}
    assert results.pop("good") == "enhanced"
    assert set(results.values()) <= {"failed", "skipped"}
    assert [p.name for p in (tmp_path / "out").rglob("*") if p.name.startswith(".")] == [".derived"]


def test_a_zip_is_read_and_its_members_named(samples, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "study"), "zip", samples / "study")
    series = list(plan([Path(archive)], Settings()))
    assert sorted(s["source"].split("!")[-1] for s in series if s["result"] == "enhanced") == [
        "cr-chest.dcm", "es-colon.dcm", "op-cornea.dcm", "op-fundus.dcm", "us-abdomen.dcm"
    ]  # fmt: skip


@pytest.mark.slow
def test_kill_9_leaves_no_half_file(samples, tmp_path):
    command = [sys.executable, "-m", "medenhance_dicom", "enhance", str(samples / "study"), "--recipe", "identity"]
    started = time.monotonic()
    subprocess.run([*command, "-o", str(tmp_path / "whole")], check=True, capture_output=True)
    whole = time.monotonic() - started
    for i in range(6):
        output = tmp_path / f"{i}"
        child = subprocess.Popen([*command, "-o", str(output)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(whole * (0.5 + 0.1 * i))
        child.send_signal(signal.SIGKILL)
        child.wait()
        for path in output.rglob("*.dcm"):
            if not path.name.startswith("."):
                twin = tmp_path / "whole" / path.relative_to(output)
                assert dcmread(path).PixelData == dcmread(twin).PixelData
    subprocess.run([*command, "-o", str(output)], check=True, capture_output=True)
    names = sorted(p.name for p in (tmp_path / "whole").rglob("*.dcm"))
    assert sorted(p.name for p in output.rglob("*.dcm") if not p.name.startswith(".")) == names


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_end_in_order_leaves_a_report_and_no_scratch_files(number, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "scratch").mkdir()
    for i in range(160):
        synthetic.make_file(tmp_path / "in" / f"{i}.dcm", "CR", rows=256, columns=256, SOPInstanceUID=f"1.2.3.{i}")
    command = [sys.executable, "-m", "medenhance_dicom", "enhance", tmp_path / "in", "--recipe", "identity"]
    with subprocess.Popen(
        [*command, "-o", tmp_path / "enhanced"], env=os.environ | {"TMPDIR": str(tmp_path / "scratch")}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # noqa: PLW1509 # what a shell in the background ignores
    ) as child:  # fmt: skip
        assert child.stdout is not None
        child.stdout.readline()
        child.send_signal(number)
        child.stdout.read()
    assert child.returncode == 130
    report = json.loads((tmp_path / "enhanced" / "run_report.json").read_text())
    assert report["interrupted"] is True
    assert 0 < len(report["outcomes"]) < 160
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.slow
def test_memory_does_not_grow_with_frames(tmp_path):
    script = (
        "import sys\n"
        "from medenhance_dicom.cli import app\n"
        "try:\n    app(sys.argv[1:])\nexcept SystemExit as done: code = done.code or 0\n"
        # Not getrusage: its peak is handed down by the process that started this one.
        "peak = next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "sys.stderr.write(f'{code} {peak}')\n"
    )
    peaks = []
    for frames in (40, 160):
        source = synthetic.make_instance("USMultiFrame")
        side = 512
        pixels = np.random.default_rng(0).integers(0, 200, (frames, side, side), dtype=np.uint8)
        source.Rows, source.Columns, source.NumberOfFrames = side, side, frames
        source.SamplesPerPixel, source.PhotometricInterpretation = 1, "MONOCHROME2"
        source.BitsAllocated = source.BitsStored = 8
        source.HighBit, source.PixelRepresentation = 7, 0
        if "PlanarConfiguration" in source:
            del source.PlanarConfiguration
        source.PixelData = pixels.tobytes()
        path = tmp_path / f"{frames}.dcm"
        source.save_as(path, enforce_file_format=True)
        arguments = [
            "enhance",
            str(path),
            "-o",
            str(tmp_path / "out"),
            "--recipe",
            "identity",
            "--gate",
            "off",
            "--json",
        ]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}  # peaks that compare
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False, env=environment
        )
        code, peak = done.stderr.split()[-2:]
        assert code == "0", done.stdout + done.stderr
        peaks.append(int(peak))
    # In KiB. Kept as unit values, the 120 frames more would take 120 MiB.
    assert peaks[1] - peaks[0] < 60_000, peaks


@pytest.mark.parametrize("uid", ["1.2.840.10008.1", "2.25.123", "0.0.26.1", "999.999.2.1996", "1.02.3", "1.4.5", "7"])
def test_uids_can_be_referred_to_whoever_registered_them(uid):
    _require_uid(_with_uid(uid), "SOPInstanceUID")


@pytest.mark.parametrize("uid", ["", "1.2.", ".1", "1..2", "..", "1.2/../x", "1.٣", "1." + "2" * 64])
def test_other_uids_are_refused_by_keyword(uid):
    with pytest.raises(UnreadableInstanceError, match="SOPInstanceUID"):
        _require_uid(_with_uid(uid), "SOPInstanceUID")


def _with_uid(uid):
    instance = Dataset()
    instance.SOPInstanceUID = uid
    return instance
