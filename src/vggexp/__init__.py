"""VGG networks on Fashion-MNIST: train, sweep, inspect and compare."""

__version__ = "0.1.0"
