"""Puts the statuses of a pipeline into the order in which workflows go through them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def order(initial: str, changes: Iterable[tuple[str, str]], final: Mapping[str, bool]) -> list[str]:
    """Returns the statuses in the order of the flow: each before those that follow it, and the final ones at the end.

    A change that leads back, as in a loop, decides nothing. Statuses that no change leads to come before the final
    ones. `final` has every status, and whether a workflow ends in it.
    """
    following: dict[str, list[str]] = {}
    for source, target in sorted(changes, reverse=True):
        following.setdefault(source, []).append(target)
    done: list[str] = []
    seen: set[str] = set()
    # The last status of a way is done first, so the reverse has each before those that follow. Not by recursion: a
    # pipeline may have more statuses than Python has levels.
    for start in [initial, *sorted(final)]:
        found: list[str] = []
        ways = [(start, iter(following.get(start, ())))] if start not in seen else []
        seen.add(start)
        while ways:
            status, rest = ways[-1]
            target = next((each for each in rest if each not in seen), "")
            if not target:
                found.append(status)
                ways.pop()
            else:
                seen.add(target)
                ways.append((target, iter(following.get(target, ()))))
        done += found[::-1]
    return sorted(done, key=lambda status: final.get(status, False))
