"""What a Ray user writes today: Tune with OptunaSearch and ASHA over a Hugging Face Trainer whose model has two heads.

    python benchmarks/search_cost/recipe.py --encoder FOLDER --training TABLE --validation TABLE --template T --heads A B --seed 0

Run by `search_cost.py`. Prints a line of JSON after every epoch of every trial: its number and its mean macro-F1 on the validation texts.
Needs `pip install --no-deps accelerate` beside this project.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")


def train(config: dict[str, Any], options: argparse.Namespace) -> None:
    import numpy as np
    import pandas as pd
    import torch
    from ray import tune
    from sklearn.metrics import f1_score
    from torch import nn
    from transformers import AutoModel, AutoTokenizer, DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments

    torch.set_num_threads(1)
    tables = {split: pd.read_csv(path, dtype=str, keep_default_na=False) for split, path in options.tables.items()}
    classes = {head: sorted(set(tables["training"][head]) - {""}) for head in options.heads}
    tokenizer = AutoTokenizer.from_pretrained(options.encoder)

    class Texts(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __init__(self, table: pd.DataFrame) -> None:
            texts = [options.template.format(**row) for row in table.to_dict("records")]
            self.encoded = tokenizer(texts, truncation=True, max_length=options.max_tokens)
            index = {head: {name: place for place, name in enumerate(names)} for head, names in classes.items()}
            self.labels = np.array([[index[head].get(row[head], -100) for head in options.heads] for row in table.to_dict("records")])

        def __len__(self) -> int:
            return len(self.labels)

        def __getitem__(self, place: int) -> dict[str, torch.Tensor]:
            return {key: values[place] for key, values in self.encoded.items()} | {"labels": self.labels[place]}

    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = AutoModel.from_pretrained(options.encoder)
            width = self.encoder.config.hidden_size
            self.heads = nn.ModuleList(nn.Linear(width, len(names)) for names in classes.values())
            self.dropout = nn.Dropout(config["dropout"])

        def forward(self, input_ids: Any, attention_mask: Any, labels: Any = None, **_: Any) -> dict[str, Any]:
            hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state[:, 0]
            logits = [head(self.dropout(hidden)) for head in self.heads]
            weights = (1.0, config["second_weight"])
            known = labels.T.contiguous()
            losses = [nn.functional.cross_entropy(one, own, ignore_index=-100) for one, own in zip(logits, known, strict=True)]
            return {"loss": sum(weight * loss for weight, loss in zip(weights, losses, strict=True)), "logits": tuple(logits)}

    def scores(prediction: Any) -> dict[str, float]:
        every = []
        for place, logits in enumerate(prediction.predictions):
            known = prediction.label_ids[:, place] >= 0
            every.append(f1_score(prediction.label_ids[known, place], logits[known].argmax(axis=1), average="macro", zero_division=0.0))
        return {"score": float(np.mean(every))}

    class Reports(TrainerCallback):
        def on_evaluate(self, *_: Any, metrics: dict[str, float], **__: Any) -> None:
            tune.report({"score": metrics["eval_score"]})

    torch.manual_seed(options.seed)
    arguments = TrainingArguments(
        output_dir=str(Path.cwd() / "trainer"),
        num_train_epochs=options.epochs,
        learning_rate=config["learning_rate"],
        weight_decay=0.01,
        warmup_steps=0.1,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=32,
        eval_strategy="epoch",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        seed=options.seed,
        use_cpu=not options.gpu,
        bf16=options.gpu > 0,
        label_names=["labels"],
    )
    Trainer(
        TwoHeads(),
        arguments,
        data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=Texts(tables["training"]),
        eval_dataset=Texts(tables["validation"]),
        compute_metrics=scores,
        callbacks=[Reports()],
    ).train()


def main() -> None:
    import ray
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--training", type=Path, required=True)
    parser.add_argument("--validation", type=Path, required=True)
    parser.add_argument("--template", required=True)
    parser.add_argument("--heads", nargs="+", required=True)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--encoder", required=True, help="folder")
    parser.add_argument("--gpu", type=float, default=0.0, help="of a trial")
    options = parser.parse_args()
    options.tables = {"training": str(options.training.resolve()), "validation": str(options.validation.resolve())}

    class Printed(tune.Callback):  # type: ignore[misc]
        def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
            print(json.dumps({"trial": trial.trial_id, "epoch": result["training_iteration"], "score": result["score"]}), flush=True)

    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    tune.Tuner(
        tune.with_resources(tune.with_parameters(train, options=options), {"cpu": 1, "gpu": options.gpu}),
        param_space={
            "learning_rate": tune.loguniform(1e-5, 1e-4),
            "second_weight": tune.loguniform(0.25, 4.0),
            "dropout": tune.uniform(0.0, 0.4),
        },
        tune_config=tune.TuneConfig(
            metric="score",
            mode="max",
            num_samples=options.trials,
            search_alg=OptunaSearch(seed=options.seed),
            scheduler=ASHAScheduler(max_t=options.epochs, grace_period=1, reduction_factor=3),
        ),
        run_config=tune.RunConfig(storage_path=str(Path.cwd() / "recipe"), callbacks=[Printed()], verbose=0),
    ).fit()


if __name__ == "__main__":
    main()
