"""Trains the network of video/stylize to paint in the manner of `painting.py`, and reports what that achieved.

    python train.py [--steps N] [--show sheet.png]

The network learns to lower the style loss of whatever it is given without losing its content (`style_losses.py`).
It is examined on pictures of another seed than it was trained on. Needs one thread and a few minutes; the same
machine gives the same weights.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from content_pictures import pictures
from painting import paint_picture
from safetensors.torch import save_file
from style_losses import Critic, recoloured
from style_net import WEIGHTS_FILE, new_weights, paint
from torch import Tensor

STEPS, BATCH, SIZE, RATE = 700, 2, 128, 2e-3
STYLE_WEIGHT, CONTENT_WEIGHT, SMOOTHNESS_WEIGHT = 5.0, 1.0, 0.2
STORE = 160
SEED = 5
EXAMINED = 8
_EXAMINATION_SEED = 99


def main() -> None:
    """Train, examine, report, and write the weights."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--output", type=Path, default=WEIGHTS_FILE)
    parser.add_argument("--show", type=Path, help="write examined pictures and their paintings as PNG (needs PyAV)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # sums in one order, whatever the number of cores

    painting = torch.from_numpy(paint_picture()).permute(2, 0, 1)
    critic = Critic(painting)
    weights = train(critic, arguments.steps)
    stored = {name: weight.detach().half().contiguous() for name, weight in weights.items()}
    unseen = torch.from_numpy(pictures(EXAMINED, 2 * SIZE, np.random.default_rng(_EXAMINATION_SEED)))
    with torch.inference_mode():
        painted = paint({name: weight.float() for name, weight in stored.items()}, unseen)
    report(critic, painting, unseen, painted)
    save_file(stored, arguments.output)
    arguments.output.chmod(0o644)  # written for its owner only, and instances may run as somebody else
    count = sum(weight.numel() for weight in stored.values())
    print(f"wrote {arguments.output.name}, {count:,} parameters, {arguments.output.stat().st_size:,} bytes")
    if arguments.show:
        show(arguments.show, torch.cat([unseen[:6], recoloured(unseen, painting)[:6], painted[:6]]), columns=6)


def train(critic: Critic, steps: int) -> dict[str, Tensor]:
    """Return the trained weights."""
    random = np.random.default_rng(SEED)
    store = torch.from_numpy(pictures(STORE, SIZE + SIZE // 2, random))
    weights = new_weights(torch.Generator().manual_seed(SEED))
    for weight in weights.values():
        weight.requires_grad_()
    optimizer = torch.optim.Adam(weights.values(), lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    began = time.monotonic()
    for step in range(1, steps + 1):
        originals = _crops(store, random)
        painted = paint(weights, originals)
        style, content = critic.style(painted).mean(), critic.content(painted, originals).mean()
        loss = STYLE_WEIGHT * style + CONTENT_WEIGHT * content + SMOOTHNESS_WEIGHT * _roughness(painted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == 1:
            took = time.monotonic() - began
            print(f"step {step}: style {style.item():.3f}, content {content.item():.3f}, {took:.0f} s", flush=True)
    return weights


def report(critic: Critic, painting: Tensor, originals: Tensor, painted: Tensor) -> None:
    """Print the losses of pictures the network has not seen, beside what a colour filter reaches."""
    filtered = recoloured(originals, painting)
    others = originals.roll(1, dims=0)
    rows = {"as it is": originals, "recoloured": filtered, "painted": painted, "another picture": others}
    for name, pictures_ in rows.items():
        content, style = critic.measure(pictures_, originals)
        print(f"{name}: content loss {content.mean():.3f}, style loss {style.mean():.3f}")


def show(file: Path, tiles: Tensor, columns: int) -> None:
    """Write pictures in rows of `columns` as one PNG."""
    import av

    rows = [torch.cat(list(row), dim=2) for row in tiles.split(columns)]
    sheet = (torch.cat(rows, dim=1).permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    av.VideoFrame.from_ndarray(np.ascontiguousarray(sheet), format="rgb24").save(str(file))


def _crops(store: Tensor, random: np.random.Generator) -> Tensor:
    """A batch of parts of stored pictures, half of them mirrored."""
    crops = []
    for index in random.integers(len(store), size=BATCH):
        row, column = random.integers(store.shape[-1] - SIZE + 1, size=2)
        crop = store[index, :, row : row + SIZE, column : column + SIZE]
        crops.append(crop.flip(-1) if random.integers(2) else crop)
    return torch.stack(crops)


def _roughness(pictures_: Tensor) -> Tensor:
    """How much neighbouring pixels differ: it keeps single bright dots away."""
    return pictures_.diff(dim=-1).abs().mean() + pictures_.diff(dim=-2).abs().mean()


if __name__ == "__main__":
    main()
