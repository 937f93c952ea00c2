"""The tables of the gradient noise: by geometry, by layer, along a run."""

from rightbatch._format import (
    format_count,
    format_interval,
    format_learning_rate,
    format_number,
)
from rightbatch.report.table import Row, Table
from rightbatch.results import GeometryNoise, LayerNoise, NoiseScale, NoiseTrack, Status

_GEOMETRIES = {
    "euclidean": "plain gradients",
    "adam": "gradients over their root mean square",
    "adam_sqrt": "that root taken as curvature",
    "sign": "steps of signs",
}
_MOST_LAYERS = 12


def geometries_table(noise: NoiseScale, track: NoiseTrack | None) -> Table:
    """Tabulate the noise scale in each geometry, now and on average along a run."""
    along = {g.geometry: g for g in track.geometries} if track else {}
    now = {g.geometry: g for g in noise.geometries}
    return Table(
        title="Noise scale by geometry",
        header=("geometry", "now", "in the run", ""),
        rows=tuple(
            Row(
                cells=(name, _scale(now.get(name)), _scale(along.get(name)), _GEOMETRIES[name]),
                mark="choice" if any(g[name].fits for g in (now, along) if name in g) else "",
            )
            for name in _GEOMETRIES
            if name in now or name in along
        ),
        note="Marked: that of this optimizer's steps. The plan starts from the Euclidean one.",
    )


def _scale(noise: GeometryNoise | None) -> str:
    if noise is None:
        return "-"
    if noise.status is Status.NOT_YET:
        return "not yet"
    return format_interval(noise.noise_scale, noise.low, noise.high)


def layers_table(noise: NoiseScale) -> Table:
    """Tabulate what each layer adds to noise and gradient, the noisiest first."""
    ranked = sorted(noise.layers, key=lambda layer: -layer.noise_share)
    shown = ranked[:_MOST_LAYERS]
    hidden = len(ranked) - len(shown)
    note = f"{hidden} layers of smaller shares are in the results file. " if hidden else ""
    if noise.uncovered:
        note += f"No gradient reached {', '.join(noise.uncovered[:5])}. "
    return Table(
        title="Layers",
        header=("layer", "parameters", "noise scale", "share of noise", "of the gradient"),
        rows=tuple(Row(cells=_layer(layer)) for layer in shown),
        note=note + "Shares add up to 100 %; those of the gradient are squares.",
    )


def _layer(layer: LayerNoise) -> tuple[str, ...]:
    scale = "unresolved" if layer.noise_scale is None else format_number(layer.noise_scale)
    return (
        layer.layer,
        format_count(layer.parameters),
        scale,
        f"{layer.noise_share:.1%}",
        f"{layer.gradient_share:.1%}",
    )


def track_table(track: NoiseTrack) -> Table:
    """Tabulate the probes along a run."""
    rows = (
        Row(
            cells=(
                format_count(p.step),
                format_count(p.examples_seen),
                format_number(p.loss, 3),
                format_interval(p.noise_scale, p.low, p.high),
            )
        )
        for p in track.points
    )
    return Table(
        title="Noise scale along a run",
        header=("step", "examples seen", "loss", "noise scale"),
        rows=tuple(rows),
        note=(
            f"Trained at batch size {format_count(track.batch_size)} and learning rate "
            f"{format_learning_rate(track.learning_rate)}."
        ),
    )
