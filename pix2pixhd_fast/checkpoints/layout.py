"""The options a network was built with, read off the names and shapes of its tensors."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from torch import Tensor

from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.options import Options

Shapes = Mapping[str, tuple[int, ...]]
INPUT_CHANNELS = "input channels"

_CHANGES = 3

_ENHANCER = re.compile(r"model(\d{1,3})_[12]\..+")
_WITH_FEATURES = re.compile(r"(?P<kind>scale)(?P<scale>\d+)_layer(?P<layer>\d+)\.\d+\..+")
_PLAIN = re.compile(r"(?P<kind>layer)(?P<scale>\d+)\.(?P<layer>\d+)\..+")


def shapes_of(tensors: Mapping[str, Tensor]) -> Shapes:
    """The shape of every tensor, by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def layout(shapes: Shapes, letter: str) -> dict[str, str | int | bool]:
    """Options and their values, as far as the shapes of network `letter` (G, D, E) show them.

    Sizes that several options make up are under `INPUT_CHANNELS`. For G, `n_local_enhancers` is 0
    and `n_blocks_local` absent where there are no enhancers. Empty where they are not of such a
    network.
    """
    read = {"G": _generator, "D": _discriminator, "E": _encoder}[letter]
    try:
        return read(shapes) | {"norm": _norm(shapes)}
    except (KeyError, ValueError, IndexError):  # not such a network
        return {}


def enhancer_of(name: str) -> int:
    """The number of the enhancer that a tensor of G belongs to; 0 for the global generator."""
    match = _ENHANCER.fullmatch(name)
    return int(match[1]) if match else 0


def scale_of(name: str) -> str:
    """The scale of D that a tensor belongs to: `scale1`, or `layer1` without feature matching."""
    match = _WITH_FEATURES.fullmatch(name) or _PLAIN.fullmatch(name)
    return f"{match['kind']}{match['scale']}" if match else ""


def output_head(shapes: Shapes) -> str:
    """The name of the last layer of a generator that ends with one: `model.38`, `model1_2.7`."""
    enhancers = max(map(enhancer_of, shapes), default=0)
    prefix = f"model{enhancers}_2." if enhancers else "model."
    return f"{prefix}{max(_convolutions(shapes, prefix))}"


def input_changes(letter: str, options: Options, channels: int) -> list[dict[str, int | bool]]:
    """The likeliest changes of options after which the first layer of G or D takes `channels`.

    Fewer changes are likelier than more, back to a default than away from it, a switch than a
    number.
    """
    size = "netG_input_nc" if letter == "G" else "netD_input_nc"
    ranked = []
    for switch in _switches(letter, options):
        switched = _changed(options, switch)
        gap = channels - getattr(switched, size) if switched else 0
        sizes = _sizes(letter, switched) if gap else []
        for change in [switch, *(switch | {n: getattr(switched, n) + gap} for n in sizes)]:
            changed = _changed(options, change)
            if changed and getattr(changed, size) == channels:
                is_number = change is not switch
                ranked.append((_cost(options, change) + is_number, is_number, change))
    ranked.sort(key=lambda entry: entry[:2])
    return [change for cost, _, change in ranked[:_CHANGES] if cost <= ranked[0][0] + 1]


def _switches(letter: str, options: Options) -> Iterator[dict[str, int | bool]]:
    """Every way to switch labels, instance maps and features on and off."""
    labels = [{}, {"label_nc": 0 if options.label_nc else 1}]
    instances = [{}, {"no_instance": not options.no_instance}]
    for change in (label | instance for label in labels for instance in instances):
        yield change
        if letter == "G" and options.use_features:
            kinds = ("instance_feat", "label_feat", "load_features")
            yield change | {kind: False for kind in kinds if getattr(options, kind)}
        elif letter == "G":
            no_instance = change.get("no_instance", options.no_instance)
            kind = "label_feat" if no_instance else "instance_feat"
            yield change | {kind: True, "feat_num": options.feat_num}


def _sizes(letter: str, options: Options) -> list[str]:
    """Options that are a number of input channels by themselves."""
    sizes = ["label_nc" if options.label_nc else "input_nc"]
    if letter == "G" and options.use_features:
        sizes.append("feat_num")
    return sizes if letter == "G" else [*sizes, "output_nc"]


def _changed(options: Options, change: dict[str, int | bool]) -> Options | None:
    try:
        return replace(options, isTrain=False, **change)
    except InputError:
        return None  # no such combination


def _cost(options: Options, change: dict[str, int | bool]) -> int:
    defaults = Options()
    return sum(
        value not in (getattr(options, name), getattr(defaults, name))
        for name, value in change.items()
    )


def _convolutions(shapes: Shapes, prefix: str) -> dict[int, tuple[int, ...]]:
    """Shapes of the convolutions `<prefix><index>.weight` by index, in order."""
    found = {}
    for name, shape in shapes.items():
        index = name.removeprefix(prefix).removesuffix(".weight")
        if name == f"{prefix}{index}.weight" and index.isdecimal() and len(shape) == 4:
            found[int(index)] = shape
    return dict(sorted(found.items()))


def _blocks(shapes: Shapes, prefix: str) -> int:
    pattern = re.compile(rf"{re.escape(prefix)}(\d+)\.conv_block\..+")
    return len({match[1] for match in map(pattern.fullmatch, shapes) if match})


def _norm(shapes: Shapes) -> str:
    return "batch" if any(name.endswith(".running_mean") for name in shapes) else "instance"


def _generator(shapes: Shapes) -> dict[str, str | int | bool]:
    coarse = _convolutions(shapes, "model.")
    enhancers = max(map(enhancer_of, shapes))
    found = {
        "netG": "local" if enhancers else "global",
        "n_local_enhancers": enhancers,
        "ngf": shapes[f"model{enhancers}_1.1.weight" if enhancers else "model.1.weight"][0],
        # down and up, around the first layer and, without enhancers, the last
        "n_downsample_global": (len(coarse) - (1 if enhancers else 2)) // 2,
        "n_blocks_global": _blocks(shapes, "model."),
        "output_nc": shapes[f"{output_head(shapes)}.weight"][0],
        INPUT_CHANNELS: shapes["model.1.weight"][1],
    }
    if enhancers:
        found["n_blocks_local"] = _blocks(shapes, f"model{enhancers}_2.")
    return found


def _encoder(shapes: Shapes) -> dict[str, str | int | bool]:
    layers = list(_convolutions(shapes, "model.").values())
    return {
        "nef": layers[0][0],
        "n_downsample_E": (len(layers) - 2) // 2,
        "output_nc": layers[0][1],
        "feat_num": layers[-1][0],
    }


def _discriminator(shapes: Shapes) -> dict[str, str | int | bool]:
    pattern = _WITH_FEATURES if any(name.startswith("scale") for name in shapes) else _PLAIN
    weights = [(m, shapes[m[0]]) for m in map(pattern.fullmatch, shapes) if m]
    scales = {m["scale"] for m, _ in weights}
    layers = [(int(m["layer"]), s) for m, s in weights if m["scale"] == min(scales) and len(s) == 4]
    layers.sort()
    return {
        "no_ganFeat_loss": pattern is _PLAIN,
        "num_D": len(scales),
        "n_layers_D": len(layers) - 2,
        "ndf": layers[0][1][0],
        INPUT_CHANNELS: layers[0][1][1],
    }
