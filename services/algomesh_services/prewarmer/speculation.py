"""How much may be started in vain for one caller: pure, time is an argument.

Whoever probes at random must not make the mesh burn GPUs: what was started for a caller's requests and not used may
not exceed, within an hour, what it would anyway be allowed to waste, or half of what its own runs computed.
"""

import math
from collections import OrderedDict
from collections.abc import Generator, Iterable
from typing import Self

import msgspec

from algomesh_services.prewarmer.snapshots import AccountState

FREE_GPU_S = 60.0
SHARE = 0.5
WINDOW_S = 3600.0
_BUCKETS = 12
_BUCKET_S = WINDOW_S / _BUCKETS
_MOST_CALLERS = 20_000
_PIECE = 100  # accounts


class _Account:
    """What one caller's runs computed, and wasted. `may` is the answer that was found in the bucket `asked_in`."""

    __slots__ = ("asked_in", "buckets", "may")

    def __init__(self) -> None:
        self.buckets: dict[int, list[float]] = {}  # number of the bucket: computed, wasted
        self.asked_in: int | None = None
        self.may = True

    def of(self, now: float) -> list[float]:
        """The bucket of this time, which is going to change."""
        self.asked_in = None
        number = int(now // _BUCKET_S)
        found = self.buckets.get(number)
        if found is None:
            found = self.buckets[number] = [0.0, 0.0]
            for old in [each for each in self.buckets if each <= number - _BUCKETS]:
                del self.buckets[old]
        return found


class Speculation:
    """The accounts of callers, in GPU-seconds; the longest silent are forgotten first."""

    def __init__(self) -> None:
        self._accounts: OrderedDict[str, _Account] = OrderedDict()

    def computed(self, caller: str, gpu_s: float, now: float) -> None:
        """A run of a request of this caller took so much."""
        self._account(caller).of(now)[0] += gpu_s

    def wasted(self, caller: str, gpu_s: float, now: float) -> None:
        """An instance that was started for this caller stood there so long, unused; less than 0: it is used now."""
        if caller:
            self._account(caller).of(now)[1] += gpu_s

    def may(self, caller: str, now: float) -> bool:
        """Whether something may be started ahead for this caller's requests."""
        account = self._accounts.get(caller)
        if account is None:
            return True
        number = int(now // _BUCKET_S)
        if account.asked_in != number:  # asked for every hold, and changed by every run
            recent = [bucket for each, bucket in account.buckets.items() if each > number - _BUCKETS]
            computed, wasted = (sum(bucket[place] for bucket in recent) for place in (0, 1))
            account.asked_in, account.may = number, wasted <= max(FREE_GPU_S, SHARE * computed)
        return account.may

    def pack(self) -> Generator[None, None, list[msgspec.Raw]]:
        """All accounts (AccountState), piece by piece."""
        packed: list[msgspec.Raw] = []
        for number, (caller, account) in enumerate(list(self._accounts.items()), 1):
            buckets = [(place, sums[0], sums[1]) for place, sums in account.buckets.items()]
            packed.append(msgspec.Raw(msgspec.msgpack.encode(AccountState(caller, buckets))))
            if number % _PIECE == 0:
                yield
        return packed

    @classmethod
    def of(cls, accounts: Iterable[AccountState]) -> Self:
        """With these accounts. Raises ValueError on what cannot be one."""
        made = cls()
        for account in accounts:
            for place, computed, wasted in account.buckets:
                if not (math.isfinite(computed) and math.isfinite(wasted)):
                    raise ValueError(f"the snapshot is damaged: the account of {account.caller}")
                made._account(account.caller).buckets[place] = [computed, wasted]
        return made

    def take_over(self, other: "Speculation") -> None:
        """Go on with the accounts of another."""
        self._accounts = other._accounts

    def _account(self, caller: str) -> _Account:
        account = self._accounts.get(caller)
        if account is None:
            account = self._accounts[caller] = _Account()
            if len(self._accounts) > _MOST_CALLERS:
                self._accounts.popitem(last=False)
        else:
            self._accounts.move_to_end(caller)
        return account
