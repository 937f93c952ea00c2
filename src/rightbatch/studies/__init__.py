"""Studies: published claims on batch size, put to the test on real data.

Each has a rule for every claim, written before the run, and a verdict that is a pure function of
what was measured.
"""

from rightbatch.studies.catalogue import STUDIES
from rightbatch.studies.study import Claim, Study, Verdict

__all__ = ["STUDIES", "Claim", "Study", "Verdict"]
