"""What a number is worth."""

from enum import StrEnum


class Status(StrEnum):
    """What a number is worth. The value is for programs, `sentence` for people."""

    OK = "ok"
    AT_LEAST = "at_least"
    UNRESOLVED = "unresolved"
    OUT_OF_TIME = "out_of_time"
    CAPPED = "capped"
    TOO_FEW_EXAMPLES = "too_few_examples"
    PLATEAU = "plateau"
    NOTHING_FITS = "nothing_fits"
    LEAK = "leak"
    DISAGREE = "disagree"
    AT_THE_END = "at_the_end"
    DIVERGED = "diverged"
    TIE = "tie"
    ASSUMED = "assumed"
    NOT_YET = "not_yet"
    BRACKET = "bracket"
    NOT_DETERMINED = "not_determined"

    @property
    def sentence(self) -> str:
        """One sentence for the user: what happened, and what would settle it."""
        return _SENTENCES[self]


_SENTENCES = {
    Status.OK: "Measured to the precision that was asked for.",
    Status.AT_LEAST: (
        "Bounded from below only: the squared mean gradient is too close to zero for an upper end. "
        "Measure more examples."
    ),
    Status.UNRESOLVED: (
        "Cannot tell: the squared mean gradient is not distinguishable from zero at this sample "
        "size. Measure more examples."
    ),
    Status.OUT_OF_TIME: "The time budget ended first. Give it more time for a narrower answer.",
    Status.CAPPED: (
        "Every size up to the cap (the data set or max_batch_size) fits: memory is not the limit."
    ),
    Status.TOO_FEW_EXAMPLES: (
        "The examples ended before the asked precision was reached: take the interval as it is, "
        "or measure more examples."
    ),
    Status.PLATEAU: "Larger sizes were not tried: they would no longer be faster per example.",
    Status.NOTHING_FITS: (
        "Not even the smallest batch fits in memory. Use checkpointing, a lower precision, an "
        "optimizer with less state or a smaller model, or give it more memory."
    ),
    Status.LEAK: (
        "Cannot tell: more tensors were alive after every step, so that any size runs out in the "
        "end. Look for what keeps them (losses that are collected with their graphs, a list, a "
        "hook) and measure again."
    ),
    Status.DISAGREE: (
        "Cannot tell: repeated measurements disagree by more than a decade. Repeat with more steps."
    ),
    Status.AT_THE_END: (
        "The answer lies at the end of the range that was tried. Widen the range to be sure."
    ),
    Status.DIVERGED: (
        "The training run diverged at today's settings; the numbers are from before. "
        "Lower the learning rate and measure again."
    ),
    Status.TIE: "Several choices cannot be told apart; the smaller, rounder one was taken.",
    Status.ASSUMED: "Not measured here: carried over from other measurements by a rule.",
    Status.NOT_YET: (
        "Not measurable yet: the optimizer's second moments or the measured steps are too few. "
        "Train some steps more."
    ),
    Status.BRACKET: (
        "No unbiased estimate exists: the truth lies between two estimates, one biased down, "
        "one up."
    ),
    Status.NOT_DETERMINED: (
        "The data do not determine it: its interval has an open end. "
        "Measure more sizes, and further apart."
    ),
}
