"""Everything that `deltamend score` prints or writes, for one cell or for many."""

from __future__ import annotations

from dataclasses import dataclass

from deltamend.report.score_page import render_cells_page, render_score_page
from deltamend.report.score_tables import (
    Table,
    cells_tables,
    latex,
    markdown,
    scores_csv,
    tables_of_score,
    undefined_figures,
    weak_figures,
)
from deltamend.scoring.across_cells import CellsScore
from deltamend.scoring.result import Score


@dataclass(frozen=True)
class ScoreOutput:
    """The tables of a score with what must be said beside them, and the score that they are made from."""

    score: Score | CellsScore
    tables: tuple[Table, ...]
    notes: tuple[str, ...]

    def html(self) -> str:
        """The page."""
        return render_score_page(self.score) if isinstance(self.score, Score) else render_cells_page(self.score)

    def markdown(self) -> str:
        """Tables and notes as Markdown."""
        return markdown(self.tables, self.notes)

    def latex(self) -> str:
        """The tables as LaTeX."""
        return latex(self.tables)

    def csv(self) -> str:
        """Every figure of every cell on a line of its own."""
        return scores_csv((self.score,) if isinstance(self.score, Score) else self.score.cells)


def output_of_score(score: Score | CellsScore) -> ScoreOutput:
    """What there is to show of a score."""
    if isinstance(score, Score):
        notes = (*undefined_figures(score), *weak_figures(score), *score.notes)
        return ScoreOutput(score, tuple(tables_of_score(score)), notes)
    return ScoreOutput(score, tuple(cells_tables(score)), score.all_notes)
