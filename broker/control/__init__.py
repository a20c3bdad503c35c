"""The control loops: snapshot, plan, place, reconcile, accrue, finalise. They decide nothing that a room decides."""
