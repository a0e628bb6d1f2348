"""Further pages: a report with clinical numbers and every audit, and a comparison."""

from __future__ import annotations

from pathlib import Path

from mental_r1_jax.evaluation.audit_report import audit_sections
from mental_r1_jax.evaluation.clinical import LabelFacts
from mental_r1_jax.evaluation.clinical_report import clinical_section
from mental_r1_jax.evaluation.comparison import compare, flips
from mental_r1_jax.evaluation.comparison_report import write_comparison
from mental_r1_jax.evaluation.finished import read_evaluation
from mental_r1_jax.evaluation.metrics import set_metrics
from mental_r1_jax.evaluation.report import write_evaluation
from mental_r1_jax.prediction.audit_groups import audit_groups
from mental_r1_jax.prediction.audit_stages import audit_stages
from tests.evaluation.test_clinical_report import LABELS, ROWS, made
from tests.evaluation.test_comparison import FIRST, SECOND
from tests.evaluation.test_comparison import write as write_answers
from tests.evaluation.test_memory import SENTENCE, document
from tests.prediction import test_audits as audited


def clinical_page_file(folder: Path) -> Path:
    """Write a report with groups of posts, and with the three audits."""
    predictions = audited.predictions_of()
    facts = {"Made-Up": LabelFacts(audited.LABELS, ("Yes",))}
    posts, biased = audited.posts_of(predictions), audited.answers(["man"])
    audits = {
        "stages": audit_stages(predictions, audited.reader(1), **audited.OPTIONS),
        "groups": audit_groups(posts, predictions, facts, biased, **audited.OPTIONS),
        "memory": document([SENTENCE, "tea"], ["tea", "tea"], [SENTENCE]),
    }
    clinical = made()
    write_evaluation(
        folder,
        {"Made-Up": set_metrics(ROWS, LABELS, bootstrap_samples=20, seed=0)},
        ROWS,
        include_text=False,
        title="a made-up model",
        context={"model": "made up"},
        sections=[clinical_section(clinical), *audit_sections(audits)],
        further=clinical,
    )
    return folder / "report.html"


def comparison_page_file(folder: Path) -> Path:
    """Write the page of two evaluations that differ."""
    one, other = (
        read_evaluation(write_answers(folder / name, guesses))
        for name, guesses in (("a", FIRST), ("b", SECOND))
    )
    document = compare(one, other, samples=20, seed=0)
    write_comparison(folder, document, flips(one, other), ("a", "b"))
    return folder / "comparison.html"
