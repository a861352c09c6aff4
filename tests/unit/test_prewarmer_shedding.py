from algomesh_services.prewarmer.shedding import Shedding, is_followed


def test_it_follows_fewer_requests_while_there_are_too_many_and_all_of_them_again() -> None:
    shedding = Shedding(0.0)
    assert not shedding.spent(0.4, 0.5)
    assert shedding.spent(0.4, 1.0)
    assert shedding.one_in == 2
    for second in range(2, 20):
        shedding.spent(0.9, float(second))
    assert shedding.one_in == 256

    for second in range(20, 30):
        shedding.spent(0.01, float(second))
    assert shedding.one_in == 1


def test_one_long_decision_counts_at_once() -> None:
    shedding = Shedding(0.0)

    assert shedding.spent(1.5, 0.2)


def test_requests_are_followed_whole() -> None:
    roots = [f"{number:032x}" for number in range(512)]

    assert all(is_followed(root, 1) for root in roots)
    assert sum(is_followed(root, 4) for root in roots) == 128
    assert {root for root in roots if is_followed(root, 8)} <= {root for root in roots if is_followed(root, 4)}
    assert not is_followed("no hex", 2)
