"""The complete model: networks, input encoding, synthesis and the training step."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pix2pixhd_fast._backend import current_backend
from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.nn.define import define_D, define_G, print_network
from pix2pixhd_fast.nn.losses import GANLoss, VGGLoss
from pix2pixhd_fast.nn.norms import keep_running_statistics
from pix2pixhd_fast.nn.weight_format import hold_as_read
from pix2pixhd_fast.ops.instance_boundaries import instance_boundaries
from pix2pixhd_fast.options import Options
from pix2pixhd_fast.semantic import (
    SemanticMap,
    append_channels,
    check_labels,
    one_hot,
    pad_by_edge,
)
from pix2pixhd_fast.training import step
from pix2pixhd_fast.training.distributed import ALONE, World
from pix2pixhd_fast.training.optimizers import Optimizers
from pix2pixhd_fast.training.pool import ImagePool

Batch = dict[str, Tensor]

_AUTOCAST = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Inputs:
    """What the networks read, on the device: `size` (H, W) as asked for, `padded` (H', W').

    scene: a `SemanticMap` that stands for [N, semantic_nc, H', W'], or under "eager", and where
    `label_nc` is 0, that tensor in float32; ids (instances or labels, for E): integer [N, 1, H',
    W']; feat: float32 [N, feat_num, H', W']; image: float32 [N, output_nc, H, W], not padded.
    """

    size: tuple[int, int]
    padded: tuple[int, int]
    scene: Tensor | SemanticMap
    ids: Tensor | None
    feat: Tensor | None
    image: Tensor | None

    def cropped_scene(self) -> Tensor | SemanticMap:
        """The scene at the size that was asked for: what D reads."""
        scene = self.scene
        return scene.crop(self.size) if isinstance(scene, SemanticMap) else self.crop(scene)

    def crop(self, x: Tensor) -> Tensor:
        """Cut the padding off."""
        return x[..., : self.size[0], : self.size[1]]


class Pix2PixHD(nn.Module):
    """pix2pixHD by `Options`: `netG`, `netD` (in training), `netE` (encoded features), else None.

    `device` (default: by `options`) is "cpu", "cuda", "cuda:1" or a `torch.device`. The initial
    weights depend on `options.seed` alone; the global random state is neither read nor changed.
    Pictures of any size from 1x1: inputs are padded to what the networks need and results cropped
    back. In a `world` of several processes every one has such a model, and they train as one.
    """

    def __init__(
        self,
        options: Options | None = None,
        device: str | torch.device | None = None,
        world: World = ALONE,
    ):
        super().__init__()
        self.options = o = options if options is not None else Options()
        device = resolve_device(o, device)
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(o.seed)  # of the CPU; CUDA's stay as they are
            self.netG = define_G(o.netG_input_nc, o.output_nc, o.ngf, *_generator_arguments(o))
            self.netD = self._define_D() if o.isTrain else None
            self.netE = self._define_E() if o.gen_features else None
            if o.isTrain:
                self.criterionGAN = GANLoss(use_lsgan=not o.no_lsgan)
                self.criterionVGG = None if o.no_vgg_loss else VGGLoss(weights=o.vgg_weights)
        if device.type != "cpu":  # fake parameters refuse even a move to where they are
            self.to(device)
        if current_backend() != "eager":
            first = (o.netG_input_nc, o.netD_input_nc) if o.label_nc else ()
            hold_as_read(self.networks().values(), of_labels=first)
        if o.isTrain:
            self.pool = ImagePool(o.pool_size, o.seed + world.rank)
            self.optimizers = Optimizers(o, self.netG, self.netD, self.netE, world)
        if o.verbose:
            for net in self.networks().values():
                print_network(net)

    def _define_D(self) -> nn.Module:
        o = self.options
        return define_D(
            o.netD_input_nc,
            o.ndf,
            o.n_layers_D,
            o.norm,
            use_sigmoid=o.no_lsgan,
            num_D=o.num_D,
            getIntermFeat=not o.no_ganFeat_loss,
        )

    def _define_E(self) -> nn.Module:
        o = self.options
        return define_G(o.output_nc, o.feat_num, o.nef, "encoder", o.n_downsample_E, norm=o.norm)

    @property
    def device(self) -> torch.device:
        """The device of the networks."""
        return next(self.netG.parameters()).device

    @property
    def loss_names(self) -> list[str]:
        """The losses that the options leave on."""
        off = {"G_GAN_Feat": self.options.no_ganFeat_loss, "G_VGG": self.options.no_vgg_loss}
        return [name for name in step.LOSS_NAMES if not off.get(name)]

    def networks(self) -> dict[str, nn.Module]:
        """The networks by the letter of their checkpoints: "G", and "D", "E" where there are."""
        found = {"G": self.netG, "D": self.netD, "E": self.netE}
        return {letter: net for letter, net in found.items() if net is not None}

    def autocast(self) -> torch.autocast:
        """The precision of the networks, as a context."""
        dtype = _AUTOCAST[self.options.amp]
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    def encode_inputs(self, batch: Batch) -> Inputs:
        """Check a batch, move it to the device and turn it into what the networks read.

        Keys as in `training_step`. The channels of the scene are those of the original: one-hot of
        the labels (no class for `ignore_label`), then the boundary map of the instances.
        """
        o = self.options
        batch = _checked(batch, o)
        size = tuple(batch["label"].shape[2:])
        padded = tuple(_padded(side, o.size_multiple) for side in size)
        on_device = {k: v.to(self.device, non_blocking=True) for k, v in batch.items()}
        maps = {k: pad_by_edge(v, padded) for k, v in on_device.items() if k != "image"}
        ids = None
        if o.use_features:
            ids = maps["label" if o.label_feat else "inst"]
            ids = ids.labels if isinstance(ids, SemanticMap) else ids
        scene = self._scene(maps)
        return Inputs(size, padded, scene, ids, maps.get("feat"), on_device.get("image"))

    def _scene(self, maps: dict[str, Tensor | SemanticMap]) -> Tensor | SemanticMap:
        """Labels and boundaries as the networks read them."""
        o, label = self.options, maps["label"]
        edges = None if o.no_instance else instance_boundaries(maps["inst"])
        if isinstance(label, SemanticMap):
            return label.with_edges(edges)
        scene = one_hot(label, o.label_nc, o.ignore_label) if o.label_nc else label
        return scene if edges is None else torch.cat((scene, edges.float()), dim=1)

    def generate(self, inputs: Inputs) -> Tensor:
        """Run E where features are used and not given, then G.

        Returns [N, output_nc, H, W] in [-1, 1], channels_last where it is made of a label map by
        fused layers.
        """
        scene = inputs.scene
        if self.options.use_features:
            feat = inputs.feat
            if feat is None:
                feat = self.netE(pad_by_edge(inputs.image, inputs.padded), inputs.ids)
            scene = append_channels(scene, feat)
        return inputs.crop(self.netG(scene))

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """Update G (with E) and D once; return the losses before the update, detached scalars.

        With `micro_batch` the images go through the networks so many at a time, and the gradients
        add up. In a world of several processes the batch is this one's share, all have equally
        many images, gradients are the means over the processes, and losses are of the share.

        `batch`: "label" integer ids [N, 1, H, W] (or float [N, input_nc, H, W] when `label_nc` is
        0), "inst" integer ids [N, 1, H, W] unless `no_instance`, "image" float [N, output_nc, H, W]
        in [-1, 1], "feat" [N, feat_num, H, W] with `load_features`; other keys are left alone.
        Returns "G_GAN", "G_GAN_Feat", "G_VGG", "D_real", "D_fake"; what the options switch off is
        zero. `last_fake` keeps the synthesised picture. Raises `InputError` for a batch that does
        not fit.
        """
        batch = self._training_batch(batch)
        parts = self._micro_batches(batch)
        losses, fakes = dict.fromkeys(step.LOSS_NAMES, 0), []
        for number, part in enumerate(parts, start=1):
            share = len(part["label"]) / len(batch["label"])
            inputs, last = self.encode_inputs(part), number == len(parts)
            found, fake = step.backward(self, inputs, share, accumulate=number > 1, last=last)
            if len(parts) > 1:
                found = {name: losses[name] + share * found[name] for name in losses}
            losses = found
            fakes.append(fake)
        self.optimizers.step()
        self.last_fake = torch.cat(fakes) if len(fakes) > 1 else fakes[0]
        return losses

    def training_inputs(self, batch: Batch) -> Inputs:
        """`encode_inputs` of a batch of `training_step`, which it checks first."""
        return self.encode_inputs(self._training_batch(batch))

    def _training_batch(self, batch: Batch) -> Batch:
        if not self.options.isTrain:
            raise InputError(
                "training_step needs a model built with isTrain=True, got isTrain=False"
            )
        needed = ["image"] + ["feat"] * self.options.load_features
        for key in needed:
            if key not in batch:
                raise InputError(f"batch has no {key!r}, which training with these options needs")
        if not self.options.load_features:
            batch = {key: value for key, value in batch.items() if key != "feat"}
        return batch

    def _micro_batches(self, batch: Batch) -> list[Batch]:
        size = self.options.micro_batch
        if not size:
            return [batch]
        used = _checked(batch, self.options)
        parts = {key: batch[key].split(size) for key in used}
        return [dict(zip(parts, part, strict=True)) for part in zip(*parts.values(), strict=True)]

    @torch.no_grad()
    def synthesize(
        self,
        label: Tensor,
        inst: Tensor | None = None,
        image: Tensor | None = None,
        feat: Tensor | None = None,
    ) -> Tensor:
        """Synthesise pictures, float32 [N, output_nc, H, W] in [-1, 1]; never builds a graph.

        Shapes as in `training_step`. With instance features, `feat` gives them, or `image` is
        encoded. Batch norm of a model in training mode (as the original tests) normalises by the
        batch; its running statistics are used in `eval()` mode and never updated.
        """
        given = {"label": label, "inst": inst, "image": image, "feat": feat}
        inputs = self.encode_inputs({k: v for k, v in given.items() if v is not None})
        if (
            self.options.use_features
            and inputs.feat is None
            and (image is None or self.netE is None)
        ):
            raise InputError("this model uses instance features: give image to encode, or feat")
        with keep_running_statistics(self), self.autocast():
            return self.generate(inputs).float().contiguous()


def resolve_device(options: Options, device: str | torch.device | None = None) -> torch.device:
    """The device to use: `device`, else of the options `device`, then `gpu_ids`, else the CPU."""
    name = options.device if device is None else str(device)
    if name == "auto":
        first = options.gpus[0]
        name = f"cuda:{first}" if first >= 0 and torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(name)
    except RuntimeError:
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise InputError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device is {name}, but {torch.cuda.device_count()} CUDA devices are visible: use cpu"
        )
    return found


def _generator_arguments(o: Options) -> tuple:
    return (
        o.netG,
        o.n_downsample_global,
        o.n_blocks_global,
        o.n_local_enhancers,
        o.n_blocks_local,
        o.norm,
    )


def _padded(side: int, multiple: int) -> int:
    """The next multiple, at least two: a residual block reflects one pixel at the bottom."""
    return max(-(-side // multiple), 2) * multiple


def _typed(tensor: Tensor, key: str, ids: bool) -> Tensor:
    """Pictures and features as float32; ids in a signed type or uint8, which can be compared."""
    if ids and (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool):
        raise InputError(f"{key} must hold integer ids, got {tensor.dtype}")
    if not ids and not tensor.is_floating_point():
        raise InputError(f"{key} must hold floating values in [-1, 1], got {tensor.dtype}")
    if not ids:
        return tensor.float()
    return tensor.long() if tensor.dtype in (torch.uint16, torch.uint32, torch.uint64) else tensor


def _checked(batch: Batch, o: Options) -> dict[str, Tensor | SemanticMap]:
    """The entries that the options use, label ids as a `SemanticMap` unless under "eager".

    Raises `InputError` where one is missing or does not fit.
    """
    channels = {"label": 1 if o.label_nc else o.input_nc, "image": o.output_nc}
    required = ["label"]
    if not o.no_instance:
        channels["inst"] = 1
        required.append("inst")
    if o.use_features:
        channels["feat"] = o.feat_num
    for key in required:
        if key not in batch:
            raise InputError(f"batch has no {key!r}, which these options need")
    used = {key: batch[key] for key in channels if key in batch}
    for key, tensor in used.items():
        expected = (*batch["label"].shape[:1], channels[key], *batch["label"].shape[2:])
        if tensor.dim() != 4 or tensor.shape != expected or 0 in expected:
            raise InputError(
                f"{key} must be [N, {channels[key]}, H, W] like label, got {list(tensor.shape)}"
            )
        used[key] = _typed(tensor, key, ids=key == "inst" or (key == "label" and o.label_nc > 0))
    if o.label_nc and current_backend() == "eager":
        check_labels(used["label"], o.label_nc, o.ignore_label)
    elif o.label_nc:
        used["label"] = SemanticMap(used["label"], o.label_nc, ignore_label=o.ignore_label)
    return used
