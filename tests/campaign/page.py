"""Render the records as the table of docs/reliability.md."""

from __future__ import annotations

from bench.tables import markdown
from tests.campaign.kinds import KINDS
from tests.campaign.records import Records
from tests.runs import ROOT

PAGE = ROOT / "docs" / "reliability.md"
_BEGIN, _END = "<!-- campaign -->\n", "<!-- /campaign -->"


def table(records: Records) -> str:
    """Return a row for each kind: what is promised, trials made of those that a whole campaign makes, what came out."""
    lines = []
    for kind in KINDS.values():
        outcomes = records.outcomes(kind.name)
        failed = outcomes.pop("failed", 0)
        made, whole = kind.weight * (outcomes.total() + failed), kind.weight * len(kind.seeds)
        came = ", ".join(f"{kind.weight * count:,} {outcome}" for outcome, count in sorted(outcomes.items()))
        count = f"{made:,}" if made == whole else f"{made:,} of {whole:,}"
        lines.append([f"`{kind.name}`", kind.promise, count, came, f"**{failed}**", str(records.mended[kind.name])])
    headings = ["kind", "promise", "trials", "outcomes", "failed", "failed before and mended"]
    return f"{markdown(headings, lines)}\n\n{_conditions(records)}"


def _conditions(records: Records) -> str:
    """Return one line for each place where trials were made."""
    found: dict[tuple, dict[str, list[str]]] = {}
    for record in records.trials.values():
        place = record["processor"], record["torch"], record["h5py"], record["rdn_fast"]
        for key, values in found.setdefault(place, {"commit": [], "date": []}).items():
            if record[key] not in values:
                values.append(record[key])
    return "\n".join(
        f"Made on {processor}, torch {torch}, h5py {h5py}, rdn_fast {version}; "
        f"commits {', '.join(of['commit'])}; {min(of['date'])} to {max(of['date'])}."
        for (processor, torch, h5py, version), of in found.items()
    )


def write(records: Records) -> None:
    """Put the table between the page's markers."""
    before, _, rest = PAGE.read_text().partition(_BEGIN)
    after = rest.partition(_END)[2]
    PAGE.write_text(f"{before}{_BEGIN}\n{table(records)}\n\n{_END}{after}")
