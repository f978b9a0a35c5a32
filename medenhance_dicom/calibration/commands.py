"""The command `calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medenhance_dicom.errors import ConfigurationError
from medenhance_dicom.node.console import Json, print_json, progress_bar


def calibrate(
    data: Annotated[list[Path], typer.Option("--data", metavar="DIR", help="A folder of pictures; repeatable.")],
    weights: Annotated[str | None, typer.Option(metavar="KEY", help="Limits for these weights.")] = None,
    recipe: Annotated[str | None, typer.Option(metavar="NAME", help="Limits for what this recipe makes.")] = None,
    alpha: Annotated[
        float, typer.Option(min=0.001, max=0.5, help="Share of honest results that may be withheld.")
    ] = 0.05,
    limit: Annotated[int, typer.Option(min=10, help="Pictures to test on; twice as many to calibrate on.")] = 70,
    seed: Annotated[int, typer.Option(help="Decides on everything that is drawn.")] = 0,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="By default KEY.json or NAME.json here.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Set the gate's limits from honest results, and test on other patients what altered ones it would release.

    Without --weights and --recipe: limits for conventional methods of every kind.
    """
    from medenhance_dicom.calibration.calibrate import calibrate as run
    from medenhance_dicom.calibration.calibrate import write
    from medenhance_dicom.calibration.enhancers import honest_of

    if weights and recipe:
        raise ConfigurationError("either --weights or --recipe")
    key, honest = honest_of(weights, recipe)
    with progress_bar("calibrating", quiet=as_json) as tell:
        calibrated = run(key, honest, data, alpha=alpha, limit=limit, seed=seed, progress=tell)
    path = output or Path(f"{key}.json")
    write(calibrated, path)
    if as_json:
        print_json({"file": str(path), **calibrated.document})
        return
    typer.echo(calibrated.document["statement"])
    typer.echo(f"honest results withheld: {calibrated.document['results']['falsely_withheld']['share']:.1%}")
    typer.echo(str(path))
