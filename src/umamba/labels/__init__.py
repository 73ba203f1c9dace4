"""The labels of a dataset: plain labels, regions, the ignore label, and the colours to draw them in."""

from umamba.labels.colours import colours
from umamba.labels.label_set import LabelSet

__all__ = ["LabelSet", "colours"]
