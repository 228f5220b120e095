"""The names of the original `models/networks.py`.

`import pix2pixhd_fast.networks as networks` in place of the original's import is the whole
migration: constructor arguments, their order and defaults, return structures and state_dict keys
are the same.
"""

from pix2pixhd_fast.nn.define import define_D, define_G, print_network
from pix2pixhd_fast.nn.discriminators import MultiscaleDiscriminator, NLayerDiscriminator
from pix2pixhd_fast.nn.encoder import Encoder
from pix2pixhd_fast.nn.generators import GlobalGenerator, LocalEnhancer, ResnetBlock
from pix2pixhd_fast.nn.losses import GANLoss, VGGLoss
from pix2pixhd_fast.nn.norms import get_norm_layer, weights_init
from pix2pixhd_fast.nn.vgg import Vgg19

__all__ = [
    "Encoder",
    "GANLoss",
    "GlobalGenerator",
    "LocalEnhancer",
    "MultiscaleDiscriminator",
    "NLayerDiscriminator",
    "ResnetBlock",
    "VGGLoss",
    "Vgg19",
    "define_D",
    "define_G",
    "get_norm_layer",
    "print_network",
    "weights_init",
]
