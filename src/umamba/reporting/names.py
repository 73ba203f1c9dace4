"""Names of datasets, networks and scores in a report: those of the paper's tables.

Tables as CSV keep the short names, so that programs find the same keys everywhere.
"""

from dataclasses import replace

from umamba.evaluation.claims import Claim, sentence_of

DATASETS = {
    "flare": "Abdomen CT",
    "amos": "Abdomen MR",
    "amos2d": "Abdomen MR, 2D",
    "endovis": "Endoscopy",
    "cell": "Microscopy",
    "hippocampus": "Hippocampus MR",
    "nuclei": "Nuclei",
    "phantom": "Phantom",
    "quickstart": "Phantom",
}
METHODS = {
    "umamba_bot": "U-Mamba_Bot",
    "umamba_enc": "U-Mamba_Enc",
    "unet": "nnU-Net",
    "resenc_unet": "nnU-Net ResEnc",
    "segresnet": "SegResNet",
    "unetr": "UNETR",
    "swinunetr": "SwinUNETR",
}
# What a variant puts in the place of the Mamba layers (architecture.mixer).
VARIANTS = {"identity": "no Mamba", "mamba2": "Mamba-2", "mlstm": "mLSTM", "convolution": "convolution"}
TIMED = "equal_time"  # ends the name of a run with as many iterations as take the time of the plain U-Net
UNET_NOTE = "nnU-Net stands for nnU-Net's plain U-Net, trained by this program."


def dataset_name(dataset: str) -> str:
    """Return the name of a benchmark in a report; one that is not listed keeps its own.

    Args:
        dataset: the name in published.csv or of an experiment.

    >>> dataset_name("flare"), dataset_name("Dataset500_Mine")
    ('Abdomen CT', 'Dataset500_Mine')
    """
    return DATASETS.get(dataset, dataset)


def method_name(method: str) -> str:
    """Return the name of a network in a report; what a variant adds to it stands in brackets.

    Args:
        method: the name in published.csv or of a run without its dataset.

    >>> method_name("umamba_bot"), method_name("umamba_bot_identity"), method_name("mine")
    ('U-Mamba_Bot', 'U-Mamba_Bot (no Mamba)', 'mine')
    >>> method_name("umamba_bot_mamba2_equal_time"), method_name("umamba_enc_equal_time"), method_name("unet_float32")
    ('U-Mamba_Bot (Mamba-2, equal time)', 'U-Mamba_Enc (equal time)', 'nnU-Net (float32)')
    """
    known = next((name for name in METHODS if method == name or method.startswith(f"{name}_")), None)
    if known is None:
        return method
    variant = method.removeprefix(known).removeprefix("_")
    plain = variant.removesuffix(TIMED).removesuffix("_")
    words = [VARIANTS.get(plain, plain.replace("_", " "))] if plain else []
    words += ["equal time"] if variant.endswith(TIMED) else []
    return f"{METHODS[known]} ({', '.join(words)})" if words else METHODS[known]


def metric_name(metric: str) -> str:
    """Return the name of a score in a report.

    Args:
        metric: its column in scores.csv.

    >>> metric_name("dsc")
    'DSC'
    """
    return metric.upper()


def claim_pair(claim: Claim) -> str:
    """Return the names of the two methods that a claim compares, and of the score.

    Args:
        claim: the comparison.
    """
    return f"{method_name(claim.a)} and {method_name(claim.b)}, {metric_name(claim.metric)}"


def claim_sentence(claim: Claim) -> str:
    """Return the sentence of a claim with the names that a reader knows.

    Args:
        claim: the comparison with its verdict.
    """
    return sentence_of(replace(claim, a=method_name(claim.a), b=method_name(claim.b)))


def claim_words(claim: Claim) -> str:
    """Return what a claim compares and its sentence.

    Args:
        claim: the comparison with its verdict.
    """
    return f"{claim_pair(claim)}: {claim_sentence(claim)}"
