"""The step that is traced: a model on fake tensors, which have shapes and no memory."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.model import Pix2PixHD
from pix2pixhd_fast.nn.norms import keep_running_statistics
from pix2pixhd_fast.options import Options
from pix2pixhd_fast.profile.tracer import Recording, Tracer

WEIGHTS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Subject:
    """What is looked at: a model by its options, a size (width, height), a number type of weights.

    `options.isTrain` chooses the training step (Adam included) or the synthesis of a picture.
    Weights other than "fp32" are for synthesis: weights and activations are of that type then,
    unlike under `amp`, which keeps the weights in float32. Raises `InputError` for what cannot be.
    """

    options: Options
    size: tuple[int, int]
    weights: str = "fp32"

    def __post_init__(self):
        if min(self.size) < 1:
            raise InputError(f"size must be at least 1x1, got {self.size[0]}x{self.size[1]}")
        if self.weights not in WEIGHTS:
            raise InputError(f"weights must be one of {', '.join(WEIGHTS)}, got {self.weights!r}")
        if self.weights != "fp32" and (self.options.isTrain or self.options.amp != "off"):
            raise InputError(
                f"weights {self.weights} are for synthesis without amp: training keeps its weights "
                "in fp32, and amp casts them"
            )

    @property
    def name(self) -> str:
        """One line for headings."""
        o = self.options
        what = "training step" if o.isTrain else "synthesis"
        precision = f"amp {o.amp}" if o.amp != "off" else self.weights
        scales = f", {o.num_D} D{'' if o.no_vgg_loss else ', VGG'}" if o.isTrain else ""
        width, height = self.size
        return (
            f"{what} {width}x{height}, batch {o.batchSize}, netG {o.netG}, ngf {o.ngf}{scales}, "
            f"{precision}"
        )


def record(subject: Subject, warm_up: bool = True) -> Recording:
    """Trace one step of `subject`; with `warm_up` the second one, when Adam has its state.

    Nothing is computed and no memory is taken; 2 to 5 s. The number of instances of a picture, on
    which the memory of E depends a little, is taken to be 100.
    """
    model_subject = replace(subject, options=_for_tracing(subject.options))
    with FakeTensorMode():
        model = build(model_subject, "cpu")
        batch = make_batch(model_subject)
        tracer = Tracer(model)
        for key in kept_inputs(subject.options):
            tracer.add(batch[key], "inputs")
        step = stepper(model, batch, subject.weights)
        with tracer, _followed_optimisers(tracer, model):
            if warm_up and subject.options.isTrain:
                step()
            tracer.restart()
            step()
        _classify(tracer, model)
        tracer.stop()
    return tracer.recording


def build(subject: Subject, device: str) -> Pix2PixHD:
    """The model; Adam works on lists of tensors where it is not fused, as by default on a GPU."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(WEIGHTS[subject.weights])
    try:
        model = Pix2PixHD(subject.options, device)
    finally:
        torch.set_default_dtype(before)
    if subject.options.isTrain:
        for optimizer in (model.optimizers.G, model.optimizers.D):
            for group in optimizer.param_groups:
                group["foreach"] = not group["fused"]
    return model


def make_batch(subject: Subject) -> dict[str, Tensor]:
    """A batch of zeros as the loader makes them, on the CPU."""
    o = subject.options
    width, height = subject.size
    shape = (o.batchSize, 1, height, width)
    batch = {"label": torch.zeros(shape, dtype=torch.uint8)}
    if not o.label_nc:
        batch["label"] = torch.zeros(o.batchSize, o.input_nc, height, width)
    if not o.no_instance:
        batch["inst"] = torch.zeros(shape, dtype=torch.int32)
    if o.isTrain or o.gen_features:
        batch["image"] = torch.zeros(o.batchSize, o.output_nc, height, width)
    if o.load_features:
        batch["feat"] = torch.zeros(o.batchSize, o.feat_num, height, width)
    return batch


def kept_inputs(o: Options) -> list[str]:
    """What of a batch stays on the card during the step: labels and instances are encoded first."""
    kept = ["image"] if o.isTrain or o.gen_features else []
    if o.use_features:
        kept.append("label" if o.label_feat else "inst")
    return kept + ["feat"] * o.load_features


def stepper(model: Pix2PixHD, batch: dict[str, Tensor], weights: str) -> Callable[[], object]:
    """The step as a function of nothing."""
    if model.options.isTrain:
        return lambda: model.training_step(batch)
    if weights == "fp32":
        return lambda: model.synthesize(**batch)
    return lambda: _synthesize_in(model, batch, WEIGHTS[weights])


@torch.no_grad()
def _synthesize_in(model: Pix2PixHD, batch: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
    inputs = model.encode_inputs(batch)
    names = [name for name in ("scene", "feat", "image") if getattr(inputs, name) is not None]
    inputs = replace(inputs, **{name: getattr(inputs, name).to(dtype=dtype) for name in names})
    with keep_running_statistics(model):
        return model.generate(inputs).float()


def _for_tracing(o: Options) -> Options:
    """The same without what needs files, a GPU or a terminal."""
    return replace(o, vgg_weights="random", device="cpu", verbose=False)


@contextmanager
def _followed_optimisers(tracer: Tracer, model: Pix2PixHD) -> Iterator[None]:
    """Tell the tracer when an optimiser works, and which storages are gradients then."""
    if not model.options.isTrain:
        yield
        return
    owners = {p: name.rpartition(".")[0] for name, p in model.named_parameters()}
    for optimizer in (model.optimizers.G, model.optimizers.D):
        step = optimizer.step

        def followed(*args, step=step, **kwargs):
            for p, owner in owners.items():
                if p.grad is not None:
                    tracer.add(p.grad, "gradients", owner)
            with tracer.optimiser():
                return step(*args, **kwargs)

        optimizer.step = followed
    yield


def _classify(tracer: Tracer, model: Pix2PixHD) -> None:
    """Name the kind of every storage that has none yet."""
    recording = tracer.recording
    if model.options.isTrain:
        owners = {p: name.rpartition(".")[0] for name, p in model.named_parameters()}
        for optimizer in (model.optimizers.G, model.optimizers.D):
            for p, state in optimizer.state.items():
                for value in state.values():
                    tracer.add(value, "optimiser", owners[p])
    end = recording.forward_end
    for block in recording.blocks:
        if not block.kind:
            outlives = end is None or (
                block.born < end and (block.died is None or block.died >= end)
            )
            block.kind = "activations" if outlives else "workspace"
