"""Defines where a test may kill the process: `OUTBOX_KILL_AT=K3` ends it with SIGKILL when it passes that point.

K1 claim committed · K2 in the handler before its effect · K3 after the effect and before COMMIT · K4 COMMIT sent and
its answer not read · K5 COMMIT answered · K7 sweeper between select and update · K8 promoter between due and ready · K9
message published and its confirm not read · K10 confirmed and the cursor not moved · K12 between two migrations · K13 a
delivery's transaction committed and the delivery not acknowledged · K14 an effect's intention committed and the call
not made · K15 the call made and its result not written · K16 the result committed. K2 is the handler's own. Where
select and update are one statement (K7, K8), the point is right after that statement was sent. `K3:5` kills at the
fifth pass.
"""

from __future__ import annotations

import asyncio
import os
import signal

_point, _, _count = os.environ.get("OUTBOX_KILL_AT", "").partition(":")
_left = int(_count or 1)


def passing(point: str) -> None:
    """Kills this process if `point` is the chosen kill point."""
    if _point == point:
        _kill()


def sending(point: str) -> None:
    """Kills this process as soon as the data that the current task is about to send has been sent.

    It does so in the third turn of the event loop: a statement is sent before the first turn, a pipeline in the second.
    """
    if _point == point:
        soon = asyncio.get_running_loop().call_soon
        soon(soon, soon, _kill)


def _kill() -> None:
    global _left
    _left -= 1
    if _left <= 0:
        os.kill(os.getpid(), signal.SIGKILL)
