"""The commands `calibrate` and `train-gate`."""

from __future__ import annotations

import os
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
    with progress_bar("calibrating") as tell:
        calibrated = run(key, honest, data, alpha=alpha, limit=limit, seed=seed, progress=tell)
    path = output or Path(f"{key}.json")
    write(calibrated, path)
    if as_json:
        print_json({"file": str(path), **calibrated.document})
        return
    typer.echo(calibrated.document["statement"])
    typer.echo(f"honest results withheld: {calibrated.document['results']['falsely_withheld']['share']:.1%}")
    typer.echo(str(path))


def train_gate(
    recipe: Annotated[Path, typer.Argument(help="A TOML file, or a name in pipelines/gate.")] = Path("detector"),
    data: Annotated[Path | None, typer.Option(help="Root of the data, by default $MEDENHANCE_DATA.")] = None,
    run: Annotated[Path, typer.Option(help="Folder of pairs, checkpoint and log.")] = Path("runs/detector"),
    device: Annotated[str, typer.Option("-d", "--device", help="cpu or cuda.")] = "cpu",
    workers: Annotated[int, typer.Option(min=0, help="Processes that make examples.")] = 1,
    resume: Annotated[bool, typer.Option(help="Go on from the run's last checkpoint.")] = False,
    as_json: Json = False,
) -> None:
    """Teach the gate's detector of altered structure what honest enhancement looks like; resumable.

    Then name RUN/detector.safetensors in the manifest's [detector], and calibrate anew: older limits are not its own.
    """
    from medenhance_dicom.recipe import pipelines_folder

    try:
        from medenhance_dicom.calibration.learning import DetectorRecipe, learn
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"training needs the [train] extra: {error.name} is missing") from error
    path = recipe if recipe.suffix == ".toml" else pipelines_folder() / "gate" / f"{recipe}.toml"
    loaded = DetectorRecipe.read(path)
    root = data or Path(os.environ.get("MEDENHANCE_DATA", "."))
    with progress_bar("training") as tell:
        file = learn(loaded, root, run, device=device, workers=workers, resume=resume, progress=tell)
    if as_json:
        print_json({"recipe": loaded.name, "weights": str(file), "log": str(run / "log.jsonl")})
        return
    typer.echo(str(file))
