"""When tokens of a text came to stay, and what each of them adds to the text."""

import torch

from eval.blocks import Provenance, Report, Section, Texts, Timed
from eval.report import to_html, to_json
from pipelines.text.watched import Watched, pieces

MASK = 9


def test_the_last_time_that_a_token_is_masked_counts():
    x = torch.tensor([[MASK, MASK, 3]])
    watched = Watched(lambda x, t: x, x, MASK)
    for asked in ([[MASK, MASK, 3]], [[1, MASK, 3]], [[MASK, 2, 3]], [[1, 2, 3]]):  # the first is masked again
        watched(torch.tensor(asked), torch.tensor(0.5))
    assert watched.revealed.tolist() == [[0.75, 0.5, 0.0]]


def test_nothing_is_said_where_parts_were_asked_about():
    watched = Watched(lambda x, t: x, torch.tensor([[MASK, MASK], [MASK, MASK]]), MASK)
    watched(torch.tensor([[MASK, MASK]]), torch.tensor(0.5))
    assert watched.revealed is None


def test_pieces_make_up_the_text_also_where_a_token_ends_inside_a_letter():
    class Bytes:
        def decode(self, ids):
            return bytes(ids).decode("utf-8", "replace")

    ids = list("a日b".encode())
    found = pieces(Bytes(), ids, [0.1, 0.2, 0.3, 0.4, 0.5])
    assert found == [("a", 0.1), ("日", 0.4), ("b", 0.5)]


def test_shades_stand_on_the_page_and_the_text_alone_in_the_json():
    text = Timed([("<b>", 0.0), ("one", 0.1), (" two", 1.0)])
    made = Provenance(commit=None, dirty=False, recipe="r", recipe_hash="h", command="c")
    sections = [Section("x", [Texts("T", [("row", text)])])]
    report = Report(title="t", summary="s", provenance=made, sections=sections, figures={})
    page = to_html(report)
    assert '<i class="r0">&lt;b&gt;one</i><i class="r5"> two</i>' in page
    assert to_json(report)["texts"] == [{"title": "T", "items": [["row", "<b>one two"]]}]
