"""The node's configuration: one TOML file, every key with a line under it."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from medenhance_dicom.errors import ConfigurationError
from medenhance_dicom.tables import checked, read_table

AETitle = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=16, pattern=r"^[ -\[\]-~]+$")
]
"""Application entity title, PS3.5 section 6.2: printable ASCII without backslash, 1 to 16 characters."""
Port = Annotated[int, Field(ge=0, le=65535)]
Send = Literal["derived", "originals", "both"]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TLSFiles(_Table):
    """Key, certificate and the authority that the other side's certificate has to come from; PEM files."""

    certificate: Path
    key: Path
    authority: Path
    port: Port = 2762
    """Of the listener (PS3.15 B.12); peers and destinations have their own."""
    server_name: str | None = None
    """Of a DICOM peer or destination: the DNS name or address that its certificate has to bear; none: any certificate
    of `authority` will do. With STOW-RS the host of the URL always has to be in it."""


class Listener(_Table):
    """Where and how instances come in."""

    ae_title: AETitle = "MEDENHANCE"
    bind: str = "127.0.0.1"
    port: Port = 11112
    """0 for none in the clear: TLS alone."""
    tls: TLSFiles | None = None
    receivers: Annotated[int, Field(ge=1, le=64)] = 1
    """Processes that accept on the same port."""
    maximum_associations: Annotated[int, Field(ge=1)] = 20
    """Of one process."""
    maximum_associations_of_a_peer: Annotated[int, Field(ge=1)] = 4
    maximum_pdu: Annotated[int, Field(ge=4096, le=1 << 20)] = 131072
    acse_timeout: Annotated[float, Field(gt=0)] = 10.0
    """Seconds from an accepted connection to an established association, or to the head of an HTTP request."""
    dimse_timeout: Annotated[float, Field(gt=0)] = 60.0
    network_timeout: Annotated[float, Field(gt=0)] = 300.0
    """Seconds of an idle association."""
    socket_timeout: Annotated[float, Field(gt=0)] = 30.0
    """Seconds that one read may wait in the middle of a PDU, and in which an HTTP body has to bring 1 KiB."""
    reserve_bytes: Annotated[int, Field(ge=0)] = 2 << 30
    """Free disk space below which nothing more is received (0xA700)."""


class Peer(_Table):
    """An application entity that may call us."""

    ae_title: AETitle
    hosts: tuple[str, ...] = ()
    """Addresses or networks (10.1.0.0/16) it may call from; none listed: any."""
    idle_seconds: Annotated[float, Field(gt=0)] | None = None
    """Replaces `completeness.idle_seconds`."""
    host: str | None = None
    """Where it listens: for Storage Commitment reports and C-MOVE."""
    port: Port | None = None
    tls: TLSFiles | None = None
    """Of our calls to it there; none: in the clear."""
    query: bool = False
    """May ask what is held and retrieve it: C-FIND, C-GET, C-MOVE."""

    @field_validator("hosts")
    @classmethod
    def _networks(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            ip_network(host, strict=False)  # a ValueError that names it
        return hosts

    @model_validator(mode="after")
    def _tls_has_an_address(self) -> Peer:
        if self.tls is not None and (self.host is None or self.port is None):
            raise ValueError("tls is for our calls to it: needs host and port")
        return self

    def may_call_from(self, address: str | None) -> bool:
        """Whether it is one of `hosts`."""
        if not self.hosts:
            return True
        try:
            caller = ip_address(address or "")
        except ValueError:
            return False
        caller = getattr(caller, "ipv4_mapped", None) or caller
        return any(caller in ip_network(host, strict=False) for host in self.hosts)


class Completeness(_Table):
    """When a series is taken to be complete."""

    idle_seconds: Annotated[float, Field(gt=0)] = 30.0
    """Without a new instance, and with no open association that carried the series."""
    maximum_seconds: Annotated[float, Field(gt=0)] = 3600.0
    """From its first instance; then what is there is processed, and the job says "partial"."""
    count_at: str | None = None
    """Destination that is asked by C-FIND how many instances the series has."""


class Enhancing(_Table):
    """How series are enhanced; as the options of `enhance`."""

    recipe: str = "auto"
    guide: str = "auto"
    device: str = "auto"
    engine: Literal["auto", "torch", "openvino"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    gate: Literal["withhold", "warn", "off", "blend"] = "withhold"
    allow: tuple[str, ...] = ()
    """Modalities that are off by default: CT, MG."""
    sign_key: Path | None = None
    """Site key, or a folder whose last one signs the derived objects."""


class Destination(_Table):
    """Where series are sent: a DICOM peer by C-STORE, a DICOMweb server by STOW-RS, or a folder."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9_-]+$")]
    ae_title: AETitle | None = None
    host: str | None = None
    port: Port | None = None
    tls: TLSFiles | None = None
    stow: str | None = None
    """URL of the studies resource, https://archive/dicom-web/studies, in place of AE title, host and port."""
    folder: Path | None = None
    """A folder on disk; files go to FOLDER/STUDY/SERIES/INSTANCE.dcm, by UIDs."""
    authorization_file: Path | None = None
    """Holds the value of the Authorization header."""
    send: Send = "both"
    commit: bool = True
    """Ask for Storage Commitment, by DIMSE only."""
    commit_seconds: Annotated[float, Field(gt=0)] = 600.0
    """Until a commitment that was not reported is asked for anew."""
    connect_timeout: Annotated[float, Field(gt=0)] = 5.0
    response_timeout: Annotated[float, Field(gt=0)] = 300.0

    @model_validator(mode="after")
    def _one_address(self) -> Destination:
        dimse = (self.ae_title, self.host, self.port)
        others = sum(way is not None for way in (self.stow, self.folder))
        if others == 0 and None in dimse:
            raise ValueError("needs ae_title, host and port, or stow, or folder")
        if others and any(value is not None for value in dimse):
            raise ValueError(f"has both a DICOM address and {'stow' if self.stow is not None else 'folder'}")
        if others > 1:
            raise ValueError("has both stow and folder")
        return self


class Rule(_Table):
    """Which series go where; the first rule that fits decides. No rule at all: every series to every destination."""

    destinations: tuple[str, ...]
    calling: tuple[AETitle, ...] = ()
    """AE titles of senders; none: any."""
    Modality: tuple[str, ...] = ()
    enhance: bool = True
    """False: pass on as it came."""


class Work(_Table):
    """Durable work."""

    database: str = ""
    """SQLAlchemy URL, `postgresql://user@host/name` for workers on several hosts; empty: SQLite in the store."""
    workers: Annotated[int, Field(ge=0, le=256)] = 1
    """Series that this host works on at once; 0: `worker` processes elsewhere do."""
    attempts: Annotated[int, Field(ge=1)] = 20
    """Of a step, with growing pauses, before a job is a dead letter; with these pauses about two hours."""
    first_pause: Annotated[float, Field(gt=0)] = 5.0
    """Seconds after the first failure; doubled each time up to `longest_pause`."""
    longest_pause: Annotated[float, Field(gt=0)] = 600.0
    heartbeat_seconds: Annotated[float, Field(gt=0)] = 5.0
    silent_seconds: Annotated[float, Field(gt=0)] = 60.0
    """A worker silent for that long is taken to be dead, and its jobs are recovered by the others."""


class Retention(_Table):
    """When local files may go. Never before every destination that commits has committed."""

    keep_days: Annotated[float, Field(ge=0)] = 7.0
    maximum_bytes: Annotated[int, Field(gt=0)] | None = None
    """Disk budget: the oldest finished jobs go first; unfinished work is never removed."""
    keep_withheld_days: Annotated[float, Field(ge=0)] = 30.0
    """For what the gate withheld, in STORE/withheld/JOB: to be looked at, and released by a person; 0: not kept."""


class AuditTrail(_Table):
    """The trail of what happened, `audit/audit.jsonl` in the store."""

    anchor: Path | None = None
    """File that holds its last line's number and digest, kept where those who can write the store cannot, so that
    `audit verify` sees lines that were cut off."""


class HTTP(_Table):
    """Health, metrics and STOW-RS."""

    bind: str = "127.0.0.1"
    port: Port = 8042
    """0 for none."""
    stow: bool = False
    """Accept STOW-RS at /dicom-web/studies."""
    token_file: Path | None = None
    """Holds the bearer token that STOW-RS asks for; needed where `bind` is not loopback."""
    maximum_body_bytes: Annotated[int, Field(gt=0)] = 4 << 30


class NodeSettings(_Table):
    """The whole file. Read it with `load_settings`."""

    store: Path
    """Folder of the spool, the jobs, the database and the audit trail; one file system."""
    listener: Listener = Listener()
    peers: tuple[Peer, ...] = ()
    """Who may call; nobody else gets in."""
    completeness: Completeness = Completeness()
    enhance: Enhancing = Enhancing()
    destinations: tuple[Destination, ...] = ()
    rules: tuple[Rule, ...] = ()
    work: Work = Work()
    retention: Retention = Retention()
    audit: AuditTrail = AuditTrail()
    http: HTTP = HTTP()

    @model_validator(mode="after")
    def _names_known(self) -> NodeSettings:
        names = [destination.name for destination in self.destinations]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"destinations: {name!r} twice")
        asked = [name for rule in self.rules for name in rule.destinations]
        if self.completeness.count_at is not None:
            asked.append(self.completeness.count_at)
        for name in asked:
            if name not in names:
                raise ValueError(f"no destination {name!r}")
        titles = [peer.ae_title for peer in self.peers]
        if len(set(titles)) != len(titles):
            raise ValueError("peers: an AE title twice")
        return self

    def peer(self, ae_title: str) -> Peer | None:
        """The peer of an AE title, None for a stranger."""
        return next((peer for peer in self.peers if peer.ae_title == ae_title.strip()), None)

    def destination(self, name: str) -> Destination:
        """The destination of that name.

        Raises:
            KeyError: There is none.
        """
        return {destination.name: destination for destination in self.destinations}[name]

    def rule_for(self, calling: str, modality: str) -> Rule:
        """The first rule that fits; without rules every series goes everywhere, with none that fits nowhere."""
        if not self.rules:
            return Rule(destinations=tuple(destination.name for destination in self.destinations))
        for rule in self.rules:
            if rule.calling and calling not in rule.calling:
                continue
            if rule.Modality and modality not in rule.Modality:
                continue
            return rule
        return Rule(destinations=())


def load_settings(path: Path) -> NodeSettings:
    """Read a configuration; relative paths in it are relative to its folder.

    Raises:
        ConfigurationError: Not there, not TOML, or a key that is missing, unknown or wrong; names file and key.
    """
    settings = checked(NodeSettings, read_table(path, ConfigurationError), path, ConfigurationError)
    return _at(settings, path.parent)


def _at(value: Any, folder: Path) -> Any:
    if isinstance(value, Path):
        return folder / value
    if isinstance(value, tuple):
        return tuple(_at(item, folder) for item in value)
    if isinstance(value, _Table):
        return value.model_copy(update={name: _at(getattr(value, name), folder) for name in type(value).model_fields})
    return value
