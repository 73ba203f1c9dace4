"""The Mamba-2 and mLSTM blocks, compared with the recurrences of their papers, token after token, in float64."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from umamba.networks import decayed_sums
from umamba.networks.mamba import MambaLayer
from umamba.networks.mamba2 import Mamba2, heads_of, mamba2_parameters
from umamba.networks.mlstm import MLSTM, matrix_memory, mlstm_parameters

LENGTHS = (1, 7, 8, 45)  # of one token, less than a chunk, a chunk, and several groups of chunks with a rest
Block = Callable[[], nn.Module]
BLOCKS: dict[str, Block] = {
    "mamba2": lambda: Mamba2(6, inner=24, d_state=5, d_conv=3, head_width=8),
    "mlstm": lambda: MLSTM(6, inner=24, d_conv=3, head_width=8),
}
every_block = pytest.mark.parametrize("name", BLOCKS)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let groups have 2 chunks, so that short sequences have groups of groups."""
    monkeypatch.setattr(decayed_sums, "CHUNK", 2)


def lively(name: str) -> Any:
    """Return a block in float64 whose gates follow the tokens, which the initial weights of mLSTM's do not."""
    torch.manual_seed(1)
    block = BLOCKS[name]().double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return block


def shifted(conv: Any, x: Tensor) -> Tensor:
    """Return SiLU of the causal convolution of (B, L, C), written as a sum over taps."""
    taps = conv.weight.shape[-1]
    padded = torch.cat([x.new_zeros(x.shape[0], taps - 1, x.shape[2]), x], dim=1)
    y = sum(padded[:, k : k + x.shape[1]] * conv.weight[:, 0, k] for k in range(taps)) + conv.bias
    return y * torch.sigmoid(y)


def mamba2_by_steps(block: Any, tokens: Tensor) -> Tensor:
    """Compute a Mamba-2 block by its recurrence: h = exp(dt A) h + dt B x, y = C h + D x for each head."""
    inner, states, heads = block.inner, block.d_state, block.heads
    projected = tokens @ block.in_proj.weight.T
    z, xBC, dt = projected[..., :inner], projected[..., inner : 2 * inner + 2 * states], projected[..., -heads:]
    xBC = shifted(block.conv1d, xBC)
    dt = torch.log1p(torch.exp(dt + block.dt_bias))
    A = -torch.exp(block.A_log)
    width = inner // heads
    outputs = []
    h = tokens.new_zeros(len(tokens), heads, width, states)
    for t in range(tokens.shape[1]):
        x = xBC[:, t, :inner].reshape(-1, heads, width)
        B, C = xBC[:, t, inner : inner + states], xBC[:, t, inner + states :]
        h = torch.exp(dt[:, t] * A)[..., None, None] * h
        h = h + dt[:, t, :, None, None] * x[..., None] * B[:, None, None, :]
        outputs.append(((h * C[:, None, None, :]).sum(-1) + block.D[:, None] * x).reshape(-1, inner))
    gated = torch.stack(outputs, 1) * z * torch.sigmoid(z)
    normed = gated / torch.sqrt(gated.square().mean(-1, keepdim=True) + 1e-5) * block.norm.weight
    return normed @ block.out_proj.weight.T


def memory_by_steps(q: Tensor, k: Tensor, v: Tensor, log_forget: Tensor, log_input: Tensor) -> Tensor:
    """Compute the matrix memory by its recurrence, without any stabiliser (equations 19 to 21)."""
    C = q.new_zeros(*q.shape[:2], v.shape[-1], q.shape[-1])
    n = q.new_zeros(*q.shape[:2], q.shape[-1])
    outputs = []
    for t in range(q.shape[2]):
        i, f = torch.exp(log_input[:, :, t]), torch.exp(log_forget[:, :, t])
        C = f[..., None, None] * C + i[..., None, None] * v[:, :, t, :, None] * k[:, :, t, None, :]
        n = f[..., None] * n + i[..., None] * k[:, :, t]
        bottom = (n * q[:, :, t]).sum(-1).abs().clamp(min=1)
        outputs.append((C * q[:, :, t, None, :]).sum(-1) / bottom[..., None])
    return torch.stack(outputs, 2)


def mlstm_by_steps(block: Any, tokens: Tensor) -> Tensor:
    """Compute an mLSTM block with its memory by the recurrence and dense block-diagonal projections."""
    x, z = (tokens @ block.up_proj.weight.T).split(block.inner, dim=-1)
    convolved = shifted(block.conv1d, x)
    q, k, v = (
        each @ torch.block_diag(*weight).T
        for each, weight in ((convolved, block.q_proj), (convolved, block.k_proj), (x, block.v_proj))
    )
    gates = torch.cat([q, k, v], -1) @ block.gates.weight.T + block.gates.bias
    heads = [each.reshape(*each.shape[:2], block.heads, -1).transpose(1, 2) for each in (q, k, v, gates)]
    log_input, forget = gates[..., : block.heads].transpose(1, 2), gates[..., block.heads :].transpose(1, 2)
    log_forget = torch.log(torch.sigmoid(forget))
    h = memory_by_steps(heads[0], heads[1] / math.sqrt(block.width), heads[2], log_forget, log_input)
    mean, variance = h.mean(-1, keepdim=True), h.var(-1, keepdim=True, unbiased=False)
    normed = ((h - mean) / torch.sqrt(variance + 1e-5)).transpose(1, 2).reshape(tokens.shape[0], -1, block.inner)
    return ((normed * block.norm_weight + block.skip * convolved) * z * torch.sigmoid(z)) @ block.down_proj.weight.T


BY_STEPS = {"mamba2": mamba2_by_steps, "mlstm": mlstm_by_steps}


@pytest.mark.usefixtures("small_chunks")
@every_block
@pytest.mark.parametrize("length", LENGTHS)
def test_a_block_and_its_gradients_are_those_of_the_recurrence(name: str, length: int) -> None:
    block = lively(name)
    tokens = torch.randn(2, length, 6, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, length, 6, dtype=torch.float64)
    inputs = [tokens, *block.parameters()]
    results = []
    for y in (block(tokens, chunk=8), BY_STEPS[name](block, tokens)):
        results.append([y, *torch.autograd.grad((y * weights).sum(), inputs)])
    for found, expected in zip(*results, strict=True):
        largest = float(expected.detach().abs().max())
        assert float((found - expected).detach().abs().max()) <= 1e-9 * max(largest, 1e-3)


@pytest.mark.usefixtures("small_chunks")
def test_gradients_by_differences() -> None:
    torch.manual_seed(2)
    q, k, v = (torch.randn(1, 2, 7, 3, dtype=torch.float64, requires_grad=True) for _ in range(3))
    forget = (-torch.rand(1, 2, 7, dtype=torch.float64)).requires_grad_()
    gain = (3 * torch.randn(1, 2, 7, dtype=torch.float64)).requires_grad_()
    torch.autograd.gradcheck(lambda *given: matrix_memory(*given, chunk=2), (q, k, v, forget, gain))
    torch.autograd.gradcheck(lambda *given: decayed_sums.decayed_sums(*given, chunk=2)[0], (q, k, v, forget))
    for name in BLOCKS:
        block, tokens = lively(name), torch.randn(1, 5, 6, dtype=torch.float64, requires_grad=True)
        torch.autograd.gradcheck(lambda given, block=block: block(given, chunk=2), (tokens,))


@every_block
def test_no_token_sees_a_later_one(name: str) -> None:
    block, tokens = lively(name), torch.randn(1, 12, 6, dtype=torch.float64)
    for t in (0, 6, 10):
        later = tokens.clone()
        later[:, t + 1 :] = torch.randn_like(later[:, t + 1 :])
        before, after = block(tokens, chunk=5), block(later, chunk=5)
        torch.testing.assert_close(before[:, : t + 1], after[:, : t + 1], rtol=1e-12, atol=1e-12)
        assert not torch.allclose(before[:, t + 1], after[:, t + 1])


@pytest.mark.parametrize("offset", [-120.0, 0.0, 120.0])
def test_gates_of_any_size_stay_finite_and_right_in_float32(offset: float) -> None:
    """The exponential of 120 is beyond float32; the recurrence in float64 holds it."""
    torch.manual_seed(3)
    q, k, v = (torch.randn(1, 2, 40, 4, dtype=torch.float64) for _ in range(3))
    forget = torch.nn.functional.logsigmoid(torch.randn(1, 2, 40, dtype=torch.float64) * 20)
    gain = offset + 4 * torch.randn(1, 2, 40, dtype=torch.float64)
    expected = memory_by_steps(q, k, v, forget, gain)
    single = [each.float().requires_grad_() for each in (q, k, v, forget, gain)]
    found = matrix_memory(*single, chunk=8)
    gradients = torch.autograd.grad(found.square().sum(), single)
    assert all(bool(each.isfinite().all()) for each in (found, *gradients))
    difference = (found.detach().double() - expected).abs() / expected.abs().clamp_min(1)
    assert float(difference.median()) < 1e-5
    assert float(difference.max()) < 0.02  # where the normaliser is the difference of nearly equal numbers


def test_segment_sums_keep_short_segments_behind_large_values() -> None:
    x = torch.tensor([0.0, -1e6, -0.1234567, -0.7654321])
    found = decayed_sums.segment_sums(x)
    expected = np.array(
        [[sum(map(float, x[s + 1 : t + 1])) if s <= t else -np.inf for s in range(4)] for t in range(4)]
    )
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-7)


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_sums_by_doubling_are_running_sums(size: int) -> None:
    x = torch.randn(2, size, 3, dtype=torch.float64)
    torch.testing.assert_close(decayed_sums.sum_by_doubling(x, -2), x.cumsum(-2))
    torch.testing.assert_close(decayed_sums.sum_by_doubling(x.mT, -1), x.mT.cumsum(-1))


@every_block
def test_half_precision_tokens_are_close(name: str) -> None:
    torch.manual_seed(0)
    block, tokens = BLOCKS[name](), torch.randn(1, 70, 6)
    expected = block(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        found = block(tokens)
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.05)
    torch.testing.assert_close(block.bfloat16()(tokens.bfloat16()).float(), expected, rtol=0.2, atol=0.1)


@pytest.mark.parametrize("inner", [8, 24, 130, 262])
def test_parameters_are_counted(inner: int) -> None:
    for block, counted in (
        (
            Mamba2(10, inner=inner, d_state=3, d_conv=5),
            mamba2_parameters(10, inner=inner, d_state=3, d_conv=5, head_width=64),
        ),
        (MLSTM(10, inner=inner, d_conv=5), mlstm_parameters(10, inner=inner, d_conv=5, head_width=64)),
    ):
        assert sum(parameter.numel() for parameter in block.parameters()) == counted
    heads, width = heads_of(inner, 64)
    assert inner <= heads * width < inner + heads


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mamba2", pytest.param("mlstm", marks=pytest.mark.nightly)])
def test_a_layer_with_another_block_compiles_to_one_graph(name: str) -> None:
    torch.manual_seed(0)
    layer, x = (
        MambaLayer(6, num_axes=2, block=lambda width: BLOCKS[name]()),
        torch.randn(1, 6, 5, 4, requires_grad=True),
    )
    expected, found = layer(x), torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(found, expected)
    ours, theirs = (torch.autograd.grad(y.square().sum(), [x, *layer.parameters()]) for y in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
