"""What a report holds beside its own figures: what has changed since an earlier report, and what people said."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from eval.blocks import Report
from eval.change import Baseline, with_change


@dataclass(frozen=True)
class Beside:
    """An earlier report to compare with, and the report of a human study on what is judged; either may be missing."""

    before: Baseline | None = None
    people: Report | None = None

    @classmethod
    def read(cls, against: Path | None, study: Path | None) -> Beside:
        """Read a report.json and the folder of a study. Raises CompareError, PalimpsestError or StudyError."""
        before = None if against is None else Baseline.read(against)
        if study is None:
            return cls(before)
        from eval.human.report import as_report
        from pipelines.study import material_of

        return cls(before, as_report(material_of(study)))

    def check_data(self, judged_by: str) -> None:
        """Raise CompareError where the earlier report was judged by other data. judged_by: the hash of what judges."""
        if self.before is not None:
            self.before.check_data(judged_by)

    def added_to(self, report: Report) -> Report:
        """The report with the sections and figures of both."""
        if self.people is not None:
            told = [replace(section, title=f"People: {section.title}") for section in self.people.sections]
            figures = {**report.figures, **self.people.figures}
            report = replace(report, sections=[*report.sections, *told], figures=figures)
        return with_change(report, self.before)


NOTHING = Beside()
