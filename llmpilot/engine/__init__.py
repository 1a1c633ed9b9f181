"""Inference engines, one file each: how to start one, cap its batch weight, speak to it and read it."""
