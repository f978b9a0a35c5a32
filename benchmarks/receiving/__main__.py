"""How fast instances are received, beside DCMTK and Orthanc, in one run on one disk.

    python -m benchmarks.receiving [--rounds 3] [--seconds 8] [--folder DIR] [-o receiving.json]
    python -m benchmarks.receiving --delay 20 [...]
    python -m benchmarks.receiving --parts node [...]

Runs itself in a network namespace of its own (DCMTK and Orthanc listen on every interface), so it needs the right to
make one. Ours flushes every instance before it says 0x0000; Orthanc has SyncStorageArea on; DCMTK flushes nothing.
Senders are DCMTK's storescu, as it comes and with TCP_NODELAY=1; DCMTK's and Orthanc's receivers then have that too, as
their answers would stall otherwise. A cell is the median over the rounds of instances per second, all associations
together, from the first sender's start to the last one's end; the servers take turns, so that a machine that gets slower
does so for all.

Parts: `servers` is that table. `large` is the peak memory of the process that took one object of 207 MB: a receiver
alone, and that of the whole node. `node` is one association into the whole node (`node run`, everything mounted) while
its worker enhances with a network of the manifest, beside the same node with the rule `enhance = false`.

`--delay MS` puts the servers in another network namespace with a round trip of MS between (see `network.delayed`): the
whole of it is on the side of the servers' answers. Then there are no other parts.

Files of a cell are emptied when it is over and removed at the end of the run: see `cells.empty`. What the run removes
slows down the next one on the same file system for about six minutes; a run that comes too soon says so, and has
`creation_ms_before` in its results.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.receiving.cells import (
    creation_ms,
    flush,
    measure_cell,
    measure_large,
    measure_large_into_node,
    measure_node,
)
from benchmarks.receiving.instances import KINDS, LARGE_FRAMES, make_instances, make_pictures
from benchmarks.receiving.network import LOOPBACK, delayed
from benchmarks.receiving.report import BUSY, IDLE, Cells, judge, judge_large, judge_node, table
from benchmarks.receiving.servers import SERVERS

PARTS = ("servers", "large", "node")
SENDERS = ("stock", "TCP_NODELAY")
MOST_BYTES = 40e9
SERIES_OF_PICTURES = 40
"""Pictures of one series to enhance."""
SLOW_CREATION_MS = 0.1
PICTURES_PER_SECOND = 40
"""More than any worker that this was tried on enhances."""

Rounds = dict[str, dict[str, list[float]]]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.receiving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="at most, of one sender")
    parser.add_argument("--count", type=int, default=0, help="instances of one sender; 0: enough for the seconds")
    parser.add_argument("--delay", type=float, default=0.0, metavar="MS", help="round trip between sender and server")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--folder", type=Path, default=Path(), help="on the disk to be measured")
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = [4 * _count(options, kind) * _bytes(kind) for kind in KINDS]
    most = sum(sizes) + max(sizes) + 2e9  # the senders' files, a cell's, and the other parts'
    if most > MOST_BYTES:
        parser.error(f"that would take {most / 1e9:.0f} GB of disk; give fewer --seconds or a smaller --count")
    if not options.inside:
        words = [sys.executable, "-m", "benchmarks.receiving", *sys.argv[1:], "--inside"]
        os.execvp("unshare", ["unshare", "-n", "bash", "-c", 'ip link set lo up; exec "$@"', "receiving", *words])
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        result, verdicts = _measure(options, Path(scratch))
    print()
    for aim, met in verdicts.items():
        print(f"{'met' if met else 'MISSED'}: {aim}")
    if options.output:
        options.output.write_text(json.dumps(result | {"aims": verdicts}, indent=1) + "\n")


def _measure(options: argparse.Namespace, disk: Path) -> tuple[dict[str, object], dict[str, bool]]:
    parts = ("servers",) if options.delay else options.parts
    sent = {kind: [disk / f"{KINDS[kind][0]}-{number}" for number in range(4)] for kind in KINDS}
    for kind, folders in sent.items():
        for folder in folders[: 4 if "servers" in parts else 1]:
            make_instances(folder, _count(options, kind), *KINDS[kind])
    flush(disk)
    result: dict[str, object] = {
        "rounds": options.rounds, "seconds": options.seconds, "delay_ms": options.delay,
        "processors": os.cpu_count(), "creation_ms_before": (creation := creation_ms(disk)),
    }  # fmt: skip
    if creation > SLOW_CREATION_MS:
        print(f"creating a file takes {creation:.2f} ms: was much removed here just now? See --help", file=sys.stderr)
    verdicts: dict[str, bool] = {}
    if "servers" in parts:
        with delayed(options.delay, disk) if options.delay else contextlib.nullcontext(LOOPBACK) as network:
            if options.delay:
                print(f"a round trip takes {network.round_trip_ms:.2f} ms, by {network.by}")
                result |= {"delayed_by": network.by, "round_trip_ms": network.round_trip_ms}
            rounds: Rounds = {}
            for cell, folders, nodelay in _cells(options.rounds, sent, (1, 4)):
                for server in SERVERS:
                    rate = measure_cell(server, folders, nodelay, options.seconds, disk, network)
                    _note(rounds, cell, server, rate)
        medians = _medians(rounds)
        verdicts |= judge(medians, delayed=options.delay > 0)
        result |= {"instances_per_second": medians, "each_round": rounds}
        print(table(medians))
    if "large" in parts:
        make_instances(disk / "large", 1, 512, 16, frames=LARGE_FRAMES)
        alone, whole = measure_large(disk / "large", disk), measure_large_into_node(disk / "large", disk)
        verdicts |= judge_large(alone, whole)
        result |= {"large": alone, "large_into_node": whole}
        for what, facts in (("207 MB object", alone), ("207 MB object into the whole node", whole)):
            print(f"\n{what}: peak {facts['peak_mb']:.0f} MB, {facts['seconds']:.1f} s")
    if "node" in parts:
        medians, facts = _measure_node(options, sent, disk)
        verdicts |= judge_node(medians)
        result |= {"instances_per_second_of_node": medians, "each_round_of_node": facts}
        print("\n" + table(medians, [IDLE, BUSY]))
    result["creation_ms_after"] = creation_ms(disk)
    return result, verdicts


def _measure_node(
    options: argparse.Namespace, sent: dict[str, list[Path]], disk: Path
) -> tuple[Cells, dict[str, dict[str, list[dict[str, float]]]]]:
    series = 1 + int(PICTURES_PER_SECOND * (options.seconds + 10) / SERIES_OF_PICTURES)
    make_pictures(disk / "pictures", series, SERIES_OF_PICTURES)
    rounds: Rounds = {}
    facts: dict[str, dict[str, list[dict[str, float]]]] = {}
    for cell, (instances,), nodelay in _cells(options.rounds, sent, (1,)):
        for name in (IDLE, BUSY):
            found = measure_node(instances, disk / "pictures", name == BUSY, nodelay, options.seconds, disk)
            _note(rounds, cell, name, found["instances_per_second"])
            facts.setdefault(cell, {}).setdefault(name, []).append(found)
    return _medians(rounds), facts


def _cells(
    rounds: int, sent: dict[str, list[Path]], associations: tuple[int, ...]
) -> Iterator[tuple[str, list[Path], bool]]:
    """Name, a folder for each association, whether the sender has TCP_NODELAY."""
    for _ in range(rounds):
        for kind, folders in sent.items():
            for several in associations:
                for sender in SENDERS:
                    name = f"{kind}, {several} association{'s' * (several > 1)}, {sender}"
                    yield name, folders[:several], sender == "TCP_NODELAY"


def _note(rounds: Rounds, cell: str, name: str, rate: float) -> None:
    rounds.setdefault(cell, {}).setdefault(name, []).append(rate)
    print(f"{cell}, {name}: {rate:.1f}/s", file=sys.stderr)


def _medians(rounds: Rounds) -> Cells:
    return {cell: {name: statistics.median(r) for name, r in rates.items()} for cell, rates in rounds.items()}


def _bytes(kind: str) -> int:
    side, bits = KINDS[kind]
    return side * side * bits // 8


def _count(options: argparse.Namespace, kind: str) -> int:
    """Instances of one sender. With a delay each waits for at least one round trip."""
    rate = 300 if _bytes(kind) > 1e5 else 500
    return options.count or 1 + int(options.seconds * min(rate, 1000 / options.delay if options.delay else rate))


if __name__ == "__main__":
    main()
