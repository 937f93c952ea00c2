from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from rightbatch import hardware
from rightbatch.hardware.worst_case import count_elements, find_longest
from rightbatch.task import Task
from rightbatch.testing import FakeClock

LENGTHS = (3, 5, 4, 900, 6, 2) * 20


def ragged(lengths=LENGTHS, **options) -> Task:
    model = nn.Sequential(nn.Embedding(10, 64), nn.Linear(64, 1))
    sentences = [torch.ones(length, dtype=torch.long) for length in lengths]
    return Task(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        sentences,
        lambda model, batch: model(batch).square().mean(),
        collate_fn=lambda examples: pad_sequence(examples, batch_first=True),
        **options,
    )


def test_the_longest_example_fills_the_batch():
    longest = find_longest(ragged())
    assert longest.elements == 900
    assert longest(7).shape == (7, 900)


def test_examples_of_one_length_need_no_worst_case():
    assert find_longest(ragged([5] * 200)) is None


@dataclass
class Sentence:
    """An example of a class of its own."""

    tokens: torch.Tensor
    label: int


def made_of(examples, collate_fn) -> Task:
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Task(model, optimizer, examples, max, collate_fn=collate_fn)


def pad_each(pairs):
    return tuple(pad_sequence(part, batch_first=True) for part in zip(*pairs, strict=True))


def concatenate_each(pairs):
    return tuple(torch.cat(part) for part in zip(*pairs, strict=True))


def pair(source, target):
    return torch.ones(source), torch.ones(target)


def test_lengths_in_a_class_of_the_users_are_seen():
    sentences = [Sentence(torch.ones(length), 1) for length in LENGTHS]
    longest = find_longest(made_of(sentences, lambda many: [s.tokens for s in many]))
    assert longest.elements == 901
    assert [len(tokens) for tokens in longest(2)] == [900, 900]


@pytest.mark.parametrize("size", [2, 3, 8])
def test_the_longest_of_each_part_that_is_padded_fills_the_batch(size):
    """By their sum (50, 60) are the longest, but sources are padded to 90, targets to 80."""
    pairs = [pair(90, 5), pair(50, 60), pair(4, 80), pair(3, 3)] * 10
    sources, targets = find_longest(made_of(pairs, pad_each))(size)
    assert (sources.shape, targets.shape) == ((size, 90), (size, 80))


@pytest.mark.parametrize(
    ("collate", "words"),
    [(pad_each, "two examples by turns"), (concatenate_each, "copies of the longest")],
)
def test_the_note_tells_what_batches_are_made_of(collate, words):
    pairs = [pair(90, 5), pair(50, 60), pair(4, 80), pair(3, 3)] * 10
    note = find_longest(made_of(pairs, collate)).note
    assert words in note
    assert "of 40 that were looked at (the longest has 110 elements)" in note


def test_without_padding_the_longest_by_its_sum_fills_the_batch():
    pairs = [pair(90, 5), pair(50, 60), pair(4, 80), pair(3, 3)] * 10
    sources, targets = find_longest(made_of(pairs, concatenate_each))(4)
    assert (len(sources), len(targets)) == (200, 240)


def test_parts_that_differ_within_one_sum_are_seen():
    longest = find_longest(made_of([pair(30, 70), pair(70, 30)] * 50, pad_each))
    assert [tuple(part.shape) for part in longest(2)] == [(2, 70), (2, 70)]


def test_looking_ends_with_the_time():
    clock = FakeClock()

    class Slow(torch.utils.data.Dataset):
        def __len__(self):
            return 10_000

        def __getitem__(self, index):
            clock.advance(0.1)
            return torch.ones(1 + index % 7)

    model = nn.Linear(1, 1)
    task = Task(model, torch.optim.SGD(model.parameters(), lr=0.1), Slow(), max)
    assert find_longest(task, clock=clock).looked_at == 20


@pytest.mark.parametrize(
    ("example", "elements"),
    [(torch.zeros(2, 3), 6), ([1, 2, 3], 3), ("abc", 3), ({"a": [1], "b": 2.0}, 2), (7, 1)],
)
def test_counts_what_an_example_holds(example, elements):
    assert count_elements(example) == elements


def test_memory_is_measured_at_the_longest_and_says_so():
    worst = hardware.measure_memory(ragged(max_batch_size=64), isolate=False)
    short = hardware.measure_memory(ragged([6] * 120, max_batch_size=64), isolate=False)
    assert worst.points[-1].peak_bytes > 10 * short.points[-1].peak_bytes
    assert "Examples differ in length" in worst.notes[0]
    assert not short.notes


def test_the_tasks_own_worst_case_comes_first():
    seen = []

    def worst_case(size):
        seen.append(size)
        return torch.ones(size, 50, dtype=torch.long)

    task = ragged(max_batch_size=16, batch_size=16, worst_case=worst_case)
    hardware.measure_memory(task, isolate=False)
    assert seen == [16, 16, 16]
