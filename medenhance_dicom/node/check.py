"""`node check`: try what the configuration asks for before a patient's picture depends on it."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

import httpx
from pynetdicom import build_context

from medenhance_dicom.errors import ConfigurationError, MedenhanceError, PeerError
from medenhance_dicom.node.association import associated
from medenhance_dicom.node.http import is_loopback, read_token
from medenhance_dicom.node.jobfolder import bytes_in
from medenhance_dicom.node.settings import Destination, NodeSettings, TLSFiles
from medenhance_dicom.node.state import running_process
from medenhance_dicom.node.upload import STOW_PEER
from medenhance_dicom.node.wire import client_tls, server_tls

Level = Literal["ok", "warning", "wrong"]

_VERIFICATION = "1.2.840.10008.1.1"
_COMMITMENT = "1.2.840.10008.1.20.1"
_COMMON = {
    "1.2.840.10008.5.1.4.1.1.77.1.5.1": "Ophthalmic Photography 8 Bit",
    "1.2.840.10008.5.1.4.1.1.77.1.4": "VL Photographic",
    "1.2.840.10008.5.1.4.1.1.77.1.1": "VL Endoscopic",
    "1.2.840.10008.5.1.4.1.1.1": "CR",
    "1.2.840.10008.5.1.4.1.1.1.1": "DX for presentation",
    "1.2.840.10008.5.1.4.1.1.2": "CT",
    "1.2.840.10008.5.1.4.1.1.4": "MR",
    "1.2.840.10008.5.1.4.1.1.6.1": "US",
    "1.2.840.10008.5.1.4.1.1.7": "Secondary Capture",
    "1.2.840.10008.5.1.4.1.1.7.2": "Multi-frame Grayscale Byte SC",
    "1.2.840.10008.5.1.4.1.1.7.4": "Multi-frame True Color SC",
}
_SYNTAXES = ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2"]
_GB = 1e9
_MUCH_SET_ASIDE = 10**9
_DAY = 86400.0
_EXPIRES_SOON = timedelta(days=30)


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    what: str
    level: Level
    words: str
    peer: bool = False
    """Of another machine: `wrong` is exit code 11 then, not 2."""


def exit_code(findings: list[Finding]) -> int:
    """0 where nothing is wrong, 2 for what is wrong here, 11 where only other machines do not answer as they should."""
    wrong = [finding for finding in findings if finding.level == "wrong"]
    return 0 if not wrong else 11 if all(finding.peer for finding in wrong) else 2


def check(settings: NodeSettings, *, now: datetime, peers: bool = True) -> Iterator[Finding]:
    """Try everything, one finding after the other; nothing is sent but C-ECHO and an HTTP OPTIONS.

    Args:
        settings: What to check.
        now: Aware time, for the dates of certificates.
        peers: Whether destinations are asked.
    """
    yield from _store(settings, now)
    yield from _who_may_call(settings)
    if running_process(settings.store) is not None:
        yield Finding("ports", "ok", "a node runs on this store: its ports are not tried")
    else:
        yield from _ports(settings)
    if settings.listener.tls:
        yield from _certificates("listener.tls", settings.listener.tls, now, server=True)
    for peer in settings.peers:
        if peer.tls:
            yield from _client_tls(f"peer {peer.ae_title} tls", peer.tls, now, named=False)
    yield from _models(settings)
    if settings.audit.anchor is not None:
        yield _anchor(settings.audit.anchor)
    if settings.enhance.sign_key is not None:
        yield _sign_key(settings.enhance.sign_key)
    if settings.work.database:
        yield from _database(settings.work.database)
    if not settings.destinations:
        yield Finding("destinations", "warning", "none: nothing is sent on, and finished jobs stay here")
    else:
        yield from _originals(settings)
    for destination in settings.destinations:
        name = f"destination {destination.name}"
        if destination.tls:
            yield from _client_tls(f"{name} tls", destination.tls, now, named=destination.stow is not None)
        if peers:
            callers = {peer.ae_title for peer in settings.peers}
            try:
                if destination.folder is not None:
                    yield _probe_folder(name, destination.folder)
                elif destination.stow is None:
                    yield from _probe_dimse(name, destination, settings.listener.ae_title, callers)
                else:
                    yield from _probe_stow(name, destination)
            except PeerError as error:
                yield Finding(name, "wrong", str(error), peer=True)
            except ConfigurationError as error:
                yield Finding(name, "wrong", str(error))


def _probe_folder(name: str, folder: Path) -> Finding:
    """Whether files can be put there; it is made where it is missing, as it would be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".check."):
            return Finding(name, "ok", f"{folder} can be written")
    except OSError as error:
        return Finding(name, "wrong", f"{folder}: {error.strerror}")


# ---------------------------------------------------------------- this machine


def _store(settings: NodeSettings, now: datetime) -> Iterator[Finding]:
    store = settings.store
    try:
        store.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe, link = store / ".check.part", store / ".check.link"
        for path in (probe, link):
            path.unlink(missing_ok=True)
        with probe.open("xb") as handle:
            handle.write(b"x")
            os.fsync(handle.fileno())
        os.link(probe, link)
        for path in (probe, link):
            path.unlink()
    except OSError as error:
        yield Finding("store", "wrong", f"{store} cannot be written: {error.strerror}")
        return
    devices = {path.stat().st_dev for path in (store, *(p for p in store.iterdir() if p.is_dir()))}
    if len(devices) > 1:
        yield Finding("store", "wrong", f"{store}: its folders lie on {len(devices)} file systems, it has to be one")
    elif stat.S_IMODE(store.stat().st_mode) & 0o077:
        yield Finding("store", "warning", f"{store} is open to others (mode 0700 keeps patient data private)")
    else:
        yield Finding("store", "ok", f"{store} can be written")
    yield from _secret(store / "secret")
    usage = os.statvfs(store)
    free, reserve = usage.f_bavail * usage.f_frsize, settings.listener.reserve_bytes
    words = f"{free / _GB:.1f} GB free, {reserve / _GB:.1f} GB are kept back"
    if free < reserve:
        yield Finding("disk", "wrong", f"{words}: nothing would be received")
    else:
        yield Finding("disk", "warning" if free < 2 * reserve else "ok", words)
    yield from _retention(settings, usage.f_blocks * usage.f_frsize - reserve, now.timestamp())
    for name, size in set_aside_bytes(store).items():
        if size > _MUCH_SET_ASIDE:
            words = f"{name}/ holds {size / _GB:.1f} GB: look at it; nothing removes these files but a person"
            yield Finding("store", "warning", words)


def _retention(settings: NodeSettings, room: int, now: float) -> Iterator[Finding]:
    """Whether what is to be kept fits into the `room` bytes that the disk has beyond the reserve."""
    retention = settings.retention
    if room <= 0:  # "disk" said so
        return
    budget = retention.maximum_bytes
    if budget is not None and budget > room:
        words = f"maximum_bytes is {budget / _GB:.1f} GB, and the disk has room for {room / _GB:.1f} GB"
        yield Finding("retention", "warning", f"{words}: it would be full before finished jobs are removed for it")
    if (budget is None or budget > room) and (daily := _daily_bytes(settings.store, retention.keep_days, now)):
        needed = daily * retention.keep_days
        if needed > room:
            words = f"{retention.keep_days:g} days of what came lately ({daily / _GB:.1f} GB a day) need"
            words = f"{words} {needed / _GB:.1f} GB, and the disk has room for {room / _GB:.1f} GB"
            yield Finding("retention", "warning", f"{words}: set keep_days lower, or a maximum_bytes")


def _daily_bytes(store: Path, days: float, now: float) -> float | None:
    """Bytes of the jobs of the last `days`, by day; None where there is less than a day to judge by."""
    size, longest = 0, 0.0
    for folder in (store / "jobs").glob("*"):
        try:
            age = (now - (folder / "job.json").stat().st_mtime) / _DAY
        except OSError:  # it is being sealed, or removed
            continue
        if 0.0 <= age <= days:
            size, longest = size + bytes_in(folder), max(longest, age)
    return size / longest if longest >= 1.0 else None


def set_aside_bytes(store: Path) -> dict[str, int]:
    """What `conflicts/` and `quarantine/` take on the disk."""
    return {name: bytes_in(store / name) for name in ("conflicts", "quarantine")}


def _secret(secret: Path) -> Iterator[Finding]:
    if not secret.exists():
        yield Finding("secret", "ok", "made at the first start")
        return
    size, mode = secret.stat().st_size, stat.S_IMODE(secret.stat().st_mode)
    if size != 32:
        yield Finding("secret", "wrong", f"{secret} has {size} bytes, not 32: the names in the store depend on it")
    elif mode & 0o077:
        yield Finding("secret", "wrong", f"{secret} is open to others (mode {mode:04o}, 0600 is needed)")
    else:
        yield Finding("secret", "ok", "32 bytes, mode 0600")


def _who_may_call(settings: NodeSettings) -> Iterator[Finding]:
    listener, peers = settings.listener, settings.peers
    if not peers and not settings.http.stow:
        yield Finding("peers", "warning", "none: nobody may send")
    elif not is_loopback(listener.bind) and (anywhere := [peer.ae_title for peer in peers if not peer.hosts]):
        words = f"{', '.join(anywhere)} may call from any address that reaches {listener.bind} (no hosts)"
        yield Finding("peers", "warning", words)
    else:
        yield Finding("peers", "ok", f"{len(peers)} may call")
    if listener.port and not is_loopback(listener.bind):
        yield Finding("listener", "warning", f"port {listener.port} takes data in the clear on {listener.bind}")
    if not listener.port and listener.tls is None:
        yield Finding("listener", "wrong", "port is 0 and there is no listener.tls: nothing listens")
    try:
        token = read_token(settings.http)
    except ConfigurationError as error:
        yield Finding("http", "wrong", str(error))
        return
    http = settings.http
    if http.port and http.stow:
        yield Finding("http", "ok", "STOW-RS asks for a token" if token else "STOW-RS asks for no token, on loopback")
    if http.port and not is_loopback(http.bind):
        goes = "pictures and the token go" if http.stow else "counts and words about this machine go"
        words = f"{goes} over the network in the clear on {http.bind}, unless only a TLS proxy reaches port {http.port}"
        yield Finding("http", "warning", words)


def _ports(settings: NodeSettings) -> Iterator[Finding]:
    if problems := port_problems(settings):
        for problem in problems:
            yield Finding("ports", "wrong", problem)
    else:
        yield Finding("ports", "ok", "free")


def port_problems(settings: NodeSettings) -> list[str]:
    """Ports of the configuration that cannot be listened on, in words."""
    listener, http = settings.listener, settings.http
    asked = [("listener.port", listener.bind, listener.port), ("http.port", http.bind, http.port)]
    if listener.tls:
        asked.append(("listener.tls.port", listener.bind, listener.tls.port))
    problems = []
    for what, bind, port in asked:
        if port == 0:
            continue
        try:
            family, *_, address = socket.getaddrinfo(bind, port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except OSError as error:
            problems.append(f"{what}: {bind} port {port}: {error.strerror}")
    return problems


def _anchor(file: Path) -> Finding:
    nearest = next(path for path in (file, *file.absolute().parents) if path.exists())
    writable = os.access(nearest, os.W_OK) and (nearest == file or nearest.is_dir())
    words = f"{file} can be written" if writable else f"{file} cannot be written: a cut trail would not show"
    return Finding("audit.anchor", "ok" if writable else "wrong", words)


def _sign_key(place: Path) -> Finding:
    from medenhance_dicom.site_keys import load_signing_key

    try:
        return Finding("enhance.sign_key", "ok", f"key {load_signing_key(place).id}")
    except ConfigurationError as error:
        return Finding("enhance.sign_key", "wrong", str(error))


def _certificates(what: str, files: TLSFiles, now: datetime, *, server: bool) -> Iterator[Finding]:
    from cryptography import x509

    try:
        server_tls(files) if server else client_tls(files, named=False)
        found = [
            (path, certificate)
            for path in (files.certificate, files.authority)
            for certificate in x509.load_pem_x509_certificates(path.read_bytes())
        ]
    except (ConfigurationError, OSError, ValueError) as error:
        words = str(error) if isinstance(error, ConfigurationError) else f"{files.certificate} cannot be read"
        yield Finding(what, "wrong", words)
        return
    for path, certificate in found:
        first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if now > last:
            yield Finding(what, "wrong", f"{path.name} expired on {last:%Y-%m-%d}")
        elif now < first:
            yield Finding(what, "wrong", f"{path.name} is valid from {first:%Y-%m-%d}, not yet")
        elif now > last - _EXPIRES_SOON:
            yield Finding(what, "warning", f"{path.name} expires on {last:%Y-%m-%d}")
        else:
            yield Finding(what, "ok", f"{path.name} is valid until {last:%Y-%m-%d}")
    if stat.S_IMODE(files.key.stat().st_mode) & 0o077:
        yield Finding(what, "warning", f"{files.key.name} is open to others (0600 keeps it private)")


def _client_tls(what: str, files: TLSFiles, now: datetime, *, named: bool) -> Iterator[Finding]:
    """Towards a peer; `named`: its certificate has to bear the name of a URL's host anyway."""
    yield from _certificates(what, files, now, server=False)
    if files.server_name is None and not named:
        words = f"whoever has a certificate of {files.authority.name} may pose as it (no server_name)"
        yield Finding(what, "warning", words)


def _originals(settings: NodeSettings) -> Iterator[Finding]:
    """Series whose originals no destination gets, by rule and by sender."""
    getting = {item.name for item in settings.destinations if item.send in ("originals", "both")}
    days = f"{settings.retention.keep_days:g} days"
    for number, rule in enumerate(settings.rules or [settings.rule_for("", "")], 1):
        whose = "originals"
        if rule.calling or rule.Modality:
            whose += (
                f" from {_listed(rule.calling) or 'anybody'}{f' ({_listed(rule.Modality)})' if rule.Modality else ''}"
            )
        what = f"rule {number}" if settings.rules else "destinations"
        if not rule.destinations:
            words = f"{whose} are sent nowhere (no destinations), and stay in the store until a person removes them"
            yield Finding(what, "warning", words)
        elif not getting.intersection(rule.destinations):
            words = f'{whose} are sent nowhere (send = "derived"), and stay in the store until {days} after delivery'
            yield Finding(what, "warning", f"{words} of the derived ones: then they are gone")
    if settings.rules:
        yield from _without_rule(settings)


def _without_rule(settings: NodeSettings) -> Iterator[Finding]:
    """Senders that no rule fits whatever the modality. A peer that is a destination comes to bring reports."""
    archives = {item.ae_title for item in settings.destinations}
    senders = [peer.ae_title for peer in settings.peers if peer.ae_title not in archives]
    senders += [STOW_PEER] if settings.http.stow else []
    lacking: dict[tuple[str, ...], list[str]] = {}
    for sender in senders:
        rules = [rule for rule in settings.rules if not rule.calling or sender in rule.calling]
        if all(rule.Modality for rule in rules):
            known = tuple(sorted({name for rule in rules for name in rule.Modality}))
            lacking.setdefault(known, []).append(sender)
    for known, names in lacking.items():
        whose = f"originals from {_listed(names)}{f' (other than {_listed(known)})' if known else ''}"
        words = f"{whose} are sent nowhere (no rule fits), and stay in the store until a person removes them"
        yield Finding("rules", "warning", words)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _models(settings: NodeSettings) -> Iterator[Finding]:
    if problems := model_problems():
        for problem in problems:
            yield Finding("models", "wrong", problem)
    else:
        yield Finding("models", "ok", "weights and guides are as they were made")
    from medenhance_dicom.guides import find_guides
    from medenhance_dicom.recipe import load_recipes

    asked = settings.enhance
    try:
        names = [recipe.name for recipe in load_recipes()]
    except MedenhanceError as error:
        yield Finding("enhance.recipe", "wrong", str(error))
        return
    if asked.recipe != "auto" and asked.recipe not in names:
        yield Finding("enhance.recipe", "wrong", f"no recipe {asked.recipe!r}; see `medenhance-dicom recipes list`")
    if asked.guide != "auto" and asked.guide not in find_guides():
        yield Finding("enhance.guide", "wrong", f"no guide {asked.guide!r}; see `medenhance-dicom guides list`")
    from medenhance_dicom.prepare import runtime

    try:
        device, engine, precision = runtime(asked.device, asked.engine, asked.precision)
    except MedenhanceError as error:
        yield Finding("enhance", "wrong", str(error))
    else:
        yield Finding("enhance", "ok", f"{engine} on {device} in {precision}")


def model_problems() -> list[str]:
    """What is wrong with the weights and the shipped guides, in words; reads all of them, some 50 MB."""
    from medenhance_dicom.guides import find_guides, verify_guide
    from medenhance_dicom.manifest import load_manifest, verify_all

    try:
        manifest = load_manifest()
        problems = verify_all(manifest)
        for key, path in find_guides().items():
            problems[f"guide {key}"] = verify_guide(path, manifest)
    except MedenhanceError as error:
        return [str(error)]
    return [problem for problem in problems.values() if problem]


def _database(url: str) -> Iterator[Finding]:
    problem = database_problem(url)
    yield Finding("work.database", "wrong" if problem else "ok", problem or "answers")


def database_problem(url: str) -> str | None:
    """Why a database does not answer, None when it does; never its address's user or password."""
    from sqlalchemy import create_engine, text
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

    if url.startswith("postgresql://"):
        url = "postgresql+psycopg" + url.removeprefix("postgresql")
    try:
        engine = create_engine(url, connect_args={"connect_timeout": 5} if url.startswith("postgresql") else {})
        try:
            with engine.connect() as connection:
                connection.execute(text("SELECT 1"))
        finally:
            engine.dispose()
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError):
        return "is not a database address that can be used here"
    except SQLAlchemyError as error:
        return f"does not answer ({type(error).__name__})"
    return None


# ---------------------------------------------------------------- destinations


def _probe_dimse(name: str, destination: Destination, calling_ae: str, callers: set[str]) -> Iterator[Finding]:
    """An association with verification, commitment and common storage classes, and a C-ECHO on it."""
    asked = destination.model_copy(update={"response_timeout": min(destination.response_timeout, 30.0)})
    contexts = [build_context(sop_class, _SYNTAXES) for sop_class in (_VERIFICATION, _COMMITMENT, *_COMMON)]
    where = f"{destination.ae_title} at {destination.host}:{destination.port}"
    with associated(asked, contexts, calling_ae=calling_ae) as association:
        accepted = {str(context.abstract_syntax) for context in association.accepted_contexts}
        if _VERIFICATION not in accepted:
            yield Finding(name, "ok", f"{where} accepts us; it has no C-ECHO")
        elif getattr(association.send_c_echo(), "Status", None) == 0:
            yield Finding(name, "ok", f"{where} answers C-ECHO")
        else:
            raise PeerError(f"{where} accepts us and does not answer C-ECHO")
    refused = [words for uid, words in _COMMON.items() if uid not in accepted]
    if len(refused) == len(_COMMON):
        yield Finding(name, "wrong", "accepts none of the common storage classes", peer=True)
    elif refused:
        yield Finding(name, "warning", f"does not store {', '.join(refused)}")
    if destination.commit and destination.ae_title not in callers:
        words = (
            f"{destination.ae_title} is not among the peers: commitment reports that it brings itself are turned away"
        )
        yield Finding(name, "warning", words)
    if destination.commit and _COMMITMENT not in accepted:
        words = "does not offer Storage Commitment: jobs would never be done (commit = false sends without)"
        yield Finding(name, "wrong", words, peer=True)


def _probe_stow(name: str, destination: Destination) -> Iterator[Finding]:
    """OPTIONS of the studies resource, else a QIDO-RS search for at most one study."""
    assert destination.stow is not None
    headers = {}
    if destination.authorization_file is not None:
        try:
            headers["Authorization"] = destination.authorization_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            raise ConfigurationError(f"{destination.authorization_file} cannot be read") from None
    verify = client_tls(destination.tls, named=True) if destination.tls else True
    try:
        with httpx.Client(verify=verify, headers=headers, timeout=destination.connect_timeout, trust_env=False) as web:
            answer = web.options(destination.stow)
            if answer.status_code in (404, 405, 501):
                answer = web.get(destination.stow, params={"limit": 1, "StudyInstanceUID": "2.25.0"})
    except httpx.HTTPError as error:
        raise PeerError(f"{destination.stow} does not answer ({type(error).__name__})") from error
    status = answer.status_code
    if status in (401, 403):
        raise PeerError(f"{destination.stow} does not let us in (HTTP {status})", permanent=True)
    if status >= 500 or status == 404:
        raise PeerError(f"{destination.stow} answers HTTP {status}")
    if destination.stow.startswith("http://") and not is_loopback(httpx.URL(destination.stow).host):
        yield Finding(name, "warning", "http://: patient data goes over the network in the clear")
    yield Finding(name, "ok", f"{destination.stow} answers HTTP {status}")
