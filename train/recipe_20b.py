"""An adapter for gpt-oss-20b, trained on one GPU of 80 GB by transformers and PEFT, on the same tokens as ours.

    python -m train.finetune --data FILE.jsonl --model DIR --tokens TOKENS       DIR: openai/gpt-oss-20b, downloaded
    python -m train.recipe_20b --model DIR --tokens TOKENS --out ADAPTER

The numbers are those of OpenAI's recipe (cookbook, "Fine-tuning with gpt-oss and Hugging Face Transformers"). There the
experts of three layers are adapted. The loss is taken on what the assistant says, as the labels have it (in OpenAI's
recipe it is on all tokens). It needs the packages accelerate and peft. With the small model as DIR it runs on any
processor; with the 20b it has not been run by us.
"""

if __name__ == "__main__":
    import program

    program.begin()

import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Mxfp4Config, Trainer, TrainingArguments

import program


def collate(rows):
    """Examples as a batch, the shorter ones filled up on the right. Labels of -100 are not learned."""
    n = max(len(row["input_ids"]) for row in rows)
    ids = [row["input_ids"] + [0] * (n - len(row["input_ids"])) for row in rows]
    labels = [row["labels"] + [-100] * (n - len(row["labels"])) for row in rows]
    mask = [[1] * len(row["input_ids"]) + [0] * (n - len(row["input_ids"])) for row in rows]
    return {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels), "attention_mask": torch.tensor(mask)}


@program.ends("python -m train.recipe_20b")
def main():
    parser = program.parser("python -m train.recipe_20b", "Train an adapter on a GPU.")
    for name in ("--model", "--tokens", "--out"):
        parser.add_argument(name, required=True)
    args = parser.parse_args()
    rows = [json.loads(line) for line in Path(args.tokens).read_text().splitlines()]
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16, attn_implementation="eager",
                                                 quantization_config=Mxfp4Config(dequantize=True), use_cache=False)
    layers = model.config.num_hidden_layers
    adapted = [f"{i}.mlp.experts.{name}" for i in sorted({layers // 3 - 1, 2 * layers // 3 - 1, layers - 1})
               for name in ("gate_up_proj", "down_proj")]  # layers 7, 15 and 23 of the 20b
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear",
                                             target_parameters=adapted, task_type="CAUSAL_LM"))
    model.print_trainable_parameters()
    settings = TrainingArguments(
        args.out + ".trainer", num_train_epochs=1, per_device_train_batch_size=4, gradient_accumulation_steps=4,
        learning_rate=2e-4, lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs={"min_lr_rate": 0.1},
        warmup_steps=0.03, gradient_checkpointing=True, bf16=torch.cuda.is_available(), logging_steps=1,
        save_strategy="no", report_to="none", remove_unused_columns=False)
    Trainer(model, settings, train_dataset=rows, data_collator=collate).train()
    model.save_pretrained(args.out)


if __name__ == "__main__":
    sys.exit(main())
