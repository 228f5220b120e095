"""Training: the update rule, optimisers, and the loop of `pix2pixhd-fast train`."""
