#!/usr/bin/env bash
# pynetdicom 3.0.4: an association request that nobody answers in time ends as "aborted", as if the peer had aborted it.
#
# Expected: where the requestor's own ACSE timeout ends the wait, `is_aborted` stays False: it stands beside
# `is_rejected` and `is_established` as something that the peer said, and the peer said nothing at all.
# Seen: `is_aborted` is True and EVT_ABORTED fires. That nothing came from the peer shows only in EVT_ACSE_RECV, which never fires.
# Why it matters: a program that reports by these flags tells its operator that the peer broke the association off, who then looks
# for a refusal in the peer's log where there is none; the peer is slow, or its port is another service's.
#
# Output seen:
#   established False rejected False aborted True, events: aborted
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q pynetdicom==3.0.4
"$folder/venv/bin/python" - <<'PYTHON'
import socket

from pynetdicom import AE, evt

with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection and says nothing
    events = []
    entity = AE()
    entity.acse_timeout = 1
    entity.add_requested_context("1.2.840.10008.1.1")
    association = entity.associate(
        "127.0.0.1",
        silent.getsockname()[1],
        evt_handlers=[
            (evt.EVT_ACSE_RECV, lambda event: events.append("received")),
            (evt.EVT_ABORTED, lambda event: events.append("aborted")),
        ],
    )
    flags = association.is_established, association.is_rejected, association.is_aborted
print("established {} rejected {} aborted {}, events: {}".format(*flags, ", ".join(events)))
raise SystemExit(flags != (False, False, True) or events != ["aborted"])
PYTHON
