"""Human studies: a blinded comparison is planned, exported, answered by people, imported and reported.

    study file -> layout -> bundle for raters + sealed key -> votes -> one long table -> report

docs/human-study.md tells how to run one.
"""

from eval.human.agreement import krippendorff_alpha
from eval.human.bradley_terry import bradley_terry

__all__ = ["bradley_terry", "krippendorff_alpha"]
