"""Uncertainty, novelty and thresholds in files that the command line exports."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import bensemble
from convert import bayesify
from convert.runtime import UncertaintySession

from .running import assert_one_line, run


@pytest.mark.slow
def test_uncertainty_is_exported_with_its_calibration(nets: Path) -> None:
    torch.manual_seed(0)
    bnn = bayesify(nn.ModuleDict({"body": nn.Linear(4, 5), "head": nn.Linear(5, 3)}), init_sigma=0.3)
    bensemble.save(bnn, "bayesian.safetensors")
    quantiles = tuple(k / 100 for k in range(101))
    reference = {"entropy": quantiles, "mutual_information": quantiles}
    Path("calibration.json").write_text(bensemble.Calibration(1.5, 0.8, 0.1, 40, reference).to_json())
    words = ["--outputs", "uncertainty", "--likelihood", "categorical", "--samples", "3", "--classes", "cat,dog,eel"]
    words += ["--calibration", "calibration.json", "--threshold", "1.5"]
    result = run("export", "nets:Net", "-w", "bayesian.safetensors", "-i", "1x4", "-o", "sure.onnx", *words)
    assert result.exit_code == 0, result.output
    shown = run("inspect", "sure.onnx").stdout
    for part in ("mutual_information: float32[batch]", "prediction_set: bool[batch, 3]", "classes = cat,dog,eel"):
        assert part in shown
    assert "bensemble.num_samples = 3" in shown
    assert "..." in shown  # the reference has 101 numbers for each measure
    held = json.loads(run("inspect", "sure.onnx", "--json").stdout)
    assert json.loads(held["metadata"]["bensemble.reference"])["entropy"] == list(quantiles)
    assert held["zeros"] > 0
    answer = UncertaintySession("sure.onnx")(np.ones((2, 4), "float32"))
    assert set(answer.labels()) <= {"cat", "dog", "eel"}


@pytest.fixture
def known(nets: Path) -> Path:
    """A folder with the weights of a network, and in novelty.safetensors which inputs it knows."""
    torch.manual_seed(0)
    network = runpy.run_path("nets.py")["Net"]()
    torch.save(network.state_dict(), "net.pt")
    x = torch.randn(300, 4)
    batches = [(x[:150], torch.arange(150) % 3)], [(x[150:], torch.arange(150) % 3)]
    bensemble.fit_novelty(network.eval(), *batches).save("novelty.safetensors")
    return nets


UNCERTAIN = ["-w", "net.pt", "-i", "1x4", "-o", "sure.onnx", "--outputs", "uncertainty", "--likelihood", "categorical"]


@pytest.mark.slow
def test_novelty_and_thresholds_are_exported(known: Path) -> None:
    words = ["--novelty", "novelty.safetensors", "--reject", "novelty_pvalue=0.01", "--reject", "entropy=1.5"]
    result = run("export", "nets:Net", *UNCERTAIN, *words)
    assert result.exit_code == 0, result.output
    session = UncertaintySession("sure.onnx")
    assert session.thresholds == {"novelty_pvalue": 0.01, "entropy": 1.5}
    answer = session(np.concatenate([np.zeros((1, 4)), np.full((1, 4), 1e3)]).astype("float32"))
    assert answer.reject().tolist() == [False, True]


@pytest.mark.slow
def test_all_held_out_inputs_count_in_eight_bits(nets: Path) -> None:
    torch.manual_seed(0)
    network = runpy.run_path("nets.py")["Net"]()
    torch.save(network.state_dict(), "net.pt")
    bnn = bayesify(network, include="head", example_inputs=torch.randn(2, 4)).eval()
    bensemble.save(bnn, "bayesian.safetensors")
    x, held_out = torch.randn(300, 4), torch.randn(600, 4)
    bensemble.fit_novelty(bnn, [(x, torch.arange(300) % 3)], [held_out]).save("novelty.safetensors")
    np.savez("held_out.npz", x=held_out.numpy(), labels=np.arange(600) % 3)
    np.savez("few.npz", x=held_out[:100].numpy())
    words = ["export", "nets:Net", *UNCERTAIN, "--novelty", "novelty.safetensors", "--int8"]
    result = run(*words, "held_out.npz", "-w", "bayesian.safetensors")
    assert result.exit_code == 0, result.output
    found = UncertaintySession("sure.onnx")(held_out.numpy())["novelty_pvalue"]
    assert np.mean(found <= 0.1) == pytest.approx(0.1, abs=0.003)
    result = run(*words, "few.npz", "-w", "bayesian.safetensors")
    assert result.exit_code == 1
    assert "got 100 terms with other scores than its 600; give the held-out inputs" in result.stderr
    bensemble.fit_novelty(network.eval(), [(x, torch.arange(300) % 3)], [held_out]).save("novelty.safetensors")
    assert_one_line(run(*words, "held_out.npz"), 1, "Give weights whose last layer alone is Bayesian, or leave out")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--reject", "entropy"], 2, "reject: 'entropy' is not a name and a number; write novelty_pvalue=0.01."),
        (["--reject", "entropy=much"], 2, "reject: 'entropy=much' is not a name and a number"),
        (["--reject", "entropy=1", "--reject", "entropy=2"], 2, "--reject gives two thresholds for one name"),
        (["--outputs", "mean", "--reject", "entropy=1"], 2, "are for a file with uncertainty; add --outputs"),
        (["--outputs", "mean", "--novelty", "novelty.safetensors"], 2, "are for a file with uncertainty; add"),
        (["--novelty", "none.safetensors"], 1, "'none.safetensors'"),
        (["--novelty", "net.pt"], 1, "'net.pt'"),
        (["--novelty", "novelty.safetensors", "--reject", "std=1"], 1, "export: --reject must name uncertainties of"),
        (["--novelty", "novelty.safetensors", "--reject", "novelty_pvalue=2"], 1, "--reject novelty_pvalue must be"),
    ],
)
def test_novelty_and_thresholds_that_cannot_be_used(known: Path, words: list[str], code: int, said: str) -> None:
    assert_one_line(run("export", "nets:Net", *UNCERTAIN, *words), code, said)
    assert not Path("sure.onnx").exists()


@pytest.mark.slow
def test_novelty_of_another_network_is_refused(known: Path) -> None:
    torch.save({name: t + 1 for name, t in torch.load("net.pt").items()}, "net.pt")
    result = run("export", "nets:Net", *UNCERTAIN, "--novelty", "novelty.safetensors")
    assert_one_line(result, 1, "novelty.safetensors")


def test_uncertainty_of_what_has_none_is_refused(nets: Path) -> None:
    words = ["-i", "1x4", "-o", "net.onnx", "--outputs", "uncertainty"]
    assert_one_line(
        run("export", "nets:Net", *words), 1, "needs a Bayesian model, got Net without a posterior; give the"
    )
    Path("calibration.json").write_text("{}")
    result = run("export", "nets:Net", *words, "--calibration", "calibration.json")
    assert_one_line(result, 1, "from_json: text must be what Calibration.to_json wrote, got '{}'")
    result = run("export", "nets:Net", *words, "--calibration", "none.json")
    assert_one_line(result, 1, "calibration: 'none.json' is not a file of at most 1048576 bytes; check the path")
    Path("large.json").write_bytes(bytes(2**20 + 1))
    result = run("export", "nets:Net", *words, "--calibration", "large.json")
    assert_one_line(result, 1, "calibration: 'large.json' is not a file of at most 1048576 bytes; check the path")
    assert not Path("net.onnx").exists()
