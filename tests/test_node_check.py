"""`node check` finds what is wrong, says it in words, and tells our mistakes from other machines'."""

from __future__ import annotations

import os
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.sop_class import CTImageStorage, StorageCommitmentPushModel, Verification

from medenhance_dicom.node import check as checking
from medenhance_dicom.node.check import Finding, check, database_problem, exit_code
from medenhance_dicom.node.settings import (
    HTTP,
    Destination,
    Listener,
    NodeSettings,
    Peer,
    Retention,
    TLSFiles,
    load_settings,
)
from medenhance_dicom.node.state import NodeState
from medenhance_dicom.site_keys import create_key
from tests.ports import free_port

NOW = datetime(2026, 5, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _no_models(monkeypatch):
    """Weights are verified in one test alone: they are 50 MB."""
    monkeypatch.setattr(checking, "_models", lambda settings: iter(()))


@pytest.fixture
def store(tmp_path):
    (tmp_path / "store").mkdir(mode=0o700)
    return tmp_path / "store"


def settings_of(store, **more) -> NodeSettings:
    listener = Listener(port=free_port(), reserve_bytes=1)
    return NodeSettings(store=store, **({"listener": listener, "http": HTTP(port=0)} | more))


def found(settings, what, **more) -> list[tuple[str, str]]:
    return [(f.level, f.words) for f in check(settings, now=NOW, **more) if f.what == what]


def peer(store_classes=AllStoragePresentationContexts, *, commitment=True, title="ARCHIVE", echo=0x0000):
    entity = AE(ae_title=title)
    entity.require_called_aet = True
    entity.supported_contexts = [c for c in store_classes if c.abstract_syntax != CTImageStorage] or []
    entity.add_supported_context(Verification)
    if commitment:
        entity.add_supported_context(StorageCommitmentPushModel)
    return entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_ECHO, lambda event: echo)])


def destination_at(server, **more) -> Destination:
    port = server.socket.getsockname()[1]
    return Destination(**{"name": "archive", "ae_title": "ARCHIVE", "host": "127.0.0.1", "port": port} | more)


def test_exit_codes():
    ok, warning = Finding("a", "ok", ""), Finding("a", "warning", "")
    ours, theirs = Finding("a", "wrong", ""), Finding("a", "wrong", "", peer=True)
    assert exit_code([ok, warning]) == 0
    assert exit_code([ok, theirs]) == 11
    assert exit_code([theirs, ours]) == 2


def test_a_sound_configuration_has_nothing_wrong(store):
    findings = list(check(settings_of(store), now=NOW))
    assert exit_code(findings) == 0
    assert [f.words for f in findings if f.level == "warning"] == [
        "none: nobody may send",
        "none: nothing is sent on, and finished jobs stay here",
    ]
    assert list(store.iterdir()) == []


def test_a_store_that_cannot_be_written_is_wrong(tmp_path):
    (tmp_path / "file").write_text("x")
    ((level, words),) = found(settings_of(tmp_path / "file" / "store"), "store")
    assert level == "wrong"
    assert "Not a directory" in words


def test_an_open_store_and_secret_are_told(store):
    store.chmod(0o755)
    (store / "secret").write_bytes(b"x" * 32)
    (store / "secret").chmod(0o644)
    assert [level for level, _ in found(settings_of(store), "store")] == ["warning"]
    assert found(settings_of(store), "secret")[0][0] == "wrong"
    (store / "secret").chmod(0o600)
    assert found(settings_of(store), "secret") == [("ok", "32 bytes, mode 0600")]
    (store / "secret").write_bytes(b"x" * 31)
    assert "31 bytes" in found(settings_of(store), "secret")[0][1]


def test_a_full_disk_is_wrong(store):
    full = settings_of(store, listener=Listener(port=0, reserve_bytes=1 << 60))
    ((level, words),) = found(full, "disk")
    assert level == "wrong"
    assert words.endswith("nothing would be received")


def test_who_may_call(store):
    peers = (Peer(ae_title="A"), Peer(ae_title="B", hosts=("10.0.0.0/8",)))
    assert found(settings_of(store, peers=peers), "peers") == [("ok", "2 may call")]  # from this machine alone
    clear = settings_of(store, listener=Listener(bind="0.0.0.0", port=free_port(), reserve_bytes=1), peers=peers)
    assert found(clear, "peers") == [("warning", "A may call from any address that reaches 0.0.0.0 (no hosts)")]
    assert "in the clear on 0.0.0.0" in found(clear, "listener")[0][1]
    deaf = settings_of(store, listener=Listener(port=0, reserve_bytes=1))
    assert found(deaf, "listener")[0][0] == "wrong"
    bare = settings_of(store, http=HTTP(bind="0.0.0.0", port=0, stow=True))
    assert found(bare, "http")[0][0] == "wrong"


def test_the_anchor_and_the_site_key(store, tmp_path):
    key, other = tmp_path / "site.key", tmp_path / "elsewhere"
    made = create_key(key)
    sound = settings_of(store, audit={"anchor": other / "anchor"}, enhance={"sign_key": key})
    assert found(sound, "audit.anchor") == [("ok", f"{other / 'anchor'} can be written")]
    assert found(sound, "enhance.sign_key") == [("ok", f"key {made.id}")]
    key.chmod(0o640)
    wrong = settings_of(store, audit={"anchor": key / "anchor"}, enhance={"sign_key": key})
    assert [level for level, _ in found(wrong, "audit.anchor") + found(wrong, "enhance.sign_key")] == ["wrong"] * 2


def test_http_outside_loopback_is_in_the_clear(store, tmp_path):
    (tmp_path / "token").write_text("s3cret")
    stow = settings_of(store, http=HTTP(bind="0.0.0.0", port=free_port(), stow=True, token_file=tmp_path / "token"))
    (ok, warning) = found(stow, "http")
    assert ok == ("ok", "STOW-RS asks for a token")
    assert warning[0] == "warning"
    assert warning[1].startswith("pictures and the token go over the network in the clear on 0.0.0.0")
    health = settings_of(store, http=HTTP(bind="0.0.0.0", port=free_port()))
    assert [words.split(" go ")[0] for _, words in found(health, "http")] == ["counts and words about this machine"]
    assert found(settings_of(store, http=HTTP(port=free_port())), "http") == []


def test_the_example_has_no_warnings_but_what_this_machine_lacks(store):
    example = load_settings(Path(__file__).parent.parent / "docs" / "node.toml")
    listener = example.listener.model_copy(update={"reserve_bytes": 1, "port": free_port()})
    http = example.http.model_copy(update={"port": free_port()})
    example = example.model_copy(update={"store": store, "listener": listener, "http": http})
    assert [f for f in check(example, now=NOW, peers=False) if f.level != "ok"] == []


ARCHIVE = {"name": "archive", "ae_title": "ARCHIVE", "host": "h", "port": 104}
RESEARCH = {"name": "research", "stow": "https://h/studies", "send": "derived", "commit": False}
PEERS = [{"ae_title": "OCT1"}, {"ae_title": "CAM1"}, {"ae_title": "ARCHIVE"}]


@pytest.mark.parametrize(
    ("destinations", "rules", "what", "words"),
    [
        ([ARCHIVE, RESEARCH], [], None, ""),
        ([RESEARCH], [], "destinations", 'originals are sent nowhere (send = "derived"), and stay in the store until'),
        ([ARCHIVE, RESEARCH], [{"destinations": ["archive"]}], None, ""),
        (
            [ARCHIVE, RESEARCH],
            [{"calling": ["OCT1"], "Modality": ["OPT"], "destinations": ["research"]}, {"destinations": ["archive"]}],
            "rule 1",
            'originals from OCT1 (OPT) are sent nowhere (send = "derived"), and stay in the store until 7 days after',
        ),
        (
            [ARCHIVE],
            [{"calling": ["OCT1"], "destinations": []}, {"destinations": ["archive"]}],
            "rule 1",
            "originals from OCT1 are sent nowhere (no destinations), and stay in the store until a person removes them",
        ),
        (
            [ARCHIVE],
            [{"calling": ["OCT1"], "destinations": ["archive"]}],
            "rules",
            "originals from CAM1 are sent nowhere (no rule fits), and stay in the store until a person removes them",
        ),
        (
            [ARCHIVE],
            [
                {"Modality": ["OP", "OPT"], "destinations": ["archive"]},
                {"calling": ["OCT1"], "destinations": ["archive"]},
            ],
            "rules",
            "originals from CAM1 (other than OP, OPT) are sent nowhere (no rule fits)",
        ),
    ],
)
def test_originals_that_go_nowhere_are_told(store, destinations, rules, what, words):
    table = {"store": store, "destinations": destinations, "rules": rules, "peers": PEERS}
    settings = NodeSettings.model_validate(table).model_copy(update={"listener": Listener(port=0, reserve_bytes=1)})
    lines = [f for f in check(settings, now=NOW, peers=False) if "sent nowhere" in f.words]
    assert [(f.what, f.level) for f in lines] == ([] if what is None else [(what, "warning")])
    assert all(f.words.startswith(words) for f in lines)


def test_senders_over_http_need_a_rule_too(store):
    rules = [{"calling": ["OCT1"], "destinations": ["archive"]}]
    table = {"store": store, "destinations": [ARCHIVE], "rules": rules, "peers": [{"ae_title": "OCT1"}]}
    settings = NodeSettings.model_validate(table | {"http": {"stow": True, "port": 0}})
    ((level, words),) = found(settings, "rules", peers=False)
    assert level == "warning"
    assert words.startswith("originals from STOW-RS are sent nowhere")


def test_what_cannot_be_kept_on_the_disk_is_told(store, monkeypatch):
    def told(**retention):
        return found(settings_of(store, retention=Retention(**retention)), "retention")

    disk = os.statvfs(store)
    whole = disk.f_blocks * disk.f_frsize
    assert told() == told(maximum_bytes=whole // 2) == []
    ((level, words),) = told(maximum_bytes=2 * whole)
    assert level == "warning"
    assert words.startswith(
        f"maximum_bytes is {2 * whole / 1e9:.1f} GB, and the disk has room for {whole / 1e9:.1f} GB"
    )
    for name, age in (("young", 1.0), ("old", 4.0), ("before", 30.0)):
        (store / "jobs" / name / "source").mkdir(parents=True)
        (store / "jobs" / name / "source" / "a.dcm").write_bytes(b"x" * 40_000)
        (store / "jobs" / name / "job.json").write_text("{}")
        at = NOW.timestamp() - age * 86400
        os.utime(store / "jobs" / name / "job.json", (at, at))
    assert told(keep_days=7) == []
    daily = checking._daily_bytes(store, 7, NOW.timestamp())
    assert 2 * 40_000 / 4 <= daily < 2 * 60_000 / 4
    assert checking._daily_bytes(store, 0.5, NOW.timestamp()) is None  # too short to tell
    ((level, words),) = told(keep_days=1e12)
    assert (level, words.split(":")[-1]) == ("warning", " set keep_days lower, or a maximum_bytes")
    assert told(keep_days=1e12, maximum_bytes=whole // 2) == []  # the budget comes first


def test_much_that_was_set_aside_is_told(store, monkeypatch):
    (store / "conflicts").mkdir()
    (store / "conflicts" / "a.dcm").write_bytes(b"x" * 50_000)
    assert [level for level, _ in found(settings_of(store), "store")] == ["ok"]
    monkeypatch.setattr(checking, "_MUCH_SET_ASIDE", 40_000)
    _, (level, words) = found(settings_of(store), "store")
    assert (level, words.split(" GB")[0]) == ("warning", "conflicts/ holds 0.0")
    assert checking.set_aside_bytes(store)["quarantine"] == 0


def test_a_taken_port_is_wrong_but_not_while_the_node_runs(store):
    settings = settings_of(store)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", settings.listener.port))
        taken.listen()
        ((level, words),) = found(settings, "ports")
        assert level == "wrong"
        assert words == f"listener.port: 127.0.0.1 port {settings.listener.port}: Address already in use"
        with NodeState(store):
            assert found(settings, "ports") == [("ok", "a node runs on this store: its ports are not tried")]
    assert found(settings, "ports") == [("ok", "free")]


def test_a_second_node_cannot_have_the_store(store):
    with NodeState(store) as state:
        state.say(pid=7, state="running")
        with pytest.raises(Exception, match="another node"):
            NodeState(store)
    NodeState(store).close()


def make_certificate(folder, name, first, last):
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    certificate = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
        .serial_number(1).not_valid_before(first).not_valid_after(last).sign(key, hashes.SHA256())
    )  # fmt: skip
    pem, key_file = folder / f"{name}.pem", folder / f"{name}.key"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    key_file.chmod(0o600)
    return TLSFiles(certificate=pem, key=key_file, authority=pem, port=0)


@pytest.mark.parametrize(
    ("first", "last", "level", "words"),
    [
        (-300, 300, "ok", "valid until 2027-02-25"),
        (-300, 20, "warning", "expires on 2026-05-21"),
        (-300, -1, "wrong", "expired on 2026-04-30"),
        (2, 300, "wrong", "not yet"),
    ],
)
def test_dates_of_certificates(store, tmp_path, first, last, level, words):
    files = make_certificate(tmp_path, "node", NOW + timedelta(days=first), NOW + timedelta(days=last))
    listener = Listener(port=0, tls=files, reserve_bytes=1)
    lines = found(settings_of(store, listener=listener), "listener.tls")
    assert {got for got, _ in lines} == {level}
    assert all(words in line for _, line in lines)


def test_tls_towards_others_without_a_server_name_is_told(store, tmp_path):
    files = make_certificate(tmp_path, "node", NOW - timedelta(days=1), NOW + timedelta(days=90))
    named = files.model_copy(update={"server_name": "archive.test"})
    poses = ("warning", "whoever has a certificate of node.pem may pose as it (no server_name)")

    def told(tls, **address):
        there = Destination(name="x", tls=tls, **address)
        return found(settings_of(store, destinations=(there,)), "destination x tls", peers=False)

    dicom = {"ae_title": "X", "host": "h", "port": 104}
    assert poses in told(files, **dicom)
    assert {level for level, _ in told(named, **dicom)} == {"ok"}
    assert {level for level, _ in told(files, stow="https://h/studies")} == {"ok"}  # the host of the URL counts
    for tls, warned in ((files, True), (named, False)):
        peers = (Peer(ae_title="CT", host="h", port=104, tls=tls),)
        assert (poses in found(settings_of(store, peers=peers), "peer CT tls")) == warned


def test_a_certificate_with_another_key_is_wrong(store, tmp_path):
    dates = NOW - timedelta(days=1), NOW + timedelta(days=90)
    files = make_certificate(tmp_path, "node", *dates)
    other = make_certificate(tmp_path, "other", *dates)
    mixed = files.model_copy(update={"key": other.key})
    settings = settings_of(store, listener=Listener(port=0, tls=mixed, reserve_bytes=1))
    assert found(settings, "listener.tls")[0][0] == "wrong"
    other.key.chmod(0o644)
    settings = settings_of(store, listener=Listener(port=0, tls=other, reserve_bytes=1))
    assert ("warning", "other.key is open to others (0600 keeps it private)") in found(settings, "listener.tls")


def test_a_destination_that_answers_is_ok_and_what_it_lacks_is_told(store):
    server = peer()
    try:
        lines = found(settings_of(store, destinations=(destination_at(server),)), "destination archive")
    finally:
        server.shutdown()
    assert [level for level, _ in lines] == ["ok", "warning", "warning"]
    assert "answers C-ECHO" in lines[0][1]
    assert lines[1][1] == "does not store CT"
    assert lines[2][1].startswith("ARCHIVE is not among the peers")


def test_a_destination_without_commitment_is_wrong_only_where_it_is_asked(store):
    server = peer(commitment=False)
    try:
        asked, unasked = (
            check(settings_of(store, destinations=(destination_at(server, commit=commit),)), now=NOW)
            for commit in (True, False)
        )
        assert exit_code(list(asked)) == 11
        assert exit_code(list(unasked)) == 0
    finally:
        server.shutdown()


@pytest.mark.slow
def test_destinations_that_refuse_or_are_not_there(store):
    server = peer(title="SOMEBODY")
    try:
        refused = found(settings_of(store, destinations=(destination_at(server),)), "destination archive")
    finally:
        server.shutdown()
    assert refused[0][0] == "wrong"
    assert "called AE title not recognized" in refused[0][1]
    gone = Destination(name="archive", ae_title="A", host="127.0.0.1", port=free_port(), connect_timeout=1)
    settings = settings_of(store, destinations=(gone,))
    assert exit_code(list(check(settings, now=NOW))) == 11
    assert exit_code(list(check(settings, now=NOW, peers=False))) == 0
    web = Destination(name="archive", stow=f"http://127.0.0.1:{free_port()}/studies", connect_timeout=1, commit=False)
    assert "does not answer" in found(settings_of(store, destinations=(web,)), "destination archive")[0][1]


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("sqlite://", None),
        ("nonsense", "is not a database address"),
        ("nosuch://u@h/d", "is not a database address"),
        ("postgresql://secret-user:secret-password@127.0.0.1:1/d", "does not answer"),
    ],
)
def test_databases(url, problem):
    answer = database_problem(url)
    assert (answer is None) == (problem is None)
    if problem is not None:
        assert problem in answer
        assert "secret" not in answer
