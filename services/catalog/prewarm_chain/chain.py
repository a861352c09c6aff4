"""Four services in a row, twice, each of which takes about a second to start.

`warm/first | warm/second | warm/third | warm/fourth` is a pipeline, so the mesh knows what comes next. `warm/one` calls
`warm/two` in its own code, and so on to `warm/four`: there the mesh has to learn what comes next.
"""

import time

import numpy as np
import torch
from net import Net

from algomesh import algorithm, current

LOAD_S = 0.9
"""All of `load()`: the weights are small, and what larger ones would take is waited for."""
IDLE_S = 2.0
"""How long an unused instance stays where nothing is predicted."""
WORTH = 0.5
"""What a second of a caller's latency is worth in seconds of a held GPU, to those that call each other.

A tenth of what a mesh assumes: they are not kept for long after a call, so that the next one begins cold and shows
what is started ahead.
"""


class Stage:
    """One step: the network, on one picture."""

    calls = ""

    def load(self) -> None:
        """Read the weights, and wait until the second is over."""
        began = time.monotonic()
        self._net = Net.load()
        time.sleep(max(0.0, began + LOAD_S - time.monotonic()))

    def apply(self, picture: np.ndarray) -> np.ndarray:
        """Run the network, and give its picture to the one this one calls, if there is one."""
        changed = self._net(torch.from_numpy(picture)).numpy()
        return current().client.algo(self.calls).pipe(changed).result if self.calls else changed


@algorithm("warm/first", version="1.0.0", gpu=0.25, idle=IDLE_S, preload=["torch"])
class First(Stage):
    """The first stage."""


@algorithm("warm/second", version="1.0.0", gpu=0.25, idle=IDLE_S, preload=["torch"])
class Second(Stage):
    """The second stage."""


@algorithm("warm/third", version="1.0.0", gpu=0.25, idle=IDLE_S, preload=["torch"])
class Third(Stage):
    """The third stage."""


@algorithm("warm/fourth", version="1.0.0", gpu=0.25, idle=IDLE_S, preload=["torch"])
class Fourth(Stage):
    """The fourth stage."""


@algorithm(
    "warm/one", version="1.0.0", gpu=0.25, idle=IDLE_S, preload=["torch"], calls=["warm/two"], latency_value=WORTH
)
class One(Stage):
    """Calls warm/two."""

    calls = "warm/two"


@algorithm(
    "warm/two", version="1.0.0", gpu=0.25, idle=IDLE_S, preload=["torch"], calls=["warm/three"], latency_value=WORTH
)
class Two(Stage):
    """Calls warm/three."""

    calls = "warm/three"


@algorithm(
    "warm/three", version="1.0.0", gpu=0.25, idle=IDLE_S, preload=["torch"], calls=["warm/four"], latency_value=WORTH
)
class Three(Stage):
    """Calls warm/four."""

    calls = "warm/four"


@algorithm("warm/four", version="1.0.0", gpu=0.25, idle=IDLE_S, preload=["torch"], latency_value=WORTH)
class Four(Stage):
    """The last one; it calls nobody."""


@algorithm("warm/torch", version="1.0.0", idle=1, preload=["torch"], prewarm=False)
def torch_version(_: object) -> str:
    """Say which torch there is. Whoever calls this first pays for its import, which is once for all services."""
    return str(torch.__version__)
