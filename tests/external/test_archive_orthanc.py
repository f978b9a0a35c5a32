"""Orthanc as an archive: listed and fetched over DIMSE (C-GET and C-MOVE) and over DICOMweb."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import httpx
import pydicom
import pytest

from medenhance_dicom.errors import PeerError
from medenhance_dicom.node.settings import Destination
from medenhance_dicom.node.sources import Found, Wanted, open_source
from medenhance_dicom.node.stow import store_rs
from tests import archives
from tests.dicom_peers import in_own_network, running
from tests.synthetic import make_instance

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
WEB = "http://127.0.0.1:8142/dicom-web"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/usr/sbin/Orthanc").exists(), reason="no Orthanc"),
]
needs_web = pytest.mark.skipif(not PLUGIN.exists(), reason="no orthanc-dicomweb")


def orthanc(folder):
    (folder / "db").mkdir()
    configuration = {
        "DicomAet": "ORTHANC", "DicomPort": 4242, "HttpPort": 8142, "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"), "RemoteAccessAllowed": True, "AuthenticationEnabled": False,
        "DicomAlwaysAllowStore": True, "DicomAlwaysAllowFind": True, "DicomAlwaysAllowGet": True,
        "DicomModalities": {"ours": ["OURS", "127.0.0.1", 11119]},
        "Plugins": [str(PLUGIN)] if PLUGIN.exists() else [],
    }  # fmt: skip
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    return running("/usr/sbin/Orthanc", folder / "orthanc.json", port=8142)


def fill(samples, tmp_path):
    """The sample study, and a series of its own of 120 small slices in another encoding; sent as bytes."""
    paths = [path for path in (samples / "study").rglob("*") if path.is_file()]
    for number in range(120):
        instance = make_instance("CT")
        instance.StudyInstanceUID, instance.SeriesInstanceUID, instance.StudyDate = "1.2.9", "1.2.9.1", "20200301"
        instance.SOPInstanceUID = instance.file_meta.MediaStorageSOPInstanceUID = f"1.2.9.1.{number}"
        paths.append(tmp_path / f"{number}.dcm")
        instance.save_as(paths[-1], enforce_file_format=True)
    rle = pydicom.dcmread(pydicom.data.get_testdata_file("SC_rgb_rle.dcm"))
    rle.save_as(tmp_path / "rle.dcm")
    paths.append(tmp_path / "rle.dcm")
    with httpx.Client(timeout=30, trust_env=False) as web:
        for path in paths:
            assert web.post("http://127.0.0.1:8142/instances", content=path.read_bytes()).status_code == 200
    return {pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID: path for path in paths}


def scan(text, known=lambda *_: False):
    items = list(open_source(text).scan(known))
    assert all(isinstance(item, Found) for item in items), items
    return items


def by_series(found):
    uids = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
    series = {}
    for item in found:
        wanted = Wanted(item.locator, *(item.facts.get(uid, "") for uid in uids))
        series.setdefault(item.facts["SeriesInstanceUID"], []).append(wanted)
    return series


def check(text, held, folder):
    found = scan(text)
    assert {item.facts["SOPInstanceUID"] for item in found} == set(held)
    for item in found:
        original = pydicom.dcmread(held[item.facts["SOPInstanceUID"]], stop_before_pixels=True)
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "Modality", "SOPClassUID"):
            assert item.facts[keyword] == original[keyword].value, keyword
    for number, series in enumerate(by_series(found).values()):
        target = folder / str(number)
        target.mkdir(parents=True)
        assert list(open_source(text).fetch(series, target)) == []
        assert len(list(target.iterdir())) == len(series)
        for n, item in enumerate(series):
            got, original = pydicom.dcmread(target / f"{n}.dcm"), pydicom.dcmread(held[item.sop_instance])
            assert got.SOPInstanceUID == item.sop_instance
            assert got.file_meta.TransferSyntaxUID == original.file_meta.TransferSyntaxUID
            assert got.PixelData == original.PixelData
    return found


@in_own_network
def test_an_archive_over_dimse(tmp_path, samples):
    with orthanc(tmp_path):
        held = fill(samples, tmp_path)
        found = check("ORTHANC@127.0.0.1:4242?calling=OURS", held, tmp_path / "got")
        check("ORTHANC@127.0.0.1:4242?calling=OURS&retrieve=move&listen=127.0.0.1:11119", held, tmp_path / "moved")
        some = scan("ORTHANC@127.0.0.1:4242?calling=OURS&StudyDate=20200225-20200305&Modality=CT")
        assert {item.facts["SeriesInstanceUID"] for item in some} == {"1.2.9.1"}
        assert len(some) == 120
        seen = {item.locator for item in found}
        assert scan("ORTHANC@127.0.0.1:4242?calling=OURS", lambda locator, *_: locator in seen) == []
        gone = [Wanted("", "1.2.9", "1.2.9.1", "1.2.9.1.777", "1.2.840.10008.5.1.4.1.1.2")]
        assert len(list(open_source("ORTHANC@127.0.0.1:4242?calling=OURS").fetch(gone, tmp_path / "got"))) == 1
        with pytest.raises(PeerError):
            list(open_source("ORTHANC@127.0.0.1:4242?calling=STRANGER&retrieve=move&listen=127.0.0.1:11120").fetch(
                by_series(found)["1.2.9.1"], _new(tmp_path / "strange")
            ))  # fmt: skip


@needs_web
@in_own_network
def test_an_archive_over_dicomweb(tmp_path, samples):
    pytest.importorskip("dicomweb_client")
    with orthanc(tmp_path):
        held = fill(samples, tmp_path)
        check(WEB, held, tmp_path / "got")
        some = scan(f"{WEB}?StudyDate=20200225-20200305")
        assert {item.facts["SeriesInstanceUID"] for item in some} == {"1.2.9.1"}
        listed = tmp_path / "uids.csv"
        listed.write_text("StudyInstanceUID,SeriesInstanceUID,SOPInstanceUID\n1.2.9,1.2.9.1,1.2.9.1.5\n")
        found = list(open_source(f"@{listed}", origin=WEB).scan(lambda *_: False))
        assert [item.facts["SOPInstanceUID"] for item in found] == ["1.2.9.1.5"]
        gone = [Wanted("", "1.2.9", "1.2.9.1", "1.2.9.1.777")]
        assert len(list(open_source(WEB).fetch(gone, tmp_path / "got"))) == 1


@needs_web
@in_own_network
def test_what_is_sent_by_stow_is_found_by_qido(tmp_path, samples):
    pytest.importorskip("dicomweb_client")
    with orthanc(tmp_path):
        picture = samples / "study" / "op-cornea.dcm"
        report = store_rs([picture], Destination(name="orthanc", stow=f"{WEB}/studies"))
        assert not report.failed
        (found,) = scan(WEB)
        assert found.facts["SOPInstanceUID"] == report.sent[0].sop_instance


DIMSE = "ORTHANC@127.0.0.1:4242?calling=OURS"
PLACES = {
    "dimse": (DIMSE, 'ae_title = "ORTHANC"\nhost = "127.0.0.1"\nport = 4242\ncommit = false'),
    "dicomweb": (WEB, f'stow = "{WEB}/studies"'),
}


@needs_web
@pytest.mark.parametrize("way", PLACES)
@in_own_network
def test_an_archive_is_enhanced_back_into_itself(tmp_path, way):
    pytest.importorskip("dicomweb_client")
    source, destination = PLACES[way]
    config = tmp_path / "node.toml"
    config.write_text(
        f'store = "store"\n[listener]\nae_title = "OURS"\n[[destinations]]\nname = "archive"\n{destination}\n'
    )
    files = sorted(archives.make_series(tmp_path / "given", 0, 3).rglob("*.dcm"))
    with orthanc(tmp_path), httpx.Client(timeout=30, trust_env=False) as web:
        for path in files:
            assert web.post("http://127.0.0.1:8142/instances", content=path.read_bytes()).status_code == 200
        options = ["--config", str(config), "--to", "archive", "--workers", "1"]

        def planned_and_run():
            archives.make_plan(tmp_path / "plan", source, recipe="cr-dx-clahe")
            command = [*archives.COMMAND, "run", str(tmp_path / "plan"), *options, "--json"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
            assert done.returncode == 0, done.stderr
            return {item.facts["SOPInstanceUID"] for item in scan(source)}

        held = planned_and_run()
        ours = held - {pydicom.dcmread(path).SOPInstanceUID for path in files}
        assert len(ours) == len(files) == len(held) - len(files)
        assert all(uid.startswith("2.25.") for uid in ours)
        assert archives.counts(tmp_path / "plan")["results"] == {"enhanced": len(files)}
        assert planned_and_run() == held  # what we made is found, and left alone
        assert archives.counts(tmp_path / "plan")["open_series"] == 0


def _new(folder):
    folder.mkdir()
    return folder
