"""What the report of an export says about runtimes, and about an int8 file that does not pay."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from convert.onnx import export_onnx


@pytest.mark.slow
def test_the_report_has_a_row_per_runtime(tmp_path):
    net, x = nn.Linear(64, 32).eval(), torch.randn(1, 64)
    report = export_onnx(net, tmp_path / "m.onnx", x)
    assert report.runtimes == {
        "ONNX Runtime": "1.16 or newer, also node and web",
        "OpenVINO": "yes",
        "tract": "yes",
    }
    assert "runs in     ONNX Runtime: 1.16 or newer" in str(report)
    assert export_onnx(net, tmp_path / "m.onnx", x, opset=21).runtimes["ONNX Runtime"].startswith("1.18 or newer")
    half = export_onnx(nn.Linear(4, 3).half(), tmp_path / "m.onnx", torch.randn(1, 4).half())
    assert half.runtimes["OpenVINO"] == "yes"
    assert half.runtimes["tract"].startswith("no, it computes float16")
    prune.remove(prune.l1_unstructured(net, "weight", 0.9), "weight")
    sparse = export_onnx(net, tmp_path / "m.onnx", x, sparse=True)
    assert (
        sparse.runtimes["OpenVINO"]
        == sparse.runtimes["tract"]
        == ("no, it reads no sparse weights; export with sparse=False")
    )


@pytest.mark.slow
def test_an_int8_file_that_is_larger_than_float_is_reported(tmp_path):
    typical = torch.randn(9, 4)
    options = {"quantize": "int8", "calibration_data": typical}
    small = export_onnx(nn.Linear(4, 3).eval(), tmp_path / "m.onnx", typical[:1], **options)
    assert small.size > small.float_size
    assert "larger than the float file, which has" in str(small)
    typical = torch.randn(9, 300)
    options = {"quantize": "int8", "calibration_data": typical}
    large = export_onnx(nn.Linear(300, 300).eval(), tmp_path / "m.onnx", typical[:1], **options)
    assert large.size < large.float_size
    assert "larger than" not in str(large)
    assert set(large.float_latency_ms) == set(large.latency_ms)


def test_seconds_are_printed_without_a_power_of_ten(tmp_path):
    report = export_onnx(nn.Linear(2, 2).eval(), tmp_path / "m.onnx", torch.randn(1, 2), verify=False)
    report = dataclasses.replace(
        report, max_error=0.0, relative_error=0.0, tolerance=1e-5, latency_ms={1: 8.4712, 128: 1104.2}
    )
    assert "8.47 ms at batch 1, 1,104 ms at batch 128, one thread" in str(report)
