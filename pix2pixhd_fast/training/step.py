"""The update rule of pix2pixHD, as the original computes it."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pix2pixhd_fast.nn.losses import feature_matching_loss
from pix2pixhd_fast.semantic import pad_by_edge

if TYPE_CHECKING:
    from pix2pixhd_fast.model import Inputs, Pix2PixHD

VGG_LEAST_SIDE = 16
LOSS_NAMES = ("G_GAN", "G_GAN_Feat", "G_VGG", "D_real", "D_fake")


def losses(model: "Pix2PixHD", inputs: "Inputs") -> tuple[dict[str, Tensor], Tensor]:
    """Compute the five losses with their graphs, and the synthesised picture.

    D runs three times: on the synthesised picture cut off from G (through the pool), on the real
    one, and on the synthesised one again with the way back to G open. Losses that the options
    switch off are zero.
    """
    options = model.options
    scene, real = inputs.cropped_scene(), inputs.image
    zero = real.new_zeros(())
    with model.autocast():
        fake = model.generate(inputs)
        pooled = model.pool.query(_for_D(scene, fake.detach(), options.num_D))
        pred_pool = model.netD(pooled)
        pred_real = model.netD(_for_D(scene, real, options.num_D))
        pred_fake = model.netD(_for_D(scene, fake, options.num_D))
        gan = model.criterionGAN
        found = {
            "G_GAN": gan(pred_fake, True),
            "G_GAN_Feat": zero,
            "G_VGG": zero,
            "D_real": gan(pred_real, True),
            "D_fake": gan(pred_pool, False),
        }
        if not options.no_ganFeat_loss:
            found["G_GAN_Feat"] = options.lambda_feat * feature_matching_loss(pred_fake, pred_real)
        if not options.no_vgg_loss:
            found["G_VGG"] = options.lambda_feat * model.criterionVGG(
                _for_vgg(fake), _for_vgg(real)
            )
    return found, fake


def _for_D(scene: Tensor, picture: Tensor, num_D: int) -> Tensor:
    """What D reads. A tiny picture grows by its edge: norms refuse a scale of a single pixel."""
    seen = torch.cat((scene, picture), dim=1)
    least = 2 ** (num_D - 1) + 1
    return seen if max(seen.shape[2:]) >= least else pad_by_edge(seen, (least, least))


def _for_vgg(picture: Tensor) -> Tensor:
    """Sides of less than the 16 pixels that four poolings halve grow by the edge."""
    return pad_by_edge(picture, (VGG_LEAST_SIDE, VGG_LEAST_SIDE))


def backward(
    model: "Pix2PixHD", found: dict[str, Tensor], weight: float = 1.0, last: bool = True
) -> None:
    """Add the gradients of the losses, times `weight`: G (and E), the generator losses' sum, then
    D, the mean of its two. `last` as in `Optimizers.backward`.
    """
    optimizers, in_parts = model.optimizers, weight != 1
    generator = found["G_GAN"] + found["G_GAN_Feat"] + found["G_VGG"]
    optimizers.backward("G", generator * weight, last, apart=in_parts)
    if not in_parts:
        optimizers.D.zero_grad()  # of what G's losses left in D
    discriminator = (found["D_fake"] + found["D_real"]) * (0.5 * weight)
    optimizers.backward("D", discriminator, last, apart=in_parts)
