"""What is up, and how long starts take: the policy's Fleet, as launchers tell it.

Each launcher says everything it runs, after every change and once a second; one that is silent for three seconds is
gone, with all it had. How long a start takes is measured per version and machine.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

from algomesh_broker.errors import BadName
from algomesh_broker.messages import Machine, MachineInstance
from algomesh_broker.names import VersionId

SILENT_S = 3.0
FIRST_GUESS_S = 1.0
"""A cold start, before the first one of any version of the algorithm was seen: between a small function's tenth of a
second and a large model's ten."""

_STARTS = 20
_FADES = 0.9  # the weight of a start, for each one after it: the median is that of about the last ten
_MOST_VERSIONS = 20_000
_LEAST_LEFT = 0.1  # of a cold start: a load that takes longer than usual is not known to end now


class Start(NamedTuple):
    """A start that has just ended well: how long it took, and what earlier ones let expect (0: there were none)."""

    version: str
    launcher: str
    took_s: float
    expected_s: float


class Up:
    """An instance, as its launcher told of it last. Times are in our time; `idle_s` None: it works, or loads."""

    __slots__ = (
        "algorithm",
        "idle_s",
        "instance",
        "is_draining",
        "launched_s",
        "launcher",
        "ready_s",
        "row",
        "version",
    )

    def __init__(self, row: MachineInstance, launcher: str, algorithm: str, now: float) -> None:
        self.instance, self.launcher = row.instance, launcher
        self.algorithm, self.version = algorithm, row.version
        self.launched_s = now - row.age_ms / 1000.0
        self.ready_s: float | None = None
        self.idle_s: float | None = None
        self.is_draining = False
        self.tell(row, now)

    def tell(self, row: MachineInstance, now: float) -> None:
        """What its launcher says of it now."""
        self.row = row
        self.is_draining = row.state == "draining"
        if row.start_ms > 0 and self.ready_s is None:
            self.ready_s = min(now, self.launched_s + row.start_ms / 1000.0)
        self.idle_s = now - row.idle_ms / 1000.0 if row.idle_ms >= 0 and self.ready_s is not None else None

    @property
    def is_working(self) -> bool:
        """Whether it is ready and has something to do."""
        return self.ready_s is not None and self.idle_s is None


class Changes(NamedTuple):
    """What a launcher's word changed."""

    come: list[Up]
    told: list[Up]
    gone: list[Up]
    started: list[Start]


class LiveFleet:
    """The instances of all launchers. `now` is our time, `weight` the GPUs that an instance of a version takes."""

    def __init__(self, now: Callable[[], float], weight: Callable[[str], float]) -> None:
        self._now, self._weight = now, weight
        self._machines: dict[str, dict[str, Up]] = {}
        self._heard: dict[str, float] = {}
        self._of: dict[str, dict[str, Up]] = {}
        self._current: OrderedDict[str, str] = OrderedDict()
        self._starts: OrderedDict[tuple[str, str], deque[float]] = OrderedDict()
        self._medians: dict[str, dict[str, float]] = {}
        self._last_median: dict[str, float] = {}

    # What launchers say

    def hear(self, machine: Machine, now: float) -> Changes:
        """A launcher says what it runs."""
        known = self._machines.setdefault(machine.launcher, {})
        self._heard[machine.launcher] = now
        changes = Changes([], [], [], [])
        rows = {row.instance: row for row in machine.instances}
        for instance in [each for each in known if each not in rows]:
            changes.gone.append(self._drop(known.pop(instance)))
        for row in rows.values():
            up = known.get(row.instance)
            was_loading = up is None or up.ready_s is None
            if up is None:
                try:
                    algorithm = VersionId.parse(row.version).algorithm
                except BadName:
                    continue
                up = known[row.instance] = Up(row, machine.launcher, algorithm, now)
                self._of.setdefault(algorithm, {})[up.instance] = up
                changes.come.append(up)
                is_news = row.age_ms - row.start_ms < SILENT_S * 1000  # else it was up before we were
            else:
                up.tell(row, now)
                is_news = True
            changes.told.append(up)
            if was_loading and up.ready_s is not None and is_news:
                took_s = row.start_ms / 1000.0
                changes.started.append(Start(up.version, up.launcher, took_s, self._measured_s(up.version)))
                self.learn_start(up.version, up.launcher, took_s)
        return changes

    def drop_silent(self, now: float) -> list[Up]:
        """What was run by launchers that nobody hears of any more."""
        gone: list[Up] = []
        for launcher, heard_s in list(self._heard.items()):
            if now - heard_s > SILENT_S:
                del self._heard[launcher]
                gone += [self._drop(up) for up in self._machines.pop(launcher).values()]
        return gone

    def learn_start(self, version: str, launcher: str, took_s: float) -> None:
        """A start of this version took so long on this machine."""
        key = (version, launcher)
        starts = self._starts.pop(key, None)
        if starts is None:
            starts = deque(maxlen=_STARTS)
        starts.append(took_s)
        self._starts[key] = starts
        medians = self._medians.setdefault(version, {})
        medians[launcher] = _median(starts)
        self._last_median[version.rpartition("/")[0]] = sum(medians.values()) / len(medians)
        if len(self._starts) > _MOST_VERSIONS:
            (old, machine), _ = self._starts.popitem(last=False)
            self._medians[old].pop(machine, None)
            if not self._medians[old]:
                del self._medians[old]
                self._last_median.pop(old.rpartition("/")[0], None)

    def called(self, algorithm: str, version: str) -> None:
        """This is the version that is called now."""
        self._current.pop(algorithm, None)
        self._current[algorithm] = version
        if len(self._current) > _MOST_VERSIONS:
            self._current.popitem(last=False)

    # What the policy asks

    def cold_start_s(self, algorithm: str, /) -> float:
        """Expected seconds from launch to ready."""
        version = self._current.get(algorithm)
        return self._expected_s(version) if version else self._last_median.get(algorithm, FIRST_GUESS_S)

    def gpu_weight(self, algorithm: str, /) -> float:
        """GPUs that an instance takes."""
        version = self._current.get(algorithm)
        return self._weight(version) if version else 1.0

    def state(self, algorithm: str, /) -> str:
        """`off`, `loading` or `warm`, of the version that is called now."""
        found = "off"
        for up in self._serving(algorithm):
            if up.ready_s is not None:
                return "warm"
            found = "loading"
        return found

    def ready_in_s(self, algorithm: str, /) -> float:
        """Expected seconds until an instance is ready; 0 when one is."""
        cold_s = self.cold_start_s(algorithm)
        left_s = cold_s
        for up in self._serving(algorithm):
            if up.ready_s is not None:
                return 0.0
            left_s = min(left_s, max(_LEAST_LEFT * cold_s, up.launched_s + cold_s - self._now()))
        return left_s

    # What else is asked

    def current(self, algorithm: str) -> str:
        """The version that was called last; empty where none was."""
        return self._current.get(algorithm, "")

    def of(self, algorithm: str) -> Iterable[Up]:
        """The instances of an algorithm, of every version."""
        return self._of.get(algorithm, {}).values()

    @property
    def launchers(self) -> Iterable[str]:
        """Those that are heard."""
        return self._heard.keys()

    @property
    def is_heard(self) -> bool:
        """Whether any launcher is."""
        return bool(self._heard)

    def is_up(self, version: str) -> bool:
        """Whether an instance of a version takes calls, and goes on to."""
        return any(
            up.version == version and up.ready_s is not None and not up.is_draining
            for up in self.of(version.rpartition("/")[0])
        )

    def is_working(self, algorithm: str) -> bool:
        """Whether an instance of it has something to do."""
        return any(up.is_working for up in self.of(algorithm))

    def idle_since_s(self, algorithm: str) -> float | None:
        """Since when nothing of it works; None while something does or loads. Without instances: for ever."""
        since = float("-inf")
        for up in self.of(algorithm):
            if up.idle_s is None:
                return None
            since = max(since, up.idle_s)
        return since

    def became_ready(self, version: str, after_s: float) -> bool:
        """Whether an instance of a version became ready after a moment."""
        algorithm = version.rpartition("/")[0]
        return any(
            up.version == version and up.ready_s is not None and up.ready_s > after_s for up in self.of(algorithm)
        )

    def _serving(self, algorithm: str) -> Iterable[Up]:
        version = self._current.get(algorithm)
        return (up for up in self.of(algorithm) if not up.is_draining and (not version or up.version == version))

    def _expected_s(self, version: str) -> float:
        return self._measured_s(version) or self._last_median.get(version.rpartition("/")[0], FIRST_GUESS_S)

    def _measured_s(self, version: str) -> float:
        medians = self._medians.get(version)
        return max(1e-3, sum(medians.values()) / len(medians)) if medians else 0.0

    def _drop(self, up: Up) -> Up:
        instances = self._of.get(up.algorithm, {})
        instances.pop(up.instance, None)
        if not instances:
            self._of.pop(up.algorithm, None)
        return up


def _median(starts: Iterable[float]) -> float:
    """The weighted median: later ones weigh more."""
    weighed = [(took_s, _FADES**age) for age, took_s in enumerate(reversed(list(starts)))]
    weighed.sort()
    half = sum(weight for _, weight in weighed) / 2.0
    for took_s, weight in weighed:
        half -= weight
        if half <= 0.0:
            return took_s
    return weighed[-1][0]
