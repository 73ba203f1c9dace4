"""Label sets of a data set: plain labels, regions, the ignore label, and colours to draw them in."""

from umamba.labels.colours import colours
from umamba.labels.label_set import LabelSet

__all__ = ["LabelSet", "colours"]
