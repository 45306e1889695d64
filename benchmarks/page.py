"""One Markdown table and one HTML page from a rate-distortion result: headline first, worst clips first."""

from __future__ import annotations

import html
from base64 import b64encode
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np

from benchmarks import comparison, report, resources
from benchmarks.clips import FPS
from benchmarks.comparison import METRICS
from benchmarks.ours import FILE

Result = Mapping[str, Any]

OVERVIEW = ("landmark_px", "vmaf", "psnr")  # of the picture for those who do not read tables

STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#1b1b1b}"
    "table{border-collapse:collapse;margin:1rem 0;font-size:14px;display:block;overflow-x:auto}"
    "td,th{padding:.25rem .6rem;border-bottom:1px solid #ddd;text-align:right}td:first-child,th:first-child"
    "{text-align:left}figure{margin:1.5rem 0}img,video{max-width:100%}figcaption{font-size:14px;color:#444}"
    ".head{font-size:20px;font-weight:600}.bad{color:#a30000}"
)


def sentence(result: Result) -> str:
    """The headline: bits of ours over bits of the anchor at equal score, metric by metric, good or bad."""
    parts = _ratios(result["headline"])
    start = f"Bits of {result['test']} at {result['target']:g} kbit/s / bits that {result['anchor']} needs"
    return f"{start}: {'; '.join(parts)}." if parts else "Nothing to compare yet."


def files(result: Result) -> str:
    """The same for ours as a file; empty when that was not measured."""
    parts = _ratios(result["headline_files"])
    waits = f"whose packets hold {FILE['frames_per_packet']} frames and wait for {FILE['lookahead']} more"
    start = f"As a file, {waits}, and which is looked at half a minute ahead"
    return f"{start}: {'; '.join(parts)}." if parts else ""


def _ratios(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    parts = [
        f"{_ratio(line)} at equal {METRICS[line['metric']].label}{_band(line['band'])}, more bits than it on"
        f" {line['clips_lost']} of {line['clips']} clips"
        for line in lines
        if line["ratio"] is not None
    ]
    never = [line for line in lines if line["ratio"] is None]
    return parts + [f"no clip where it reaches our {METRICS[line['metric']].label}" for line in never]


def _ratio(line: Mapping[str, Any]) -> str:
    """Its mean; with ">=" where a clip or point of it is a bound, because they cannot go so low."""
    return ">= " * bool(line["anchor_cannot_go_so_low"]) + f"{line['ratio']:.2f}"


def rivals(result: Result) -> str:
    """The best of the other codecs for the very same bits, metric by metric; empty when none was measured."""
    others = [line for line in result["equal_rate"] if line["codec"] not in result["tests"]]
    at_target = [line for line in others if line["target"] == result["target"]]
    parts = []
    for metric in comparison.HEADLINE:
        sign, digits = METRICS[metric].sign, METRICS[metric].digits
        rows = [line for line in at_target if metric in line["figures"]]
        rows = [line for line in rows if line["clips"] == max(row["clips"] for row in rows)]
        if not rows:
            continue
        best = max(rows, key=lambda line: sign * line["figures"][metric][0])
        theirs, ours = best["figures"][metric]
        than = "better" if sign * (theirs - ours) > 0 else "worse"
        parts.append(
            f"{METRICS[metric].label} {theirs:.{digits}f} ({best['codec']}), {than} than ours, {ours:.{digits}f}"
        )
    start = f"The best that any other codec shows for the same bits as ours at {result['target']:g} kbit/s"
    return f"{start}: {'; '.join(parts)}." if parts else ""


def to_markdown(result: Result) -> str:
    made = result["measurements"]
    frames = sum(clip["frames"] for clip in result["clips"].values())
    lines = ["# Rate and distortion", "", f"**{sentence(result)}**", ""]
    lines += [line for text in (files(result), rivals(result)) if text for line in (text, "")]
    lines += [f"{len(result['clips'])} clips, {frames} frames, taken as 25 a second; {made['used']} of"
              f" {made['planned']} measurements, {made['new']} of them made in this run of"
              f" {made['minutes']:g} minutes on {result['options']['jobs']} cores."]
    lines += [*result["left_out"], ""]
    for title, (head, rows), note in tables(result):
        lines += [f"## {title}", "", report.markdown(head, rows), "", *([note, ""] if note else [])]
    machine = result["machine"]
    lines += [
        f"Machine: {machine['cpu']}, {machine['cores_usable']} cores. Commit {machine['commit'] or 'unknown'}."
        f" {report.busy(machine)}",
        "",
    ]
    return "\n".join(lines)


Table = tuple[tuple[str, ...], list[tuple[str, ...]]]


def tables(result: Result) -> list[tuple[str, Table, str]]:
    """(title, table, note below it)."""
    return [
        (
            f"Headline: {result['test']} at {result['target']:g} kbit/s against {result['anchor']}",
            _headline(result),
            "our bits / theirs: geometric mean over clips, in brackets its 95 % interval. Where their cheapest stream"
            " already scores higher, at any picture size or frame rate we try, its rate stands in (>=); clips where"
            " they never come to our score, or that were not measured, are counted and left out of the mean.",
        ),
        (
            "Against each codec, over all of our points",
            _against(result),
            "BD-rate only over the scores that both curves reach; the share of the narrower one in brackets.",
        ),
        (
            f"On the wire: {result['test']} against calls, headers of packets counted",
            _wire(result),
            "our bits / theirs over all of our points, in brackets the clips where ours takes more. IPv4, UDP and RTP"
            " headers, 40 bytes a packet: whoever shows half of the frames sends half of the packets.",
        ),
        (
            "What the same bits buy",
            _equal_rate(result),
            f"On each clip the others get the rate that {result['test']} took for its target, read off the front of"
            " their own points for each score; means over clips. Where their cheapest stream costs more, its score"
            " stands in and the clip is counted; where their dearest costs less they could do better than told.",
        ),
        (
            f"What is counted: the point nearest to {result['target']:g} kbit/s, kbit/s",
            _counted(result),
            "1 and 10 minutes: the first picture spread over a call that long. Wire: IPv4, UDP, RTP headers, a packet"
            " a frame, or whatever falls into 200 ms in one packet.",
        ),
        (f"Clip by clip, worst first, at {result['target']:g} kbit/s", _clips(result), ""),
        (
            "What it costs",
            _costs(result),
            f"{resources.FRAMES} frames of the first clip at full size on one core, in a process of its own. Processor:"
            " encoder and decoder, conversion of colours included. Memory: what coding adds, ours with its networks; an"
            " encoder in a program of its own with all of that program. Latency: frames held back, at 25 a second, plus"
            " coding and decoding one.",
        ),
        ("How the codecs were run", _settings(result), ""),
    ]


def _headline(result: Result) -> Table:
    rows: list[tuple[str, ...]] = []
    for line in result["headline"]:
        value = "n/a" if line["ratio"] is None else f"{_ratio(line)}{_band(line['band'])}"
        rows.append((METRICS[line["metric"]].label, value, f"{line['clips_lost']} of {line['clips']}",
                     str(line["anchor_cannot_go_so_low"]), str(line["anchor_never_gets_there"]),
                     str(line["not_measured"])))  # fmt: skip
    return (
        "at equal", "our bits / theirs", "clips lost", "they cannot go so low", "they never get there", "not measured",
    ), rows  # fmt: skip


def _against(result: Result) -> Table:
    rows: list[tuple[str, ...]] = []
    for c in result["comparisons"]:
        value = "n/a" if c["ratio"] is None else f"{_ratio(c)}{_band(c['band'])}"
        bd = "no overlap" if c["bd_rate_percent"] is None else f"{c['bd_rate_percent']:+.0f} %"
        overlap = f"{c['bd_clips']} ({c['bd_mean_overlap']:.0%})" if c["bd_clips"] else "0"
        rows.append((METRICS[c["metric"]].label, c["anchor"], c["test"], value, f"{c['clips_lost']} of {c['clips']}",
                     str(c["anchor_cannot_go_so_low"]), str(c["anchor_never_gets_there"]), bd, overlap))  # fmt: skip
    return (
        "at equal", "against", "ours", "our bits / theirs", "clips lost", "points: they cannot go so low",
        "points: they never get there", "BD-rate", "its clips (overlap)",
    ), rows  # fmt: skip


def _wire(result: Result) -> Table:
    rows: list[tuple[str, ...]] = []
    for line in result["wire"]:
        cells = [
            "n/a" if c["ratio"] is None else f"{_ratio(c)} ({c['clips_lost']} of {c['clips']})"
            for c in line["rates"].values()
        ]
        rows.append((METRICS[line["metric"]].label, line["anchor"], *cells))
    return ("at equal", "against", "stream alone", "wire, a packet a frame", "wire, 200 ms shared"), rows


def _equal_rate(result: Result) -> Table:
    rows: list[tuple[str, ...]] = []
    for target in sorted({line["target"] for line in result["equal_rate"]}):
        own = comparison.at_target(result["points"], result["test"], target)
        found = comparison.means(own, ["kbps", *METRICS])
        rows.append((f"{target:g}", result["test"], f"{found['kbps']:.1f}", str(len(own)), "", "", *_figures(found)))
        for line in result["equal_rate"]:
            if line["target"] == target and line["clips"]:
                means = {metric: theirs for metric, (theirs, _) in line["figures"].items()}
                rows.append((f"{target:g}", line["codec"], f"{line['kbps']:.1f}", str(line["clips"]),
                             str(line["dearer"]), str(line["cheaper"]), *_figures(means)))  # fmt: skip
    return (
        "wanted, kbit/s", "codec", "kbit/s", "clips", "clips: cheapest costs more", "clips: dearest costs less",
        *(metric.label for metric in METRICS.values()),
    ), rows  # fmt: skip


def _figures(found: Mapping[str, float]) -> list[str]:
    return [f"{found[m]:.{metric.digits}f}" if m in found else "" for m, metric in METRICS.items()]


def _counted(result: Result) -> Table:
    keys = ("kbps", "net", "call_1", "call_10", "wire", "wire_shared")
    rows: list[tuple[str, ...]] = []
    for codec in _codecs(result):
        found = comparison.means(comparison.at_target(result["points"], codec, result["target"]), (*keys, "peak"))
        rows.append((codec, *(f"{found[key]:.1f}" for key in keys), f"{found['peak']:.2f}"))
    return ("codec", "whole stream", "without keys", "1 minute", "10 minutes", "wire",
            "wire, 200 ms shared", "fullest two seconds over the mean"), rows  # fmt: skip


def _clips(result: Result) -> Table:
    lines = {line["metric"]: line for line in result["headline"]}
    points = {p["sha256"]: p for p in comparison.at_target(result["points"], result["test"], result["target"])}
    shown = [m for m in METRICS if any(m in p for p in points.values())]
    rows: list[tuple[str, ...]] = []
    for sha in worst_first(result):
        p = points[sha]
        figures = [f"{p[m]:.{METRICS[m].digits}f}" if m in p else "" for m in shown]
        ratios = [_bounded(line, sha) for line in lines.values()]
        rows.append((p["clip"], str(p["frames"]), f"{p['kbps']:.1f}", *ratios, *figures))
    return (
        "clip", "frames", "kbit/s", *(f"bits at equal {METRICS[m].label}" for m in lines),
        *(METRICS[m].label for m in shown),
    ), rows  # fmt: skip


def _bounded(line: Mapping[str, Any], sha: str) -> str:
    """A clip's ratio, with "at least" or "less than" where it is a bound."""
    if sha not in line["per_clip"]:
        return "not measured"
    words = {">=": "at least ", "<": "less than "}.get(line["per_clip_bounds"].get(sha, ""), "")
    return f"{words}{line['per_clip'][sha]:.2f}"


def _costs(result: Result) -> Table:
    rows: list[tuple[str, ...]] = []
    for r in result["resources"]:
        whole = r["delay_frames"] is None
        latency = "whole clip" if whole else f"{r['delay_frames'] * 1000 / FPS + r['encode_ms'] + r['decode_ms']:.0f}"
        rows.append((r["codec"] + " (machine busy)" * r["busy"], f"{r['encode_ms']:.1f}", f"{r['decode_ms']:.1f}",
                     f"{r['cpu_ms']:.1f}", f"{r['cpu_ms'] * FPS / 1000:.2f}", f"{r['peak_mb']:.0f}",
                     "whole clip" if whole else str(r["delay_frames"]), latency,
                     "yes" if r["needs_gpu"] else "no"))  # fmt: skip
    return (
        "codec", "encode, ms a frame", "decode, ms a frame", "processor, ms a frame", "processor, s a second of film",
        "memory, MB", "frames held back", "latency, ms", "needs a GPU",
    ), rows  # fmt: skip


def _settings(result: Result) -> Table:
    rows: list[tuple[str, ...]] = []
    for codec in _codecs(result):
        own = [p for p in result["points"] if p["codec"] == codec]
        names = list(dict.fromkeys(p["name"] for p in own))
        options = " ".join(
            f"{k}={v}" for k, v in own[0]["setting"].items() if not isinstance(v, Mapping) and k != "references"
        )
        version = result["encoders"].get(codec, "")
        rows.append((codec, ", ".join(names), options, "; ".join(filter(None, (version, own[0]["library"])))))
    return ("codec", "settings (q: quality; scale; fps/2: every other frame)", "options of the first", "library"), rows


def worst_first(result: Result) -> list[str]:
    """Clip hashes by the mean log ratio over the headline's metrics, most bits of ours first; the rest by landmarks."""
    per_clip: dict[str, list[float]] = {}
    for line in result["headline"]:
        for sha, value in line["per_clip"].items():
            per_clip.setdefault(sha, []).append(float(np.log(value)))
    measured = comparison.clips_of(result["points"], result["test"])
    return sorted(measured, key=lambda sha: -float(np.mean(per_clip.get(sha, [-np.inf]))))


def _codecs(result: Result) -> list[str]:
    return list(dict.fromkeys(p["codec"] for p in result["points"]))


def _band(edges: Sequence[float] | None) -> str:
    return "" if edges is None else f" [{edges[0]:.2f}, {edges[1]:.2f}]"


def plot(points: comparison.Points, metric: str) -> bytes:
    """PNG: what each codec shows for a rate, on every clip with its best setting; means and 95 % bands over clips."""
    return _png({"": points}, [metric], (8, 5))


def overview(points: comparison.Points) -> bytes:
    """PNG, :func:`plot` for some metrics at once: above those codecs that do not wait, below those that do."""
    at_once = [p for p in points if not _waits(p["codec"])]
    later = [p for p in points if _waits(p["codec"])]
    rows = {"without delay": at_once, "as files, at their best": later}
    shown = [metric for metric in OVERVIEW if any(metric in p for p in points)]
    return _png({title: row for title, row in rows.items() if row}, shown, (5.2, 4))


def _waits(codec: str) -> bool:
    return codec.endswith(("best", "file"))


def _png(rows: Mapping[str, comparison.Points], metrics: Sequence[str], size: tuple[float, float]) -> bytes:
    """A panel of this size in inches per metric and row, with the row's title; an encoder has one colour in all."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    wide, high = size[0] * len(metrics), size[1] * len(rows)
    figure, panels = pyplot.subplots(len(rows), len(metrics), figsize=(wide, high), squeeze=False)
    families = dict.fromkeys(_family(p["codec"]) for points in rows.values() for p in points)
    colours = {family: f"C{i}" for i, family in enumerate(families)}
    for row, (title, points) in zip(panels, rows.items(), strict=True):
        for axes, metric in zip(row, metrics, strict=True):
            _draw(axes, points, metric, colours)
            axes.set_title(title, fontsize=10)
    figure.tight_layout()
    data = BytesIO()
    figure.savefig(data, format="png", dpi=110)
    pyplot.close(figure)
    return data.getvalue()


def _family(codec: str) -> str:
    return codec.rsplit("-", 1)[0]  # both ways of running an encoder


def _draw(axes: Any, points: comparison.Points, metric: str, colours: Mapping[str, str]) -> None:
    for codec in dict.fromkeys(p["codec"] for p in points):
        line = comparison.mean_curve(points, codec, metric)
        if not line:
            continue
        x, y = [point.rate for point, _ in line], [point.quality * METRICS[metric].sign for point, _ in line]
        style, width = "--" if _waits(codec) else "-", 3 if codec.startswith("neuralcodec") else 1.2
        (drawn,) = axes.plot(x, y, label=codec, ls=style, lw=width, color=colours[_family(codec)])
        edges = [edge for _, edge in line if edge is not None]
        if len(edges) == len(line) > 1:
            low, high = zip(*edges, strict=True)
            axes.fill_between(x, low, high, color=drawn.get_color(), alpha=0.08)
    axes.set_xscale("log")
    axes.set_xlabel("kbit/s, whole stream, geometric mean over clips")
    axes.set_ylabel(METRICS[metric].label + ("" if METRICS[metric].sign > 0 else " (less is better)"))
    if METRICS[metric].sign < 0:
        axes.invert_yaxis()
    low, high = axes.get_xlim()
    ticks = [tick for tick in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64) if low <= tick <= high]
    axes.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
    axes.set_xticks([], minor=True)
    axes.grid(True, alpha=0.3)
    axes.legend(fontsize=8)


def to_html(result: Result, stills: Sequence[tuple[str, bytes]], film: bytes) -> str:
    """The whole page in one file. stills: (caption, PNG), worst clip first. film: MP4, may be empty."""
    body = [f"<h1>Rate and distortion</h1><p class=head>{html.escape(sentence(result))}</p>"]
    body += [f"<p>{html.escape(text)}</p>" for text in (files(result), rivals(result), *result["left_out"]) if text]
    described = tables(result)
    body += [_section(*described[0])]
    body += ["<h2>Curves</h2>"]
    body += [
        _figure(_source("image/png", plot(result["points"], metric)), METRICS[metric].label)
        for metric in METRICS
        if any(metric in p for p in result["points"])
    ]
    if film:
        body += [f'<h2>Side by side</h2><video controls loop muted src="{_source("video/mp4", film)}"></video>']
        body += ["<p>Original, ours, x264 as in a call, SVT-AV1 at its best; worst clips first, then the best one.</p>"]
    body += ["<h2>Stills at equal rate, worst clips first</h2>"] * bool(stills)
    body += [_figure(_source("image/png", png), caption) for caption, png in stills]
    body += [_section(*table) for table in described[1:]]
    start = '<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">'
    return f"{start}<title>Rate and distortion</title><style>{STYLE}</style>{''.join(body)}</html>"


def _section(title: str, table: Table, note: str) -> str:
    head, rows = table
    lines = ["<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    heads = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    return f"<h2>{html.escape(title)}</h2><table><tr>{heads}</tr>{''.join(lines)}</table><p>{html.escape(note)}</p>"


def _figure(source: str, caption: str) -> str:
    text = html.escape(caption)
    return f'<figure><img src="{source}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def _source(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{b64encode(data).decode()}"
