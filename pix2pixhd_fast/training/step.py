"""The update rule of pix2pixHD: the losses of a batch, and the gradients of all parameters.

Two ways to the same numbers. Under `backend("eager")` as the original computes them: three forwards
of D, one graph, and D's weight gradients of G's losses are made and thrown away. Otherwise branch
by branch: each loss of G is differentiated with respect to the synthesised picture as soon as it is
there, and G runs backward once, when everything else is gone from memory.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pix2pixhd_fast._backend import current_backend
from pix2pixhd_fast._launches import forward_of
from pix2pixhd_fast.nn.losses import feature_matching_loss, feature_matchings
from pix2pixhd_fast.nn.pending import Pending
from pix2pixhd_fast.nn.recompute import recompute
from pix2pixhd_fast.nn.sequence import dead_biases
from pix2pixhd_fast.nn.vgg import VGG_LEAST_SIDE
from pix2pixhd_fast.ops.matched_norm_backward import Matching
from pix2pixhd_fast.ops.norm_act_pad import Norm
from pix2pixhd_fast.semantic import SemanticMap, append_channels, pad_by_edge
from pix2pixhd_fast.training.discriminator_pass import DiscriminatorPass, fits
from pix2pixhd_fast.training.parameter_gradients import give_gradients, give_zeros

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
    picture = run(batch, accumulate)
    return batch.all_losses(), picture


class _Batch:
    """A batch on its way: the losses so far, and how a loss becomes gradients."""

    def __init__(self, model: "Pix2PixHD", inputs: "Inputs", share: float, last: bool):
        self.model, self.options, self.share, self.last = model, model.options, share, last
        self.scene, self.real, self.inputs = inputs.cropped_scene(), inputs.image, inputs
        self.losses: Losses = {}

    def all_losses(self) -> Losses:
        """In their order; zero where the options leave one out."""
        zero = None
        if len(self.losses) < len(LOSS_NAMES):
            zero = self.real.new_zeros(())
        return {name: self.losses.get(name, zero) for name in LOSS_NAMES}

    def note(self, found: Losses) -> list[Tensor]:
        """Keep the values of losses; the losses."""
        self.losses |= {name: loss.detach() for name, loss in found.items()}
        return list(found.values())

    def weight(self, letter: str) -> float:
        """Of each loss of "G", or of each of the two of "D", in what is differentiated."""
        return self.share * (0.5 if letter == "D" else 1.0)

    def scaled(self, letter: str, found: Losses) -> Tensor:
        """The sum of losses of "G", or the mean of the two of "D", as it is differentiated."""
        loss = self.weight(letter) * sum(self.note(found))
        return self.model.optimizers.scale(letter, loss)

    def seed(self, letter: str, like: Tensor) -> Tensor:
        """The gradient of each loss of a letter, with the scale of fp16, in the dtype of `like`.

        Losses are differentiated from it on: not a factor is multiplied into them.
        """
        weight = torch.full((), self.weight(letter), dtype=like.dtype, device=like.device)
        return self.model.optimizers.scale(letter, weight)

    def begin_average(self, letter: str) -> None:
        """All gradients of "D", or of "G" and E, are there: average them over the processes."""
        if self.last:
            self.model.optimizers.gradients[letter].begin()

    def averaging_G(self) -> AbstractContextManager:
        """Around the backward pass of G: its gradients are averaged while it runs."""
        return self.model.optimizers.gradients["G"].overlapping() if self.last else nullcontext()

    def seen_by_D(self, picture: Tensor) -> Tensor | SemanticMap:
        return _for_D(self.scene, picture, self.options.num_D)

    def cut_off(self, fake: Tensor) -> Tensor:
        """The synthesised pictures as a leaf, in which the gradients of the branches are summed.

        They and the real ones lie in one piece from then on, as D reads them: channels_last,
        float32 (float64 for float64).
        """
        n = len(fake)
        # What G made in the order that D reads: the profiler counts it as G's, not as an input.
        with forward_of(self.model.netG):
            self.pictures = torch.empty(
                (2 * n, *fake.shape[1:]),
                dtype=torch.promote_types(fake.dtype, torch.float32),
                device=fake.device,
                memory_format=torch.channels_last,
            )
        self.pictures[:n].copy_(fake.detach())
        self.pictures[n:].copy_(self.real)
        self.real = self.pictures[n:]
        return self.pictures[:n].requires_grad_()

    def both_seen_by_D(self) -> Tensor | SemanticMap:
        """What D reads of the synthesised pictures and then of the real ones, channels_last."""
        scene = self.scene
        if isinstance(scene, SemanticMap):
            return append_channels(SemanticMap.cat((scene, scene)), self.pictures)
        both = append_channels(torch.cat((scene, scene)), self.pictures)
        return both.contiguous(memory_format=torch.channels_last)


def _branch_by_branch(batch: _Batch, accumulate: bool) -> Tensor:
    model = batch.model
    if not accumulate:
        model.optimizers.zero_grad()
    with model.autocast(), recompute(batch.options.checkpoint):
        fake = model.generate(batch.inputs)
    image = batch.cut_off(fake)
    seeds = {letter: batch.seed(letter, image) for letter in "GD"}
    if not batch.options.no_vgg_loss:
        _perceptual(batch, image, seeds["G"])
    at_once = _fits_at_once(batch)
    (_adversarial_at_once if at_once else _adversarial_by_graph)(batch, image, seeds)
    batch.begin_average("D")
    parameters, dead = _trained(model.optimizers.gradients["G"].parameters, model.netG, model.netE)
    give_zeros(dead)
    with batch.averaging_G():
        fake.backward(image.grad.to(fake.dtype), inputs=parameters)
    batch.begin_average("G")
    return fake.detach()


def _trained(
    parameters: list[nn.Parameter], *nets: nn.Module | None
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Those of `parameters` of nets that get a gradient by a backward pass, and the dead biases."""
    dead = [bias for net in nets if net is not None for bias in dead_biases(net)]
    passed = {id(bias) for bias in dead}
    return [p for p in parameters if p.requires_grad and id(p) not in passed], dead


def _perceptual(batch: _Batch, image: Tensor, seed: Tensor) -> None:
    """The VGG loss, and its gradient for the picture."""
    factor = batch.options.lambda_feat
    with batch.model.autocast():
        loss = batch.model.criterionVGG(_for_vgg(image), _for_vgg(batch.real), factor)
    batch.note({"G_VGG": loss})
    loss.backward(seed, inputs=[image])


def _fits_at_once(batch: _Batch) -> bool:
    """Whether D can see both pictures as one batch, without a graph.

    A pool shows D an older picture instead, and a batch norm counts what it sees.
    """
    model, options = batch.model, batch.options
    apart = model.pool.size > 0 or options.norm == "batch"
    grows = max(batch.real.shape[2:]) < _least_side(options.num_D)
    return not (apart or grows) and fits(model.netD)


def _adversarial_at_once(batch: _Batch, image: Tensor, seeds: Losses) -> None:
    """The losses that D decides: G's gradient for the picture, D's for its parameters.

    D sees both pictures once, as one batch. Autograd takes part in the losses of the predictions.
    """
    model = batch.model
    with model.autocast(), torch.no_grad():
        both = DiscriminatorPass(model.netD, batch.both_seen_by_D(), image.shape[1])
    fake, real = both.results()
    matchings = _matchings(batch, fake, real, seeds["G"])
    # The predictions alone: features are in memory until the passes use them up.
    fake, real = ([scale[-1:] for scale in scales] for scales in (fake, real))
    of_picture = both.picture_gradient(_of_fake(batch, fake, seeds["G"]), matchings)
    image.grad = of_picture if image.grad is None else image.grad.add_(of_picture)
    del of_picture, matchings
    give_gradients(*both.parameter_gradients(_of_predictions(batch, fake, real, seeds["D"])))
    give_zeros(dead_biases(model.netD))


def _matchings(
    batch: _Batch, fake: list[list[Pending]], real: list[list[Pending]], seed: Tensor
) -> list[list[Matching | None]]:
    """Notes the feature-matching loss; what its gradient takes, per scale and feature."""
    if batch.options.no_ganFeat_loss:
        return [[None] * (len(scale) - 1) for scale in fake]
    loss, matchings = feature_matchings(fake, real, batch.options.lambda_feat, seed)
    batch.note({"G_GAN_Feat": loss})
    return matchings


def _of_fake(batch: _Batch, fake: list[list[Pending]], seed: Tensor) -> list[Tensor]:
    """The gradient of G's adversarial loss for the raw prediction of each scale."""
    leaves = [p.x.requires_grad_() for (p,) in fake]
    with batch.model.autocast():
        losses = batch.note({"G_GAN": batch.model.criterionGAN(fake, True)})
    return list(torch.autograd.grad(losses, leaves, [seed]))


def _of_predictions(
    batch: _Batch, fake: list[list[Pending]], real: list[list[Pending]], seed: Tensor
) -> list[Tensor]:
    """The gradient of D's losses for the raw prediction of each scale, the synthesised first."""
    gan = batch.model.criterionGAN
    leaves = [p.x.requires_grad_() for scales in (fake, real) for (p,) in scales]
    with batch.model.autocast():
        losses = batch.note({"D_real": gan(real, True), "D_fake": gan(fake, False)})
    found = torch.autograd.grad(losses, leaves, [seed] * 2)
    return [torch.cat(pair) for pair in zip(found[: len(fake)], found[len(fake) :], strict=True)]


def _losses_of_G(
    batch: _Batch, fake: list[list[Pending]], real: list[list[Pending]]
) -> dict[str, Tensor]:
    """Those that D decides."""
    found = {"G_GAN": batch.model.criterionGAN(fake, True)}
    if not batch.options.no_ganFeat_loss:
        found["G_GAN_Feat"] = feature_matching_loss(fake, real, batch.options.lambda_feat)
    return found


def _adversarial_by_graph(batch: _Batch, image: Tensor, seeds: Losses) -> None:
    """As `_adversarial_at_once`, for any D, by autograd.

    D sees each of the two pictures once, its graph of the synthesised one serves both. A pool shows
    D an older picture instead, and a batch norm counts what it sees: both take a third forward.
    """
    model, options = batch.model, batch.options
    netD, gan = model.netD, model.criterionGAN
    parameters, dead = _trained(list(netD.parameters()), netD)
    give_zeros(dead)
    apart = model.pool.size > 0 or options.norm == "batch"
    if apart:
        with model.autocast():
            pooled = netD(model.pool.query(batch.seen_by_D(image.detach())), raw=True)
            D_fake = gan(pooled, False)
        del pooled
        batch.note({"D_fake": D_fake})[0].backward(seeds["D"], inputs=parameters)
    with model.autocast():
        real = netD(batch.seen_by_D(batch.real), raw=True)
        D_real = gan(real, True)
    real = [[_constant(p) for p in scale] for scale in real]
    batch.note({"D_real": D_real})[0].backward(seeds["D"], inputs=parameters)
    with model.autocast():
        fake = netD(batch.seen_by_D(image), raw=True)
        of_G = batch.note(_losses_of_G(batch, fake, real))
        D_fake = D_fake if apart else gan(fake, False)
    del fake, real
    of_each = [seeds["G"]] * len(of_G)
    torch.autograd.backward(of_G, of_each, inputs=[image], retain_graph=not apart)
    if not apart:
        del of_G
        batch.note({"D_fake": D_fake})[0].backward(seeds["D"], inputs=parameters)


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
    least = _least_side(num_D)
    return seen if max(seen.shape[2:]) >= least else pad_by_edge(seen, (least, least))


def _least_side(num_D: int) -> int:
    return 2 ** (num_D - 1) + 1


def _for_vgg(picture: Tensor) -> Tensor:
    """Sides of less than the 16 pixels that four poolings halve grow by the edge."""
    return pad_by_edge(picture, (VGG_LEAST_SIDE, VGG_LEAST_SIDE))


def _constant(p: Pending) -> Pending:
    """`p` without gradient."""
    parts = (None if t is None else t.detach() for t in p.norm.tensors)
    return p._replace(x=p.x.detach(), norm=Norm(p.norm.kind, *parts))
