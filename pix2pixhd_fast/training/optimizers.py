"""Adam for G (with E) and for D, the schedule of learning rates, and loss scaling for fp16."""

from contextlib import nullcontext

from torch import Tensor, amp, nn
from torch.optim import Adam

from pix2pixhd_fast.nn.generators import enhancer_parameters
from pix2pixhd_fast.options import Options
from pix2pixhd_fast.training.distributed import ALONE, World
from pix2pixhd_fast.training.gradients import SharedGradients


def learning_rate(options: Options, epoch: int) -> float:
    """The learning rate in `epoch` (from 1): constant, then linear down to lr / niter_decay.

    The original lowers the rate at the end of epochs after `niter`, so that it first differs in
    epoch niter + 2.
    """
    decayed = max(0, epoch - 1 - options.niter)
    return options.lr * (1 - decayed / options.niter_decay) if decayed else options.lr


class Optimizers:
    """The two optimisers of a training step: Adam with betas (beta1, 0.999), a scaler each.

    During the first `niter_fix_global` epochs only the outermost enhancer (and E) is trained: the
    rest of G needs no gradient, and Adam passes over parameters without one. `start_epoch` sets all
    that depends on the epoch; until it is called, epoch 1 holds.

    A step: `zero_grad()`, `backward` for each micro-batch, `step("G")`, `step("D")`. The gradients
    of a step are the means over the processes of `world`, and so what a scaler finds in them, or
    not, is found in all processes alike.
    """

    def __init__(
        self,
        options: Options,
        netG: nn.Module,
        netD: nn.Module,
        netE: nn.Module | None,
        world: World = ALONE,
    ):
        self.options = options
        self.fixed: list[nn.Parameter] = []
        if options.niter_fix_global:
            trained = {id(p) for p in enhancer_parameters(netG)}
            self.fixed = [p for p in netG.parameters() if id(p) not in trained]
        generator = [*netG.parameters(), *(netE.parameters() if netE else ())]
        self.betas = (options.beta1, 0.999)
        self.G = Adam(generator, lr=options.lr, betas=self.betas)
        self.D = Adam(netD.parameters(), lr=options.lr, betas=self.betas)
        self.gradients = {
            "G": SharedGradients(generator, world),
            "D": SharedGradients(netD.parameters(), world),
        }
        device = next(netG.parameters()).device.type
        scale = options.amp == "fp16"
        self.scalers = {name: amp.GradScaler(device, enabled=scale) for name in ("G", "D")}
        self.start_epoch(1)

    def start_epoch(self, epoch: int) -> None:
        """Set the learning rate of `epoch` (from 1), and whether all of G is trained in it."""
        for p in self.fixed:
            p.requires_grad_(epoch > self.options.niter_fix_global)
        for optimizer in (self.G, self.D):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(self.options, epoch)

    def zero_grad(self) -> None:
        """Forget all gradients."""
        self.G.zero_grad()
        self.D.zero_grad()

    def backward(self, name: str, loss: Tensor, last: bool = True, apart: bool = False) -> None:
        """Add the gradient of `loss` to those of "G" or "D"; if `apart`, to no others.

        `last`: no more are added before `step`, so that processes begin to exchange them.
        """
        gradients = self.gradients[name]
        inputs = [p for p in gradients.parameters if p.requires_grad] if apart else None
        with gradients.overlapping() if last else nullcontext():
            self.scalers[name].scale(loss).backward(inputs=inputs)
        if last:
            gradients.begin()

    def step(self, name: str) -> None:
        """One update of "G" or "D" by its gradients."""
        self.gradients[name].reduce()
        self.scalers[name].step(getattr(self, name))
        self.scalers[name].update()

    def state_dict(self) -> dict:
        """States of both optimisers and scalers."""
        return {
            "G": self.G.state_dict(),
            "D": self.D.state_dict(),
            "scaler_G": self.scalers["G"].state_dict(),
            "scaler_D": self.scalers["D"].state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Take over what `state_dict` returned.

        The options of this run hold: its `beta1`, and with fp16 switched on since, a new scale.
        """
        for name in ("G", "D"):
            optimizer, scale = getattr(self, name), state[f"scaler_{name}"]
            optimizer.load_state_dict(state[name])
            for group in optimizer.param_groups:
                group["betas"] = self.betas
            if scale:
                self.scalers[name].load_state_dict(scale)
