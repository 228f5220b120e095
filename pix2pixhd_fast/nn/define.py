"""Networks by option names, as the original's models build them."""

from torch import nn

from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.nn.discriminators import MultiscaleDiscriminator
from pix2pixhd_fast.nn.encoder import Encoder
from pix2pixhd_fast.nn.generators import GlobalGenerator, LocalEnhancer
from pix2pixhd_fast.nn.norms import get_norm_layer, weights_init


def define_G(
    input_nc: int,
    output_nc: int,
    ngf: int,
    netG: str,
    n_downsample_global: int = 3,
    n_blocks_global: int = 9,
    n_local_enhancers: int = 1,
    n_blocks_local: int = 3,
    norm: str = "instance",
    gpu_ids: list[int] | tuple[int, ...] = (),
) -> nn.Module:
    """Build and initialise the network `netG`: "global", "local" or "encoder".

    Moved to the first CUDA device of `gpu_ids` if there is one. Raises `InputError` for another
    name.
    """
    norm_layer = get_norm_layer(norm)
    size = (input_nc, output_nc, ngf, n_downsample_global)
    if netG == "global":
        net: nn.Module = GlobalGenerator(*size, n_blocks_global, norm_layer)
    elif netG == "local":
        net = LocalEnhancer(*size, n_blocks_global, n_local_enhancers, n_blocks_local, norm_layer)
    elif netG == "encoder":
        net = Encoder(*size, norm_layer)
    else:
        raise InputError(f"netG must be global, local or encoder, got {netG!r}")
    return _initialised(net, gpu_ids)


def define_D(
    input_nc: int,
    ndf: int,
    n_layers_D: int,
    norm: str = "instance",
    use_sigmoid: bool = False,
    num_D: int = 1,
    getIntermFeat: bool = False,
    gpu_ids: list[int] | tuple[int, ...] = (),
) -> nn.Module:
    """Build and initialise a `MultiscaleDiscriminator`; `gpu_ids` as in `define_G`."""
    net = MultiscaleDiscriminator(
        input_nc, ndf, n_layers_D, get_norm_layer(norm), use_sigmoid, num_D, getIntermFeat
    )
    return _initialised(net, gpu_ids)


def print_network(net: nn.Module | list[nn.Module]) -> None:
    """Print a network (the first of a list) and its number of parameters."""
    net = net[0] if isinstance(net, list) else net
    print(net)
    print(f"Total number of parameters: {sum(p.numel() for p in net.parameters())}")


def _initialised(net: nn.Module, gpu_ids: list[int] | tuple[int, ...]) -> nn.Module:
    if gpu_ids:
        net.to(f"cuda:{gpu_ids[0]}")
    return net.apply(weights_init)
