"""What a study keeps of its teacher's answers: how much, what that takes, and what may be wrong with it."""

import shutil
from pathlib import Path

from search.paths import is_url
from search.settings import Settings
from trainables.config import TrialConfig
from trainables.distillers import distillers_of
from trainables.distillers.base import TEACHER_EMBEDDING, TEACHER_FEATURES
from trainables.store_mode import parse_store

TEACHER_STORE = "teacher_store"  # folder of the storage


def store_url(settings: Settings, storage: Path) -> str:
    """Where the teacher's answers are kept: `teacher_store_at`, or a folder of the storage."""
    here = f"{settings.storage.rstrip('/')}/{TEACHER_STORE}" if is_url(settings.storage) else None
    return settings.teacher_store_at or here or str((storage / TEACHER_STORE).resolve())


def is_stored(config: TrialConfig) -> bool:
    """Whether a trial's answers are kept: it has a teacher, and its distillers compare no feature maps."""
    needs = set().union(*(one.needs for one in distillers_of(config.distiller)))
    return config.store_mode.on and config.distiller != "none" and TEACHER_FEATURES not in needs


def store_estimate(
    config: TrialConfig, images: int, streams: int, answer_s: float, classes: int, embedding: int
) -> dict[str, float]:
    """What a study's answers take.

    Args:
        config: a trial as most are.
        images: of the training split.
        streams: the search's, and one for each seed of the final.
        answer_s: seconds that the teacher takes for an image.
        classes: C.
        embedding: the width of the teacher's embedding.

    Returns:
        `store_mb`, and `store_s`, the seconds that one worker takes to compute what is kept.
    """
    from trainables.teacher_store.records import TopK, Whole

    mode, dtype = config.store_mode, config.teacher_store_dtype
    record = (TopK(classes, mode.topk, dtype) if mode.topk else Whole(classes, dtype)).record.itemsize
    if any(TEACHER_EMBEDDING in one.needs for one in distillers_of(config.distiller)):
        record += Whole(embedding, dtype).record.itemsize
    epochs = min(config.epochs, mode.views or config.epochs)
    answers = images // config.batch_size * config.batch_size * epochs * streams
    return {"store_mb": answers * record / 1e6, "store_s": answers * answer_s}


def check_store(settings: Settings, classes: int) -> None:
    """What would fail in every trial.

    Raises:
        InputError: `teacher_store` keeps as many logits as there are classes, or `teacher_store_at` cannot be used.
    """
    from trainables.teacher_store.parts import file_system
    from trainables.teacher_store.records import TopK

    mode = parse_store(settings.teacher_store)
    if mode.topk:
        TopK(classes, mode.topk, settings.teacher_store_dtype)
    if settings.teacher_store_at:
        file_system(settings.teacher_store_at)


def store_notes(drawn: list[TrialConfig]) -> list[str]:
    """Where a study's trials hardly share any answers."""
    from trainables.teacher_store.key import AUGMENTATION

    kept = [config for config in drawn if is_stored(config)]
    changing = sorted(
        name for name in (*AUGMENTATION, "batch_size") if len({str(getattr(config, name)) for config in kept}) > 1
    )
    if not changing:
        return []
    return [
        f"teacher_store: the teacher's answers differ with {', '.join(changing)}, which the space searches: only "
        "trials that have the same share them (--set teacher_store=off keeps none)"
    ]


def room_warning(url: str, megabytes: float) -> str | None:
    """One line where a local store has no room for all answers."""
    place = Path(url)
    if "://" in url:
        return None
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / 1e6
    if free > megabytes:
        return None
    return (
        f"teacher_store: {megabytes:,.0f} MB of answers, and {url} has {free:,.0f} MB free: what does not fit is "
        "computed again (--set teacher_store=topk:16, or views:4, takes less)"
    )
