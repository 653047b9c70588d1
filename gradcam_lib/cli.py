"""The command line, `gradcam-lib`: every command thin over the package."""

import argparse
import json
import sys
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
    training.add_argument("--out", type=Path, help="folder of the record (default: data/records/RECIPE)")
    training.add_argument("--device", help="cpu, cuda or mps (default: the fastest there is)")

    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "data":
            found = load_dataset(chosen.name)
            parts = {part: len(getattr(found, part)) for part in ("train", "validation", "test")}
            print(json.dumps({"title": found.info.title, **parts, "sha256": found.sha256}, indent=2))
        else:
            out = chosen.out or records_folder() / chosen.recipe
            print(json.dumps(train(RECIPES[chosen.recipe], out=out, device=chosen.device).record["metrics"], indent=2))
    except (DatasetError, TrainingError, ValueError) as error:
        print(f"gradcam-lib: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("gradcam-lib: interrupted; the same command goes on from here.", file=sys.stderr)
        return 130
    return 0
