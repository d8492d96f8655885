"""What goes on inside while values drift: companions of stances, on the same items and checkpoints.

    tracker = ValueTracker(folder, items, [Pmf(), WhiteBox()]).run(checkpoints)
    inside = tracker.table("whitebox")

    margins       for or against, layer by layer, under the logit lens; from which layer on it is settled
    projections   how far states move along the baseline's stance direction, and along directions that mean nothing
    directions    whether that direction still tells stances apart, and how far it has turned
    similarity    linear CKA of states with the baseline's
    behaviour     whether projections move with what the model says, more than random directions do
    weights       how far weights move, module by module (of checkpoints, without prompts)

Each gives a Reading with its controls beside the values, for probes.values.figures.
"""

from probes.values.white.behaviour import behaviour
from probes.values.white.capture import WhiteBox
from probes.values.white.directions import directions, projections, similarity
from probes.values.white.margins import margins
from probes.values.white.weights import weights

__all__ = ["WhiteBox", "behaviour", "directions", "margins", "projections", "similarity", "weights"]
