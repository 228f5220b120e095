"""The update rule of pix2pixHD: the losses of a batch, and the gradients of all parameters.

Two ways to the same numbers. Under `backend("eager")` as the original computes them: three forwards
of D, one graph, and D's weight gradients of G's losses are made and thrown away. Otherwise branch
by branch: each loss of G is differentiated with respect to the synthesised picture as soon as it is
there, and G runs backward once, when everything else is gone from memory.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from torch import Tensor

from pix2pixhd_fast._backend import current_backend
from pix2pixhd_fast.nn.losses import feature_matching_loss
from pix2pixhd_fast.nn.pending import Pending
from pix2pixhd_fast.nn.recompute import recompute
from pix2pixhd_fast.nn.vgg import VGG_LEAST_SIDE
from pix2pixhd_fast.ops.channel_statistics import wide
from pix2pixhd_fast.ops.norm_act_pad import Norm
from pix2pixhd_fast.semantic import SemanticMap, append_channels, pad_by_edge

if TYPE_CHECKING:
    from pix2pixhd_fast.model import Inputs, Pix2PixHD

LOSS_NAMES = ("G_GAN", "G_GAN_Feat", "G_VGG", "D_real", "D_fake")

Losses = dict[str, Tensor]


def backward(
    model: "Pix2PixHD",
    inputs: "Inputs",
    share: float = 1.0,
    accumulate: bool = False,
    last: bool = True,
) -> tuple[Losses, Tensor]:
    """Compute the losses of a batch and the gradients of all parameters; update nothing.

    The gradients are those of `share` times the losses: for G (with E) of the sum of the generator
    losses, for D of the mean of its two, each times its scale of fp16. They are added to what is
    there already where `accumulate`; else that is dropped first. `last`: nothing more is added
    before the update, so that several processes begin to average D's gradients when they are there,
    and G's (with E's) while they are made.
    Returns the losses (not times `share`) and the picture, detached; losses that the options switch
    off are zero.
    """
    batch = _Batch(model, inputs, share, last)
    run = _as_the_original if current_backend() == "eager" else _branch_by_branch
    return batch.losses, run(batch, accumulate)


class _Batch:
    """A batch on its way: the losses so far, and how a loss becomes gradients."""

    def __init__(self, model: "Pix2PixHD", inputs: "Inputs", share: float, last: bool):
        self.model, self.options, self.share, self.last = model, model.options, share, last
        self.scene, self.real, self.inputs = inputs.cropped_scene(), inputs.image, inputs
        self.losses = dict.fromkeys(LOSS_NAMES, inputs.image.new_zeros(()))

    def scaled(self, letter: str, found: Losses) -> Tensor:
        """The sum of losses of "G", or the mean of the two of "D", as it is differentiated."""
        self.losses |= {name: loss.detach() for name, loss in found.items()}
        share = self.share * (0.5 if letter == "D" else 1.0)
        return self.model.optimizers.scale(letter, share * sum(found.values()))

    def begin_average(self, letter: str) -> None:
        """All gradients of "D", or of "G" and E, are there: average them over the processes."""
        if self.last:
            self.model.optimizers.gradients[letter].begin()

    def averaging_G(self) -> AbstractContextManager:
        """Around the backward pass of G: its gradients are averaged while it runs."""
        return self.model.optimizers.gradients["G"].overlapping() if self.last else nullcontext()

    def seen_by_D(self, picture: Tensor) -> Tensor:
        return _for_D(self.scene, picture, self.options.num_D)


def _branch_by_branch(batch: _Batch, accumulate: bool) -> Tensor:
    model = batch.model
    if not accumulate:
        model.optimizers.zero_grad()
    with model.autocast(), recompute(batch.options.checkpoint):
        fake = model.generate(batch.inputs)
    # float32 (float64 for float64), in which the gradients of the branches are summed
    image = wide(fake.detach()).requires_grad_()
    if not batch.options.no_vgg_loss:
        _perceptual(batch, image)
    _adversarial(batch, image)
    batch.begin_average("D")
    with batch.averaging_G():
        fake.backward(image.grad.to(fake.dtype))
    batch.begin_average("G")
    return fake.detach()


def _perceptual(batch: _Batch, image: Tensor) -> None:
    """The VGG loss, and its gradient for the picture."""
    with batch.model.autocast():
        distance = batch.model.criterionVGG(_for_vgg(image), _for_vgg(batch.real))
        loss = {"G_VGG": batch.options.lambda_feat * distance}
    batch.scaled("G", loss).backward(inputs=[image])


def _adversarial(batch: _Batch, image: Tensor) -> None:
    """The losses that D decides: G's gradient for the picture, D's for its parameters.

    D sees each of the two pictures once, its graph of the synthesised one serves both. A pool shows
    D an older picture instead, and a batch norm counts what it sees: both take a third forward.
    """
    model, options = batch.model, batch.options
    netD, gan = model.netD, model.criterionGAN
    parameters = list(netD.parameters())
    apart = model.pool.size > 0 or options.norm == "batch"
    if apart:
        with model.autocast():
            pooled = netD(model.pool.query(batch.seen_by_D(image.detach())), raw=True)
            D_fake = gan(pooled, False)
        del pooled
        batch.scaled("D", {"D_fake": D_fake}).backward(inputs=parameters)
    with model.autocast():
        real = netD(batch.seen_by_D(batch.real), raw=True)
        D_real = gan(real, True)
    real = [[_constant(p) for p in scale] for scale in real]
    batch.scaled("D", {"D_real": D_real}).backward(inputs=parameters)
    with model.autocast():
        fake = netD(batch.seen_by_D(image), raw=True)
        found = {"G_GAN": gan(fake, True)}
        D_fake = D_fake if apart else gan(fake, False)
        if not options.no_ganFeat_loss:
            distance = feature_matching_loss(fake, real)
            found["G_GAN_Feat"] = options.lambda_feat * distance
    del fake, real
    batch.scaled("G", found).backward(inputs=[image], retain_graph=not apart)
    if not apart:
        del found
        batch.scaled("D", {"D_fake": D_fake}).backward(inputs=parameters)


def _as_the_original(batch: _Batch, accumulate: bool) -> Tensor:
    """D on the picture cut off from G (through the pool), on the real one, on the open one."""
    model, options, real = batch.model, batch.options, batch.real
    netD, gan = model.netD, model.criterionGAN
    with model.autocast():
        fake = model.generate(batch.inputs)
        pred_pool = netD(model.pool.query(batch.seen_by_D(fake.detach())))
        pred_real = netD(batch.seen_by_D(real))
        pred_fake = netD(batch.seen_by_D(fake))
        G = {"G_GAN": gan(pred_fake, True)}
        D = {"D_real": gan(pred_real, True), "D_fake": gan(pred_pool, False)}
        if not options.no_ganFeat_loss:
            G["G_GAN_Feat"] = options.lambda_feat * feature_matching_loss(pred_fake, pred_real)
        if not options.no_vgg_loss:
            distance = model.criterionVGG(_for_vgg(fake), _for_vgg(real))
            G["G_VGG"] = options.lambda_feat * distance
    del pred_pool, pred_real, pred_fake
    before = [p.grad for p in netD.parameters()] if accumulate else None
    if accumulate:
        model.optimizers.zero_grad("D")
    else:
        model.optimizers.zero_grad("G")
    with batch.averaging_G():
        batch.scaled("G", G).backward()
    model.optimizers.zero_grad("D")
    for p, gradient in zip(netD.parameters(), before or (), strict=bool(before)):
        p.grad = gradient
    batch.begin_average("G")
    batch.scaled("D", D).backward()
    batch.begin_average("D")
    return fake.detach()


def forwards(model: "Pix2PixHD", inputs: "Inputs") -> None:
    """All that a step runs forward: G (with E), then D and VGG on both pictures."""
    batch = _Batch(model, inputs, 1.0, last=False)
    with model.autocast():
        fake = model.generate(inputs)
        for picture in (fake, batch.real):
            model.netD(batch.seen_by_D(picture))
        if model.criterionVGG is not None:
            model.criterionVGG(_for_vgg(fake), _for_vgg(batch.real))


def _for_D(scene: Tensor | SemanticMap, picture: Tensor, num_D: int) -> Tensor | SemanticMap:
    """What D reads. A tiny picture grows by its edge: norms refuse a scale of a single pixel."""
    seen = append_channels(scene, picture)
    least = 2 ** (num_D - 1) + 1
    return seen if max(seen.shape[2:]) >= least else pad_by_edge(seen, (least, least))


def _for_vgg(picture: Tensor) -> Tensor:
    """Sides of less than the 16 pixels that four poolings halve grow by the edge."""
    return pad_by_edge(picture, (VGG_LEAST_SIDE, VGG_LEAST_SIDE))


def _constant(p: Pending) -> Pending:
    """`p` without gradient."""
    parts = (None if t is None else t.detach() for t in p.norm.tensors)
    return p._replace(x=p.x.detach(), norm=Norm(p.norm.kind, *parts))
