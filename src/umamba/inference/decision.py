"""From logits or probabilities to labels: the highest class, or the regions above a threshold in their order."""

from collections.abc import Callable

import torch
from torch import Tensor

from umamba.labels import LabelSet


def decide_labels(heads: int, values_of: Callable[[int], Tensor], labels: LabelSet, threshold: float = 0.0) -> Tensor:
    """Return the label map that logits or probabilities decide.

    Without regions the head of the highest value wins, the first one of equal values. With regions every head above the
    threshold paints its label, in the order of `labels.region_order`, over what earlier heads painted.

    Args:
        heads: number of heads, `labels.num_classes`.
        values_of: returns the volume of a head, all of one shape; two volumes are in memory at a time.
        labels: the label set.
        threshold: for regions: 0 for logits, 0.5 for probabilities.

    Returns:
        The label values, of the shape of one volume; uint8, or int32 where a label is above 255.

    >>> logits = torch.tensor([[0.0, 2.0, 0.0], [1.0, 1.0, 0.0], [0.5, 0.5, 3.0]])  # 3 classes, 3 voxels
    >>> labels = LabelSet(("liver", "tumour"), ((1,), (2,)))
    >>> decide_labels(len(logits), logits.__getitem__, labels)
    tensor([1, 0, 2], dtype=torch.uint8)
    >>> regions = LabelSet(("whole", "core"), ((1, 2), (2,)), region_order=(1, 2))
    >>> decide_labels(2, logits[1:].__getitem__, regions)
    tensor([2, 2, 2], dtype=torch.uint8)
    """
    dtype = torch.uint8 if labels.all_values[-1] < 256 else torch.int32
    best = values_of(0)
    if labels.region_order is not None:
        painted = (best > threshold).to(dtype).mul_(labels.region_order[0])
        for head in range(1, heads):
            painted.masked_fill_(values_of(head) > threshold, labels.region_order[head])
        return painted
    winner = torch.zeros_like(best, dtype=dtype)
    for head in range(1, heads):
        values = values_of(head)
        winner.masked_fill_(values > best, head)
        best = torch.maximum(best, values)
    return winner
