"""The sums over voxels of softmax, Dice and cross-entropy in one pass over the logits, and their gradient, for CPUs.

Arrays: logits and their gradient are (B, K, V) with any strides, float32 or the bits of bfloat16 numbers as uint16;
label is (B, V). A block of BLOCK voxels is converted to float32, class by class, so that vector instructions work on
its voxels. The blocks are the same for any number of threads, and their sums are added in order.
"""

import numba
import numpy as np
from numba import types
from numba.extending import overload

from umamba.networks.fused_norm_kernels import narrow, wide
from umamba.networks.scan.vector_math import exp

BLOCK = 1024
_compile = numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "nsz", "reassoc"})


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
def _softmax(logits, sample, begin, count, p, highest, total):
    """Fill p (K, BLOCK) with the softmax of a block, highest with the largest logit and total with the sum of exp."""
    for k in range(p.shape[0]):
        row = p[k]
        for v in range(count):
            row[v] = _read(logits[sample, k, begin + v])
    highest[:count] = p[0, :count]
    for k in range(1, p.shape[0]):
        row = p[k]
        for v in range(count):
            highest[v] = max(highest[v], row[v])
    total[:count] = 0
    for k in range(p.shape[0]):
        row = p[k]
        for v in range(count):
            below = row[v] - highest[v]
            row[v] = exp(below) if below == below else below
            total[v] += row[v]
    for k in range(p.shape[0]):
        row = p[k]
        for v in range(count):
            row[v] /= total[v]


@_compile
def sums(logits, label, ignored, first, stop, parts, entropy, wrong):
    """Fill parts (blocks, 3, K) with sums of p where the class is true, of p, and of voxels; entropy (blocks,).

    Voxels whose label is `ignored` count nowhere. wrong (blocks,) becomes True where a label is no class.
    """
    classes, voxels = logits.shape[1], logits.shape[2]
    blocks = (voxels + BLOCK - 1) // BLOCK
    p = np.empty((classes, BLOCK), np.float32)
    highest, total = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    counted = np.empty(BLOCK, np.float32)
    for number in range(first, stop):
        sample, begin = number // blocks, number % blocks * BLOCK
        count = min(BLOCK, voxels - begin)
        _softmax(logits, sample, begin, count, p, highest, total)
        parts[number] = 0
        lost = 0.0
        for v in range(count):
            true = label[sample, begin + v]
            if true == ignored:
                counted[v] = 0
                continue
            if true < 0 or true >= classes:
                wrong[number] = True
                continue
            counted[v] = 1
            parts[number, 0, true] += p[true, v]
            parts[number, 2, true] += 1
            logit = _read(logits[sample, true, begin + v])
            lost += np.log(total[v]) + highest[v] - logit
        entropy[number] = lost
        for k in range(classes):
            row, added = p[k], np.float32(0)
            for v in range(count):
                added += row[v] * counted[v]
            parts[number, 1, k] = added


@_compile
def gradient(logits, label, ignored, by_true, by_any, by_entropy, first, stop, out):
    """Fill out with the gradient of the logits; by_true and by_any (B, K) and by_entropy (B,) are those of the sums."""
    classes, voxels = logits.shape[1], logits.shape[2]
    blocks = (voxels + BLOCK - 1) // BLOCK
    p = np.empty((classes, BLOCK), np.float32)
    highest, total = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    dot = np.empty(BLOCK, np.float32)
    for number in range(first, stop):
        sample, begin = number // blocks, number % blocks * BLOCK
        count = min(BLOCK, voxels - begin)
        _softmax(logits, sample, begin, count, p, highest, total)
        dot[:count] = 0
        for k in range(classes):
            row, factor = p[k], by_any[sample, k]
            for v in range(count):
                dot[v] += row[v] * factor
        for v in range(count):
            true = label[sample, begin + v]
            if true != ignored:
                dot[v] += p[true, v] * by_true[sample, true]
        for k in range(classes):
            row, factor, own = p[k], by_any[sample, k] + by_entropy[sample], by_true[sample, k]
            for v in range(count):
                true = label[sample, begin + v]
                g = row[v] * (factor - dot[v] + (own if true == k else np.float32(0)))
                g -= by_entropy[sample] if true == k else np.float32(0)
                out[sample, k, begin + v] = _written(g if true != ignored else np.float32(0), out[sample, k, begin + v])
