"""Places on a machine: GPU shares per device, memory, a number of instances."""

from algomesh_broker.platform import Options
from algomesh_services.launcher.budget import ASSUMED_MEMORY_BYTES, Capacity, Place, explain_misfit, find_place

GIB = 2**30
TWO_GPUS = Capacity(max_instances=10, memory_bytes=64 * GIB, gpus=("0", "1"))
NO_GPU = Capacity(max_instances=10, memory_bytes=64 * GIB)


def gpu(share: float) -> Options:
    return Options(gpu=share)


def fill(capacity: Capacity, *shares: float) -> list[Place]:
    places: list[Place] = []
    for share in shares:
        place = find_place(gpu(share), capacity, places)
        assert place is not None, f"{share} does not fit beside {places}"
        places.append(place)
    return places


def test_two_large_shares_never_lie_on_one_device() -> None:
    places = fill(TWO_GPUS, 0.6, 0.6)

    assert {place.gpus for place in places} == {("0",), ("1",)}
    assert find_place(gpu(0.6), TWO_GPUS, places) is None


def test_two_large_shares_do_not_fit_on_one_device() -> None:
    one = Capacity(max_instances=10, memory_bytes=64 * GIB, gpus=("0",))

    assert find_place(gpu(0.6), one, fill(one, 0.6)) is None


def test_small_shares_fill_one_device_before_the_next() -> None:
    places = fill(TWO_GPUS, 0.25, 0.25, 0.25, 0.25, 0.25)

    assert [place.gpus for place in places] == [("0",)] * 4 + [("1",)]


def test_ten_tenths_fill_a_device_in_spite_of_rounding() -> None:
    one = Capacity(max_instances=20, memory_bytes=64 * GIB, gpus=("0",))

    places = fill(one, *[0.1] * 10)

    assert find_place(gpu(0.1), one, places) is None


def test_whole_gpus_are_taken_whole() -> None:
    place = find_place(gpu(2), TWO_GPUS, [])

    assert place is not None
    assert (place.gpus, place.share) == (("0", "1"), 1.0)
    assert find_place(gpu(0.1), TWO_GPUS, [place]) is None


def test_whole_gpus_do_not_fit_beside_a_share() -> None:
    assert find_place(gpu(2), TWO_GPUS, fill(TWO_GPUS, 0.1)) is None
    assert find_place(gpu(1), TWO_GPUS, fill(TWO_GPUS, 0.1)) is not None


def test_one_and_a_half_gpus_take_two_devices() -> None:
    place = find_place(gpu(1.5), TWO_GPUS, [])

    assert place is not None
    assert place.gpus == ("0", "1")


def test_without_a_gpu_the_wish_is_noted_and_costs_nothing() -> None:
    places = fill(NO_GPU, 0.25, 4)

    assert places[0].note == "gpu 0.25 asked for, none here: runs on the CPU"
    assert [place.gpus for place in places] == [(), ()]


def test_a_place_is_free_again_when_it_is_no_longer_taken() -> None:
    places = fill(TWO_GPUS, 0.6, 0.6)

    assert find_place(gpu(0.6), TWO_GPUS, places[1:]) is not None


def test_memory_is_added_up_and_what_declares_none_is_assumed_to_take_some() -> None:
    small = Capacity(max_instances=10, memory_bytes=GIB + ASSUMED_MEMORY_BYTES)
    first = find_place(Options(memory_bytes=GIB), small, [])
    assert first is not None

    second = find_place(Options(), small, [first])

    assert second is not None
    assert second.memory_bytes == ASSUMED_MEMORY_BYTES
    assert find_place(Options(), small, [first, second]) is None


def test_the_number_of_instances_is_bounded() -> None:
    two = Capacity(max_instances=2, memory_bytes=64 * GIB)

    assert find_place(Options(), two, [Place(), Place()]) is None
    assert find_place(Options(), two, [Place()]) is not None


def test_a_misfit_is_explained() -> None:
    assert explain_misfit(gpu(1), TWO_GPUS) == ""
    assert explain_misfit(gpu(4), NO_GPU) == ""
    assert explain_misfit(gpu(3), TWO_GPUS) == "it asks for 3 GPUs, and this machine has 2"
    assert "128 GiB" in explain_misfit(Options(memory_bytes=128 * GIB), TWO_GPUS)
    assert explain_misfit(Options(), Capacity(max_instances=0, memory_bytes=GIB))
