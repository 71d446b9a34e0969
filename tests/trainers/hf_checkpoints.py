"""Checkpoints of Hugging Face's Trainer and save_pretrained, with weights tied to an embedding and with masks.

A script of its own, as its neighbours here. Its argument is an empty folder.
"""

import sys
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import bensemble
from convert import bayesify, to_deterministic

FOLDER = Path(sys.argv[1])
WORDS = torch.randint(0, 30, (8, 12), generator=torch.Generator().manual_seed(0))
DATA = [{"input_ids": words, "labels": words} for words in WORDS]


def make(seed):
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=30, n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0, use_cache=False
    )
    return bayesify(GPT2LMHeadModel(config), include=["*"])


def trained(bnn, folder, resume=None):
    options = TrainingArguments(
        str(folder), max_steps=4, per_device_train_batch_size=4, save_strategy="steps", save_steps=2, report_to=[],
        disable_tqdm=True, use_cpu=True, learning_rate=1e-2,
    )  # fmt: skip
    Trainer(bnn, options, train_dataset=DATA).train(resume_from_checkpoint=resume)
    return bnn.state_dict()


pruned = make(seed=0)
assert any(posterior.ties for _, posterior in bensemble.named_posteriors(pruned))
bensemble.prune(pruned, sparsity=0.3)
undisturbed = trained(pruned, FOLDER / "first")
resumed = trained(make(seed=1), FOLDER / "second", resume=str(FOLDER / "first" / "checkpoint-2"))
assert undisturbed.keys() == resumed.keys()
assert any(key.endswith("_mask") for key in resumed)
apart = max(float((undisturbed[key] - resumed[key]).abs().max()) for key in resumed)
print(f"resumed run ends {apart:.1e} from the undisturbed one")
assert apart == 0

try:
    pruned.save_pretrained(FOLDER / "refused")
except bensemble.CheckpointError as err:
    print(err)
plain = to_deterministic(pruned.eval())
plain.save_pretrained(FOLDER / "plain")
again = GPT2LMHeadModel.from_pretrained(FOLDER / "plain").eval()
assert torch.equal(again(input_ids=WORDS).logits, pruned(input_ids=WORDS).logits)
print("from_pretrained gives the mean network")
