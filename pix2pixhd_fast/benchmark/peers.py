"""Other engines, where they are installed: they get G as PyTorch exports it."""

import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from pix2pixhd_fast.benchmark.case import Unavailable
from pix2pixhd_fast.benchmark.request import DTYPES

_PACKAGES = {
    "onnxruntime": ("onnxruntime", "onnx", "onnxscript"),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt", "onnx", "onnxscript"),
}


def convert(name: str, net: nn.Module, dtype: str, x: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a function like `net` for inputs like `x`, run by the peer `name`.

    Raises `Unavailable` where a package is missing, or the peer does not run this device or dtype.
    """
    for package in _PACKAGES[name]:
        if importlib.util.find_spec(package) is None:
            raise Unavailable(f"{package} not installed")
    return {"onnxruntime": _onnxruntime, "openvino": _openvino, "tensorrt": _tensorrt}[name](
        net, dtype, x
    )


def _openvino(net: nn.Module, dtype: str, x: Tensor) -> Callable[[Tensor], Tensor]:
    if x.device.type != "cpu":
        raise Unavailable("for the CPU only")
    import openvino

    precision = {"fp32": "f32", "bf16": "bf16"}[dtype]
    net, x = net.float(), x.float()
    with torch.no_grad():
        model = openvino.convert_model(net, example_input=x, input=[list(x.shape)])
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.compile_model(model, "CPU", settings)
    return lambda x: torch.from_numpy(compiled([x.float().numpy()])[0])


def _onnxruntime(net: nn.Module, dtype: str, x: Tensor) -> Callable[[Tensor], Tensor]:
    if x.device.type != "cpu":
        raise Unavailable("for the CPU only")
    if dtype != "fp32":
        raise Unavailable("fp32 only")
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        path = _exported(net, x, Path(folder))
        session = onnxruntime.InferenceSession(path, settings, ["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    return lambda x: torch.from_numpy(session.run(None, {given.name: x.numpy()})[0])


def _tensorrt(net: nn.Module, dtype: str, x: Tensor) -> Callable[[Tensor], Tensor]:
    """Not yet run on a GPU."""
    if x.device.type != "cuda":
        raise Unavailable("for a GPU only")
    import tensorrt as trt

    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    with tempfile.TemporaryDirectory() as folder:
        if not parser.parse_from_file(_exported(net, x, Path(folder))):
            raise Unavailable("refuses the exported network")
    config = builder.create_builder_config()
    if dtype != "tf32":
        config.clear_flag(trt.BuilderFlag.TF32)
    engine = trt.Runtime(logger).deserialize_cuda_engine(
        builder.build_serialized_network(network, config)
    )
    context = engine.create_execution_context()
    given, result = (engine.get_tensor_name(n) for n in range(2))

    def run(x: Tensor) -> Tensor:
        y = torch.empty(
            tuple(engine.get_tensor_shape(result)), dtype=DTYPES[dtype], device=x.device
        )
        context.set_tensor_address(given, x.contiguous().data_ptr())
        context.set_tensor_address(result, y.data_ptr())
        context.execute_async_v3(torch.cuda.current_stream().cuda_stream)
        return y

    return run


def _exported(net: nn.Module, x: Tensor, folder: Path) -> str:
    path = folder / "network.onnx"
    with torch.no_grad():
        program = torch.onnx.export(net, (x,), dynamo=True, verbose=False)
    program.save(path, external_data=True)
    return str(path)
