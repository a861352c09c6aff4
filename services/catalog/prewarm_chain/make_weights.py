"""Draws `weights.safetensors` by a fixed seed; nothing is trained here, since all that counts is weights to read."""

from itertools import pairwise

import torch
from net import CHANNELS, WEIGHTS
from safetensors.torch import save_file
from torch import nn


def main() -> None:
    """Write the file."""
    torch.manual_seed(4)
    tensors = {}
    for layer, (taken, given) in enumerate(pairwise(CHANNELS)):
        convolution = nn.Conv2d(taken, given, 3)
        tensors[f"{layer}.weight"] = convolution.weight.detach().half().contiguous()
        tensors[f"{layer}.bias"] = convolution.bias.detach().half().contiguous()
    save_file(tensors, WEIGHTS)
    WEIGHTS.chmod(0o644)  # written for its owner only, and instances may run as somebody else


if __name__ == "__main__":
    main()
