"""The cases of single networks and of the whole model."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pix2pixhd_fast.benchmark.case import (
    FORWARD,
    FORWARD_BACKWARD,
    ON_CHANNELS,
    OWN_BACKENDS,
    PEERS,
    STEP,
    Case,
    Step,
    Unavailable,
)
from pix2pixhd_fast.benchmark.layers import build_network, network_layers, padded_size
from pix2pixhd_fast.benchmark.peers import convert
from pix2pixhd_fast.benchmark.request import DTYPES, Request
from pix2pixhd_fast.benchmark.running import backward_step, forward_step, running
from pix2pixhd_fast.benchmark.scenes import instance_ids, labels, picture, real_scene
from pix2pixhd_fast.model import Pix2PixHD
from pix2pixhd_fast.nn.encoder import Encoder
from pix2pixhd_fast.nn.losses import VGGLoss
from pix2pixhd_fast.ops import instance_boundaries
from pix2pixhd_fast.options import Options
from pix2pixhd_fast.profile import Subject, record, summarise
from pix2pixhd_fast.semantic import SemanticMap, one_hot

Size = tuple[int, int]
MODEL_TARGETS = ("synthesize", "training_step")
# Relative L2, outputs and gradients. Thirty layers that each normalise, from random weights, carry
# a rounding error on. Measured on the CPU at 64x32 and 256x128: torch.compile and peers in fp32
# 2e-5, gradients of a training step 3e-3; eager bf16 0.04 to 0.13, gradients of G 0.39. The others
# are guesses until they have run on a GPU.
TOLERANCES = {"fp32": 1e-3, "tf32": 2e-2, "fp16": 5e-2, "bf16": 2.5e-1}
GRADIENT_TOLERANCES = {"fp32": 2e-2, "tf32": 1e-1, "fp16": 2e-1, "bf16": 5e-1}
CITYSCAPES_LABELS = 35
WEIGHTS = {"bf16": "bf16", "fp16": "fp16"}


def network_passes(target: str, request: Request, size: Size, dtype: str) -> Iterator[Case]:
    """G, D, E or VGG: forward, and on demand forward+backward, for VGG that of the loss as well.

    G and D run on channels, and where they read label maps in a case of its own, in which fused is
    given the map and the others its channels, made beforehand; "fused_one_hot" makes them as a part
    of its time.
    """
    options = request.options(size)
    on_maps = target in ("G", "D") and options.label_nc > 0
    for read in ("channels", "label map")[: 1 + on_maps]:
        yield from _network_passes(target, request, size, dtype, read)


def _network_passes(
    target: str, request: Request, size: Size, dtype: str, read: str
) -> Iterator[Case]:
    options = request.options(size)
    layers = network_layers(target, options, size)
    flops = request.batch * sum(layer.flops for layer in layers)
    numbers = request.batch * sum(layer.elements for layer in layers)
    numbers += sum(layer.weights for layer in layers)
    floor = numbers * DTYPES[dtype].itemsize
    # a gradient of inputs and one of weights, which VGG has not, each cost another forward
    more = 2 if target == "VGG" else 3
    for pass_name, factor in ((FORWARD, 1), (FORWARD_BACKWARD, more)):
        tolerance = TOLERANCES if pass_name == FORWARD else GRADIENT_TOLERANCES
        peers = PEERS if (target, pass_name, read) == ("G", FORWARD, "channels") else ()
        on_channels = ON_CHANNELS if read == "label map" else ()
        yield Case(
            target,
            _network_name(target, options) + (", label map" if read == "label map" else ""),
            pass_name,
            size,
            request.batch,
            dtype,
            partial(_prepare_network, target, request, size, pass_name, read),
            OWN_BACKENDS + on_channels + peers,
            tolerance[dtype],
            factor * floor,
            factor * flops,
        )
    if target == "VGG":
        yield _vgg_loss(request, size, dtype, 3 * floor, 3 * flops)


def _vgg_loss(request: Request, size: Size, dtype: str, floor: int, flops: int) -> Case:
    """Two pictures forward, one of them backward."""
    return Case(
        "VGG",
        "loss on VGG19 to relu5_1",
        FORWARD_BACKWARD,
        size,
        request.batch,
        dtype,
        partial(_prepare_vgg_loss, request, size),
        OWN_BACKENDS,
        GRADIENT_TOLERANCES[dtype],
        floor,
        flops,
    )


def model_steps(target: str, request: Request, size: Size, dtype: str) -> Iterator[Case]:
    """One synthesis, or one training step with both updates."""
    training = target == "training_step"
    options = _model_options(request, size, training, dtype)
    weights = "fp32" if training else WEIGHTS.get(dtype, "fp32")
    subject = Subject(options, size, weights)

    def flops() -> int:
        total = summarise(subject, record(subject)).total
        return total.flops_forward + total.flops_backward

    yield Case(
        target,
        _model_name(options),
        STEP if training else FORWARD,
        size,
        request.batch,
        dtype,
        partial(_prepare_model, request, size, training),
        OWN_BACKENDS + (() if training else PEERS),
        (GRADIENT_TOLERANCES if training else TOLERANCES)[dtype],
        None,
        flops(),
    )


def _network_name(target: str, o: Options) -> str:
    return {
        "G": f"{_generator_name(o)}, {o.netG_input_nc} channels",
        "D": f"{o.num_D} scales, ndf {o.ndf}, {o.netD_input_nc} channels",
        "E": f"nef {o.nef}",
        "VGG": "VGG19 to relu5_1",
    }[target]


def _generator_name(o: Options) -> str:
    enhancers = f" with {o.n_local_enhancers} enhancers" if o.n_local_enhancers > 1 else ""
    return f"{o.netG}{enhancers if o.netG == 'local' else ''}, ngf {o.ngf}"


def _model_name(o: Options) -> str:
    features = ", features" if o.use_features else ""
    if not o.isTrain:
        return _generator_name(o) + features
    vgg = "" if o.no_vgg_loss else ", VGG"
    return f"{_generator_name(o)}{features}, {o.num_D} D{vgg}"


def _prepare_network(
    target: str,
    request: Request,
    size: Size,
    pass_name: str,
    read: str,
    backend: str,
    dtype: str,
) -> Step:
    options = request.options(size)
    net = build_network(target, options).to(request.device, DTYPES[dtype])
    make = _network_input if read == "channels" else _network_scene
    x = make(target, options, size, request.batch).to(device=request.device, dtype=DTYPES[dtype])
    if isinstance(x, SemanticMap) and backend not in ("fused", "fused_one_hot"):
        x = x.to_dense(DTYPES[dtype])
    if backend == "eager_channels_last":
        net, x = _channels_last(net), x.contiguous(memory_format=torch.channels_last)
    wanted = [p for p in net.parameters() if p.requires_grad]
    if pass_name == FORWARD_BACKWARD and not wanted:
        wanted = [x.requires_grad_()]
    more = ()
    if isinstance(net, Encoder):
        padded = padded_size("E", options, size)
        more = (instance_ids(padded, request.batch, torch.int32).to(request.device),)
    function = _runner(net, backend, dtype, x)

    def call() -> list[Tensor]:
        given = x.to_dense(DTYPES[dtype]) if backend == "fused_one_hot" else x
        return tree_leaves(function(given, *more))

    if pass_name == FORWARD:
        return forward_step(call, backend, dtype)
    return backward_step(call, wanted, backend, dtype)


def _prepare_vgg_loss(request: Request, size: Size, backend: str, dtype: str) -> Step:
    loss = VGGLoss(weights="random").to(request.device, DTYPES[dtype])
    pair = picture(size, 2 * request.batch, 3).to(request.device, DTYPES[dtype])
    if backend == "eager_channels_last":
        loss, pair = _channels_last(loss), pair.contiguous(memory_format=torch.channels_last)
    x, y = pair.split(request.batch)
    x.requires_grad_()
    function = _runner(loss, backend, dtype, x)
    return backward_step(lambda: [function(x, y)], [x], backend, dtype)


def _runner(net: nn.Module, backend: str, dtype: str, x: Tensor) -> Callable:
    if backend in PEERS:
        with running("eager", dtype):
            return convert(backend, net, dtype, x)
    if backend == "compile":
        net.compile(dynamic=False)
    return net


def _network_input(network: str, o: Options, size: Size, batch: int) -> Tensor:
    width, height = padded_size(network, o, size)
    if network in ("E", "VGG"):
        return picture((width, height), batch, o.output_nc)
    scene = labels((width, height), batch, o.label_nc) if o.label_nc else None
    channels = o.netG_input_nc if network == "G" else o.netD_input_nc
    parts = [one_hot(scene, o.label_nc, o.ignore_label)] if scene is not None else []
    rest = channels - sum(part.shape[1] for part in parts)
    return torch.cat([*parts, picture((width, height), batch, rest)], dim=1)


def _network_scene(network: str, o: Options, size: Size, batch: int) -> SemanticMap:
    """A real scene where there is one, else blocks; the other channels are those of a picture."""
    size = padded_size(network, o, size)
    found = real_scene(size, batch) if o.label_nc >= CITYSCAPES_LABELS else None
    ids, instances = found or (
        labels(size, batch, o.label_nc),
        instance_ids(size, batch, torch.int32),
    )
    edges = None if o.no_instance else instance_boundaries(instances)
    rest = (o.netG_input_nc if network == "G" else o.netD_input_nc) - o.semantic_nc
    dense = picture(size, batch, rest) if rest else None
    return SemanticMap(ids, o.label_nc, edges, dense, ignore_label=o.ignore_label)


def _prepare_model(request: Request, size: Size, training: bool, backend: str, dtype: str) -> Step:
    options = _model_options(request, size, training, dtype)
    model = Pix2PixHD(options, request.device)
    if not training:
        model.to(DTYPES[dtype])
    parts = [
        net for net in (*model.networks().values(), getattr(model, "criterionVGG", None)) if net
    ]
    if backend == "eager_channels_last":
        _channels_last(model)
    if backend == "compile":
        for part in parts:
            part.compile(dynamic=False)
    batch = _batch(options, size)
    if training:
        return _training_step(model, batch, backend, dtype)
    return _synthesis(model, batch, backend, dtype)


def _model_options(request: Request, size: Size, training: bool, dtype: str) -> Options:
    amp = dtype if training and dtype in WEIGHTS else "off"
    return request.options(size, isTrain=training, amp=amp)


def _training_step(model: Pix2PixHD, batch: dict[str, Tensor], backend: str, dtype: str) -> Step:
    def step() -> dict[str, list[Tensor]]:
        with running(backend, dtype):
            losses = model.training_step(batch)
        groups = {"losses": list(losses.values()), "picture": [model.last_fake]}
        for letter, net in model.networks().items():
            groups[f"gradient of {letter}"] = [
                p.grad for p in net.parameters() if p.grad is not None
            ]
        return groups

    return step


def _synthesis(model: Pix2PixHD, batch: dict[str, Tensor], backend: str, dtype: str) -> Step:
    low = DTYPES[dtype]
    if backend in PEERS:
        with running("eager", dtype), torch.no_grad():
            scene = model.encode_inputs(batch).scene
            if model.options.use_features:
                raise Unavailable("not with features")
            model.netG.forward = convert(backend, model.netG, dtype, scene.to(low))

    def step() -> dict[str, list[Tensor]]:
        with running(backend, dtype), torch.no_grad():
            inputs = model.encode_inputs(batch)
            if low != torch.float32:
                found = {
                    k: v.to(dtype=low)
                    for k in ("scene", "feat", "image")
                    if (v := getattr(inputs, k)) is not None
                }
                inputs = replace(inputs, **found)
            return {"output": [model.generate(inputs).float()]}

    return step


def _batch(o: Options, size: Size) -> dict[str, Tensor]:
    n = o.batchSize
    batch = {"label": labels(size, n, o.label_nc) if o.label_nc else picture(size, n, o.input_nc)}
    if not o.no_instance:
        batch["inst"] = instance_ids(size, n, torch.int32)
    if o.isTrain or o.gen_features:
        batch["image"] = picture(size, n, o.output_nc)
    if o.load_features:
        batch["feat"] = picture(size, n, o.feat_num)
    return batch


def _channels_last(net: nn.Module) -> nn.Module:
    return net.to(memory_format=torch.channels_last)
