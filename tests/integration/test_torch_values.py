"""Torch tensors as values: encoded, read, joined and split. Not among the unit tests: importing torch takes long."""

from typing import Any

import pytest
import torch

from algomesh import content
from algomesh.kinds import notation
from algomesh.signature import read_signature

pytestmark = pytest.mark.integration


def round_trip(value: Any) -> Any:
    return content.decode(*content.encode(value))


def read(given: content.Content) -> torch.Tensor:
    def algorithm(value: torch.Tensor) -> None:
        """Takes a tensor."""

    tensor = read_signature(algorithm).read(*given)
    assert isinstance(tensor, torch.Tensor)
    return tensor


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_tensors_keep_their_dtype(dtype: torch.dtype) -> None:
    tensor = torch.ones((2, 3)).to(dtype)

    back = round_trip(tensor)

    assert isinstance(back, torch.Tensor)
    assert back.dtype == dtype
    assert torch.equal(back, tensor)


def test_a_mapping_of_tensors_travels_as_a_bundle() -> None:
    assert torch.equal(round_trip({"x": torch.ones(2), "y": None})["x"], torch.ones(2))


def test_a_tensor_comes_apart_into_tensors() -> None:
    rows = [content.decode(*row) for row in content.split(content.encode(torch.ones((2, 3), dtype=torch.bfloat16)))]

    assert all(torch.equal(row, torch.ones(3, dtype=torch.bfloat16)) for row in rows)


def test_lists_and_bundles_become_the_tensor_that_is_wanted() -> None:
    together = content.join([content.encode(torch.ones(2)), content.encode(torch.zeros(2))])

    assert torch.equal(read(content.encode([0.1, 2])), torch.tensor([0.1, 2]))
    assert read(together).shape == (2, 2)
    assert notation(torch.Tensor) == "tensor"
