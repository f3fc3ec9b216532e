"""What the field `teacher_store` may say. Imports no torch, as the configuration that checks it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class StoreMode:
    """What the field `teacher_store` says, taken apart.

    Attributes:
        on: whether answers are kept at all.
        topk: how many logits of an answer are kept, None for all.
        views: after how many epochs the stream begins anew, None for never.
    """

    on: bool = True
    topk: int | None = None
    views: int | None = None


def parse_store(text: str) -> StoreMode:
    """`off`, `full`, `topk:N`, `views:V`, or the last two joined by `+`.

    Raises:
        ValueError: it is none of these.
    """
    if text in ("off", "full"):
        return StoreMode(on=text == "full")
    found: dict[str, int] = {}
    for part in text.split("+"):
        name, _, number = part.partition(":")
        if name not in ("topk", "views") or name in found or not number.isdecimal() or int(number) < 1:
            raise ValueError("must be off, full, topk:N, views:V or topk:N+views:V, with N and V above 0")
        found[name] = int(number)
    return StoreMode(**found)
