"""Trains the head of text/sentiment 2.0.0 and reports, on texts it has not seen, how well it agrees with people.

    python train.py --all amazon_reviews.tsv --half tweets.tsv

A line of a TSV is `id<TAB>rating<TAB>text`, rated from -4 to 4. Every row of an `--all` file is trained on; of a
`--half` file those rows whose id hashes to even, and the others are the examination. The texts are seen as they come
from text/clean and from text/lemmatize, which stand beside this folder, so that the head knows both its places in a
pipeline. The same input gives the same head on the same machine.
"""

import argparse
import hashlib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "text_clean"), str(HERE.parent / "text_lemmatize")]

from clean import clean  # noqa: E402 - found through the line above, as are the next three
from lemmatize import Lemmatize  # noqa: E402
from minilm_encoder import LAYERS, WIDTH, Encoder  # noqa: E402
from minilm_head import FEATURES, HEAD_FILE, HIGHEST_RATING, Head  # noqa: E402

VIEWS = ("clean", "lemmatized")
HIDDEN, DROPOUT, EPOCHS, BATCH, RATE, DECAY = 64, 0.5, 14, 64, 1e-3, 0.3
FOLDS = 3
SEED = 20


class Row(NamedTuple):
    """A rated text."""

    id: str
    rating: float
    text: str

    @property
    def is_examined(self) -> bool:
        """Whether the hash of the id keeps this row of a `--half` file out of training."""
        return hashlib.sha256(self.id.encode()).digest()[0] % 2 == 1


class Rated(NamedTuple):
    """Encoded texts: (rows, views, FEATURES) beside the ratings of the rows."""

    features: Tensor
    ratings: Tensor

    def rows(self, chosen: Tensor) -> "Rated":
        """Return the rows at these indices."""
        return Rated(self.features[chosen], self.ratings[chosen])

    def joined(self, other: "Rated") -> "Rated":
        """Return the rows of both."""
        return Rated(torch.cat([self.features, other.features]), torch.cat([self.ratings, other.ratings]))

    @classmethod
    def encode(cls, encoder: Encoder, rows: Sequence[Row]) -> Self:
        """Run the encoder over both views of every row."""
        views = [[clean(row.text) for row in rows]]
        views.append([Lemmatize(text) for text in views[0]])
        features = torch.stack([_features(encoder, texts) for texts in views], dim=1)
        return cls(features, torch.tensor([row.rating for row in rows]))


def main() -> None:
    """Train, examine, report, and write the head."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--all", type=Path, nargs="+", required=True, help="train on every row of these files")
    parser.add_argument("--half", type=Path, required=True, help="train on half of this file, examine on the other")
    parser.add_argument("--output", type=Path, default=HEAD_FILE)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # sums in one order, whatever the number of cores

    encoder = Encoder.load(torch.device("cpu"))
    others = Rated.encode(encoder, [row for path in arguments.all for row in read_rows(path)])
    half = read_rows(arguments.half)
    seen = Rated.encode(encoder, [row for row in half if not row.is_examined])
    unseen = Rated.encode(encoder, [row for row in half if row.is_examined])
    print(f"{len(others.ratings)} rows of --all, {len(seen.ratings)} of --half trained on, {len(unseen.ratings)} kept")

    for fold, (train, test) in enumerate(folds(len(seen.ratings)), start=1):
        report(f"fold {fold} of {FOLDS} within the trained half", fit(others.joined(seen.rows(train))), seen.rows(test))
    report("trained on --all only, on the other half", fit(others), unseen)
    weights = fit(others.joined(seen))
    report("the head that is written, on the other half", weights, unseen)
    save_file(weights, arguments.output)
    arguments.output.chmod(0o644)  # written for its owner only, and instances may run as somebody else
    print(f"wrote {arguments.output.name}, {arguments.output.stat().st_size:,} bytes")


def read_rows(path: Path) -> list[Row]:
    """Read a TSV; bytes that are not UTF-8 are replaced. Raises ValueError for a line that is not three fields."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    fields = (line.split("\t", 2) for line in lines if line.strip())
    return [Row(id_, float(rating), text.rstrip("\r")) for id_, rating, text in fields]


def folds(size: int) -> Iterable[tuple[Tensor, Tensor]]:
    """Yield (train, test) indices, so that every row is tested once."""
    order = torch.randperm(size, generator=torch.Generator().manual_seed(SEED))
    parts = order.chunk(FOLDS)
    for tested in range(FOLDS):
        yield torch.cat([part for index, part in enumerate(parts) if index != tested]), parts[tested]


def fit(rated: Rated) -> dict[str, Tensor]:
    """Train a head on both views of the rows and return its weights, in half precision."""
    torch.manual_seed(SEED)
    features = rated.features.flatten(0, 1)
    ratings = rated.ratings.repeat_interleave(len(VIEWS))
    mean, spread = features.mean(dim=0), features.std(dim=0) + 1e-6
    features = (features - mean) / spread
    hidden, out = nn.Linear(FEATURES, HIDDEN), nn.Linear(HIDDEN, 1)
    net = nn.Sequential(nn.Dropout(DROPOUT), hidden, nn.GELU(), nn.Dropout(DROPOUT), out)
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=DECAY)
    steps = len(features) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=EPOCHS * steps)
    for _ in range(EPOCHS):
        order = torch.randperm(len(features))
        for step in range(steps):
            batch = order[step * BATCH : (step + 1) * BATCH]
            loss = (net(features[batch]).squeeze(1) - ratings[batch]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    # The standardization of the features is folded into the first layer.
    weight = hidden.weight / spread
    tensors = {
        "hidden.weight": weight,
        "hidden.bias": hidden.bias - weight @ mean,
        "out.weight": out.weight,
        "out.bias": out.bias,
    }
    return {name: tensor.detach().half().contiguous() for name, tensor in tensors.items()}


def report(what: str, weights: dict[str, Tensor], rated: Rated) -> None:
    """Print the correlation of the scores with people's ratings, for each view."""
    head = Head(weights)
    found = []
    for view, name in enumerate(VIEWS):
        scores = head.scores(rated.features[:, view])
        correlation = torch.corrcoef(torch.stack([scores, rated.ratings / HIGHEST_RATING]))[0, 1]
        found.append(f"{name} {correlation:.3f}")
    print(f"{what}: r = {', '.join(found)} ({len(rated.ratings)} rows)", flush=True)


def _features(encoder: Encoder, texts: Sequence[str]) -> Tensor:
    """Encode texts of like length together: padding costs as much as text."""
    features = torch.zeros(len(texts), FEATURES)
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        features[batch] = encoder.encode([texts[index] for index in batch]).means().reshape(-1, (LAYERS + 1) * WIDTH)
    return features


if __name__ == "__main__":
    main()
