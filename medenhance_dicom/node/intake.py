"""From a received file to the status that its sender is told (PS3.4 B.2.3, PS3.7 annex C), by C-STORE or STOW-RS."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medenhance_dicom.errors import MedenhanceError, UnreadableInstanceError
from medenhance_dicom.node.identity import Identity, read_identity
from medenhance_dicom.node.spool import Accepted, Fate, Spool
from medenhance_dicom.node.wire import STORAGE_CLASSES
from medenhance_dicom.transfer_syntaxes import kind_of, name_of

SUCCESS = 0x0000
DUPLICATE_SOP_INSTANCE = 0x0111
"""Other bytes under a UID that is held; the first ones are kept."""
SOP_CLASS_NOT_SUPPORTED = 0x0122
OUT_OF_RESOURCES = 0xA700
NOT_AS_ANNOUNCED = 0xA900
"""The data set is of another SOP class or instance than the command says."""
CANNOT_UNDERSTAND = 0xC000
TRANSFER_SYNTAX_NOT_SUPPORTED = 0xC122
"""PS3.18 table I.2-2; over an association such a context is not accepted in the first place."""

GUARD_BYTES = 16 << 20
"""So often is the free space looked at while a data set comes in."""

AuditLine = Callable[..., object]
"""Called as `audit(event, **facts)`; facts without patients and UIDs."""


@dataclass(frozen=True)
class Taken:
    """The answer to a sender."""

    status: int
    identity: Identity | None = None
    """None where the file could not be read."""
    accepted: Accepted | None = None
    """None where nothing was accepted."""


def take_in(
    spool: Spool,
    part: Path,
    *,
    calling_ae: str,
    called_ae: str,
    sop_class: str | None = None,
    sop_instance: str | None = None,
    digest: str | None = None,
    carried: Callable[[str], None] | None = None,
    audit: AuditLine | None = None,
) -> Taken:
    """Accept, quarantine or refuse a received file; it is gone from `incoming/` then, whatever happens.

    Args:
        spool: Where it goes.
        part: A whole file in `incoming/`.
        calling_ae: AE title of the sender.
        called_ae: AE title that it called.
        sop_class: As the command says; None: not checked.
        sop_instance: Likewise.
        digest: SHA-256 of the data set in hex, where it is known already.
        carried: Called with the series key before the instance can be seen in `pending/`.
        audit: Called for every conflict, quarantined file and transfer syntax that is not stored.

    Returns:
        With status 0x0000 only when the bytes survive a power cut.
    """
    taken = Taken(OUT_OF_RESOURCES)
    try:
        identity = read_identity(part, digest=digest)
        taken = _refusal(identity, sop_class, sop_instance) or taken
        if taken.status == TRANSFER_SYNTAX_NOT_SUPPORTED:
            _say(audit, "refused", calling_ae=calling_ae, transfer_syntax=name_of(identity.transfer_syntax))
        if taken.status == OUT_OF_RESOURCES:
            taken = Taken(OUT_OF_RESOURCES, identity)
            if carried is not None:
                carried(spool.series_key(calling_ae, identity.study, identity.series))
            accepted = spool.accept(part, identity, calling_ae=calling_ae, called_ae=called_ae)
            status = DUPLICATE_SOP_INSTANCE if accepted.fate is Fate.CONFLICT else SUCCESS
            taken = Taken(status, identity, accepted)
            if accepted.fate is Fate.CONFLICT:
                _say(audit, "conflict", calling_ae=calling_ae, instance=accepted.instance_key)
    except UnreadableInstanceError as error:
        with contextlib.suppress(OSError):
            kept = spool.quarantine(part)
            taken = Taken(CANNOT_UNDERSTAND)
            _say(audit, "quarantined", calling_ae=calling_ae, file=kept.name, why=str(error))
    except OSError:
        pass  # 0xA700: the disk is full, read-only or broken
    finally:
        if taken.status != SUCCESS:  # else it has been moved, which saves locking the folder once more
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
    return taken


def _refusal(identity: Identity, sop_class: str | None, sop_instance: str | None) -> Taken | None:
    announced = (sop_class or identity.sop_class, sop_instance or identity.sop_instance)
    if announced != (identity.sop_class, identity.sop_instance):
        return Taken(NOT_AS_ANNOUNCED, identity)
    if identity.sop_class not in STORAGE_CLASSES:
        return Taken(SOP_CLASS_NOT_SUPPORTED, identity)
    if kind_of(identity.transfer_syntax) is None:
        return Taken(TRANSFER_SYNTAX_NOT_SUPPORTED, identity)
    return None


def _say(audit: AuditLine | None, event: str, **facts: Any) -> None:
    """An instance that is on the disk is acknowledged, though the audit trail cannot be written."""
    if audit is not None:
        with contextlib.suppress(OSError, MedenhanceError):
            audit(event, **facts)
