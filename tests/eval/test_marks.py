"""What stands on top of a report about its embedders: red where nothing compares, the name of FID where it is one."""

import pytest

from eval.figure import Figure
from eval.marks import mark
from eval.report import to_html
from tests.eval.test_report import report

OWN = "latent.fd[indomain-openclip-unit:5bd8349b|resize=none|n=120/1200|split=train]"
RANDOM = "a.kd[random-conv:ce5aba9b|resize=clean-64|n=5/9|split=all]"
FITTED = "real.fd[pixels-pca:7ddb5b25|resize=clean-64|n=5/9|split=all]"
FID = "a.fid[inception-2015-12-05:6726825d|resize=tf1-299|n=5/9|split=all]"


def test_embedders_of_this_data_compare_with_nothing():
    found = mark([OWN, "vae.psnr", "latent.scene.colour"])
    assert not found.published and found.text.startswith(
        "The embedders are judges that runs of this project trained: no figure compares"
    )
    assert "indomain-openclip-unit:5bd8349b" in found.text


def test_of_other_embedders_it_is_not_said_that_they_were_trained_on_this_data():
    found = mark([RANDOM, FITTED])
    assert not found.published and found.text.startswith("No embedder is a published one")
    assert "random weights" in found.text and "fitted to the reference" in found.text
    assert "data of its own run" not in found.text


@pytest.mark.parametrize("changed", [("6726825d", "6726825e"), ("tf1-299", "clean-299"), ("2015-12-05", "torchvision")])
def test_fid_has_its_name_by_weights_resize_and_network_alone(changed):
    assert mark([FID]).published and "6726825d at tf1-299" in mark([FID]).text
    assert not mark([FID.replace(*changed)]).published


def test_beside_fid_the_others_are_named():
    found = mark([FID, RANDOM])
    assert found.published and "random-conv:ce5aba9b (random weights)" in found.text


def test_without_an_embedder_nothing_is_said():
    names = ["text.nats_per_token", "latent.sweep.kd[samplers: euler|steps=4|guidance=3|n=20]", "study.x.points[a b]"]
    assert mark(names) is None


def test_the_page_is_red_or_not():
    def page(name):
        return to_html(report(figures={name: Figure(1.0, 5)}))

    assert '<p class="warning">The embedders are judges' in page(OWN)
    assert '<p class="mark">FID here is by the published network' in page(FID) and 'class="warning"' not in page(FID)
    assert 'class="warning"' not in page("vae.psnr") and 'class="mark"' not in page("vae.psnr")
