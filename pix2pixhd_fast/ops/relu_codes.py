"""ReLU behind a convolution, alone or with what follows it, and the few bits its gradient needs.

All pictures are dense in channels_last. Eight elements that lie next to each other in memory share
a word of 8 bits (one for each), 16 or 32 bits, the first element in its lowest bits; words are
little-endian, and codes are uint8 [bytes]. No gradients of their own: `ops.perceptual_l1` is
composed of these.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pix2pixhd_fast._launches import Launch, bytes_of, register_launches
from pix2pixhd_fast._library import define, register_triton
from pix2pixhd_fast.ops.channel_statistics import wide

# Elements that share a word.
GROUP = 8
# Elements of a program on a GPU: 8 for each thread of 4 warps; with 16, sm_100 spills.
BLOCK = 1024
# The most programs that sum distances, whatever the device: about eight for each processor of the
# largest. Each has a number of its own in `sums`.
SUM_PROGRAMS = 1024


def code_bytes(elements: int, bits: int) -> int:
    """The bytes of codes of so many elements, `bits` each."""
    return -(-elements // GROUP) * bits


def sum_programs(elements: int) -> tuple[int, int]:
    """How many programs sum so many elements on a GPU, and how many blocks each of them takes."""
    blocks = max(1, -(-elements // BLOCK))
    each = -(-blocks // SUM_PROGRAMS)
    return -(-blocks // each), each


def relu_bits_ref(x: Tensor, bias: Tensor, coded: int) -> Tensor:
    """x = relu(x + bias), in place; one bit for each element: whether a gradient passes.

    x [N, C, H, W], bias [C]. The codes are of the first `coded` pictures. A NaN passes, as in
    PyTorch.
    """
    z = _biased(x, bias)
    x.copy_(z.relu())
    return _packed(_flat(~(z <= 0)[:coded]), 1)


def relu_bits_backward_ref(g: Tensor, bits: Tensor) -> None:
    """g = the gradient before the ReLU, in place."""
    g.copy_(torch.where(_pictured(_unpacked(bits, 1), g) > 0, g, 0.0))


def relu_l1_ref(
    x: Tensor,
    y: Tensor,
    bias: Tensor,
    sums: Tensor | None,
    weight: float,
    write_x: bool,
    write_y: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """weight * sum |relu(x + bias) - relu(y + bias)|; a code of 2 bits for each element.

    The sum is added to `sums`, [SUM_PROGRAMS] numbers that stand for their total, and these are
    returned: float32 (float64 for float64), as all sums are. A code is 0 where the ReLU of x lets
    no gradient pass; otherwise 2 + the sign of the difference (of a NaN 0). x and y are given the
    ReLU in place where `write_x` and `write_y` say so. Without `keep` the codes are empty.
    """
    z = _biased(x, bias)
    difference = z.relu() - _biased(y, bias).relu()
    total = difference.new_zeros(SUM_PROGRAMS)
    total[:1] = weight * difference.abs().sum()
    if sums is not None:
        total += sums
    if write_x:
        x.copy_(z.relu())
    if write_y:
        y.copy_(_biased(y, bias).relu())
    if not keep:
        return total, _no_codes(x)
    sign = 2 + (difference > 0).int() - (difference < 0).int()
    return total, _packed(_flat(torch.where(z <= 0, 0, sign)), 2)


def relu_l1_backward_ref(g: Tensor, codes: Tensor, dloss: Tensor, weight: float, add: bool) -> None:
    """g = the gradient before the ReLU, in place: of g and of dloss through the L1 distance.

    Where the ReLU passes: (g where `add`, otherwise 0) + dloss * weight * sign. Without `add` what
    g holds is not read. dloss is a single number.
    """
    code = _pictured(_unpacked(codes, 2), g)
    values = (code - 2) * (wide(dloss) * weight) + (wide(g) if add else 0.0)
    g.copy_(torch.where(code > 0, values, 0.0))


def relu_pool_ref(x: Tensor, bias: Tensor, coded: int, room: int) -> tuple[Tensor, Tensor]:
    """y = the maximum of relu(x + bias) over windows of 2x2, and 4 bits for each element of y.

    y has room for `room` pictures, of which the first x.shape[0] are written; the codes are of the
    first `coded` of these. A bit is set for the one element of the window that the gradient goes
    to: the first one that is the maximum, in rows (the last NaN where there are some), none where
    the ReLU lets nothing pass. Rows and columns that are left over belong to no window, as in
    PyTorch.
    """
    y = new_pooled(x, room)
    pooled, choice = _pooled(x, bias)
    y[: x.shape[0]] = pooled
    return y, _packed(_flat(choice[:coded]), 4)


def relu_pool_into_ref(x: Tensor, bias: Tensor, y: Tensor) -> None:
    """The y of `relu_pool`, in place."""
    y.copy_(_pooled(x, bias)[0])


def new_pooled(x: Tensor, room: int) -> Tensor:
    """Uninitialised, for the results of pooling."""
    size = (room, x.shape[1], x.shape[2] // 2, x.shape[3] // 2)
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _pooled(x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    z = _biased(x, bias)
    h, w = (side // 2 * 2 for side in x.shape[2:])
    largest = z[:, :, 0:h:2, 0:w:2]
    choice = torch.where(largest <= 0, 0, 1)
    for k in range(1, 4):
        other = z[:, :, k // 2 : h : 2, k % 2 : w : 2]
        larger = (other > largest) | other.isnan()
        largest = torch.where(larger, other, largest)
        choice = torch.where(larger, torch.where(other <= 0, 0, 1 << k), choice)
    return largest.relu(), choice


def relu_pool_backward_ref(g: Tensor, codes: Tensor, height: int, width: int) -> Tensor:
    """The gradient of x [N, C, height, width] of `relu_pool`."""
    n, c, h, w = g.shape
    choice = _pictured(_unpacked(codes, 4), g)
    dx = torch.zeros(n, c, height, width, dtype=g.dtype, device=g.device)
    for k in range(4):
        part = torch.where(choice >> k & 1 > 0, g, 0.0)
        dx[:, :, k // 2 : 2 * h : 2, k % 2 : 2 * w : 2] = part
    return dx.contiguous(memory_format=torch.channels_last)


def _biased(x: Tensor, bias: Tensor) -> Tensor:
    x = wide(x)
    return x + bias.to(x.dtype)[:, None, None]


def _no_codes(x: Tensor) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=x.device)


def _flat(values: Tensor) -> Tensor:
    """In the order of channels_last."""
    return values.permute(0, 2, 3, 1).reshape(-1)


def _pictured(flat: Tensor, like: Tensor) -> Tensor:
    """The first of the values in the order of channels_last -> [N, C, H, W]."""
    n, c, h, w = like.shape
    return flat[: like.numel()].view(n, h, w, c).permute(0, 3, 1, 2)


def _packed(values: Tensor, bits: int) -> Tensor:
    values = F.pad(values.int(), (0, -values.numel() % GROUP)).view(-1, bits, GROUP // bits)
    places = torch.arange(0, GROUP, bits, device=values.device)
    return (values << places).sum(-1).to(torch.uint8).view(-1)


def _unpacked(codes: Tensor, bits: int) -> Tensor:
    places = torch.arange(0, GROUP, bits, device=codes.device)
    return (codes.int()[:, None] >> places & (1 << bits) - 1).view(-1)


def _relu_bits_launches(x: Tensor, bias: Tensor, coded: int, result: Tensor) -> list[Launch]:
    if x.numel() == 0:
        return []
    read, written = bytes_of(x, bias), bytes_of(x, result)
    return [Launch("relu_bits.relu_bits", read, written)]


def _relu_bits_backward_launches(g: Tensor, bits: Tensor, result: None) -> list[Launch]:
    if g.numel() == 0:
        return []
    return [Launch("relu_bits.relu_bits_backward", bytes_of(g, bits), bytes_of(g))]


def _relu_l1_launches(x, y, bias, sums, weight, write_x, write_y, keep, result) -> list[Launch]:
    written = bytes_of(x if write_x else None, y if write_y else None, *result)
    return [Launch("relu_l1.relu_l1", bytes_of(x, y, bias, sums), written)]


def _relu_l1_backward_launches(g, codes, dloss, weight, add, result) -> list[Launch]:
    if g.numel() == 0:
        return []
    read = bytes_of(codes, dloss, g if add else None)
    return [Launch("relu_l1.relu_l1_backward", read, bytes_of(g))]


def _relu_pool_launches(x, bias, coded, room, result) -> list[Launch]:
    y, codes = result
    return _relu_pool_into_launches(x, bias, y[: x.shape[0]], codes)


def _relu_pool_into_launches(x, bias, y, result) -> list[Launch]:
    if y.numel() == 0:
        return []
    return [Launch("relu_pool.relu_pool", bytes_of(x, bias), bytes_of(y, result))]


def _relu_pool_backward_launches(g, codes, height, width, result) -> list[Launch]:
    if result.numel() == 0:
        return []
    return [Launch("relu_pool.relu_pool_backward", bytes_of(g, codes), bytes_of(result))]


define("relu_bits_", "(Tensor(a!) x, Tensor bias, int coded) -> Tensor", relu_bits_ref)
define("relu_bits_backward_", "(Tensor(a!) g, Tensor bits) -> ()", relu_bits_backward_ref)
define(
    "relu_l1_",
    "(Tensor(a!) x, Tensor(b!) y, Tensor bias, Tensor? sums, float weight, bool write_x,"
    " bool write_y, bool keep) -> (Tensor sums, Tensor codes)",
    relu_l1_ref,
)
define(
    "relu_l1_backward_",
    "(Tensor(a!) g, Tensor codes, Tensor dloss, float weight, bool add) -> ()",
    relu_l1_backward_ref,
)
define(
    "relu_pool",
    "(Tensor x, Tensor bias, int coded, int room) -> (Tensor y, Tensor codes)",
    relu_pool_ref,
)
define("relu_pool_into_", "(Tensor x, Tensor bias, Tensor(a!) y) -> ()", relu_pool_into_ref)
define(
    "relu_pool_backward",
    "(Tensor g, Tensor codes, int height, int width) -> Tensor",
    relu_pool_backward_ref,
)
register_launches("relu_bits_", _relu_bits_launches)
register_launches("relu_bits_backward_", _relu_bits_backward_launches)
register_launches("relu_l1_", _relu_l1_launches)
register_launches("relu_l1_backward_", _relu_l1_backward_launches)
register_launches("relu_pool", _relu_pool_launches)
register_launches("relu_pool_into_", _relu_pool_into_launches)
register_launches("relu_pool_backward", _relu_pool_backward_launches)
register_triton("relu_bits_", "pix2pixhd_fast.kernels.relu_bits:relu_bits")
register_triton("relu_bits_backward_", "pix2pixhd_fast.kernels.relu_bits:relu_bits_backward")
register_triton("relu_l1_", "pix2pixhd_fast.kernels.relu_l1:relu_l1")
register_triton("relu_l1_backward_", "pix2pixhd_fast.kernels.relu_l1:relu_l1_backward")
register_triton("relu_pool", "pix2pixhd_fast.kernels.relu_pool:relu_pool")
register_triton("relu_pool_into_", "pix2pixhd_fast.kernels.relu_pool:relu_pool_into")
register_triton("relu_pool_backward", "pix2pixhd_fast.kernels.relu_pool:relu_pool_backward")
