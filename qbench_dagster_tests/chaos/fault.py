"""What a fault is: when it comes, what it does, how a run that meets it should end. No fault itself."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from qbench_dagster_tests.chaos.proxy import Moment
from qbench_dagster_tests.chaos.site import Site
from qbench_dagster_tests.chaos.warm import Run

KILLED = -9
FAILED = (1, 2)
TOLD = re.compile(r"^(error|failed): \S", re.MULTILINE)
TRACEBACK = re.compile(r"^Traceback |^  File \"", re.MULTILINE)


class UnavailableError(Exception):
    """This fault cannot be made here; the text says why."""


def nothing(_: Site) -> None:
    """Nothing to do."""


@dataclass
class Fault:
    """One fault. `before` the run starts, `strike` at the `moment`, `after` it ended, whatever came of it.

    `codes` are the exit codes a run that met it may end with; where it is 1 or 2, what it tells must match `says`.
    """

    kind: str
    told: str
    codes: Sequence[int]
    says: str = ""
    moment: Moment | None = None
    before: Callable[[Site], None] = nothing
    strike: Callable[[Site, Run], None] | None = None
    after: Callable[[Site], None] = nothing
    cold: bool = False
    """In an interpreter of its own, as from a shell."""
    environment: dict[str, str] = field(default_factory=dict)
    beside: bool = False
    """Another sync of the same export is started at the moment."""
    undoes: bool = False
    """It meets not a sync, but the rollback of one."""

    def unclear(self, code: int, told: str) -> list[str]:
        """What is wrong with how a run ended."""
        wrong = []
        if code not in self.codes:
            wrong.append(f"exit code {code}, not one of {', '.join(map(str, self.codes))}")
        if TRACEBACK.search(told):
            wrong.append("it told a traceback")
        if code in FAILED:
            if not TOLD.search(told):
                wrong.append("it did not tell why")
            elif not re.search(self.says, told, re.IGNORECASE):
                wrong.append(f"what it told does not speak of {self.says}")
        return wrong


Draw = Callable[[Site, random.Random], Fault]
"""Makes a fault with everything random in it drawn. Raises UnavailableError."""


def moment(site: Site, draw: random.Random, *purposes: str) -> Moment:
    """A moment of a sync: any purpose as likely as another, or one of `purposes`, then any of its messages."""
    known = {name: count for name, count in site.messages.items() if count and (not purposes or name in purposes)}
    purpose = draw.choice(sorted(known))
    return Moment(purpose, draw.randint(1, known[purpose]))
