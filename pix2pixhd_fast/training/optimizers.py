"""Adam for G (with E) and for D, the schedule of learning rates, and loss scaling for fp16."""

from torch import Tensor, amp, nn
from torch.optim import Adam

from pix2pixhd_fast._backend import current_backend
from pix2pixhd_fast.nn.generators import enhancer_parameters
from pix2pixhd_fast.nn.weight_format import laid_out_like
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


def _has_fused_adam(device: str) -> bool:
    """Whether the update of float32 parameters on `device` is one kernel; not under "eager"."""
    return current_backend() != "eager" and device in ("cpu", "cuda")


def _with_settings(state: dict, settings: dict) -> dict:
    """A state of Adam with other settings than it was saved with."""
    groups = [{**group, "foreach": None, **settings} for group in state["param_groups"]]
    return {**state, "param_groups": groups}


def _portable(state: dict) -> dict:
    """A state of Adam that says nothing of how it is computed."""
    return _with_settings(state, {"fused": None})


class Optimizers:
    """The two optimisers of a training step: Adam with betas (beta1, 0.999), a scaler each.

    During the first `niter_fix_global` epochs only the outermost enhancer (and E) is trained: the
    rest of G needs no gradient, and Adam passes over parameters without one. `start_epoch` sets all
    that depends on the epoch; until it is called, epoch 1 holds.

    A step: `zero_grad()`, the backward passes of each micro-batch, `step()`. The gradients of a
    step are the means over the processes of `world`, and so what a scaler finds in them, or
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
        self.gradients = {
            "G": SharedGradients(generator, world),
            "D": SharedGradients(netD.parameters(), world),
        }
        device = next(netG.parameters()).device.type
        # One kernel for an update instead of a dozen over lists of tensors; both are Adam.
        self.settings = {"betas": (options.beta1, 0.999), "fused": _has_fused_adam(device) or None}
        self.G = Adam(generator, lr=options.lr, **self.settings)
        self.D = Adam(netD.parameters(), lr=options.lr, **self.settings)
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

    def zero_grad(self, letters: str = "GD") -> None:
        """Drop the gradients of "G" (with E), "D" or both."""
        for letter in letters:
            getattr(self, letter).zero_grad()

    def scale(self, letter: str, loss: Tensor) -> Tensor:
        """The loss of "G" or "D" as it is differentiated: times the scale, under fp16."""
        return self.scalers[letter].scale(loss)

    def step(self) -> None:
        """Update the parameters of G (with E), then of D, by the gradients that they have.

        Under fp16 an optimiser whose gradients are not all finite is passed over, its scale halved.
        """
        for letter, scaler in self.scalers.items():
            self.gradients[letter].reduce()
            scaler.step(getattr(self, letter))
            scaler.update()

    def state_dict(self) -> dict:
        """States of both optimisers and scalers, wherever they were."""
        return {
            "G": _portable(self.G.state_dict()),
            "D": _portable(self.D.state_dict()),
            "scaler_G": self.scalers["G"].state_dict(),
            "scaler_D": self.scalers["D"].state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Take over what `state_dict` returned.

        The options of this run hold: its `beta1`, and with fp16 switched on since, a new scale.
        """
        for name in ("G", "D"):
            optimizer, scale = getattr(self, name), state[f"scaler_{name}"]
            optimizer.load_state_dict(_with_settings(state[name], self.settings))
            for p, found in optimizer.state.items():
                found.update(laid_out_like(p, found))
            if scale:
                self.scalers[name].load_state_dict(scale)
