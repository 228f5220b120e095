"""Adam for G (with E) and for D, the schedule of learning rates, and loss scaling for fp16."""

from torch import Tensor, amp, nn
from torch.optim import Adam

from pix2pixhd_fast.nn.generators import enhancer_parameters
from pix2pixhd_fast.options import Options


def learning_rate(options: Options, epoch: int) -> float:
    """The learning rate in `epoch` (from 1): constant for niter + 1 epochs, then linear down to lr
    / niter_decay.

    The original lowers the rate at the end of epochs after `niter`, so that it first differs in
    epoch niter + 2.
    """
    decayed = max(0, epoch - 1 - options.niter)
    return options.lr * (1 - decayed / options.niter_decay) if decayed else options.lr


class Optimizers:
    """The two optimisers of a training step, Adam with betas (beta1, 0.999), each with its own
    scaler.

    During the first `niter_fix_global` epochs only the outermost enhancer (and E) is trained: the
    rest of G needs no gradient. `start_epoch` sets all that depends on the epoch.
    """

    def __init__(self, options: Options, netG: nn.Module, netD: nn.Module, netE: nn.Module | None):
        self.options = options
        self.netG = netG
        encoder = list(netE.parameters()) if netE else []
        self.global_is_fixed = options.niter_fix_global > 0
        if self.global_is_fixed:
            enhancer = enhancer_parameters(netG)
            trained = {id(p) for p in enhancer}
            self.fixed = [p for p in netG.parameters() if id(p) not in trained]
            for p in self.fixed:
                p.requires_grad_(False)
        else:
            enhancer, self.fixed = list(netG.parameters()), []
        betas = (options.beta1, 0.999)
        self.G = Adam(enhancer + encoder, lr=options.lr, betas=betas)
        self.D = Adam(netD.parameters(), lr=options.lr, betas=betas)
        device = next(netG.parameters()).device.type
        scale = options.amp == "fp16"
        self.scalers = {name: amp.GradScaler(device, enabled=scale) for name in ("G", "D")}

    def start_epoch(self, epoch: int) -> None:
        """Set the learning rate of `epoch` (from 1); release the global generator when its time has
        come.
        """
        if self.global_is_fixed and epoch > self.options.niter_fix_global:
            self._release_global()
        for optimizer in (self.G, self.D):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(self.options, epoch)

    def _release_global(self) -> None:
        """Train all of G from now on; what was trained already keeps its Adam state."""
        for p in self.fixed:
            p.requires_grad_(True)
        self.G.add_param_group({"params": self.fixed})
        self.global_is_fixed = False

    def update(self, name: str, loss: Tensor) -> None:
        """One update of "G" or "D" by the gradient of `loss`."""
        optimizer, scaler = getattr(self, name), self.scalers[name]
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    def state_dict(self) -> dict:
        """States of both optimisers and scalers."""
        return {
            "global_is_fixed": self.global_is_fixed,
            "G": self.G.state_dict(),
            "D": self.D.state_dict(),
            "scaler_G": self.scalers["G"].state_dict(),
            "scaler_D": self.scalers["D"].state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Take over what `state_dict` returned."""
        if self.global_is_fixed and not state["global_is_fixed"]:
            self._release_global()
        for name in ("G", "D"):
            getattr(self, name).load_state_dict(state[name])
            self.scalers[name].load_state_dict(state[f"scaler_{name}"])
