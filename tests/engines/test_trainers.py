"""Lightning, Accelerate and Hugging Face's Trainer on tiny real runs."""

import sys

import pytest

from .launching import ROOT, output_of, skip_without, torchrun

SCRIPTS = ROOT / "tests" / "trainers"
pytestmark = [pytest.mark.slow, pytest.mark.libraries]


@pytest.mark.parametrize("trainer", ["accelerate", "transformers", "lightning"])
def test_a_trainer_runs_on_two_processes(trainer, tmp_path):
    skip_without(trainer)
    assert "right, KL" in output_of([*torchrun(2), "-m", "tests.trainers.two_processes", trainer, str(tmp_path)])


def test_a_checkpoint_of_the_trainer_resumes_and_save_pretrained_is_refused(tmp_path):
    skip_without("transformers")
    output = output_of([sys.executable, str(SCRIPTS / "hf_checkpoints.py"), str(tmp_path)])
    assert "resumed run ends 0.0e+00 from the undisturbed one" in output
    assert "save_pretrained: 'transformer.wte.weight_mu' belongs to a posterior" in output
    assert "save the plain network, to_deterministic(bnn).save_pretrained(folder), or" in output
    assert "from_pretrained gives the mean network" in output
