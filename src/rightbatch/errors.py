"""Everything rightbatch raises on purpose.

    RightBatchError
    |- TaskError            the task cannot be measured as it was described
    |  |- NotRepeatable     two passes at one random state differ
    |  |- MixesExamples     single examples have no gradient of their own: BatchNorm in train mode
    |  |- CoupledLoss       the loss itself couples examples: contrastive, batch statistics
    |  |- UnknownTask       there is no task, file or function of that name
    |- DataUnavailable      a built-in task's data file is absent or damaged
    |- CannotPlan           results or options from which nothing can be recommended
    |- ResultsError         a results file cannot be read or written
    |- CannotConvert        a layer that cannot become a ghost batch normalisation, or back
    |- MissingExtra         an optional dependency is not installed

Misuse raises; an inconclusive measurement is a `rightbatch.Status` instead. Running
out of memory is data to us, and every other error of the user's code surfaces unchanged
as the cause of a `TaskError`.
"""


class RightBatchError(Exception):
    """Base of all errors raised on purpose; its message says what to do."""


class TaskError(RightBatchError):
    """The task cannot be measured as it was described."""


class NotRepeatable(TaskError):
    """Two passes over one batch at one random state gave different losses."""


class MixesExamples(TaskError):
    """A layer mixes the examples of a batch, so no example has a gradient of its own."""


class CoupledLoss(TaskError):
    """The loss couples examples: the gradients of parts do not average to that of the batch."""


class UnknownTask(TaskError):
    """There is no built-in task, file, module or function of the name given."""


class DataUnavailable(RightBatchError):
    """A built-in task's data file is absent, damaged, or of another layout."""


class CannotPlan(RightBatchError, ValueError):
    """Nothing can be recommended from these results, or with these options."""


class ResultsError(RightBatchError):
    """A results file cannot be read or written."""


class CannotConvert(RightBatchError, TypeError):
    """A layer cannot become a ghost batch normalisation, or back."""


class MissingExtra(RightBatchError):
    """A feature needs an optional dependency that is not installed."""
