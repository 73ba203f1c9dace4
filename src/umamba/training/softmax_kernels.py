"""The sums over voxels of softmax, Dice and cross-entropy in one pass over the logits, and their gradient, for CPUs.

Arrays: logits and their gradient are (B, K, V) with any strides, float32 or the bits of bfloat16 numbers as uint16;
label is (B, V). A block of BLOCK voxels is converted to float32, class by class, so that vector instructions work on
its voxels. The blocks are the same for any number of threads, and their sums are added in order.
"""

import numba
import numpy as np
from numba import types
from numba.extending import overload

from umamba.networks.fused_norm_kernels import float_of, narrow, wide

BLOCK = 1024
TOGETHER = 32  # voxels
# Minimax coefficients of exp(r) for |r| <= ln(2) / 2, starting with that of r^2 (Cephes, expf)
_EXP = tuple(
    np.float32(c)
    for c in (5.0000001201e-1, 1.6666665459e-1, 4.1665795894e-2, 8.3334519073e-3, 1.3981999507e-3, 1.9875691500e-4)
)
_LOG2_E, _LN2_HIGH, _LN2_LOW = np.float32(1.44269504), np.float32(0.693359375), np.float32(-2.12194440e-4)
_LOWEST, _HIGHEST = np.float32(-87), np.float32(88)  # arguments are clamped where exp is almost the extreme float32
_compile = numba.njit(
    nogil=True, cache=True, error_model="numpy", fastmath={"contract", "nsz", "reassoc"}, forceinline=True
)


def _read(value):  # type: ignore[no-untyped-def]
    raise NotImplementedError("compiled code only")


def _written(number, like):  # type: ignore[no-untyped-def]
    raise NotImplementedError("compiled code only")


@overload(_read, inline="always")  # type: ignore[untyped-decorator]
def _(value):  # type: ignore[no-untyped-def]
    return (lambda value: wide(value)) if value == types.uint16 else (lambda value: value)


@overload(_written, inline="always")  # type: ignore[untyped-decorator]
def _(number, like):  # type: ignore[no-untyped-def]
    return (lambda number, like: narrow(number)) if like == types.uint16 else (lambda number, like: number)


@_compile
def _exp(x):
    """Return e to the power of a float32, accurate to about its rounding, in operations that LLVM can vectorise."""
    c0, c1, c2, c3, c4, c5 = _EXP
    x = min(max(x, _LOWEST), _HIGHEST)
    k = np.floor(x * _LOG2_E + np.float32(0.5))
    r = (x - k * _LN2_HIGH) - k * _LN2_LOW
    p = ((((c5 * r + c4) * r + c3) * r + c2) * r + c1) * r + c0
    return ((p * r) * r + r + np.float32(1)) * float_of(np.uint32(np.int32(k) + np.int32(127)) << np.uint32(23))


@_compile
def _truth(label, ignored, classes, lab):
    """Fill lab with the classes of a block, -1 for ignored voxels; return whether a label is no class."""
    wrong = False
    for v in range(label.shape[0]):
        true = np.int32(label[v])
        counts = true != ignored
        wrong |= counts and (true < 0 or true >= classes)
        lab[v] = true if counts else np.int32(-1)
    return wrong


@_compile
def _load(values, row):
    for v in range(values.shape[0]):
        row[v] = _read(values[v])


@_compile
def _store(row, values):
    for v in range(values.shape[0]):
        values[v] = _written(row[v], values[v])


@_compile
def _raise_to(row, highest):
    for v in range(row.shape[0]):
        highest[v] = max(highest[v], row[v])


@_compile
def _exponentiate(row, highest, lab, k, total, at_true):
    """Replace row by exp(row - highest) and add it to total; note the exponent where k is the class."""
    for v in range(row.shape[0]):
        below = row[v] - highest[v]
        at_true[v] = below if lab[v] == k else at_true[v]
        e = _exp(below) if below == below else below
        row[v] = e
        total[v] += e


@_compile
def _divide(row, total):
    for v in range(row.shape[0]):
        row[v] /= total[v]


@_compile
def _softmax(logits, lab, p, highest, total, at_true):
    """Fill p (K, voxels) with a block's softmax, total with sums of exp, at_true with the true class's exponent."""
    for k in range(p.shape[0]):
        _load(logits[k], p[k])
    _load(p[0], highest)  # a slice assignment would also compile the text of its error, which takes seconds
    for k in range(1, p.shape[0]):
        _raise_to(p[k], highest)
    total[:] = 0
    at_true[:] = 0
    for k in range(p.shape[0]):
        _exponentiate(p[k], highest, lab, np.int32(k), total, at_true)
    for k in range(p.shape[0]):
        _divide(p[k], total)


@_compile
def _class_sums(row, lab, k):
    """Return the sums of row where k is the class and over all counted voxels, and the number of voxels of k."""
    zero, one = np.float32(0), np.float32(1)
    true, every, voxels = zero, zero, zero
    for v in range(row.shape[0]):
        true += row[v] if lab[v] == k else zero
        every += row[v] if lab[v] >= 0 else zero
        voxels += one if lab[v] == k else zero
    return true, every, voxels


@_compile
def _entropy(total, at_true, lab):
    """Return the sum of log(total) - at_true over counted voxels."""
    found = 0.0
    for begin in range(0, total.shape[0], TOGETHER):
        product = 1.0  # one logarithm for several voxels; each total is between 1 and the number of classes
        for v in range(begin, min(total.shape[0], begin + TOGETHER)):
            if lab[v] >= 0:
                product *= total[v]
                found -= at_true[v]
        found += np.log(product)
    return found


@_compile
def sums(logits, label, ignored, first, stop, parts, entropy, wrong):
    """Fill parts (blocks, 3, K) with sums of p where the class is true, of p, and of voxels; entropy (blocks,).

    Voxels whose label is `ignored` count nowhere. wrong (blocks,) becomes True where a label is no class.
    """
    classes, voxels = logits.shape[1], logits.shape[2]
    blocks = (voxels + BLOCK - 1) // BLOCK
    p, lab = np.empty((classes, BLOCK), np.float32), np.empty(BLOCK, np.int32)
    highest, total, at_true = (
        np.empty(BLOCK, np.float32),
        np.empty(BLOCK, np.float32),
        np.empty(BLOCK, np.float32),
    )
    for number in range(first, stop):
        sample, begin = number // blocks, number % blocks * BLOCK
        end = min(voxels, begin + BLOCK)
        n = end - begin
        wrong[number] = _truth(label[sample, begin:end], ignored, classes, lab)
        _softmax(logits[sample, :, begin:end], lab, p[:, :n], highest[:n], total[:n], at_true[:n])
        for k in range(classes):
            true, every, count = _class_sums(p[k, :n], lab, np.int32(k))
            parts[number, 0, k], parts[number, 1, k], parts[number, 2, k] = true, every, count
        entropy[number] = _entropy(total[:n], at_true, lab)


@_compile
def _add_scaled(row, factor, own, lab, k, dot):
    """Add row * factor to dot, and row * own where k is the class."""
    zero = np.float32(0)
    for v in range(row.shape[0]):
        dot[v] += row[v] * (factor + (own if lab[v] == k else zero))


@_compile
def _differentiate(row, factor, own, by_entropy, dot, lab, k):
    """Replace the softmax of class k by the gradient of its logit."""
    zero = np.float32(0)
    for v in range(row.shape[0]):
        g = row[v] * (factor - dot[v] + (own if lab[v] == k else zero)) - (by_entropy if lab[v] == k else zero)
        row[v] = g if lab[v] >= 0 else zero


@_compile
def gradient(logits, label, ignored, by_true, by_any, by_entropy, first, stop, out):
    """Fill out with the gradient of the logits; by_true and by_any (B, K) and by_entropy (B,) are those of the sums."""
    classes, voxels = logits.shape[1], logits.shape[2]
    blocks = (voxels + BLOCK - 1) // BLOCK
    p, lab = np.empty((classes, BLOCK), np.float32), np.empty(BLOCK, np.int32)
    highest, total, dot = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    for number in range(first, stop):
        sample, begin = number // blocks, number % blocks * BLOCK
        end = min(voxels, begin + BLOCK)
        n = end - begin
        _truth(label[sample, begin:end], ignored, classes, lab)
        _softmax(logits[sample, :, begin:end], lab, p[:, :n], highest[:n], total[:n], dot[:n])
        dot[:n] = 0
        for k in range(classes):
            _add_scaled(p[k, :n], by_any[sample, k], by_true[sample, k], lab, np.int32(k), dot)
        for k in range(classes):
            lost = by_entropy[sample]
            _differentiate(p[k, :n], by_any[sample, k] + lost, by_true[sample, k], lost, dot, lab, np.int32(k))
            _store(p[k, :n], out[sample, k, begin:end])
