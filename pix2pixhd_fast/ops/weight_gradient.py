"""The weight gradient of a convolution on the CPU, as products of matrices."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pix2pixhd_fast.ops.memory_format import stands_for_gpu

# The values of a patch matrix, 8 MiB: it is written and read again while it is in the cache.
PATCH_VALUES = 2 << 20


def suits_products(weight: Tensor, x: Tensor, stride: int) -> bool:
    """Whether to take `weight_gradient` for a convolution of x by `weight`, transposed or not.

    On the CPU in float32, but for large kernels and few channels. Measured on two cores (AVX2)
    against oneDNN in channels_last, GFLOP/s, where a product of large matrices has 140: 256 -> 512
    channels, 4x4, 65x129: 103 and 69; 1024 -> 1024, 3x3, 32x64: 115 and 40; 64 -> 128, 4x4, stride
    2, 257x513: 78 and 36; 64 -> 64, 3x3, 256x512: 81 and 28; 16 -> 32, 3x3, stride 2, 512x1024: 52
    and 42. But 36 -> 32, 7x7: 60 and 60; 32 -> 3, 7x7: 16 and 26; 512 -> 1, 4x4: 7 and 10.

    Kernels of one pixel with a stride always: in channels_last oneDNN writes outside of its memory
    then, on processors without AVX-512 (PyTorch 2.14.1; found by glibc's MALLOC_CHECK_).
    """
    if stands_for_gpu(x) or x.dtype != torch.float32:
        return False
    kernel = max(weight.shape[2:])
    if x.numel() == 0:
        return False
    return (kernel == 1 and stride > 1) or (min(weight.shape[:2]) >= 16 and kernel <= 4)


def weight_gradient(
    dy: Tensor, x: Tensor, kernel: tuple[int, int], stride: int, pad: int
) -> Tensor:
    """dW of y = conv2d(x, W, stride=stride, padding=pad) in float32: the sum over patches.

    dy [N, K, H', W'], x [N, C, H, W], both channels_last. Rows of dy are taken together as a matrix
    [pixels, K], the patches of x that they saw as [pixels, kh * kw * C]; dW is the sum of the
    products. Returns [K, C, kh, kw], channels_last.
    """
    height, width = kernel
    outputs, inputs = dy.shape[1], x.shape[1]
    columns = height * width * inputs
    rows = max(1, PATCH_VALUES // (dy.shape[3] * columns))
    dweight = dy.new_zeros(outputs, columns)
    for gradient, picture in zip(dy.permute(0, 2, 3, 1), x.permute(0, 2, 3, 1), strict=True):
        for first in range(0, dy.shape[2], rows):
            part = gradient[first : first + rows]
            patches = _patches(picture, kernel, stride, pad, first, part.shape)
            dweight.addmm_(part.reshape(-1, outputs).t(), patches.view(-1, columns))
    return dweight.view(outputs, height, width, inputs).permute(0, 3, 1, 2)


def _patches(
    picture: Tensor,
    kernel: tuple[int, int],
    stride: int,
    pad: int,
    first: int,
    shape: torch.Size,
) -> Tensor:
    """What the pixels of some rows of the result saw: [rows, W', kh, kw * C], written anew.

    picture [H, W, C]; `first` row and `shape` [rows, W', K] of the result.
    """
    top = first * stride - pad
    bottom = top + (shape[0] - 1) * stride + kernel[0]
    seen = picture[max(top, 0) : max(bottom, 0)]
    if pad:
        missing = bottom - top - seen.shape[0]
        above = min(max(-top, 0), missing)
        seen = F.pad(seen, (0, 0, pad, pad, above, missing - above))
    seen = seen.contiguous()
    line, pixel, _ = seen.stride()
    size = (shape[0], shape[1], kernel[0], kernel[1] * picture.shape[2])
    return seen.as_strided(size, (line * stride, pixel * stride, line, 1)).contiguous()
