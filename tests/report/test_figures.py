"""The figures. Oracle: what is drawn equals the results' numbers, and laws of all figures."""

import json
import math
from dataclasses import replace

import pytest

from rightbatch.report import canvas, figures
from rightbatch.report.figures import FIGURES
from rightbatch.results import Current, Status
from tests.report import samples

ALL = pytest.mark.parametrize("results", samples.ALL.values(), ids=samples.ALL)


def _traces(results, figure):
    """The figure's traces by name, as plain dictionaries."""
    plain = FIGURES[figure](results).to_plotly_json()
    return {trace["name"]: trace for trace in plain["data"]}


def _layout(results, figure):
    return FIGURES[figure](results).to_plotly_json()["layout"]


def _shapes(results, figure, kind):
    return [s for s in _layout(results, figure).get("shapes", ()) if s["type"] == kind]


@pytest.mark.parametrize(
    ("results", "names"),
    [
        (samples.EMPTY, []),
        (samples.ONLY_MEMORY, ["memory"]),
        (samples.ONLY_THROUGHPUT, ["throughput", "step_time"]),
        (samples.ONLY_NOISE, ["noise"]),
        (samples.ONLY_LEARNING_RATE, ["range_test", "race"]),
        (samples.NOTHING_FITS, ["memory"]),
        (
            samples.FULL,
            [name for name in FIGURES if name != "front"],  # of one number of devices
        ),
    ],
)
def test_what_was_not_measured_has_no_figure(results, names):
    assert list(figures(results)) == names


@pytest.mark.parametrize(
    ("figure", "changes"),
    [
        ("memory", {"memory": replace(samples.MEMORY, points=())}),
        ("throughput", {"throughput": replace(samples.THROUGHPUT, points=())}),
        ("step_time", {"throughput": replace(samples.THROUGHPUT, points=())}),
        ("noise", {"track": replace(samples.TRACK, points=())}),
        ("noise", {"track": samples.UNRESOLVED.track}),
        ("range_test", {"learning_rate": replace(samples.LR_CURVE, points=())}),
        ("race", {"race": replace(samples.RACE, entries=())}),
        ("plan", {"plan": replace(samples.PLAN, candidates=())}),
        ("plan", {"plan": replace(samples.PLAN, status=Status.NOTHING_FITS)}),
        ("trade_off", {"plan": replace(samples.PLAN, candidates=samples.PLAN.candidates[:1])}),
    ],
)
def test_a_part_without_points_has_no_figure(figure, changes):
    assert FIGURES[figure](samples.FULL) is not None
    assert FIGURES[figure](replace(samples.FULL, **changes)) is None


@ALL
def test_every_axis_has_a_title_and_every_trace_a_name(results):
    for figure in figures(results).values():
        plain = figure.to_plotly_json()
        axes = [value for key, value in plain["layout"].items() if key[1:5] == "axis"]
        assert len(axes) >= 2
        assert all(axis["title"]["text"] for axis in axes)
        assert all(trace["name"] for trace in plain["data"])


@ALL
def test_figures_are_plain_finite_json(results):
    for figure in figures(results).values():
        plain = figure.to_plotly_json()
        assert json.loads(json.dumps(plain, allow_nan=False))
        for trace in plain["data"]:
            assert len(trace["x"]) == len(trace["y"])
            assert len(trace.get("text", trace["x"])) == len(trace["x"])


@ALL
def test_points_lie_inside_the_axes_except_what_diverges(results):
    for name, figure in figures(results).items():
        plain = figure.to_plotly_json()
        for trace in plain["data"]:
            if trace["name"] in ("95 % interval", "spread over repeats") or name == "range_test":
                continue
            for axis, values in (("xaxis", trace["x"]), ("yaxis", trace["y"])):
                described = plain["layout"].get(axis, {})
                if described.get("type") == "log" and trace.get("yaxis") is None:
                    low, high = described["range"]
                    assert all(low <= math.log10(value) <= high for value in values)


def test_throughput_is_what_was_measured():
    traces = _traces(samples.FULL, "throughput")
    points = samples.THROUGHPUT.points
    computing, loading = traces["computing"], traces["with loading"]
    assert computing["x"] == [p.batch_size for p in points]
    assert computing["y"] == pytest.approx([p.batch_size / p.step_seconds for p in points])
    assert loading["y"] == pytest.approx([p.batch_size / p.total_seconds for p in points])
    bars = computing["error_y"]
    tops = [y + up for y, up in zip(computing["y"], bars["array"], strict=True)]
    feet = [y - down for y, down in zip(computing["y"], bars["arrayminus"], strict=True)]
    assert tops == pytest.approx([p.batch_size / p.low for p in points])
    assert feet == pytest.approx([p.batch_size / p.high for p in points])


def test_a_step_time_that_is_not_bounded_from_below_has_no_upper_bar():
    points = (replace(samples.THROUGHPUT.points[0], low=0.0), *samples.THROUGHPUT.points[1:])
    results = replace(samples.FULL, throughput=replace(samples.THROUGHPUT, points=points))
    bars = _traces(results, "throughput")["computing"]["error_y"]
    assert bars["array"][0] == 0
    assert min(bars["array"][1:]) > 0


def test_throughput_line_is_the_fit_between_measured_sizes_only():
    (line,) = (t for t in _traces(samples.FULL, "throughput").values() if t["mode"] == "lines")
    alpha, beta = samples.ALPHA, samples.BETA
    assert line["y"] == pytest.approx([b / (alpha + beta * b) for b in line["x"]])
    assert min(line["x"]) == pytest.approx(8)
    assert max(line["x"]) == pytest.approx(4096)


@pytest.mark.parametrize(("half", "drawn"), [(256.25, True), (None, False), (5000.0, False)])
def test_half_batch_size_is_marked_where_it_was_in_range(half, drawn):
    results = replace(samples.FULL, throughput=replace(samples.THROUGHPUT, half_batch_size=half))
    assert [s["x0"] for s in _shapes(results, "throughput", "line")] == ([half] if drawn else [])


def test_shares_of_a_step_add_up_to_all_of_it():
    traces = _traces(samples.FULL, "step_time")
    assert list(traces) == ["fixed cost", "computing", "loading"]
    totals = [sum(shares) for shares in zip(*(t["y"] for t in traces.values()), strict=True)]
    assert totals == pytest.approx([100.0] * len(samples.SIZES))
    point = samples.THROUGHPUT.points[5]
    assert traces["fixed cost"]["y"][5] == pytest.approx(100 * samples.ALPHA / point.total_seconds)
    assert traces["loading"]["y"][5] == pytest.approx(
        100 * (point.total_seconds - point.step_seconds) / point.total_seconds
    )


def test_memory_shows_peaks_the_budget_and_what_failed():
    traces = _traces(samples.FULL, "memory")
    fits = [p for p in samples.MEMORY.points if p.outcome == "ok"]
    assert traces["fits"]["x"] == [p.batch_size for p in fits]
    assert traces["fits"]["y"] == [p.peak_bytes for p in fits]
    failed = traces["does not fit"]
    assert failed["x"] == [6144, 8192]
    assert failed["y"] == [int(8.3 * samples.GIB), samples.MEMORY.budget_bytes]
    assert failed["marker"]["symbol"] == ["x-open", "x"]  # predicted; executed
    assert "no peak known" in failed["text"][1]
    (budget,) = _shapes(samples.FULL, "memory", "line")
    assert budget["y0"] == budget["y1"] == samples.MEMORY.budget_bytes


def test_noise_track_is_what_was_measured():
    traces = _traces(samples.FULL, "noise")
    points = samples.TRACK.points
    known = [p for p in points if p.noise_scale is not None]
    assert traces["noise scale"]["y"] == [p.noise_scale for p in known]
    assert traces["noise scale"]["x"][1:] == [p.examples_seen for p in known[1:]]
    assert traces["loss"]["y"] == [p.loss for p in points]
    assert traces["loss"]["yaxis"] == "y2"
    strokes = traces["95 % interval"]["y"]
    assert strokes[0::3] == [p.low for p in points]
    closed = [(drawn, p.high) for drawn, p in zip(strokes[1::3], points, strict=True) if p.high]
    assert all(drawn == high for drawn, high in closed)


def test_the_start_of_a_run_has_a_place_on_the_log_axis():
    x_start = _traces(samples.FULL, "noise")["noise scale"]["x"][0]
    assert 0 < x_start < samples.TRACK.points[1].examples_seen
    axis = _layout(samples.FULL, "noise")["xaxis"]
    assert axis["ticktext"][axis["tickvals"].index(x_start)] == "start"


def test_an_open_upper_end_is_an_arrow_above_every_number():
    ends = _traces(samples.FULL, "noise")["no upper end"]
    assert ends["x"] == [p.examples_seen for p in samples.TRACK.points if p.high is None]
    largest = max(p.high or p.noise_scale or p.low for p in samples.TRACK.points)
    assert all(y > largest for y in ends["y"])
    assert all("not bounded" in ends["hovertemplate"] for _ in ends["x"])


def test_the_run_average_has_its_line_and_its_interval():
    (line,) = _shapes(samples.FULL, "noise", "line")
    (band,) = _shapes(samples.FULL, "noise", "rect")
    assert line["y0"] == line["y1"] == samples.TRACK.run_average
    assert (band["y0"], band["y1"]) == (samples.TRACK.low, samples.TRACK.high)


def test_range_test_shows_loss_spread_edge_and_suggestion():
    traces = _traces(samples.FULL, "range_test")
    points = samples.LR_CURVE.points
    assert traces["loss"]["x"] == [p.learning_rate for p in points]
    assert traces["loss"]["y"] == [p.loss for p in points]
    band = traces["spread over repeats"]["y"]
    assert band == [*(p.high for p in points), *(p.low for p in reversed(points))]
    lines = _shapes(samples.FULL, "range_test", "line")
    assert {s["x0"] for s in lines} == {0.06, 0.21, 0.02}  # suggestion, edge, today
    (stretch,) = _shapes(samples.FULL, "range_test", "rect")
    assert (stretch["x0"], stretch["x1"]) == (0.04, 0.1)


def test_marks_near_an_end_turn_their_words_inward():
    curve = replace(samples.LR_CURVE, edge=0.7, suggestion=0.01)
    task = replace(samples.TASK, learning_rate=1e-4)
    results = replace(samples.FULL, learning_rate=curve, task=task)
    words = _layout(results, "range_test")["annotations"]
    assert {w["text"].split()[0]: w["xanchor"] for w in words} == {
        "today": "left",
        "suggested": "center",
        "edge": "right",
    }
    assert len({w["yshift"] for w in words}) == 3  # a row each: they cannot collide


def test_range_test_is_not_squashed_by_what_diverges():
    bottom, top = _layout(samples.FULL, "range_test")["yaxis"]["range"]
    losses = [p.loss for p in samples.LR_CURVE.points]
    assert bottom < min(losses) < losses[0] < top < max(losses)


def test_race_shows_every_entry_once():
    traces = _traces(samples.FULL, "race")
    drawn = sorted(x for trace in traces.values() for x in trace["x"])
    assert drawn == [e.learning_rate for e in samples.RACE.entries]
    assert traces["diverged"]["x"] == [0.24]
    assert traces["ran all 160 steps"]["y"] == [0.262, 0.214]
    assert traces["ran all 160 steps"]["marker"]["symbol"] == ["circle", "diamond"]
    assert traces["stopped early"]["x"] == [0.015, 0.12]
    assert "after 40 steps" in traces["stopped early"]["text"][0]


def test_plan_shows_times_the_choice_today_and_what_does_not_fit():
    traces = _traces(samples.FULL, "plan")
    fitting = [c for c in samples.PLAN.candidates if c.fits]
    assert traces["time"]["x"] == [c.batch_size for c in fitting]
    assert traces["time"]["y"] == [c.relative_time for c in fitting]
    assert traces["does not fit"]["x"] == [8192]
    assert (traces["recommended"]["x"], traces["recommended"]["y"]) == ([256], [1.0])
    assert (traces["today"]["x"], traces["today"]["y"]) == ([64], [1.78])
    (width,) = _shapes(samples.FULL, "plan", "rect")
    assert (width["x0"], width["x1"]) == (samples.PLAN.low, samples.PLAN.high)


def test_today_lies_on_the_candidates_scale_even_where_it_was_not_weighed():
    """Current's time is over the plan's, the candidates' over the best: a tie lies between."""
    plan = replace(
        samples.PLAN,
        batch_size=512,
        micro_batch_size=512,
        current=Current(batch_size=100, relative_time=1.5),
    )
    today = _traces(replace(samples.FULL, plan=plan), "plan")["today"]
    chosen = next(c for c in plan.candidates if c.batch_size == 512)
    assert today["x"] == [100]
    assert today["y"] == pytest.approx([1.5 * chosen.relative_time])


def test_only_the_fastest_layout_of_a_size_makes_the_line():
    slow = replace(samples.PLAN.candidates[5], accumulation_steps=4, relative_time=1.9)
    plan = replace(samples.PLAN, candidates=(slow, *samples.PLAN.candidates))
    traces = _traces(replace(samples.FULL, plan=plan), "plan")
    assert traces["time"]["y"] == _traces(samples.FULL, "plan")["time"]["y"]
    assert (traces["other layouts"]["x"], traces["other layouts"]["y"]) == ([256], [1.9])


def test_an_open_width_is_shaded_to_the_end_of_the_axis():
    (width,) = _shapes(samples.AT_LEAST, "plan", "rect")
    end = _layout(samples.AT_LEAST, "plan")["xaxis"]["range"][1]
    assert width["x0"] == samples.AT_LEAST.plan.low
    assert math.log10(width["x1"]) == pytest.approx(end)


def test_cost_has_a_line_of_its_own_where_it_differs():
    assert "cost" not in _traces(samples.FULL, "plan")
    dearer = tuple(replace(c, relative_cost=2 * c.relative_time) for c in samples.PLAN.candidates)
    traces = _traces(replace(samples.FULL, plan=replace(samples.PLAN, candidates=dearer)), "plan")
    assert traces["cost"]["y"] == [2 * y for y in traces["time"]["y"]]


def test_time_is_the_product_of_the_two_curves():
    traces = _traces(samples.FULL, "trade_off")
    steps, seconds = traces["steps needed"]["y"], traces["time of one step"]["y"]
    times = [s * t for s, t in zip(steps, seconds, strict=True)]
    relative = [t / min(times) for t in times]
    assert relative == pytest.approx(_traces(samples.FULL, "plan")["time"]["y"])


@pytest.mark.parametrize(
    "color",
    [canvas.MEASURED, canvas.SECOND, canvas.CHOICE, canvas.TODAY, canvas.LIMIT, canvas.FAINT],
)
@pytest.mark.parametrize("ground", ["#ffffff", "#171b21"])
def test_colours_stand_out_in_the_light_and_in_the_dark(color, ground):
    """WCAG 2.2, success criterion 1.4.11: 3:1 for what is not text."""

    def luminance(code):
        channels = [int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((luminance(color), luminance(ground)))
    assert (high + 0.05) / (low + 0.05) >= 3


def test_batch_axis_keeps_its_labels_apart_and_powers_of_two_on_it():
    sizes = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 16, 100, 128, 4096, 60_000]
    ticks = canvas.batch_axis("batch size", sizes)["tickvals"]
    assert ticks == [1, 2, 4, 8, 16, 128, 4096, 60_000]
    many = canvas.batch_axis("batch size", [2**power for power in range(25)])["tickvals"]
    assert many == [4**power for power in range(13)]
    assert canvas.batch_axis("batch size", [64])["tickvals"] == [64]
    assert canvas.batch_axis("batch size", [60, 64])["tickvals"] == [60, 64]


@pytest.mark.parametrize(
    ("low", "high"), [(1, 1.1), (3, 3.3), (0.9, 40), (1e-5, 10), (1e-12, 1e12), (7, 7.0001)]
)
def test_a_log_axis_always_has_a_few_ticks(low, high):
    ticks = canvas.round_ticks(low, high)
    assert 2 <= len(ticks) <= 14
    assert ticks == sorted(ticks)
