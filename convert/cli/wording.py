"""Messages of the Python functions in the words of the command line: what to change is an option, not an argument."""

from __future__ import annotations

import re

__all__ = ["in_options"]

#: What has another name on the command line, or a cure of its own; the first rules go first.
RULES = (
    (r"\w+ it and fit_posterior, pass novelty=fit_novelty\(\.\.\.\), or export outputs='mean'",
     "give the weights of its Bayesian version with --weights, or --novelty, or leave out --outputs"),
    (r"with novelty needs the val_loader of fit_novelty as calibration_data",
     "with --novelty needs the held-out inputs of the novelty"),
    (r"with novelty needs calibration_data, got None", "with --novelty needs inputs, got none"),
    (r"[Pp]ass (that loader with its targets, and.*time|the val_loader of fit_novelty)",
     "give the held-out inputs of the novelty in an .npz file"),
    (r"novelty needs novelty=fit_novelty\(\.\.\.\)", "novelty needs --novelty"),
    (r"reject=\{'(\w+)': ([^}]*)\}", r"--reject \1=\2"),
    (r"\breject\['(\w+)'\]", r"--reject \1"),
    (r"see convert\.check_noise, or export outputs='mean'", "leave out --outputs"),
    (r"(had|has) no (Bayesian layers|posterior)([^;]*); it can be used as it is",
     r"\1 no \2\3; give the weights of its Bayesian version with --weights"),
    (r"(accept the (?:size|bounds) with|pass) dynamic_shapes=\{.*\}", "export it in Python, with dynamic_shapes"),
    (r"Name the axes that vary[^;]*; (\S)", r"\1"),
    (r"(pass|select one with) output=, a[^.;]*", "let the model return the one that is wanted"),
    (r"name the output that was exported with output=", "let the model return the one that was exported"),
    (r"(\w)\w* it without quantize, or the float model from before", r"\1ive the float model, or leave out --int8"),
    (r"export (it )?without quantize", "leave out --int8"),
    (r"Make the last layer alone Bayesian, .* fit_novelty; or leave quantize out: sparse=True",
     "Give weights whose last layer alone is Bayesian, or leave out --int8; --sparse"),
    (r"Export without quantize", "Leave out --int8"),
    (r"pass typical inputs, a tensor or a loader", "give typical inputs in an .npz file"),
    (r"quantize='int8'|calibration_data", "--int8"),
    (r"sparse=True", "--sparse"),
    (r"verify=False", "--no-verify"),
    (r"metadata\['classes'\]", "--classes"),
    (r"pass what its forward takes: a tensor.*?keyword arguments", "write -i name=shape for each argument of forward"),
    (r"print\(plan\(model\)\)", "`bensemble plan`"),
    (r"\bexample_inputs\b", "--input"),
    (r"\bnum_samples\b", "--samples"),
    (r"\b(max_drop|max_latency_ms|max_size)\b", lambda found: f"--{found[1].replace('_', '-')}"),
    (r"(?<!-)\b(outputs|likelihood|granularity|threshold|sparsity|opset|include|exclude|calibration|key)="
     r"(?:'([^']*)'|(\w*))", lambda found: f"--{found[1]} {found[2] or found[3] or ''}".rstrip()),
    (r"(--max-[\w-]+)=", r"\1 "),
    (r"(?m)^(\w+: |)(outputs|likelihood|granularity|threshold|sparsity|opset|calibration|evaluate|progress|reject)"
     r"(:| must)",
     r"\1--\2\3"),
)  # fmt: skip

#: The functions behind the commands, as they begin a message.
FUNCTIONS = "export_onnx|inspect_onnx|compare_onnx|compare|prune|bayesify|to_deterministic|channel_groups|compact"


def in_options(message: str, command: str) -> str:
    """The message of a public function for a user who typed a command."""
    for pattern, words in RULES:
        message = re.sub(pattern, words, message)
    return re.sub(rf"^({FUNCTIONS}): ", f"{command}: ", message) if command else message
