"""Sources that are asked: a DICOM peer (a node of ours, and peers that lack something), and a DICOMweb service."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pydicom
import pytest
from pydicom import Dataset
from pynetdicom import evt

from medenhance_dicom.errors import ConfigurationError, PeerError
from medenhance_dicom.node import query as query_module
from medenhance_dicom.node.identity import read_identity
from medenhance_dicom.node.index import Index
from medenhance_dicom.node.query import FIND, MOVE, query_handlers
from medenhance_dicom.node.sources import Found, LeftOut, Wanted, open_source
from medenhance_dicom.node.spool import Spool
from medenhance_dicom.node.wire import accepted_context
from tests.dicom_peers import listen, receiving
from tests.ports import free_port
from tests.synthetic import make_instance

CT = "1.2.840.10008.5.1.4.1.1.2"


def instances():
    """Two studies of different days: a series of three CT slices and one of a photograph; another CT series of two."""
    for study, day, series, kind, count in (
        ("1.1", "20260105", "1.1.1", "CT", 3),
        ("1.1", "20260105", "1.1.2", "OP8", 1),
        ("1.2", "20260107", "1.2.1", "CT", 2),
    ):
        for number in range(1, count + 1):
            instance = make_instance(kind)
            instance.StudyInstanceUID, instance.SeriesInstanceUID, instance.StudyDate = study, series, day
            instance.SOPInstanceUID = instance.file_meta.MediaStorageSOPInstanceUID = f"{series}.{number}"
            yield instance


def scan(source, known=lambda *_: False):
    items = list(source.scan(known))
    left = {item.locator: item.reason for item in items if isinstance(item, LeftOut)}
    return [item for item in items if isinstance(item, Found)], left


def wanted(items):
    uids = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
    return [Wanted(item.locator, *(item.facts.get(uid, "") for uid in uids)) for item in items]


def named(found):
    return sorted(item.facts["SOPInstanceUID"] for item in found)


ALL = ["1.1.1.1", "1.1.1.2", "1.1.1.3", "1.1.2.1", "1.2.1.1", "1.2.1.2"]


# ---------------------------------------------------------------- a DICOM peer


@pytest.fixture
def spool(tmp_path):
    spool = Spool(tmp_path / "store")
    for instance in instances():
        part = spool.new_part()
        instance.save_as(part, enforce_file_format=True)
        spool.accept(part, read_identity(part), calling_ae="CTSCAN", called_ae="NODE")
    return spool


@pytest.fixture
def ours():
    return free_port()


@pytest.fixture
def node(spool, ours):
    """A node of ours as the archive; where it moves to is known to it as MOVED."""
    port, index = free_port(), Index(spool)
    with receiving(
        spool, lambda settings: query_handlers(index, lambda: settings), port, ("MOVED", ours), "ME"
    ) as there:
        object.__setattr__(there.peers[0], "query", True)
        yield f"NODE@127.0.0.1:{port}"


def test_a_peer_is_listed_level_by_level(node):
    found, left = scan(open_source(f"{node}?calling=ME"))
    assert not left
    assert named(found) == ALL
    first = next(item for item in found if item.facts["SOPInstanceUID"] == "1.1.2.1")
    assert first.locator == f"{node}/1.1/1.1.2/1.1.2.1"
    assert first.facts["Modality"] == "OP"
    assert first.facts["SOPClassUID"] == "1.2.840.10008.5.1.4.1.1.77.1.5.1"
    assert (first.facts["Rows"], first.size) == ("16", 0)
    assert "PatientName" not in first.facts  # but the stamp is of that, too
    assert first.stamp == first.header != next(item for item in found if item is not first).header
    seen = {item.locator for item in found if item.facts["StudyInstanceUID"] == "1.1"}
    again, _ = scan(open_source(f"{node}?calling=ME"), lambda locator, size, stamp: locator in seen)
    assert named(again) == ["1.2.1.1", "1.2.1.2"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("Modality=OP", ["1.1.2.1"]),
        ("StudyDate=20260106-20260131", ["1.2.1.1", "1.2.1.2"]),
        ("StudyDate=20260105", ALL[:4]),
        ("StudyDate=20260101-&Modality=CT", ["1.1.1.1", "1.1.1.2", "1.1.1.3", "1.2.1.1", "1.2.1.2"]),
        ("SOPInstanceUID=1.1.1.2", ["1.1.1.2"]),
        ("StudyDate=20250101-20250103", []),
    ],
)
def test_keys_of_any_level(node, keys, expected):
    found, left = scan(open_source(f"{node}?calling=ME&{keys}"))
    assert (named(found), left) == (expected, {})


def test_a_range_of_dates_is_asked_day_by_day(node, monkeypatch):
    asked = []
    find = query_module.find

    def spy(destination, identifier, **more):
        asked.append((identifier.QueryRetrieveLevel, identifier.get("StudyDate")))
        return find(destination, identifier, **more)

    monkeypatch.setattr(query_module, "find", spy)
    scan(open_source(f"{node}?calling=ME&StudyDate=20260226-20260301"))
    assert asked == [("STUDY", day) for day in ("20260226", "20260227", "20260228", "20260301")]


def test_a_list_of_uids(node, tmp_path):
    listed = tmp_path / "uids.csv"
    listed.write_text("1.1,1.1.1,1.1.1.2\n1.2\n1.1,1.1.9\n1.9\n")
    source = open_source(f"@{listed}", origin=f"{node}?calling=ME")
    found, left = scan(source)
    assert named(found) == ["1.1.1.2", "1.2.1.1", "1.2.1.2"]
    assert set(left) == {f"{node}/1.1/1.1.9", f"{node}/1.9"}
    assert all(reason.startswith("MISSING") for reason in left.values())
    assert scan(open_source(source.name), lambda *_: True) == ([], left)


def fetched(folder):
    return {path.name: pydicom.dcmread(path) for path in folder.iterdir()}


def test_a_series_comes_by_get(node, tmp_path, spool):
    folder = tmp_path / "got"
    folder.mkdir()
    source = open_source(f"{node}?calling=ME")
    found, _ = scan(source)
    series = [item for item in found if item.facts["SeriesInstanceUID"] == "1.1.1"]
    assert list(source.fetch(wanted(series)[1:], folder)) == []
    got = fetched(folder)
    assert [got[f"{n}.dcm"].SOPInstanceUID for n in range(2)] == [item.facts["SOPInstanceUID"] for item in series[1:]]
    assert set(got) == {"0.dcm", "1.dcm"}
    for item in got.values():
        assert item == pydicom.dcmread(spool.held(item.SOPInstanceUID))


@pytest.mark.slow
def test_a_series_comes_by_move_to_a_listener_of_ours(node, ours, tmp_path):
    folder = tmp_path / "got"
    folder.mkdir()
    source = open_source(f"{node}?calling=MOVED&retrieve=move&listen=127.0.0.1:{ours}")
    found, _ = scan(source)
    series = [item for item in found if item.facts["SeriesInstanceUID"] == "1.1.1"]
    assert list(source.fetch(wanted(series), folder)) == []
    assert [fetched(folder)[f"{n}.dcm"].SOPInstanceUID for n in range(3)] == [
        item.facts["SOPInstanceUID"] for item in series
    ]


@pytest.mark.slow
def test_what_is_there_is_not_fetched_again(node, tmp_path, monkeypatch):
    folder = tmp_path / "got"
    folder.mkdir()
    source = open_source(f"{node}?calling=ME")
    found, _ = scan(source)
    series = wanted(item for item in found if item.facts["SeriesInstanceUID"] == "1.1.1")
    assert list(source.fetch(series, folder)) == []
    (folder / "1.dcm").unlink()
    (folder / ".incoming-dead").mkdir()
    asked = []
    get = query_module.get
    monkeypatch.setattr(query_module, "get", lambda *args, **more: asked.append(args[1]) or get(*args, **more))
    assert list(source.fetch(series, folder)) == []
    assert [item.SOPInstanceUID for item in asked] == [series[1].sop_instance]
    assert set(fetched(folder)) == {"0.dcm", "1.dcm", "2.dcm"}


def test_what_the_peer_no_longer_has_is_missing(node, tmp_path, spool):
    folder = tmp_path / "got"
    folder.mkdir()
    source = open_source(f"{node}?calling=ME")
    found, _ = scan(source)
    series = wanted(item for item in found if item.facts["SeriesInstanceUID"] == "1.1.1")
    spool.held(series[1].sop_instance).unlink()
    reasons = list(source.fetch(series, folder))
    assert len(reasons) == 1
    assert reasons[0].startswith("MISSING")
    assert set(fetched(folder)) == {"0.dcm", "2.dcm"}


def test_nobody_there(tmp_path):
    with pytest.raises(PeerError) as caught:
        scan(open_source("QR@127.0.0.1:1"))
    assert not caught.value.permanent


# ---------------------------------------------------------------- peers that lack something


def peer_without_get(moves):
    """Finds one instance, and moves nothing."""

    def on_find(event):
        answer = Dataset()
        answer.StudyInstanceUID, answer.SeriesInstanceUID, answer.SOPInstanceUID = "1.1", "1.1.1", "1.1.1.1"
        answer.QueryRetrieveLevel, answer.SOPClassUID = event.identifier.QueryRetrieveLevel, CT
        yield 0xFF00, answer

    def on_move(event):
        moves.append(event.identifier.QueryRetrieveLevel)
        yield None, None

    handlers = [(evt.EVT_C_FIND, on_find), (evt.EVT_C_MOVE, on_move)]
    return listen([accepted_context(FIND), accepted_context(MOVE)], handlers, title="QR")


@pytest.mark.slow
def test_a_peer_without_get_is_asked_to_move(tmp_path, ours):
    moves = []
    server = peer_without_get(moves)
    address = f"QR@127.0.0.1:{server.server_address[1]}"
    series = [Wanted(f"{address}/1.1/1.1.1/1.1.1.1", "1.1", "1.1.1", "1.1.1.1", CT)]
    try:
        with pytest.raises(PeerError, match=r"C-GET|none of the SOP classes") as caught:
            list(open_source(address).fetch(series, tmp_path))
        assert caught.value.permanent
        assert not moves
        with pytest.raises(PeerError, match="0xA801"):
            list(open_source(f"{address}?listen=127.0.0.1:{ours}").fetch(series, tmp_path))
        assert moves == ["IMAGE", "SERIES"]
        assert not list(tmp_path.iterdir())
    finally:
        server.shutdown()


def test_answers_that_lie_or_do_not_decode():
    def on_find(event):
        level = event.identifier.QueryRetrieveLevel
        for uid in ("1.1", "1.1", "", "x\\y"):
            answer = Dataset()
            answer.QueryRetrieveLevel = level
            answer.StudyInstanceUID = uid if level == "STUDY" else "1.1"
            if level != "STUDY":
                answer.SeriesInstanceUID = "1.1.1"
            if level == "IMAGE":
                answer.SOPInstanceUID, answer.SOPClassUID = uid, CT
            if level == "SERIES":
                answer.StudyInstanceUID = "6.6" if uid == "x\\y" else "1.1"
            yield 0xFF00, answer

    server = listen([accepted_context(FIND)], [(evt.EVT_C_FIND, on_find)], title="QR")
    try:
        found, left = scan(open_source(f"QR@127.0.0.1:{server.server_address[1]}?StudyDate=20260101"))
    finally:
        server.shutdown()
    assert set(named(found)) == {"1.1"}
    assert {reason.split(":")[0] for reason in left.values()} == {"UNREADABLE"}


# ---------------------------------------------------------------- DICOMweb


class Service(BaseHTTPRequestHandler):
    """QIDO and WADO over what `held` has, in pages of `cap`; `behaviour` is what the next WADO requests meet."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        url = urlsplit(self.path)
        parts = url.path.removeprefix("/dicom-web/").split("/")
        self.server.asked.append((self.path, self.headers.get("Authorization"), self.headers.get("Accept")))
        if len(parts) == 6 and not url.query:
            self.retrieve(parts)
        else:
            self.search(parts, {key: ",".join(values) for key, values in parse_qs(url.query).items()})

    def search(self, parts, keys):
        uids = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
        level = {1: 0, 3: 1, 5: 2}[len(parts)]
        above = dict(zip(uids, parts[1::2], strict=False))
        rows = {}
        for item in self.server.held:
            fits = all(item[keyword].value == value for keyword, value in above.items())
            if fits and keys.get("Modality", item.Modality) == item.Modality:
                rows.setdefault(tuple(item[k].value for k in uids[: level + 1]), []).append(item)
        answers = []
        for members in rows.values():
            answer = {k: members[0][k] for k in uids[: level + 1]}
            answer |= {k: members[0][k] for k in keys.get("includefield", "").split(",") if k in members[0]}
            dataset = Dataset()
            for element in answer.values():
                dataset.add(element)
            if level == 1:
                dataset.NumberOfSeriesRelatedInstances = len(members)
            answers.append(dataset.to_json_dict())
        start = int(keys.get("offset", 0))
        page = answers[start : start + min(int(keys["limit"]), self.server.cap)]
        self.answer(200, "application/dicom+json", json.dumps(page).encode())

    def retrieve(self, parts):
        behaviour = self.server.behaviour.pop(0) if self.server.behaviour else ""
        found = [item for item in self.server.held if item.SOPInstanceUID == parts[5]]
        if behaviour.isdigit():
            self.answer(int(behaviour), "text/plain", b"no")
        elif not found:
            self.answer(404, "text/plain", b"no")
        else:
            data = found[0].bytes if behaviour != "another" else self.server.held[-1].bytes
            kind = "application/dicom"
            if behaviour != "single":
                data = b"--b\r\nContent-Type: application/dicom\r\n\r\n" + data + b"\r\n--b--\r\n"
                kind = 'multipart/related; type="application/dicom"; boundary=b'
            self.answer(200, kind, data, cut=behaviour == "cut")

    def answer(self, status, kind, body, *, cut=False):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if status == 302:
            self.send_header("Location", "http://127.0.0.1:1/")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = cut

    def log_message(self, *_):
        pass


@contextmanager
def service(tmp_path, cap=2):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    server.held, server.asked, server.behaviour, server.cap = [], [], [], cap
    for number, item in enumerate(instances()):
        item.save_as(tmp_path / f"held{number}.dcm", enforce_file_format=True)
        item.bytes = (tmp_path / f"held{number}.dcm").read_bytes()
        server.held.append(item)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server, f"http://127.0.0.1:{server.server_address[1]}/dicom-web"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def web(tmp_path):
    pytest.importorskip("dicomweb_client")
    with service(tmp_path) as (server, url):
        yield server, url


def test_a_service_is_listed_to_the_last_page(web):
    _, url = web
    found, left = scan(open_source(url))
    assert (named(found), left) == (ALL, {})
    item = next(item for item in found if item.facts["SOPInstanceUID"] == "1.1.1.3")
    assert item.locator == f"{url}/studies/1.1/series/1.1.1/instances/1.1.1.3"
    assert (item.facts["Modality"], item.facts["SOPClassUID"], item.facts["Columns"]) == ("CT", CT, "12")
    assert set(item.facts) <= {
        "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "Modality", "Manufacturer",
        "ManufacturerModelName", "NumberOfFrames", "Rows", "Columns", "PatientID",
    }  # fmt: skip
    found, _ = scan(open_source(f"{url}?Modality=OP"))
    assert named(found) == ["1.1.2.1"]


def test_a_service_that_ignores_offsets_ends(web):
    server, url = web
    server.cap = 1000
    search = Service.search
    Service.search = lambda self, parts, keys: search(self, parts, keys | {"offset": "0"})
    try:
        assert named(scan(open_source(url))[0]) == ALL
    finally:
        Service.search = search


def test_instances_come_as_they_are_stored(web, tmp_path):
    server, url = web
    token = tmp_path / "token"
    token.write_text("Bearer secret\n")
    source = open_source(f"{url}?authorization-file={token}")
    found, _ = scan(source)
    folder = tmp_path / "got"
    folder.mkdir()
    server.behaviour[:] = ["", "single", "406"]
    series = wanted(item for item in found if item.facts["SeriesInstanceUID"] == "1.1.1")
    assert list(source.fetch(series, folder)) == []
    held = {item.SOPInstanceUID: item.bytes for item in server.held}
    assert [(folder / f"{n}.dcm").read_bytes() for n in range(3)] == [held[item.sop_instance] for item in series]
    assert {authorization for _, authorization, _ in server.asked} == {"Bearer secret"}
    accepts = [accept for path, _, accept in server.asked if path.endswith(series[2].sop_instance)]
    assert ["transfer-syntax=*" in accept for accept in accepts] == [True, False]
    count = len(server.asked)
    assert list(source.fetch(series, folder)) == []
    assert len(server.asked) == count
    token.unlink()
    with pytest.raises(ConfigurationError, match="cannot be read"):
        scan(open_source(f"{url}?authorization-file={token}"))


@pytest.mark.parametrize(
    ("behaviour", "permanent"), [("503", False), ("401", True), ("302", True), ("cut", False), ("500", False)]
)
def test_what_a_service_does_instead(web, tmp_path, behaviour, permanent):
    server, url = web
    server.behaviour[:] = [behaviour]
    folder = tmp_path / "got"
    folder.mkdir()
    series = [Wanted("", "1.1", "1.1.1", f"1.1.1.{n}", CT) for n in (1, 2)]
    with pytest.raises(PeerError) as caught:
        list(open_source(url).fetch(series, folder))
    assert caught.value.permanent is permanent
    assert not list(folder.iterdir())
    assert list(open_source(url).fetch(series, folder)) == []


def test_what_is_not_the_instance_does_not_stay(web, tmp_path):
    server, url = web
    server.behaviour[:] = ["another"]
    folder = tmp_path / "got"
    folder.mkdir()
    series = [Wanted("", "1.1", "1.1.1", f"1.1.1.{n}", CT) for n in (1, 2, 9)]
    reasons = list(open_source(url).fetch(series, folder))
    assert [reason.split(":")[0] for reason in reasons] == ["CHANGED", "MISSING"]
    assert [path.name for path in folder.iterdir()] == ["1.dcm"]


def test_no_service_there():
    pytest.importorskip("dicomweb_client")
    with pytest.raises(PeerError) as caught:
        scan(open_source("http://127.0.0.1:1/dicom-web"))
    assert not caught.value.permanent
