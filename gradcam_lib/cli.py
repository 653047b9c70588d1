"""The command line, `gradcam-lib`: every command thin over the package."""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from .datasets import DATASETS, DatasetError, load_dataset
from .records import records_folder
from .training import RECIPES, TrainingError, train


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 could not be done, 2 not understood, 130 interrupted."""
    parser = argparse.ArgumentParser(
        prog="gradcam-lib", description="Data sets and measured runs of the Grad-CAM book."
    )
    commands = parser.add_subparsers(dest="command", required=True)

    data = commands.add_parser("data", help="fetch and verify a data set, and say what is in it")
    data.add_argument("name", choices=DATASETS)

    training = commands.add_parser("train", help="train a recipe whole and record it; goes on after an interruption")
    training.add_argument("recipe", choices=RECIPES)
    training.add_argument("--seed", type=int, default=0, help="of everything that chance decides (default: 0)")
    training.add_argument("--out", type=Path, help="folder of the record (default: data/records/RECIPE[-seedN])")
    training.add_argument("--device", help="cpu, cuda or mps (default: the fastest there is)")
    training.add_argument("--compile", action="store_true", help="make one program of the network: faster on a GPU")
    training.add_argument("--deterministic", action="store_true", help="the same bits every time, also on a GPU")
    training.add_argument("--tensorboard", type=Path, metavar="FOLDER", help="also write event files for TensorBoard")

    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "data":
            found = load_dataset(chosen.name)
            parts = {part: len(getattr(found, part)) for part in ("train", "validation", "test")}
            print(json.dumps({"title": found.info.title, **parts, "sha256": found.sha256}, indent=2))
        else:
            recipe = replace(RECIPES[chosen.recipe], seed=chosen.seed)
            name = recipe.name + (f"-seed{recipe.seed}" if recipe.seed else "")
            run = train(
                recipe,
                out=chosen.out or records_folder() / name,
                device=chosen.device,
                compile=chosen.compile,
                deterministic=chosen.deterministic,
                tensorboard=chosen.tensorboard,
            )
            if run.record is not None:  # of many workers, one says it
                print(json.dumps(run.record["metrics"], indent=2))
    except (DatasetError, TrainingError, ValueError) as error:
        print(f"gradcam-lib: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("gradcam-lib: interrupted; the same command goes on from here.", file=sys.stderr)
        return 130
    return 0
