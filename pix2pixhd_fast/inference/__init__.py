"""Inference: the loop of `pix2pixhd-fast test`."""
