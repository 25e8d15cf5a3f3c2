"""Who takes part in a trial: its roles, and what each agent of them is told."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from loadgen.agent import AgentSpec

if TYPE_CHECKING:
    from loadgen.agent import Role
    from loadgen.board import Board
    from loadgen.driver import Target
    from loadgen.plan import Trial


def roster(trial: Trial, target: Target, token: int, board: Board, cpus: tuple[int, ...]) -> list[AgentSpec]:
    """Every agent of a trial with its row of the board; consumers first, who wait when the first message is sent."""
    last = target.onward if trial.pattern.kind == "process" and target.onward is not None else target
    roles: list[tuple[Role, int, Target]] = [
        (trial.pattern.receiving_role, trial.consumers, last.of(subscriber)) for subscriber in range(trial.subscribers)
    ]
    roles.append(("processor", trial.pattern.processors, target))
    roles.append((trial.pattern.sending_role, trial.producers, target))
    specs: list[AgentSpec] = []
    for role, count, theirs in roles:
        for index in range(count):
            # Each begins with another node, so that no node of a cluster serves all; Kafka's clients find leaders.
            turned = replace(theirs, endpoint=theirs.endpoint.turned(index))
            specs.append(
                AgentSpec(
                    role=role,
                    name=f"{role}{theirs.subscriber * count + index}",
                    row=len(specs) + 1,
                    index=index,
                    count=count,
                    driver=trial.driver,
                    target=turned,
                    message=trial.message,
                    rate=trial.rate,
                    seed=trial.seed,
                    token=token,
                    warmup_s=trial.warmup_s,
                    duration_s=trial.duration_s,
                    consumers=trial.consumers,
                    think=trial.think,
                    backlog=trial.backlog,
                    membership=trial.membership,
                    is_hurt=bool(trial.faults) or trial.settings.get("recover_within_s") is not None,
                    comes_and_goes=role == "consumer" and index == count - 1 and bool(trial.membership.changes),
                    pattern=trial.pattern,
                    board=board.path,
                    rows=board.rows,
                    cpus=cpus,
                )
            )
    return specs
