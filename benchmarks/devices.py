"""What a network costs on a small device: size, multiply-adds, and the time of an answer, in five forms.

    OMP_NUM_THREADS=1 python benchmarks/devices.py      # some minutes on one core

Each network as PyTorch in float32, bfloat16 and float16, and as ONNX in float32 and in eight bits (static, a scale for
each output channel of a layer, calibrated on training images; with weights in eight bits, and in seven). Times are of
one thread, and of its processor alone, so that what else the machine does counts less: all forms in turn, round after
round, and of each the median. Rows go to data/records/small-devices-avx2 or -avx512, by the vector instructions that
PyTorch finds.
"""

import logging
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from safetensors.torch import save
from timing import interleaved

import gradcam_lib as gc
from gradcam_lib.batches import in_order
from gradcam_lib.decoded import decode
from gradcam_lib.records import describe_machine, records_folder, write_record

INSTRUCTIONS = torch.backends.cpu.get_cpu_capability()
RECORD = records_folder() / f"small-devices-{INSTRUCTIONS.lower()}"
NETWORKS = {  # name: data set, test images, calibration images, sizes of a batch, rounds
    "cifar10-report-50": ("cifar10", 1_000, 500, (1, 64), 9),
    "cifar10-fast": ("cifar10", 500, 500, (1, 64), 5),  # a processor without 16-bit arithmetic takes 0.1 s a picture
    # Its thousand classes are not Caltech-101's: only whether its forms agree can be said.
    "efficientnet-lite0": ("caltech101", 100, 100, (1, 8), 3),
}


class Images(CalibrationDataReader):
    """Calibration images for ONNX Runtime, in batches of 50."""

    def __init__(self, x):
        self.batches = iter([{"x": part.numpy()} for part in x.split(50)])

    def get_next(self):
        return next(self.batches, None)


def forms(model, x, folder):
    """{form: (size of its file in bytes, function from images to logits)}; x are the calibration images."""
    made = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        state = {
            key: value.to(dtype) if value.is_floating_point() else value for key, value in model.state_dict().items()
        }
        made[name] = len(save(state)), in_torch(model, dtype)
    exported, prepared = folder / "float32.onnx", folder / "prepared.onnx"
    batch = {"x": {0: torch.export.Dim("batch")}}
    torch.onnx.export(model, (x[:2],), exported, input_names=["x"], dynamic_shapes=batch, dynamo=True, verbose=False,
                      external_data=False)  # fmt: skip
    quant_pre_process(exported, prepared, skip_symbolic_shape=True)
    made["ONNX float32"] = exported.stat().st_size, in_onnx(exported)
    for name, reduced in (("ONNX int8", False), ("ONNX int8, 7-bit weights", True)):
        file = folder / f"{name}.onnx"
        # Seven bits, since a processor without VNNI instructions adds two products in 16 bits, and cuts off what
        # does not fit.
        quantize_static(prepared, file, Images(x), per_channel=True, weight_type=QuantType.QInt8, reduce_range=reduced)
        made[name] = file.stat().st_size, in_onnx(file)
    return made


def in_torch(model, dtype):
    copy = gc.load_model(model.name).to(dtype)
    copy.prepare = model.prepare

    @torch.inference_mode()
    def run(x):
        return copy(x.to(dtype)).float()

    return run


def in_onnx(file):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


def images_of(model, part, number):
    device = torch.device("cpu")
    # Of all classes, also where they are in order.
    chosen = part.take(np.linspace(0, len(part) - 1, number).astype(int))
    x = torch.cat([batch.contiguous() for batch in in_order(chosen, model.prepare, device, 100)])
    return x, chosen.targets


def measured(network):
    dataset, tested, calibrated, batches, rounds = NETWORKS[network]
    model, data = gc.load_model(network), gc.load_dataset(dataset)
    if dataset == "caltech101":
        data = decode(data, model.prepare.resize)
    x, y = images_of(model, data.test, tested)
    known, _ = images_of(model, data.train, calibrated)
    summary = gc.summarise(model, (3, model.prepare.size, model.prepare.size))
    with tempfile.TemporaryDirectory() as folder:
        made = forms(model, known, Path(folder))
        answers = {
            form: torch.cat([run(part) for part in x.split(50)]).argmax(1).numpy() for form, (_, run) in made.items()
        }
        seconds = {
            n: interleaved(
                {form: lambda run=run, n=n: run(x[:n]) for form, (_, run) in made.items()}, rounds, time.process_time
            )
            for n in batches
        }
    for form, (size, _) in made.items():
        row = {"network": network, "form": form, "parameters": summary.parameters}
        row |= {"multiply_adds": summary.multiply_adds, "bytes": size, "images": len(y)}
        row["accuracy"] = (answers[form] == y).mean() if len(data.classes) == len(model.classes) else float("nan")
        row["agreement"] = (answers[form] == answers["float32"]).mean()
        row |= {"rounds": rounds, "batch": batches[1]}
        yield row | {"one_ms": 1e3 * seconds[1][form], "batch_ms": 1e3 * seconds[batches[1]][form]}


def main():
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = []
    for network in NETWORKS:
        for row in measured(network):
            rows.append(row)
            print(
                {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}, flush=True
            )
    about = describe_machine(torch.device("cpu")) | {"instructions": INSTRUCTIONS}
    about["versions"] |= {name: version(name) for name in ("onnx", "onnxruntime", "onnxscript")}
    write_record(
        RECORD, {"command": "OMP_NUM_THREADS=1 python benchmarks/devices.py", **about}, pd.DataFrame(rows).round(4)
    )


if __name__ == "__main__":
    main()
