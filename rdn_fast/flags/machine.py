"""The flags of doctor, demo and report."""

from __future__ import annotations

from rdn_fast.flags.shared import DEVICES


def doctor(commands) -> None:
    parser = commands.add_parser("doctor", help="what this machine has for training, and what brings the rest")
    parser.add_argument("--device", default="auto", help=DEVICES)
    report_help = (
        "instead of the table: run what there is on an Ascend card, for ten minutes at most, and write a report"
    )
    parser.add_argument("--ascend-report", metavar="FILE.md", help=report_help)


def demo(commands) -> None:
    help_text = "train a small model on photographs, compare it with bicubic and draw the result"
    parser = commands.add_parser("demo", help=help_text)
    parser.add_argument("--outputs-dir", default="outputs/demo", help="where data, weights and compare.png go")
    parser.add_argument("--device", default="auto", help=DEVICES)


def report(commands) -> None:
    help_text = "one HTML page of training runs: curves, pictures with sliders, settings"
    parser = commands.add_parser("report", help=help_text, description=help_text)
    runs_help = "outputs folders of runs, finished or not; several are drawn into the same plots"
    parser.add_argument("runs", nargs="+", metavar="RUN", help=runs_help)
    output_help = "the file to write (default: report.html in the folder, if there is one only)"
    parser.add_argument("-o", "--output", metavar="FILE.html", help=output_help)
