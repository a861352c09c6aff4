"""How many runs a run may begin."""

from algomesh.allowance import OWN_BUDGET, Allowance
from algomesh_services.registry.leases import Leases


def test_a_run_begins_what_its_budget_allows_and_no_more() -> None:
    allowance = Allowance("root", 3)

    begun = 0
    while allowance.spend(1) >= 0:
        begun += 1

    assert begun == 3


def test_what_all_below_a_run_may_begin_is_within_its_budget() -> None:
    """Whatever the order, and however deep: the sum of all shares never exceeds what was there."""

    def begin_all(budget: int) -> int:
        allowance, begun = Allowance("root", budget), 0
        while (share := allowance.spend(1)) >= 0:
            begun += 1 + begin_all(share)
        return begun

    assert begin_all(OWN_BUDGET) == OWN_BUDGET


def test_several_at_once_share_what_goes_with_them() -> None:
    allowance = Allowance("root", 1_001)

    share = allowance.spend(4)

    assert share * 4 + 4 + allowance.left <= 1_001
    assert share > 0


def test_the_registry_leases_a_root_so_much_and_no_more() -> None:
    leases = Leases(most=10)

    granted = [leases.take("root", 4) for _ in range(4)]

    assert granted == [4, 4, 2, 0]
    assert leases.take("other", 4) == 4
    assert leases.take("other", -5) == 0
