"""VGG19 up to relu5_1, and where its weights come from."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.nn.layers import hooked
from pix2pixhd_fast.nn.pending import materialise
from pix2pixhd_fast.nn.sequence import Sequence

# torchvision's `features` up to relu5_1 (index 29); a feature is taken behind each of SLICE_ENDS
LAYERS = (64, 64, "pool", 128, 128, "pool", *(256,) * 4, "pool", *(512,) * 4, "pool", 512)
SLICE_ENDS = (2, 7, 12, 21, 30)
# Four poolings halve the sides of a picture.
VGG_LEAST_SIDE = 16
CACHE_NAME = "vgg19-dcbb9e9d.pth"


class Chain(NamedTuple):
    """A frozen `Vgg19` as `ops.perceptual_l1` takes it."""

    weights: list[Tensor]
    biases: list[Tensor]
    behind: list[str]


class Vgg19(nn.Module):
    """VGG19 (Simonyan and Zisserman) cut behind relu1_1, relu2_1, relu3_1, relu4_1, relu5_1.

    Input [N, 3, H, W]; returns the list of the five features. `weights`: a file with a state_dict
    (of this class, of torchvision's `vgg19` or of its `features`), the word "random" for
    benchmarks, or "" for torchvision's cache. Where the cache has none, the network is built
    without weights and refuses to run until `load_state_dict` fills it: it is never random in
    silence.
    """

    def __init__(self, requires_grad: bool = False, weights: str = ""):
        super().__init__()
        layers = _layers()
        for n, (start, end) in enumerate(zip((0, *SLICE_ENDS), SLICE_ENDS, strict=False), start=1):
            sequence = Sequence()
            for index in range(start, end):
                sequence.add_module(str(index), layers[index])
            setattr(self, f"slice{n}", sequence)
        self.requires_grad_(requires_grad)
        self.has_weights = False
        self.register_load_state_dict_post_hook(_mark_loaded)
        if weights == "random":
            self._randomise()
        elif weights or cached_weights().is_file():
            path = Path(weights) if weights else cached_weights()
            self.load_state_dict(_read_weights(path, self.state_dict()))

    def forward(self, X: Tensor) -> list[Tensor]:
        self.require_weights()
        features = [X]
        for n in range(1, len(SLICE_ENDS) + 1):
            features.append(materialise(getattr(self, f"slice{n}").run(features[-1])))
        return features[1:]

    def frozen_chain(self) -> Chain | None:
        """The layers, where they are those that this class made, without hooks and gradients.

        None where somebody changed one, replaced a `forward`, or wants gradients of weights.
        """
        slices = [getattr(self, f"slice{n}") for n in range(1, len(SLICE_ENDS) + 1)]
        if type(self) is not Vgg19 or any(s.replaced() for s in slices):
            return None
        layers = [layer for s in slices for layer in s]
        if any(map(hooked, (self, *slices, *layers))) or not _as_made(layers):
            return None
        convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
        weights, biases = ([getattr(c, key) for c in convolutions] for key in ("weight", "bias"))
        if any(p.requires_grad for p in (*weights, *biases)):
            return None
        return Chain(weights, biases, _behind())

    def require_weights(self) -> None:
        """Raise `InputError`, which says where to get them, if there are no weights."""
        if not self.has_weights:
            raise InputError(
                "VGG19 has no weights: give a file with --vgg_weights FILE, or fill torchvision's "
                f'cache ({cached_weights()}) with python -c "import torchvision; '
                "torchvision.models.vgg19(weights='DEFAULT')\", or leave the loss out with "
                "--no_vgg_loss"
            )

    def _randomise(self) -> None:
        generator = torch.Generator().manual_seed(0)
        for p in self.parameters():
            std = (2 / p[0].numel()) ** 0.5 if p.dim() == 4 else 0.0
            values = torch.randn(p.shape, generator=generator, device="cpu") * std
            p.data.copy_(values)
        self.has_weights = True


def _mark_loaded(module: Vgg19, incompatible: NamedTuple) -> None:
    if not incompatible.missing_keys:
        module.has_weights = True


def cached_weights() -> Path:
    """The file where torchvision keeps the weights of VGG19."""
    return Path(torch.hub.get_dir()) / "checkpoints" / CACHE_NAME


def _read_weights(path: Path, own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Read the tensors of `own`, by name and shape, from `path`; others there are dropped."""
    if not path.is_file():
        raise InputError(
            f"vgg_weights must be a file with the weights of VGG19, or random, got {path}"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # a damaged pickle can raise anything
        raise InputError(f"vgg_weights {path} is not a file of PyTorch weights") from e
    named = state.items() if isinstance(state, dict) else ()
    renamed = {_own_key(str(k)): v for k, v in named if isinstance(v, Tensor)}
    kept = {k: v for k, v in renamed.items() if k in own}
    wrong = [k for k, v in own.items() if k not in kept or kept[k].shape != v.shape]
    if wrong:
        raise InputError(
            f"vgg_weights {path} does not hold a VGG19: {len(wrong)} of its {len(own)} tensors are "
            f"missing or of another shape"
        )
    return kept


def _layers() -> list[nn.Module]:
    layers: list[nn.Module] = []
    channels = 3
    for layer in LAYERS:
        if layer == "pool":
            layers.append(nn.MaxPool2d(2, 2))
        else:
            layers += [nn.Conv2d(channels, layer, 3, padding=1), nn.ReLU(True)]
            channels = layer
    return layers


def _behind() -> list[str]:
    """What follows each convolution: its feature is taken, a pooling, or its ReLU alone."""
    behind: list[str] = []
    index = 0
    for n, layer in enumerate(LAYERS):
        index += 1 if layer == "pool" else 2
        if layer != "pool":
            pooled = LAYERS[n + 1 : n + 2] == ("pool",)
            behind.append("l1" if index in SLICE_ENDS else "pool" if pooled else "relu")
    return behind


def _as_made(layers: list[nn.Module]) -> bool:
    """Whether these are the layers of `_layers`."""
    channels, given = 3, iter(layers)
    for layer in LAYERS:
        if layer == "pool":
            if not _is_like(next(given, None), _POOL):
                return False
            continue
        conv, relu = next(given, None), next(given, None)
        facts = {**_CONV, "in_channels": channels, "out_channels": layer}
        if not _is_like(conv, facts) or conv.bias is None or type(relu) is not nn.ReLU:
            return False
        channels = layer
    return next(given, None) is None


_POOL = {
    "kind": nn.MaxPool2d, "kernel_size": 2, "stride": 2, "padding": 0, "dilation": 1,
    "ceil_mode": False, "return_indices": False,
}  # fmt: skip
_CONV = {
    "kind": nn.Conv2d, "kernel_size": (3, 3), "stride": (1, 1), "padding": (1, 1),
    "dilation": (1, 1), "groups": 1, "padding_mode": "zeros",
}  # fmt: skip


def _is_like(module: nn.Module | None, facts: dict[str, object]) -> bool:
    if type(module) is not facts["kind"]:
        return False
    return all(getattr(module, name) == fact for name, fact in facts.items() if name != "kind")


def _own_key(key: str) -> str:
    """features.5.bias or 5.bias -> slice2.5.bias; other keys stay."""
    index = key.removeprefix("features.").partition(".")[0]
    if key.startswith("slice") or not index.isdigit():
        return key
    n = next((n for n, end in enumerate(SLICE_ENDS, start=1) if int(index) < end), 0)
    return f"slice{n}.{key.removeprefix('features.')}"
