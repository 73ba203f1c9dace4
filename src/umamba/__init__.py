"""U-Mamba Lightning: train, compare and use U-Mamba and its peers for biomedical image segmentation."""

__version__ = "0.1.0"
