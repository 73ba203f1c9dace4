"""Weight gradients of 3D convolutions on feature maps of depth two, in bfloat16 on the CPU."""

import pytest
import torch
from torch import nn

from umamba.networks.depth_two import DepthTwoConv3d, protect_gradients


@pytest.mark.parametrize("size", [(2, 5, 5), (2, 8, 4), (3, 4, 4)])
@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2), (2, 2, 2)])
def test_bfloat16_gradients_are_those_of_float32(size: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
    network = nn.Sequential(nn.Conv3d(16, 16, 3, stride, 1))
    x = torch.randn(2, 16, *size)
    expected = network(x)
    cotangent = torch.randn_like(expected)
    expected.backward(cotangent)
    exact = [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]
    network.zero_grad()
    protect_gradients(network)
    assert isinstance(network[0], DepthTwoConv3d)
    torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-5)
    for length in (100, 1000, 10000, 100000):  # fill memory with NaN that an uninitialised read would find
        [torch.full((length,), float("nan")) for _ in range(30)]
    with torch.autocast("cpu", torch.bfloat16):
        output = network(x)
    output.backward(cotangent.to(output.dtype))
    for parameter, truth in zip(network.parameters(), exact, strict=True):
        assert parameter.grad is not None
        assert (parameter.grad - truth).norm() < 0.02 * truth.norm()
