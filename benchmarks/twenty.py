"""A torch algorithm with 20 million parameters; the benchmark publishes a copy of this file beside its weights."""

from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from algomesh import algorithm

WIDTH, LAYERS = 2000, 5


def make_net() -> nn.Sequential:
    """Five linear layers, 2,000 wide: 20,010,000 parameters."""
    return nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)])


def load_net(weights: Path) -> nn.Sequential:
    """The net with the weights of a safetensors file, mapped and not copied."""
    with torch.device("meta"):
        net = make_net()
    net.load_state_dict(safetensors.torch.load_file(weights), assign=True)
    return net.eval()


@algorithm("bench/twenty", version="1.0.0", preload=["torch", "safetensors.torch"], idle=600)
class Twenty:
    """The mean of what 20 million parameters make of one number."""

    def load(self) -> None:
        """Read the weights."""
        self.net = load_net(Path(__file__).with_name("weights.safetensors"))

    def apply(self, value: float) -> float:
        """Run the net once."""
        with torch.inference_mode():
            return float(self.net(torch.full((1, WIDTH), value)).mean())
