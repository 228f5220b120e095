"""Triton kernels and their launchers, one file per op; imported only when they are used."""
