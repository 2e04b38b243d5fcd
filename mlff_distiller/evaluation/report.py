"""One HTML file that tells a chemist how good the student is and how to use it next."""

from __future__ import annotations

import base64
import datetime
import html
from pathlib import Path
from typing import Any

from ase.data import chemical_symbols

from mlff_distiller.evaluation.metrics import verdicts
from mlff_distiller.evaluation.plots import ENGINE_NAMES
from mlff_distiller.files import atomic_write_text

UNITS = {
    "force_mae_mev_per_ang": "meV/Å",
    "energy_mae_mev_per_atom": "meV/atom",
    "stress_mae_gpa": "GPa",
    "engines_max_energy_diff_ev_per_atom": "eV/atom",
    "engines_max_force_diff_ev_per_ang": "eV/Å",
    "nve_drift_mev_per_atom_per_ps": "meV/atom/ps",
    "speedup_vs_teacher_lammps": "×",
}
_CAPTIONS = {
    "learning_curve": "Errors on validation frames while training (lower is better).",
    "parity": "Student against teacher on test frames that training never saw; "
    "the dashed line is perfect agreement.",
    "energy_drift": "Energy conservation with the student alone. Thick lines are the linear fits "
    "whose slope is the drift.",
    "npt": "Constant-pressure run in LAMMPS: the stress of the student holds the crystal.",
    "speed": "One energy-and-forces evaluation, same frame, same number of threads.",
}
_CSS = """
:root{--ink:#111827;--soft:#4b5563;--line:#e5e7eb;--pass:#00734f;--fail:#b42318;--bg:#f8fafc}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","DejaVu Sans",sans-serif}
main{max-width:1080px;margin:0 auto;padding:32px 24px 64px}
h1{font-size:27px;margin:0 0 4px}h2{font-size:18px;margin:0 0 12px}
.lead{color:var(--soft);margin:0 0 24px}
section{background:#fff;border:1px solid var(--line);border-radius:10px;padding:20px 22px;
margin:0 0 18px}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(215px,1fr));gap:12px;margin:0 0 18px}
.card{background:#fff;border:1px solid var(--line);border-left:5px solid #9ca3af;border-radius:10px;
padding:12px 14px}.card.pass{border-left-color:var(--pass)}.card.fail{border-left-color:var(--fail)}
.card b{display:block;font-size:23px;line-height:1.25;white-space:nowrap}.card .name{color:var(--soft);font-size:13px}
.card .unit{font-size:13px;font-weight:500;color:var(--soft)}
.card .goal{font-size:13px}.pass .goal{color:var(--pass)}.fail .goal{color:var(--fail)}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:6px 10px;border-bottom:1px solid var(--line)}
th{color:var(--soft);font-weight:600;font-size:13px}th:first-child,td:first-child{text-align:left}
td.text{text-align:left;overflow-wrap:anywhere}
img{max-width:100%;height:auto;display:block;margin:6px auto}
.note{color:var(--soft);font-size:13.5px;margin:8px 0 0}.after{margin-bottom:18px}
section>:last-child{margin-bottom:0}table+table{margin-top:18px}
pre{background:#0f172a;color:#e2e8f0;border-radius:8px;padding:12px 14px;overflow:auto;
font:13px/1.45 ui-monospace,"DejaVu Sans Mono",monospace;margin:6px 0 14px}
.two{display:grid;grid-template-columns:1fr 1fr;gap:18px}@media(max-width:760px){.two{
grid-template-columns:1fr}}
"""


def write_report(
    path: str | Path,
    *,
    title: str,
    metrics: dict[str, Any],
    card: dict[str, Any],
    figures: dict[str, bytes],
    model_path: str,
) -> None:
    """Write a self-contained HTML page.

    Args:
        path: file to write.
        title: what was distilled from which teacher.
        metrics: content of metrics.json.
        card: metadata of the exported student.
        figures: name (see ``_CAPTIONS``) -> PNG.
        model_path: exported student, as it should appear in the commands.
    """
    sections = [
        f"<h1>{_text(title)}</h1><p class=lead>{_text(_lead(metrics, card))}</p>",
        _cards(metrics),
        _accuracy(metrics, figures),
        _figure_section("Training", figures, ["learning_curve"]),
        _engines(metrics, figures),
        _figure_section("Speed", figures, ["speed"]),
        f"<div class=two>{_model_card(card)}{_how(metrics)}</div>",
        _next_steps(model_path, card),
    ]
    page = (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width,initial-scale=1">'
        f"<title>{_text(title)}</title><style>{_CSS}</style></head><body><main>"
        + "\n".join(s for s in sections if s)
        + "</main></body></html>\n"
    )
    atomic_write_text(path, page)


def number(value: float | None, digits: int = 3) -> str:
    """A number as people write it; an en dash for what was not measured."""
    if value is None:
        return "–"
    if value != value:
        return "not a number"
    if value != 0 and abs(value) < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.replace('-', '−')}e{int(exponent)}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}".replace("-", "−")


def _with_unit(value: float | None, unit: str) -> str:
    return f"{number(value)} {unit}" if value else "not recorded"


def _lead(metrics: dict[str, Any], card: dict[str, Any]) -> str:
    counts = metrics.get("num_frames", {})
    frames = ", ".join(f"{counts[k]} {k}" for k in ("train", "valid", "test") if k in counts)
    today = datetime.date.today().isoformat()
    parameters = f"{card.get('num_parameters', 0):,} parameters"
    return f"PaiNN student with {parameters}; frames: {frames}. Report of {today}."


def _cards(metrics: dict[str, Any]) -> str:
    cards = []
    for key, label, value, limit, passed in verdicts(metrics):
        if value is None:
            continue
        state = "" if passed is None else "pass" if passed else "fail"
        sign, relation = ("✓", "≥") if key.startswith("speedup") else ("✓", "≤")
        mark = sign if passed else "✗"
        goal = f"{mark} target {relation} {number(limit)} {UNITS[key]}"
        cards.append(
            f"<div class='card {state}'><span class=name>{_text(label)}</span>"
            f"<b>{number(value)} <span class=unit>{UNITS[key]}</span></b>"
            f"<span class=goal>{_text(goal)}</span></div>"
        )
    return f"<div class=cards>{''.join(cards)}</div>"


def _accuracy(metrics: dict[str, Any], figures: dict[str, bytes]) -> str:
    test = metrics.get("test")
    if not test:
        return ""
    rows = [
        ["Forces, meV/Å", test["force_mae_mev_per_ang"], test["force_rmse_mev_per_ang"]],
        ["Energy, meV/atom", test["energy_mae_mev_per_atom"], test["energy_rmse_mev_per_atom"]],
        ["Stress, GPa", test["stress_mae_gpa"], test["stress_rmse_gpa"]],
    ]
    table = _table(["Error on test frames", "MAE", "RMSE"], [r for r in rows if r[1] is not None])
    elements = _table(
        ["Element", "atoms", "force MAE, meV/Å", "force RMSE, meV/Å", "mean |F|, meV/Å"],
        [
            [
                symbol,
                e["num_atoms"],
                e["force_mae_mev_per_ang"],
                e["force_rmse_mev_per_ang"],
                e["mean_abs_force_mev_per_ang"],
            ]
            for symbol, e in test["per_element"].items()
        ],
    )
    r2, relative = test.get("force_r2"), test.get("force_relative_error")
    note = ""
    if r2 is not None and relative is not None:
        note = (
            f"<p class=note>{test['num_frames']} frames with {test['num_atoms']:,} atoms. Forces: "
            f"R² = {r2:.5f}; the mean error is {100 * relative:.2g}% of the mean force.</p>"
        )
    return _section("Accuracy", _image(figures, "parity") + table + elements + note)


def _engines(metrics: dict[str, Any], figures: dict[str, bytes]) -> str:
    engines = metrics.get("engines")
    if not engines:
        return ""
    parts = []
    rows = []
    for dtype, block in engines["agreement"].items():
        for engine, row in block["rows"].items():
            rows.append(
                [
                    f"{ENGINE_NAMES[engine]}, {dtype}",
                    f"{row['energy_ev']:.8f}",
                    row["energy_diff_ev_per_atom"],
                    row["max_force_diff_ev_per_ang"],
                ]
            )
    first = ENGINE_NAMES[next(iter(engines["agreement"]["float32"]["rows"]))]
    parts.append(
        _table(
            [
                "Same frame, same file",
                "energy, eV",
                f"energy − {first}, eV/atom",
                f"largest force − {first}, eV/Å",
            ],
            rows,
        )
    )
    parts.append(
        "<p class='note after'>TorchScript is the portable form of the file; it shares no code with the "
        "native engine that LAMMPS, OpenMM and ASE use.</p>"
    )
    runs = [
        [
            f"{ENGINE_NAMES[run['engine']]}, {run['ensemble'].upper()}",
            f"{run['picoseconds']:.2f}",
            f"{run['mean_temperature_k']:.0f}",
            run.get("drift_mev_per_atom_per_ps"),
            number(run.get("mean_volume_ang3_per_atom"), 5),
            run["microseconds_per_atom_step"],
        ]
        for run in engines["runs"]
    ]
    heads = ["Dynamics", "ps", "T, K", "drift, meV/atom/ps", "volume, Å³/atom", "µs/atom/step"]
    parts.append(_table(heads, runs))
    for engine, reason in engines["not_run"].items():
        parts.append(f"<p class=note>✗ {ENGINE_NAMES[engine]} was not run: {_text(reason)}</p>")
    parts.append(_image(figures, "energy_drift") + _image(figures, "npt"))
    return _section("Engines", "".join(parts))


def _model_card(card: dict[str, Any]) -> str:
    config = card.get("model_config", {})
    rows = [
        ["Elements", " ".join(chemical_symbols[z] for z in card["elements"])],
        ["Teacher", card.get("teacher", "–")],
        ["Architecture", f"{card.get('architecture', 'PaiNN')}, {config.get('hidden_dim')} "
         f"channels, {config.get('num_interactions')} interactions"],
        ["Parameters", f"{card.get('num_parameters', 0):,}"],
        ["Cutoff", f"{card['cutoff']:g} Å, {config.get('cutoff_function', 'cosine')}"],
        ["Norm of the vectors", config.get("norm", "paper")],
        ["Arithmetic", card.get("dtype", "–")],
        ["Closest pair in training", _with_unit(card.get("min_distance"), "Å")],
        ["Data hash", str(card.get("data_hash", "–"))[:16]],
        ["Written by", f"mlff_distiller {card.get('package_version')}, torch "
         f"{card.get('torch_version')}"],
    ]  # fmt: skip
    return _section("Model card", _table(None, rows, text=True))


def _how(metrics: dict[str, Any]) -> str:
    frames = [[f"Frames: {kind}", f"{n}"] for kind, n in metrics.get("sources", {}).items()]
    frames += [[f"Left out: {why}", f"{n}"] for why, n in metrics.get("rejected", {}).items()]
    fitted = metrics.get("training") or {}
    if "epochs" in fitted:
        frames.append(["Epochs", f"{fitted['epochs']} (best {fitted['best_epoch']})"])
    stages = metrics.get("stage_seconds", {})
    times = [[f"Time to {stage}", f"{seconds:.1f} s"] for stage, seconds in stages.items()]
    times.append(["All together", f"{sum(stages.values()):.0f} s"])
    return _section("How it was made", _table(None, frames + times))


def _next_steps(model_path: str, card: dict[str, Any]) -> str:
    symbols = " ".join(chemical_symbols[z] for z in card["elements"])
    model = _text(model_path)
    blocks = {
        "LAMMPS": f"units      metal\npair_style painn\npair_coeff * * {model} {symbols}",
        "ASE": "from mlff_distiller import StudentCalculator\n"
        f'atoms.calc = StudentCalculator("{model}")',
        "OpenMM": "from openmmml import MLPotential\n"
        f'system = MLPotential("painn", modelPath="{model}").createSystem(topology)',
        "Command line": f"mlff-distiller md {model} start.xyz --engine lammps --ensemble nvt "
        f"--steps 10000 -o traj.extxyz\nmlff-distiller info {model}",
    }
    body = "".join(f"<b>{name}</b><pre>{code}</pre>" for name, code in blocks.items())
    return _section("Use the student", body)


def _figure_section(title: str, figures: dict[str, bytes], names: list[str]) -> str:
    body = "".join(_image(figures, name) for name in names)
    return _section(title, body) if body else ""


def _image(figures: dict[str, bytes], name: str) -> str:
    if name not in figures:
        return ""
    data = base64.b64encode(figures[name]).decode("ascii")
    caption = _text(_CAPTIONS[name])
    return f'<img alt="{caption}" src="data:image/png;base64,{data}"><p class="note after">{caption}</p>'


def _section(title: str, body: str) -> str:
    return f"<section><h2>{_text(title)}</h2>{body}</section>"


def _table(heads: list[str] | None, rows: list[list[Any]], text: bool = False) -> str:
    if not rows:
        return ""
    head = ""
    if heads:
        head = "<tr>" + "".join(f"<th>{_text(h)}</th>" for h in heads) + "</tr>"
    kind = " class=text" if text else ""
    body = ""
    for row in rows:
        cells = [
            _text(v) if isinstance(v, str) else f"{v:,}" if isinstance(v, int) else number(v)
            for v in row
        ]
        body += f"<tr><td>{cells[0]}</td>" + "".join(f"<td{kind}>{c}</td>" for c in cells[1:])
        body += "</tr>"
    return f"<table>{head}{body}</table>"


def _text(value: Any) -> str:
    return html.escape(str(value))
