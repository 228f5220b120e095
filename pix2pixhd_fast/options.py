"""Every option of a pix2pixHD project: the original's names and defaults, and ours."""

import math
from dataclasses import dataclass, field, fields

from pix2pixhd_fast.errors import InputError

RESIZE_OR_CROP = ("resize_and_crop", "crop", "scale_width", "scale_width_and_crop", "none")
AMP = ("off", "bf16", "fp16")
NO_LIMIT = 2**63 - 1


def _option(default, help: str, phase: str = "both", choices: tuple[str, ...] = ()):
    """A field with its help, its commands (train, test, both) and its choices."""
    return field(default=default, metadata={"help": help, "phase": phase, "choices": choices})


@dataclass(kw_only=True)
class Options:
    """The options of pix2pixHD, names and defaults of the original (`options/*.py`), and ours.

    Keyword arguments only. Raises `InputError`, one sentence, for a value or a combination that
    cannot work. Ours: `isTrain`, `device`, `amp`, `seed`, `micro_batch`, `checkpoint`,
    `memory_limit`, `vgg_weights`, `ignore_label`. `phase` defaults to "train" or "test" by
    `isTrain`. Sizes are in pixels, frequencies in images, `niter*` in epochs, memory in GiB.
    """

    # experiment
    isTrain: bool = _option(True, "build the discriminator, the losses and the optimisers", "none")
    name: str = _option("label2city", "name of the experiment: the folder under --checkpoints_dir")
    gpu_ids: str = _option("0", "CUDA devices, for example 0 or 0,1; -1 for the CPU (see --device)")
    device: str = _option(
        "auto", "auto (by --gpu_ids, the CPU where there is no GPU), cpu, cuda, cuda:1"
    )
    checkpoints_dir: str = _option("./checkpoints", "checkpoints are kept here")
    model: str = _option("pix2pixHD", "the model; there is one", choices=("pix2pixHD",))
    norm: str = _option("instance", "normalisation", choices=("instance", "batch"))
    use_dropout: bool = _option(False, "accepted as in the original, where it has no effect")
    data_type: int = _option(32, "16 is the same as --amp fp16; 8 and 32 have no effect")
    verbose: bool = _option(False, "print the networks")
    seed: int = _option(0, "seed of everything random: weights, order, crops, flips, pool")
    amp: str = _option(
        "off", "reduced precision of the networks (weights stay float32)", choices=AMP
    )
    fp16: bool = _option(False, "the same as --amp fp16")
    local_rank: int = _option(0, "accepted as in the original, without effect")

    # data
    batchSize: int = _option(1, "images per step, of all processes together")
    loadSize: int = _option(1024, "width (scale_width*) or side (resize_and_crop) to scale to")
    fineSize: int = _option(512, "side of the crop")
    label_nc: int = _option(
        35, "number of label classes; 0 for pictures as input (folders _A and _B)"
    )
    ignore_label: int = _option(255, "this id belongs to no class (all-zero one-hot); -1 for none")
    input_nc: int = _option(3, "channels of the input pictures when --label_nc is 0")
    output_nc: int = _option(3, "channels of the output pictures")
    dataroot: str = _option(
        "./datasets/cityscapes/", "folder that holds train_label, train_inst, ..."
    )
    resize_or_crop: str = _option(
        "scale_width", "how pictures are scaled and cropped", "both", RESIZE_OR_CROP
    )
    serial_batches: bool = _option(False, "take pictures in order instead of shuffled")
    no_flip: bool = _option(False, "do not mirror pictures at random")
    nThreads: int = _option(2, "worker processes that load data; 0 loads in the main process")
    max_dataset_size: int = _option(NO_LIMIT, "use at most this many pictures")

    # pages and logs
    display_winsize: int = _option(512, "width of pictures on the HTML pages")
    tf_log: bool = _option(False, "write TensorBoard scalars and images")

    # generator
    netG: str = _option(
        "global", "global (G1) or local (G1 + enhancers)", choices=("global", "local")
    )
    ngf: int = _option(64, "channels of the outermost first layer of G")
    n_downsample_global: int = _option(4, "stride-2 layers of G1")
    n_blocks_global: int = _option(9, "residual blocks of G1")
    n_blocks_local: int = _option(3, "residual blocks of each enhancer")
    n_local_enhancers: int = _option(1, "enhancers: 1 is G1+G2, 2 is G1+G2+G3")
    niter_fix_global: int = _option(0, "epochs that train only the outermost enhancer")

    # instance-wise features
    no_instance: bool = _option(False, "no instance maps, no boundary channel")
    instance_feat: bool = _option(
        False, "add encoded features, averaged over instances, to the input of G"
    )
    label_feat: bool = _option(False, "as --instance_feat, averaged over labels")
    feat_num: int = _option(3, "channels of the encoded features")
    load_features: bool = _option(False, "read precomputed features from the _feat folder")
    n_downsample_E: int = _option(4, "stride-2 layers of the encoder")
    nef: int = _option(16, "channels of the first layer of the encoder")
    n_clusters: int = _option(10, "accepted as in the original, without effect")

    # loading
    phase: str = _option("", "prefix of the data folders (default: train or test)")
    which_epoch: str = _option("latest", "checkpoint to load: latest or an epoch number")

    # training
    display_freq: int = _option(100, "images between pictures on the training page", "train")
    print_freq: int = _option(100, "images between lines of loss_log.txt", "train")
    save_latest_freq: int = _option(1000, "images between writes of the latest checkpoint", "train")
    save_epoch_freq: int = _option(10, "epochs between kept checkpoints", "train")
    no_html: bool = _option(False, "no training page", "train")
    debug: bool = _option(
        False, "one epoch of 10 pictures, everything shown at every step", "train"
    )
    continue_train: bool = _option(False, "go on from --which_epoch of this experiment", "train")
    load_pretrain: str = _option(
        "", "start from the networks in this folder (G1 for G1+G2)", "train"
    )
    niter: int = _option(100, "epochs at the first learning rate", "train")
    niter_decay: int = _option(100, "epochs of linear decay to zero", "train")
    beta1: float = _option(0.5, "first momentum of Adam", "train")
    lr: float = _option(0.0002, "first learning rate of Adam", "train")
    num_D: int = _option(2, "scales of the discriminator", "train")
    n_layers_D: int = _option(3, "stride-2 layers of each discriminator", "train")
    ndf: int = _option(64, "channels of the first layer of the discriminators", "train")
    lambda_feat: float = _option(10.0, "weight of the feature-matching and VGG losses", "train")
    no_ganFeat_loss: bool = _option(False, "no discriminator feature matching", "train")
    no_vgg_loss: bool = _option(False, "no VGG loss", "train")
    no_lsgan: bool = _option(False, "cross-entropy instead of least squares", "train")
    pool_size: int = _option(0, "past synthesised pictures kept for the discriminator", "train")
    micro_batch: int = _option(
        0,
        "images of a step that a process takes through the networks at a time, for less memory; "
        "gradients add up to those of the whole batch; 0 for all",
        "train",
    )
    checkpoint: str = _option(
        "none",
        "what of G is computed again in its backward instead of kept: nothing, blocks or all",
        "train",
        ("none", "blocks", "all"),
    )
    memory_limit: float = _option(
        0.0,
        "GiB that training may take: picks the --checkpoint that fits; 0: any",
        "train",
    )
    vgg_weights: str = _option(
        "", "VGG19 weights: a file, or the word random (default: torchvision's cache)", "train"
    )

    # testing
    ntest: int = _option(NO_LIMIT, "use at most this many pictures", "test")
    results_dir: str = _option("./results/", "results are kept here", "test")
    aspect_ratio: float = _option(1.0, "widen the saved pictures by this factor", "test")
    how_many: int = _option(50, "pictures to synthesise", "test")
    use_encoded_image: bool = _option(
        False, "features come from the real picture, through E", "test"
    )
    cluster_path: str = _option(
        "features_clustered_010.npy", "accepted as in the original, without effect", "test"
    )

    def __post_init__(self):
        for option in fields(self):
            value = getattr(self, option.name)
            if option.type is float and isinstance(value, int) and not isinstance(value, bool):
                setattr(self, option.name, value := float(value))
            if option.name in ("max_dataset_size", "ntest") and value == math.inf:
                setattr(self, option.name, value := NO_LIMIT)
            if not isinstance(value, option.type) or (
                option.type is int and isinstance(value, bool)
            ):
                raise InputError(
                    f"{option.name} must be of type {option.type.__name__}, got {value!r}"
                )
            choices = option.metadata["choices"]
            if choices and value not in choices:
                raise InputError(
                    f"{option.name} must be one of {', '.join(choices)}, got {value!r}"
                )
        self.phase = self.phase or ("train" if self.isTrain else "test")
        if self.debug:
            self.display_freq = self.print_freq = self.niter = 1
            self.niter_decay, self.max_dataset_size = 0, min(10, self.max_dataset_size)
        if self.fp16 or self.data_type == 16:
            if self.amp == "bf16":
                raise InputError("amp bf16 and fp16 (or data_type 16) contradict each other")
            self.amp = "fp16"
        _check_ranges(self)
        _check_combinations(self)

    @property
    def gpus(self) -> list[int]:
        """The numbers in `gpu_ids`; raises `InputError` where it holds anything else."""
        try:
            return [int(number) for number in self.gpu_ids.split(",")]
        except ValueError:
            raise InputError(
                f"gpu_ids must be numbers like 0 or 0,1, or -1, got {self.gpu_ids!r}"
            ) from None

    @property
    def use_features(self) -> bool:
        """Whether G has feature channels."""
        return self.instance_feat or self.label_feat

    @property
    def gen_features(self) -> bool:
        """Whether there is an encoder E (features are computed, not read)."""
        return self.use_features and not self.load_features

    @property
    def needs_image(self) -> bool:
        """Whether a sample holds the real picture."""
        return self.isTrain or self.use_encoded_image

    @property
    def semantic_nc(self) -> int:
        """Channels that describe the scene: one-hot labels (or input picture) and boundary map."""
        return (self.label_nc or self.input_nc) + (not self.no_instance)

    @property
    def netG_input_nc(self) -> int:
        """Input channels of G: scene and features."""
        return self.semantic_nc + (self.feat_num if self.use_features else 0)

    @property
    def netD_input_nc(self) -> int:
        """Input channels of D: scene and picture."""
        return self.semantic_nc + self.output_nc

    @property
    def size_multiple(self) -> int:
        """G and E work on heights and widths that are multiples of this, in pixels."""
        enhancers = self.n_local_enhancers if self.netG == "local" else 0
        levels = self.n_downsample_global + enhancers
        return 2 ** max(levels, self.n_downsample_E if self.gen_features else 0)


_AT_LEAST = {
    0: "niter niter_decay niter_fix_global n_blocks_global n_blocks_local nThreads pool_size "
    "label_nc seed micro_batch",
    1: "batchSize loadSize fineSize input_nc output_nc display_winsize ngf n_downsample_global "
    "n_local_enhancers feat_num n_downsample_E nef n_clusters display_freq print_freq "
    "save_latest_freq save_epoch_freq num_D n_layers_D ndf max_dataset_size ntest how_many",
}

_AT_MOST = {
    # each halves the picture, or doubles the channels: typing errors, before they fill the memory
    10: "n_downsample_global n_local_enhancers n_downsample_E num_D",
    2**31 - 1: "label_nc ignore_label",
    2**63 - 1: "seed",
}


def _check_ranges(o: Options) -> None:
    for least, names in _AT_LEAST.items():
        for name in names.split():
            if getattr(o, name) < least:
                raise InputError(f"{name} must be at least {least}, got {getattr(o, name)}")
    for most, names in _AT_MOST.items():
        for name in names.split():
            if getattr(o, name) > most:
                raise InputError(f"{name} must be at most {most}, got {getattr(o, name)}")
    for name in ("lr", "aspect_ratio"):
        if not 0 < getattr(o, name) < math.inf:
            raise InputError(f"{name} must be a positive number, got {getattr(o, name)}")
    if not 0 <= o.lambda_feat < math.inf:
        raise InputError(f"lambda_feat must be a number that is not negative, got {o.lambda_feat}")
    if not 0 <= o.memory_limit < math.inf:
        raise InputError(f"memory_limit must be GiB, or 0 for none, got {o.memory_limit}")
    if not 0 <= o.beta1 < 1:
        raise InputError(f"beta1 must be in [0, 1), got {o.beta1}")
    if o.data_type not in (8, 16, 32):
        raise InputError(f"data_type must be 8, 16 or 32, got {o.data_type}")
    if o.ignore_label < -1:
        raise InputError(f"ignore_label must be an id, or -1 for none, got {o.ignore_label}")
    if not o.name or "/" in o.name or o.name in (".", ".."):
        raise InputError(f"name must be the name of a folder, without /, got {o.name!r}")
    for name in ("phase", "which_epoch"):
        if not getattr(o, name) or "/" in getattr(o, name):
            raise InputError(f"{name} must be a word without /, got {getattr(o, name)!r}")


def _check_combinations(o: Options) -> None:
    if o.instance_feat and not o.label_feat and o.no_instance:
        raise InputError(
            "instance_feat needs instance maps: leave out no_instance, or use label_feat"
        )
    if o.label_feat and o.label_nc == 0:
        raise InputError("label_feat needs labels: label_nc is 0 (pictures as input)")
    if o.load_features and not o.use_features:
        raise InputError(
            "load_features needs instance_feat or label_feat, which say what to do with them"
        )
    if not o.isTrain:
        return
    if o.niter + o.niter_decay < 1:
        raise InputError("niter + niter_decay must be at least 1 epoch, got 0")
    if o.niter_fix_global and o.netG != "local":
        raise InputError(
            "niter_fix_global trains only the enhancer first: it needs netG local, got global"
        )
    if o.output_nc != 3 and not o.no_vgg_loss:
        raise InputError(f"the VGG loss needs output_nc 3, got {o.output_nc}: add no_vgg_loss")
