"""`python -m dashboards` writes observability/grafana/dashboards/*.json; with `--check` it says whether they are so."""

import json
import sys
from pathlib import Path
from typing import Final

from dashboards import algorithm, cost, overview, starts

FOLDER: Final = Path(__file__).parents[1] / "grafana" / "dashboards"
BOARDS: Final = {"overview": overview, "algorithm": algorithm, "cold-starts": starts, "cost": cost}


def rendered() -> dict[Path, str]:
    """The files and what is to be in them."""
    return {FOLDER / f"{name}.json": json.dumps(each.make(), indent=2) + "\n" for name, each in BOARDS.items()}


def main() -> int:
    """Write, or check; 1 when a file is not as it should be."""
    stale = [path for path, text in rendered().items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv[1:]:
        for path in stale:
            sys.stderr.write(f"{path.name} is not what `python -m dashboards` makes\n")
        return int(bool(stale))
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path, text in rendered().items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
