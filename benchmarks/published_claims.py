"""Write how often the paper's claims would be false: claims.csv and claims.md beside each study's published.csv.

python benchmarks/published_claims.py

The formula, its assumptions and the columns are explained in `umamba.reporting.published_claims`.
"""

from pathlib import Path

from umamba.io.tabular import write_table
from umamba.reporting.published_claims import published_claims, summary
from umamba.reporting.results import read_published

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"
# Study -> the study whose published.csv has the deviations of its averages.
STUDIES = {
    "table3_organs_3d": "table3_organs_3d",
    "table4_2d": "table4_2d",
    "table5_organs_ct": "table3_organs_3d",
    "table6_organs_mr": "table3_organs_3d",
    "table7_organs_mr_2d": "table4_2d",
}
TITLE = """# What the paper's numbers show

P(false): the probability that a network with a better mean is not better, from the printed means and standard
deviations, by the formula of Christodoulou et al. ([arXiv 2505.04720](https://arxiv.org/abs/2505.04720)). The
correlation r over cases between two networks is not printed, so it is a range: 0.9 if both fail on the same images, 0.3
if they rarely do. Bold: 5 % or more. "r needed": the correlation from which on P(false) is below 5 %. Each network was
trained once, so the spread over trainings is not in these numbers; it would make every P(false) larger. A claim is that
a U-Mamba is better than a network whose mean it exceeds.
"""
ORGANS = """
These tables print no standard deviations. That of each network's average over organs ({study}) stands in for it. The
deviation of an average is at most the mean of the organs' deviations, so P(false) of a typical organ is rather higher
than printed here.
"""
END = """
[claims.csv](claims.csv) has all claims and correlations. `python benchmarks/published_claims.py` makes both files.
"""


def main(target: Path = EXPERIMENTS) -> None:
    """Write both files of each study.

    Args:
        target: folder of the studies' folders.
    """
    for study, deviations in STUDIES.items():
        printed, averages = (read_published(EXPERIMENTS / name / "published.csv") for name in (study, deviations))
        claims = published_claims(printed, averages)
        write_table(target / study / "claims.csv", claims)
        organs = "" if study == deviations else ORGANS.format(study="Table " + deviations[len("table")])
        text = f"{TITLE}{organs}\n{summary(claims, printed)}{END}"
        (target / study / "claims.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
