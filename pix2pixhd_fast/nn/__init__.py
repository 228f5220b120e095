"""Layers, networks and losses of pix2pixHD."""
