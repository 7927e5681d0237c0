"""EmbSum's own summaries against an LLM's: python -m studies.content_summaries --content C --tokens T --text tastes --out FILE.

EmbSum is taught the texts of all users but the last ``held``; then it writes those of the held users, of whom it read histories
and impressions but no text. ROUGE against what the LLM wrote of them, beside two that have read nothing of the user's history for
it: the LLM's text of another user, and the extractive text. One JSON line a held user. The encoder is frozen as in
studies.content_rankers.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import tyro

from rayrec.data.content import ContentLog, Lists, UserTexts, write_content
from rayrec.data.content.batches import ContentInputs
from rayrec.data.content.tokens import ContentTokens, write_tokens
from rayrec.errors import told
from rayrec.metrics.rouge import rouge
from rayrec.models.embsum import Embsum
from rayrec.text.user_interests import extractive_interests
from rayrec.training.loop import run_training
from rayrec.training.worker import Worker
from rayrec.typed_json import ConfigError
from studies.content_rankers import ContentStudy, Nowhere, experiment_of, states_name, written_ids
from studies.content_states import KeptTask, kept_states

TAUGHT, TOGETHER = "taught", 20


@dataclass(frozen=True)
class SummaryStudy(ContentStudy):
    """As ContentStudy; text: what is to be written."""

    text: str | None = "tastes"
    """Version of user texts."""
    held: int = 100
    """Users whose text is not taught."""
    seed: int = 0
    """Of the draw and of the model."""


def run(study: SummaryStudy) -> None:
    assert study.text is not None
    inputs = experiment_of(study, "two_tower", 0).inputs()
    log, tokens = inputs.log, inputs.tokens
    if log.user_texts[study.text].before == "impressions":
        raise ConfigError(
            f"user texts {study.text!r} are of histories; this study holds out users, and wants texts of users"
        )
    taught = len(log.users) - study.held
    content, folder = study.out.with_suffix(".log"), study.out.with_suffix(".tokens")
    _write_taught(study.text, log, tokens, taught, content, folder)
    experiment = experiment_of(replace(study, content=content, tokens=folder, text=TAUGHT), "embsum", study.seed)
    file = study.out.parent / states_name(tokens, study.text, study.components)
    task = experiment.task()
    states = kept_states(file, task, tokens.items, tokens.user_texts[study.text], study.components)
    kept = KeptTask(task, states, written_ids(experiment))
    run_training(kept, experiment.data(Worker()), experiment.loop, experiment.optimizer, Nowhere())
    own = summaries(kept, experiment.inputs(), range(taught, len(log.users)))
    references = [log.user_texts[study.text].texts[user].as_py() for user in range(len(log.users))]
    starts = [_cut(reference, tokens) for reference in references]
    columns = [log.items.texts[one.name].to_pylist() for one in log.items.fields]
    contents = [" ".join(parts) for parts in zip(*columns, strict=True)]
    phrases = extractive_interests(contents, [(log.histories[int(row)] - 1).tolist() for row in log.current])
    others = np.random.default_rng(0).integers(0, taught, study.held)
    with study.out.open("w", encoding="utf-8") as stream:
        for place, user in enumerate(range(taught, len(log.users))):
            texts = {"own": own[place], "another user's": starts[others[place]], "extractive": phrases[user]}
            scores = {name: rouge(text, starts[user]) for name, text in texts.items()}
            line = {"user": log.users[user].as_py(), "llm": starts[user], **texts, "rouge": scores}
            stream.write(json.dumps(line) + "\n")
    lines = [json.loads(line) for line in study.out.read_text(encoding="utf-8").splitlines()]
    for name in ("own", "another user's", "extractive"):
        means = {key: np.mean([line["rouge"][name][key] for line in lines]) for key in ("rouge1", "rouge2", "rougeL")}
        print(f"{name}: " + ", ".join(f"{key} {value:.4f}" for key, value in means.items()), flush=True)
    print(f"{len(set(own))} of {len(own)} own texts differ from each other")


def _write_taught(text: str, log: ContentLog, tokens: ContentTokens, taught: int, content: Path, folder: Path) -> None:
    """The log with one version more, whose texts end with user ``taught``, and its tokens."""
    users, own = len(log.users), tokens.user_texts[text]
    texts = [log.user_texts[text].texts[user].as_py() if user < taught else "" for user in range(users)]
    more = log.with_texts(TAUGHT, UserTexts(log.user_texts[text].generator, pa.array(texts, pa.string())))
    lists = Lists.of(own[user] if user < taught else [] for user in range(users))
    record = replace(tokens.record, generators={**tokens.record.generators, TAUGHT: log.user_texts[text].generator})
    write_content(content, more, overwrite=True)
    write_tokens(
        folder, replace(tokens, record=record, user_texts={**tokens.user_texts, TAUGHT: lists}), overwrite=True
    )


@torch.no_grad()
def summaries(task: KeptTask, inputs: ContentInputs, users: Sequence[int]) -> list[str]:
    """What a trained EmbSum writes of users' current histories."""
    model, found = task.model.eval(), []
    assert isinstance(model, Embsum)
    nothing = np.zeros((0, 1), dtype=np.int64)
    for start in range(0, len(users), TOGETHER):
        rows = inputs.log.current[list(users[start : start + TOGETHER])]
        batch = inputs.batch(rows, nothing[:, 0], nothing, nothing)
        written = model.write(model.encoder.history(batch.contents, batch.histories)).tokens
        found += [inputs.tokens.tokenizer.decode(ids) for ids in task.written[written].tolist()]
    return found


def _cut(text: str, tokens: ContentTokens) -> str:
    """As much of a text as was taught."""
    (ids,) = tokens.tokenizer.texts([text], tokens.record.max_text_tokens)
    return tokens.tokenizer.decode(ids)


def main() -> None:
    torch.set_num_threads(1)
    with told():
        run(tyro.cli(SummaryStudy, description=__doc__))


if __name__ == "__main__":
    main()
