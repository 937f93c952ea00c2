"""Judgement: from results to a recommendation, purely.

`critical.py` says at which batch size a run needs twice the fewest steps; `candidates.py` lists
the ways to train and their times, with their doubt; `choice.py` picks one; `reasons.py` says why.
"""

from rightbatch.plan.choice import check_options, plan
from rightbatch.plan.critical import critical_batch_size

__all__ = ["check_options", "critical_batch_size", "plan"]
