"""The stages of a preparation, each a datatrove pipeline that runs in a number of tasks; a stage needs all before it.

Without a recipe: tokenizer (where one is trained), tokenise. With one: evals, filter, exact, signatures, buckets, clusters,
as far as it asks for them; `filter` writes what it kept, which the later stages read.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from datatrove.data import Document
from datatrove.pipeline import filters
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.decont import NGramsDecontFilter
from datatrove.pipeline.dedup import (
    ExactDedupConfig,
    ExactDedupFilter,
    ExactDedupSignature,
    ExactFindDedups,
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.writers import JsonlWriter

from harness.data.preparation.decontamination import HASHES, IndexEvals, decontamination_config
from harness.data.preparation.encode import EncodeDocuments
from harness.data.preparation.job import TOKENIZER_NAME, Job
from harness.data.preparation.language import LanguageFilter
from harness.data.preparation.readers import DocumentReader
from harness.data.preparation.recipe import FILTERS, MinhashRule
from harness.data.preparation.steps import (
    CountProgress,
    DropWithoutText,
    KeptDocuments,
    RemovedSample,
    Seal,
    Tally,
    TrainTokenizer,
)

TASKS_PER_EXACT_FINDER = 64
"""Signature files that one task of the stage `exact` merges, on average."""

Pipeline = list[PipelineStep]


@dataclass(frozen=True)
class Stage:
    """One step of the way."""

    name: str
    tasks: int
    pipeline: Callable[[], Pipeline]
    progress: Literal["input", "documents", "characters", "tasks"] = "tasks"
    """What its progress bar counts."""


def stages(job: Job) -> list[Stage]:
    """All stages of a job, in order."""
    recipe, tasks = job.recipe, job.inputs.tasks
    found: list[Stage] = []
    if recipe.drops:
        if recipe.decontaminate:
            found.append(Stage("evals", 1, lambda: _index_evals(job)))
        found.append(Stage("filter", tasks, lambda: _filter(job), "input"))
        if recipe.exact_dedup:
            found.append(Stage("exact", _exact_finders(tasks), lambda: _find_exact(job)))
        if near := recipe.minhash_dedup:
            found += [
                Stage("signatures", tasks, lambda: _sign(job), "documents"),
                Stage("buckets", near.num_buckets, lambda: _find_near(job)),
                Stage("clusters", 1, lambda: _cluster(job)),
            ]
    if job.vocab_size is not None:
        found.append(Stage("tokenizer", 1, lambda: _train(job), "characters"))
    found.append(Stage("tokenise", tasks, lambda: _tokenise(job), "documents" if recipe.drops else "input"))
    return found


def find_stage(job: Job, name: str) -> Stage:
    """The stage of that name."""
    return next(stage for stage in stages(job) if stage.name == name)


def _index_evals(job: Job) -> Pipeline:
    assert job.recipe.decontaminate is not None
    return [IndexEvals(job.recipe.decontaminate, job.work / "evals", job.recipe.word_language)]


def _filter(job: Job) -> Pipeline:
    """Everything that looks at one document alone."""
    recipe = job.recipe
    pipeline = [_reader(job, account=True), CountProgress(job.progress("filter")), Tally("read")]
    if recipe.language:
        pipeline += [LanguageFilter(recipe.language, _removed(job, "language")), Tally("language", languages=True)]
    for name, given in recipe.filters.items():
        kind = getattr(filters, FILTERS[name])
        step = kind(**given, exclusion_writer=_removed(job, name), language=recipe.word_language)
        pipeline += [step, Tally(name)]
        if name == "c4_quality":  # it also drops lines
            pipeline += [DropWithoutText(), Tally("without_text")]
    if rule := recipe.decontaminate:
        config, folder = decontamination_config(rule), str(job.work / "evals")
        step = NGramsDecontFilter(folder, config, _removed(job, "decontaminate"), recipe.word_language)
        pipeline += [step, Tally("decontaminate")]
    pipeline.append(JsonlWriter(str(job.work / "kept"), compression="gzip"))
    if recipe.exact_dedup:
        finders = _exact_finders(job.inputs.tasks)
        pipeline.append(ExactDedupSignature(str(job.work / "exact_signatures"), _exact_config(), finders))
    return pipeline


def _find_exact(job: Job) -> Pipeline:
    return [ExactFindDedups(str(job.work / "exact_signatures"), str(job.work / "exact"), _exact_config())]


def _sign(job: Job) -> Pipeline:
    config, folder = _minhash_config(job), str(job.work / "minhash_signatures")
    signer = MinhashDedupSignature(folder, config, job.recipe.word_language)
    return [_kept(job), CountProgress(job.progress("signatures"), documents=True), *_exact_filter(job), signer]


def _find_near(job: Job) -> Pipeline:
    signatures, pairs = str(job.work / "minhash_signatures"), str(job.work / "minhash_pairs")
    return [MinhashDedupBuckets(signatures, pairs, config=_minhash_config(job))]


def _cluster(job: Job) -> Pipeline:
    return [MinhashDedupCluster(str(job.work / "minhash_pairs"), str(job.work / "minhash"), _minhash_config(job))]


def _train(job: Job) -> Pipeline:
    assert job.vocab_size is not None
    documents, progress = lambda: _final_documents(job), job.progress("tokenizer")
    return [TrainTokenizer(documents, job.inputs.tasks, job.tokenizer, job.vocab_size, progress)]


def _tokenise(job: Job) -> Pipeline:
    encode = EncodeDocuments(job.folder, job.tokenizer)
    progress = CountProgress(job.progress("tokenise"), documents=job.recipe.drops)
    first, *rest = _final_documents(job, for_good=True)
    tallies = [Tally("read")] if not job.recipe.drops else []
    seal = Seal(job.folder, job.work / "sums", TOKENIZER_NAME)
    return [first, progress, *tallies, *rest, encode, seal]


def _final_documents(job: Job, for_good: bool = False) -> Pipeline:
    """Steps that yield what is tokenised. `for_good`: what they pass over and remove is recorded."""
    if not job.recipe.drops:
        return [_reader(job, for_good)]
    exact, near = (_removed(job, step) if for_good else None for step in ("exact_dedup", "minhash_dedup"))
    pipeline = [_kept(job), *_exact_filter(job, exact)]
    if job.recipe.exact_dedup:
        pipeline.append(Tally("exact_dedup"))
    if job.recipe.minhash_dedup:
        pipeline += [MinhashDedupFilter(str(job.work / "minhash"), near), Tally("minhash_dedup")]
    return pipeline


def _reader(job: Job, account: bool) -> PipelineStep:
    return DocumentReader(job.inputs, max_bad_rows=job.max_bad_lines, account=job.account if account else None)


def _kept(job: Job) -> PipelineStep:
    return KeptDocuments(job.work / "kept")


def _removed(job: Job, step: str) -> RemovedSample | None:
    return RemovedSample(job.folder / "logs" / "removed" / step, job.keep_removed) if job.keep_removed else None


def _exact_filter(job: Job, removed: RemovedSample | None = None) -> Pipeline:
    return [ExactDedupFilter(str(job.work / "exact"), _exact_config(), removed)] if job.recipe.exact_dedup else []


def _exact_finders(tasks: int) -> int:
    return max(1, tasks // TASKS_PER_EXACT_FINDER)


def _text_of(document: Document) -> str:
    return document.text


def _exact_config() -> ExactDedupConfig:
    return ExactDedupConfig(content_getter=_text_of, hash_config=HASHES, only_dedup_in_index=False)


def _minhash_config(job: Job) -> MinhashConfig:
    assert job.recipe.minhash_dedup is not None
    return minhash_config(job.recipe.minhash_dedup)


def minhash_config(rule: MinhashRule) -> MinhashConfig:
    """As datatrove's steps take it."""
    return MinhashConfig(
        n_grams=rule.n_grams,
        num_buckets=rule.num_buckets,
        hashes_per_bucket=rule.hashes_per_bucket,
        hash_config=HASHES,
    )
