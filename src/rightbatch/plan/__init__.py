"""Judgement: from results to a recommendation, purely.

`critical.py` says at which batch size a run needs twice the fewest steps; `candidates.py` lists
the ways to train, `step_model.py` what a step of each takes, `energy.py` what it draws, `weigh.py`
all with their doubt; `front.py` keeps what nothing beats in time and cost (and joules, if asked),
`limits.py` and `costs.py` judge it by deadline, budget and upfront costs; `choice.py` picks one;
`reasons.py` says why. `steps.py` fits the critical batch size to runs that were tuned
at several sizes.
"""

from rightbatch.plan.choice import plan
from rightbatch.plan.critical import critical_batch_size
from rightbatch.plan.energy import check_energy
from rightbatch.plan.options import check_options, check_today
from rightbatch.plan.steps import fit_steps

__all__ = [
    "check_energy",
    "check_options",
    "check_today",
    "critical_batch_size",
    "fit_steps",
    "plan",
]
