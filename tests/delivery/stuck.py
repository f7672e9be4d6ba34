"""A process that receives and gets stuck: what a test starts, as a process of its own."""

from __future__ import annotations

import time
from typing import Any

from pipeline.delivery.node import receiver
from pipeline.delivery.node.guard import GuardedServer


def receive_until_stuck(*arguments: Any) -> None:
    """Receive, and take no other connection once one has come."""
    receiver.STUCK_S = 1.0
    GuardedServer.process_request = lambda *_: time.sleep(600)
    receiver.receive(*arguments)
