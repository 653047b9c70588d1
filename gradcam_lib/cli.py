"""The command line, `gradcam-lib`: every command thin over the package.

What needs PyTorch is imported inside the commands, so that help and completion are there at once.
"""

import os
import sys
import warnings
from collections.abc import Callable, Collection, Iterable
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from functools import wraps
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option
from typer.core import TyperCommand, TyperGroup

from .recipes import RECIPES
from .terminal import percent, results, say, show, table, with_bar

if TYPE_CHECKING:
    from .architectures import Network

Run = Callable[..., None]

# The names that help and completion show; tests/test_cli.py holds them against the package's own.
METHODS = (
    "cam grad-cam grad-cam++ xgrad-cam hires-cam layer-cam eigen-cam eigengrad-cam score-cam ablation-cam full-grad "
    "guided-grad-cam"
).split()
GRIDS = ("methods", "classes", "layers")
DATASETS = "cifar10 cifar100 caltech101 caltech256 shapes shapes64".split()
MODELS = [*RECIPES, "efficientnet-lite0", "resnet18", "resnet50", "convnext_tiny", "vit_b_16"]


class Tidy:
    """A command in whose help a switch has no type."""

    def get_params(self, context: Any) -> list[Any]:
        params: list[Any] = super().get_params(context)  # type: ignore[misc]  # that of the command it is mixed into
        for param in params:
            if getattr(param, "is_flag", False):
                param.metavar = ""
        return params


class Command(Tidy, TyperCommand): ...


class Group(Tidy, TyperGroup): ...


app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Results go to standard output, all else to standard error. Exit codes: 0 success; 1 failure; "
    "2 wrong usage; 3 some pictures were skipped; 130 interrupted. For one command: gradcam-lib COMMAND --help.",
)
data_app = typer.Typer(cls=Group, no_args_is_help=True, help="Fetch, verify and list the data sets.")
app.add_typer(data_app, name="data")
debug = False  # --debug


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    try:
        app(args=arguments, prog_name="gradcam-lib")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def command(name: str, of: typer.Typer = app, again: str = "") -> Callable[[Run], Run]:
    """A command whose errors are a sentence and an exit code. `again` says what it does when started again."""

    def decorate(function: Run) -> Run:
        @wraps(function)
        def run(**options: Any) -> None:
            results.file = sys.stdout
            sys.path[len(sys.path) :] = {os.getcwd()} - {*sys.path}  # for --model module:function
            try:
                # What others print is no result.
                with redirect_stdout(sys.stderr), warnings.catch_warnings():
                    warnings.filterwarnings("ignore", module="torch")  # what PyTorch says to itself
                    warnings.showwarning = lambda message, *_: say(message)
                    function(**options)
            except (typer.Exit, typer.BadParameter, BrokenPipeError):
                raise
            except KeyboardInterrupt:
                say(f"interrupted; the same command {again}." if again else "interrupted.")
                raise typer.Exit(130) from None
            except Exception as error:
                if debug:
                    raise
                told = isinstance(error, ValueError | OSError) or type(error).__module__.startswith("gradcam_lib.")
                what = error if told else f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                say(what if told else f"{what} (gradcam-lib --debug … shows where)")
                raise typer.Exit(1) from None

        return of.command(name, cls=Command)(run)

    return decorate


# --- what is understood ---


def begins(names: Iterable[str]) -> Callable[[str], list[str]]:
    return lambda incomplete: [name for name in names if name.startswith(incomplete)]


def one_of(names: Collection[str]) -> dict[str, Any]:
    """What an argument or option with these values has: they are checked, completed and shown in the help."""

    def check(given: Any) -> Any:
        for name in given if isinstance(given, list) else [given]:
            if name is not None and name not in names:
                raise typer.BadParameter(f"{name!r} is none of {', '.join(names)}.")
        return given

    return {"callback": check, "autocompletion": begins(names), "help": f"One of {', '.join(names)}."}


def number_or_name(text: str) -> int | str:
    return int(text) if text.removeprefix("-").isdecimal() else text


def network(name: str, device: str | None = None) -> "Network":
    from .models import load_model
    from .world import fastest_device

    return load_model(name).to(device or fastest_device())


MODEL: dict[str, Any] = {"metavar": "NAME", "autocompletion": begins(MODELS)}
MODEL["help"] = "A trained recipe (doctor lists them); a network of torchvision, or timm/NAME; a file of torch.export "
MODEL["help"] += "or TorchScript, or a .safetensors of this library; or module:function of yours."
Model = Annotated[str, Option("--model", "-m", **MODEL)]
Device = Annotated[str | None, Option(metavar="NAME", help="cpu, cuda or mps. By default the fastest there is.")]
Json = Annotated[bool, Option("--json", help="Print one JSON document, for programs.")]
Datasets = Annotated[list[str], Argument(metavar="NAME", **one_of(DATASETS))]
GRID = one_of(GRIDS) | {"help": f"One of {', '.join(GRIDS)}: what one figure compares."}
Source: dict[str, Any] = {"metavar": "SOURCE", "autocompletion": begins(DATASETS)}


def show_version(asked: bool) -> None:
    if asked:
        print(f"gradcam-lib {version('gradcam-lib')}")
        raise typer.Exit()


@app.callback()
def common(
    context: typer.Context,
    where: Annotated[bool, Option("--debug", help="Show where in the code an error comes from.")] = False,
    _: Annotated[bool, Option("--version", help="Show the version.", callback=show_version, is_eager=True)] = False,
) -> None:
    """Grad-CAM and its family: show where a network looks, and test whether such maps can be trusted."""
    global debug
    debug = where
    os.environ.setdefault("MPLBACKEND", "agg")  # figures become files
    if not sys.stderr.isatty() and context.invoked_subcommand != "train":
        os.environ.setdefault("TQDM_DISABLE", "1")  # no bars in a file, but of a long run the sign that it lives


# --- the commands ---


@command("explain", again="goes on from here")
def explain(
    images: Annotated[list[str], Argument(metavar="IMAGE", help="Files, folders, 'patterns*', or - for stdin.")],
    model: Model,
    output: Annotated[Path, Option("--output", "-o", metavar="OUT", help="A folder; or, of one picture, a .png file.")],
    method: Annotated[
        list[str] | None, Option(metavar="NAME", **one_of(METHODS) | {"show_default": "grad-cam"})
    ] = None,
    layer: Annotated[
        list[str] | None,
        Option(metavar="NAME", help="A name that `layers` lists, or -2: the last but one.", show_default="the last"),
    ] = None,
    target: Annotated[
        list[str] | None,
        Option("--class", metavar="NAME", help="A class by name or number.", show_default="the predicted one"),
    ] = None,
    grid: Annotated[str | None, Option(metavar="WHAT", **GRID)] = None,
    raw: Annotated[bool, Option("--raw", help="Also write the map: float32, of the layer's size.")] = False,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace files that are there.")] = False,
    batch_size: Annotated[int, Option(min=1, metavar="N", help="Pictures at once; more is faster on a GPU.")] = 1,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Draw a heatmap of where the network looked over each picture.

    What is drawn is the picture as the network sees it: cropped, and scaled
    to its input size.

    A folder is read at any depth: x.jpg becomes OUT/x.jpg.png, with --raw
    also OUT/x.jpg.npy. What is there already stays, so after an interruption
    the same command goes on. What cannot be read is listed at the end, and
    the exit code is 3, or 1 if nothing could be read.

    --grid draws one figure a picture: the quick methods, the likeliest
    classes, or the layers. Repeat --method, --class or --layer to choose.

    Example: gradcam-lib explain photos --model resnet18 -o maps

    Example: gradcam-lib explain cat.jpg -m resnet18 --grid methods -o grid.png
    """
    from .pictures import explain_pictures, find_pictures
    from .stored import printable

    varied = {"methods": "method", "classes": "targets", "layers": "layer"}.get(grid or "")
    chosen: dict[str, Any] = {"method": method or [], "layer": list(map(number_or_name, layer or []))}
    chosen |= {"targets": list(map(number_or_name, target or []))}
    if any(len(values) > 1 and name != varied for name, values in chosen.items()):
        raise typer.BadParameter("Several methods, layers or classes are compared by --grid; else name one of each.")
    chosen = {name: values if name == varied else values[0] for name, values in chosen.items() if values}
    if raw and grid:
        raise typer.BadParameter("--raw is for one map, and a --grid has several.")
    if "-" in images and len(images) > 1:
        raise typer.BadParameter("Standard input (-) is one picture and comes alone.")
    pictures: dict[bytes, str] | dict[Path, str]
    pictures = {sys.stdin.buffer.read(): "stdin"} if images == ["-"] else find_pictures(images, output)
    chosen |= {"raw": raw, "grid": grid, "overwrite": overwrite, "batch_size": batch_size}
    explained = explain_pictures(network(model, device), pictures, output, **chosen)
    made, count = [], {"written": 0, "existing": 0, "skipped": 0}
    for each in with_bar(explained, len(pictures), "explaining", as_json):
        count[each.state] += 1
        if as_json or each.state == "skipped":
            made.append(asdict(each))
        elif each.state == "written":
            results.print(printable(str(each)), soft_wrap=True)
    said = ", ".join(f"{n:,} {state}" for state, n in count.items() if n)
    show(as_json, {"model": model, **count, "pictures": made}, f"{said}, in {printable(str(output))}")
    for one in made:
        if one["state"] == "skipped":
            say(f"skipped {printable(one['why'])}")
    if count["skipped"]:
        raise typer.Exit(3 if count["skipped"] < len(pictures) else 1)


@command("layers")
def layers(
    model: Model,
    size: Annotated[
        int | None,
        Option(min=1, metavar="N", help="Side of the picture, in pixels. By default what the network takes."),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the layers that can be explained; the last is the default of explain.

    With the number and size of their feature maps, and the receptive field of
    one position, in pixels a side.

    Example: gradcam-lib layers --model resnet18
    """
    from .summary import explainable

    rows = explainable(network(model, "cpu"), size)
    show(as_json, {"model": model, "layers": rows}, table(rows))


@command("describe")
def describe(
    source: Annotated[str, Argument(help="A data set, or a folder of pictures.", **Source)], as_json: Json = False
) -> None:
    """Say what is in a data set, and what is wrong with it.

    Classes, sizes, grey pictures; damaged files, duplicates, and leaks
    between training and testing. Problems that are found leave the exit code
    at 0.

    Example: gradcam-lib describe my/pictures
    """
    from .quality import describe as described

    found = described(source)
    show(as_json, found.as_dict(), str(found))


@command("get", data_app, again="fetches what is not complete")
def get(names: Datasets, as_json: Json = False) -> None:
    """Fetch data sets that are not here, and verify them.

    They are looked for in GRADCAM_DATA, if that names a folder, and stored in
    the cache; doctor says where that is.

    Example: gradcam-lib data get cifar10
    """
    from .datasets import load_dataset

    rows: list[dict[str, Any]] = []
    for name in names:
        found = load_dataset(name)
        parts = {part: len(getattr(found, part)) for part in ("train", "validation", "test")}
        rows.append({"name": name, **parts, "classes": len(found.classes), "sha256": found.sha256})
    show(as_json, rows, table([row | {"sha256": row["sha256"][:12]} for row in rows]))


@command("verify", data_app)
def verify(names: Datasets, as_json: Json = False) -> None:
    """Check stored data sets against their SHA-256; the exit code is 1 if one is damaged.

    Example: gradcam-lib data verify cifar10
    """
    from .datasets import DatasetError
    from .datasets import verify as read_again

    rows: list[dict[str, Any]] = []
    for name in names:
        try:
            rows.append({"name": name, "intact": True, "sha256": read_again(name), "why": ""})
        except DatasetError as error:
            rows.append({"name": name, "intact": False, "sha256": "", "why": str(error)})
    show(as_json, rows, table([row | {"sha256": row["sha256"][:12]} for row in rows]))
    if not all(row["intact"] for row in rows):
        raise typer.Exit(1)


@command("list", data_app)
def list_datasets(as_json: Json = False) -> None:
    """List the data sets, and which are at hand.

    Example: gradcam-lib data list
    """
    from .datasets import DATASETS, at_hand

    rows = [
        {"name": d.name, "images": d.images, "classes": d.classes, "at hand": at_hand(d.name), "licence": d.licence}
        for d in DATASETS.values()
    ]
    show(as_json, rows, table(rows))


@command("train", again="goes on from here")
def train(
    recipe: Annotated[str, Argument(metavar="RECIPE", **one_of(RECIPES))],
    seed: Annotated[int, Option(metavar="N", help="Seed of every random choice.")] = 0,
    out: Annotated[
        Path | None,
        Option(
            "--output",
            "--out",
            "-o",
            metavar="FOLDER",
            help="For the record, weights and checkpoint. By default data/records/RECIPE[-seedN] of the repository.",
        ),
    ] = None,
    device: Device = None,
    compile: Annotated[bool, Option("--compile", help="Use torch.compile: faster on a GPU.")] = False,
    deterministic: Annotated[
        bool, Option("--deterministic", help="The same bits every time, also on a GPU; slower.")
    ] = False,
    tensorboard: Annotated[
        Path | None, Option(metavar="FOLDER", help="Also write event files for TensorBoard here.")
    ] = None,
) -> None:
    """Train a recipe, write its record, and print its figures as JSON.

    After an interruption the same command goes on from its checkpoint. A
    recipe whose run was finished is trained anew, and its record replaced. A
    data set that is not here is fetched.

    Example: gradcam-lib train cifar10-fast --seed 1

    Example: torchrun --nproc-per-node 4 -m gradcam_lib train caltech256-modern
    """
    from . import training
    from .records import records_folder

    chosen = replace(RECIPES[recipe], seed=seed)
    options: dict[str, Any] = {
        "device": device,
        "compile": compile,
        "deterministic": deterministic,
        "tensorboard": tensorboard,
    }
    folder = out or records_folder() / (chosen.name + f"-seed{seed}" * bool(seed))
    run = training.train(chosen, out=folder, **options)
    if run.record is not None:  # of many workers, one says it
        show(True, run.record["metrics"])


@command("evaluate")
def evaluate(
    run: Annotated[
        str,
        Argument(metavar="RUN", autocompletion=begins(RECIPES), help="A recipe that was run, or the folder of a run."),
    ],
    as_json: Json = False,
) -> None:
    """Show the test accuracy and other figures of a run, with 95 % intervals.

    And which pairs of classes it confuses most. They come from the recorded
    predictions: no network is run.

    Example: gradcam-lib evaluate cifar10-report
    """
    from .evaluation import evaluate as measured
    from .records import read_record

    figures, pairs = measured(read_record(run))
    data: dict[str, Any] = {"run": run, "figures": figures.rename_axis("figure").reset_index().to_dict("records")}
    data["confused"] = pairs.to_dict("records")
    shown = (
        table(data["figures"]),
        "\nThe classes that are most often taken for each other, as shares of each class:",
        table(data["confused"][:10]),
    )
    show(as_json, data, *shown)


@command("audit")
def audit(
    model: Annotated[str, Argument(**MODEL | {"metavar": "MODEL"})],
    source: Annotated[
        str,
        Argument(
            help="A data set, of which the test images are taken; or a folder with one folder for each class.", **Source
        ),
    ],
    output: Annotated[
        Path | None, Option("--output", "-o", metavar="FILE", help="Also write the report here, as HTML.")
    ] = None,
    images: Annotated[int, Option(min=1, metavar="N", help="How many test images, drawn at random.")] = 256,
    method: Annotated[str, Option(metavar="NAME", **one_of(METHODS))] = "grad-cam",
    layer: Annotated[
        str | None, Option(metavar="NAME", help="A name that `layers` lists. By default the last.")
    ] = None,
    seed: Annotated[int, Option(metavar="N", help="Seed of that draw.")] = 0,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Test a network and its maps.

    Fifteen tests of its accuracy and calibration, of the faithfulness of its
    maps, and of the labels: each passes, warns, fails, or is not tested. What
    fails leaves the exit code at 0.

    Example: gradcam-lib audit cifar10-report cifar10 -o audit.html
    """
    from torchvision.datasets import ImageFolder

    from .auditing import audit as tried
    from .datasets import load_dataset

    if source not in DATASETS and not Path(source).is_dir():
        raise typer.BadParameter(f"There is no folder {source!r}, and no data set; those are {', '.join(DATASETS)}.")
    data = load_dataset(source).test if source in DATASETS else ImageFolder(source)
    chosen: dict[str, Any] = {
        "images": images,
        "method": method,
        "layer": layer and number_or_name(layer),
        "seed": seed,
    }
    found = tried(network(model, device), data, out=output, **chosen)
    verdicts = found.verdicts.reset_index().to_dict("records")
    suspects = found.images[found.images["why"] != ""].to_dict("records")
    rows = [{name: row[name] for name in ("test", "verdict", "value", "bar", "meaning")} for row in verdicts]
    where = [f"\nThe report, with the pictures: {output}"] if output else []
    show(as_json, {"about": found.about, "verdicts": verdicts, "suspects": suspects}, table(rows), *where)


@command("results")
def list_results(as_json: Json = False) -> None:
    """List every recipe: the test accuracy measured here, and what others report.

    On Caltech it is the mean over the classes. Spread is the standard
    deviation over seeds. By whom: --json.

    Example: gradcam-lib results
    """
    from .records import ledger

    rows = ledger().to_dict("records")
    shown = [
        {
            "recipe": row["recipe"],
            "measured": percent(row["measured"]),
            "spread": percent(row["spread"], 2),
            "seeds": row["seeds"],
            "minutes": row["minutes"],
            "reported": row["reported"].partition(" (")[0],  # by whom stands in the JSON, and in the book
        }
        for row in rows
    ]
    show(as_json, rows, table(shown))


@command("doctor")
def doctor(as_json: Json = False) -> None:
    """Check the installation, and say how to mend what is missing.

    Versions, accelerator, data sets, weights. "missing" is what only some
    commands need; "bad" is what all need, and then the exit code is 1.

    Example: gradcam-lib doctor
    """
    from .doctor import check_up

    found = [finding._asdict() for finding in check_up()]
    show(as_json, found, table(found))
    if any(finding["state"] == "bad" for finding in found):
        raise typer.Exit(1)
