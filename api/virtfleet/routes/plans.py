"""`/plans`."""

from apiflask import APIBlueprint
from flask import Response

from virtfleet import database
from virtfleet.routes.door import answer, caller, require
from virtfleet.schemas.plans import PlanIn
from virtfleet.services import plans

blueprint = APIBlueprint("plans", __name__, tag="plans")


@blueprint.post("/plans")
@require("plans:read")
@blueprint.input(PlanIn)
def make_plan(json_data: PlanIn) -> Response:
    """Plan moves that balance, consolidate or drain hosts, or see what an event would do

    Nothing is moved or reserved. The plan is over what was last seen of the zone, machines of all projects included:
    every move with its reason, what must stay and why, and the whole as lines to read.
    """
    given = json_data.model_dump(exclude_none=True)
    with database.read() as session:
        draft = plans.prepare(session, caller(), given)
    # The database is free again: a large fleet takes seconds.
    return answer(plans.draw(draft))
