"""The table of merge policies as one HTML page, with a bar for each perplexity."""

from __future__ import annotations

from exporter.report.bars import bars, page, section
from exporter.report.policies import HEAD, PoliciesReport, cells, notes


def policies_html(report: PoliciesReport) -> str:
    """The page as text; no script, nothing fetched."""
    lead = f"{', '.join(report.adapters)} on a sparse {report.family}"
    return page("Merge policies", lead, policies_section(report))


def policies_section(report: PoliciesReport) -> str:
    """Plot, table and notes, to be put into any page."""
    shown = [("(base alone)", report.perplexity_base), ("(unmerged)", report.perplexity_unmerged)]
    shown += [(r.policy, r.perplexity) for r in report.rows if r.perplexity is not None]
    title = "perplexity on held-out text, less is better"
    plot = bars(shown, "perplexity by merge policy", title)
    return section(plot, [HEAD, *cells(report)], notes(report))
