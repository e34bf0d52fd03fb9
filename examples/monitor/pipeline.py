"""Looks for dead jobs every minute. Each stage that has some is an incident, once a day, which a person takes.

(each minute) -> FOUND -> tell -> WAITING_FOR_SOMEBODY -> (a person) -> TAKEN or IGNORED
                                                       -> (4 hours)  -> ESCALATED

    outbox deploy --app examples.monitor.pipeline:incidents
    outbox worker --app examples.monitor.pipeline:incidents
    outbox schedules
    outbox decide orders.ship@2026-11-26 take --by sarah
"""

from datetime import timedelta

from pydantic import BaseModel

from outbox import Pipeline, Run, Tick, WaitForApproval


class Incident(BaseModel):
    pipeline: str
    stage: str
    dead: int


incidents = Pipeline("incidents", data=Incident, initial="FOUND", final={"TAKEN", "IGNORED", "ESCALATED"})
incidents.allow("WAITING_FOR_SOMEBODY", to={"TAKEN", "IGNORED", "ESCALATED"})


@incidents.every("* * * * *", timezone="Europe/Paris", missed="skip")
async def look(tick: Tick) -> None:
    """Submits incidents in the tick's own transaction. Submitting one that exists changes nothing."""
    found = await tick.connection.execute(
        "SELECT pipeline, stage, sum(dead)::integer FROM outbox.overview WHERE dead > 0 GROUP BY pipeline, stage"
    )
    for pipeline, stage, dead in await found.fetchall():
        incident = Incident(pipeline=pipeline, stage=stage, dead=dead)
        await incidents.submit(tick.connection, f"{pipeline}.{stage}@{tick.at:%Y-%m-%d}", incident)


@incidents.stage("tell", on="FOUND", to="WAITING_FOR_SOMEBODY")
async def tell(run: Run[Incident]) -> WaitForApproval[Incident]:
    run.publish("incidents.found", {"incident": run.entity_id, "dead": run.data.dead})
    return WaitForApproval(
        f"{run.data.dead} jobs of {run.data.pipeline}.{run.data.stage} are dead. Who takes it?",
        options={"take": "TAKEN", "ignore": "IGNORED"},
        deadline=timedelta(hours=4),
        on_deadline="ESCALATED",
        remind_every=timedelta(hours=1),
    )
